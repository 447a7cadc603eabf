"""Seeds: every random number of a member follows from the member's own seed and from what it is drawn for."""

from collections.abc import Sequence

import numpy as np

PURPOSES = ("parameters", "learner", "environments", "evaluation", "inspection")  # disjoint streams of each seed


def derived_seed(*numbers: int) -> int:
    """A seed of 63 bits that follows from all of these non-negative integers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def member_seeds(seeds: Sequence[int], purpose: str, *numbers: int) -> list[int]:
    """One for each member's seed: what it draws for one purpose has nothing to do with what it draws for another.

    Args:
        numbers: tell apart what has the same purpose, say two networks or the evaluations at two steps.
    """
    return [derived_seed(seed, PURPOSES.index(purpose), *numbers) for seed in seeds]
