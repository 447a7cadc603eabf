"""Tables of a comparison, and of gradient estimators, for people."""

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.table import Table

from agent.analysis.comparison import Comparison, Summary
from agent.bootstrap import Interval
from agent.tables import new_table, number


def gradients_table(rows: Sequence[Mapping[str, Any]], batch_size: int) -> Table:
    """An estimator's name, then a row per tau; the smallest error at the batch size of the run is bold."""
    batches = sorted({1, batch_size, 1024})
    table = new_table("estimator", "bias", "std", "cosine", *(f"error at {b:,}" for b in batches), "µs")
    table.columns[0].no_wrap, table.padding = True, (0, 0)  # of 80 columns none is left over
    errors = [[math.hypot(row["relative_bias"], row["relative_std"] / math.sqrt(b)) for b in batches] for row in rows]
    of_run = [own[batches.index(batch_size)] for own in errors]
    name = ""
    for row, own in zip(rows, errors, strict=True):
        if row["tau"] is not None and row["estimator"] != name:
            table.add_row(row["estimator"])
        name = row["estimator"]
        table.add_row(
            name if row["tau"] is None else f"  tau {row['tau']:g}",
            in_five(row["relative_bias"]),
            in_five(row["relative_std"]),
            in_five(row["cosine"]),
            *map(in_five, own),
            f"{row['microseconds']:.0f}",
            style="bold" if own[batches.index(batch_size)] == min(of_run) else None,
        )
    table.caption = (
        "relative to the norm of the exact gradient: bias and standard deviation of one draw, and root mean squared "
        f"error of the mean of 1 and more draws; bold: the smallest at the run's batch of {batch_size}"
    )
    return table


def in_five(value: float) -> str:
    """A number of at most five signs, and a minus: 0.123, 5.83, 10.4, 5e+06."""
    decimals = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1
    return f"{value:.{decimals}f}" if abs(value) < 1000 else f"{value:.0e}"


def summary_table(comparison: Comparison) -> Table:
    """One row per entry: returns at the end and during training, steps to the threshold, cost."""
    table = new_table("", "seeds", "at the end", "worst", "in training", "to threshold", "time")
    table.title = f"{comparison.env_id}: greedy return, IQM over seeds [95 % interval]"
    table.columns[0].min_width = longest_word(comparison)
    for summary in comparison.summaries:
        table.add_row(
            summary.label,
            str(summary.num_seeds),
            over_interval(summary.final_iqm, summary.final_interval) + mark(comparison, summary.label),
            number(summary.final_worst),
            over_interval(summary.area, summary.area_interval),
            steps(summary),
            str(timedelta(seconds=round(summary.wall_seconds))),
        )
    table.caption = "\n".join(notes(comparison))
    return table


def longest_word(comparison: Comparison) -> int:
    """Columns that labels need not to break within a word, as far as a terminal has them."""
    return min(30, max(len(word) for summary in comparison.summaries for word in summary.label.split()))


def notes(comparison: Comparison) -> list[str]:
    """How to read the results, as far as it concerns these."""
    lines = []
    if any(mark(comparison, summary.label) for summary in comparison.summaries):
        lines.append(f"* differs from {comparison.best.label}, the best: the interval of the difference excludes zero")
    if comparison.threshold is not None:
        lines.append(
            f"threshold {comparison.threshold:g}: steps to the first evaluation there, and until three in a row are; "
            "median over seeds (seeds that got there)"
        )
    if comparison.without_test:
        lines.append(f"{comparison.without_test}, and the intervals are too narrow")
    for entry in comparison.entries:
        if num_cut := sum(replication.num_cut for replication in entry.replications):
            lines.append(f"{entry.label}: {num_cut} episodes at the end were cut (evaluation.max_episode_steps)")
    return lines


def mark(comparison: Comparison, label: str) -> str:
    """A star where an entry's final return differs from the best one's."""
    against_best = comparison.against_best(label)
    return " *" if against_best and against_best.final_differs else ""


def steps(summary: Summary) -> str:
    if summary.steps_to_reach is None or summary.steps_to_hold is None:
        return "–"
    first, held = ("never" if math.isinf(x) else f"{x:.0f}" for x in (summary.steps_to_reach, summary.steps_to_hold))
    return f"{first}, {held}\n({summary.num_reached} of {summary.num_seeds})"


def pairs_table(comparison: Comparison) -> Table:
    """One row per pair; a difference is marked only where its interval excludes zero."""
    table = new_table("", "P(better than)", "at the end", "in training")
    table.title = "Probability of improvement, and difference of IQMs"
    table.columns[0].min_width = longest_word(comparison)
    listed: set[tuple[str, str]] = set()
    for pair in comparison.pairs:
        if (pair.worse, pair.better) in listed:  # the same pair the other way round
            continue
        listed.add((pair.better, pair.worse))
        table.add_row(
            f"{pair.better}\nagainst {pair.worse}",
            over_interval(pair.probability_of_improvement, pair.probability_interval),
            over_interval(pair.final_difference, pair.final_difference_interval) + " *" * bool(pair.final_differs),
            over_interval(pair.area_difference, pair.area_difference_interval) + " *" * bool(pair.area_differs),
        )
    if any(pair.final_differs is not None for pair in comparison.pairs):
        table.caption = "* the interval of the difference excludes zero"
    return table


def over_interval(value: float | None, interval: Interval | None) -> str:
    if value is None or interval is None:
        return "–"
    return f"{number(value)}\n[{number(interval.low)}, {number(interval.high)}]"
