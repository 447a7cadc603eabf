"""What trained policies are worth: evaluation, statistics over seeds, comparisons, figures."""
