"""Which of several algorithms or settings is better: the statistics of each entry and of each pair."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from os import PathLike
from pathlib import Path

import numpy as np

from agent.analysis.entries import arrange, load_runs
from agent.analysis.plan import name_of
from agent.analysis.run_folder import Entry, common_threshold
from agent.analysis.statistics import (
    Curve,
    area_under_curve,
    bootstrap_difference,
    bootstrap_probability_of_improvement,
    optimality_gap,
    probability_of_improvement,
    steps_to_threshold,
)
from agent.bootstrap import Interval, iqm, stratified_bootstrap
from envs.errors import UserError

FEW_SEEDS = 5  # with fewer the intervals are clearly too narrow for a test, see statistics.py
HELD = 3  # evaluations in a row that must reach the threshold


@dataclass(frozen=True)
class Summary:
    """One line of a comparison. Intervals are 95 % bootstrap intervals over seeds."""

    label: str
    num_seeds: int
    env_steps: int
    final_iqm: float
    final_interval: Interval
    final_mean: float
    final_mean_interval: Interval
    final_median: float
    final_median_interval: Interval
    final_worst: float
    optimality_gap: float | None  # mean of what is missing to the threshold at the end
    optimality_gap_interval: Interval | None
    area: float | None  # IQM over seeds of the mean greedy return during training
    area_interval: Interval | None
    num_reached: int | None  # seeds with an evaluation at or above the threshold
    steps_to_reach: float | None  # median over seeds; infinite where most never do
    steps_to_hold: float | None  # likewise, from when three evaluations in a row are
    wall_seconds: float  # of its whole runs


@dataclass(frozen=True)
class Pair:
    """How one entry does against another."""

    better: str
    worse: str
    probability_of_improvement: float
    probability_interval: Interval
    final_difference: float  # of the IQMs of the final returns
    final_difference_interval: Interval
    final_differs: bool | None  # the interval excludes zero; None: too few seeds for a test
    area_difference: float | None
    area_difference_interval: Interval | None
    area_differs: bool | None


@dataclass(frozen=True)
class Comparison:
    env_id: str
    threshold: float | None  # what counts as solved, by the configs that agree on it
    entries: list[Entry]
    summaries: list[Summary]
    pairs: list[Pair]  # both ways round

    @property
    def best(self) -> Summary:
        """The largest IQM of final returns; of several the first."""
        return max(self.summaries, key=lambda summary: summary.final_iqm)

    @property
    def untested(self) -> list[str]:
        """Labels of entries with too few seeds for a test of significance; with any there is no verdict."""
        return [summary.label for summary in self.summaries if summary.num_seeds < FEW_SEEDS]

    @property
    def without_test(self) -> str:
        """One line that says so; nothing where all entries can be tested."""
        of = "" if len(self.untested) in (0, len(self.summaries)) else f" ({', '.join(self.untested)})"
        return f"fewer than {FEW_SEEDS} seeds{of}: no test of significance" if self.untested else ""

    def pair(self, better: str, worse: str) -> Pair:
        return next(p for p in self.pairs if (p.better, p.worse) == (better, worse))

    def against_best(self, label: str) -> Pair | None:
        """An entry against the best; None for the best itself."""
        return None if label == self.best.label else self.pair(label, self.best.label)


def compare(*runs: str | PathLike[str]) -> Comparison:
    """Compares finished runs, each by its folder. Runs that differ in their seeds only count as one entry.

    Raises:
        UserError: a folder holds no finished run, or the runs are not of one environment.
    """
    if not runs:
        raise UserError("compare: got no run, must be the folders of finished runs")
    return compare_entries(arrange(load_runs({Path(run): name_of(str(Path(run))) for run in runs})))


def compare_entries(entries: Sequence[Entry]) -> Comparison:
    """Statistics of each entry and of each pair."""
    threshold = common_threshold(entries)
    pairs = [pair(x, y) for x, y in permutations(entries, 2)]
    return Comparison(entries[0].env_id, threshold, list(entries), [summarize(e, threshold) for e in entries], pairs)


def summarize(entry: Entry, threshold: float | None) -> Summary:
    """An entry in figures; of several the median and mean go with the IQM, which alone is compared."""
    scores, curves = entry.final_returns, entry.curves()
    areas = np.array([area_under_curve(curve) for curve in curves])
    reached, held = (steps_by_seed(curves, threshold, in_a_row) for in_a_row in (1, HELD))
    gap = None if threshold is None else partial(optimality_gap, target=threshold)
    return Summary(
        label=entry.label,
        num_seeds=len(entry.seeds),
        env_steps=entry.env_steps,
        final_iqm=float(iqm(scores)),
        final_interval=stratified_bootstrap(scores),
        final_mean=float(scores.mean()),
        final_mean_interval=stratified_bootstrap(scores, np.mean),
        final_median=float(np.median(scores)),
        final_median_interval=stratified_bootstrap(scores, np.median),
        final_worst=float(scores.min()),
        optimality_gap=None if gap is None else float(gap(scores)),
        optimality_gap_interval=None if gap is None else stratified_bootstrap(scores, gap),
        area=float(iqm(areas)) if len(areas) else None,
        area_interval=stratified_bootstrap(areas) if len(areas) else None,
        num_reached=None if reached is None else int(np.isfinite(reached).sum()),
        steps_to_reach=None if reached is None else upper_median(reached),
        steps_to_hold=None if held is None else upper_median(held),
        wall_seconds=entry.wall_seconds,
    )


def steps_by_seed(curves: Sequence[Curve], threshold: float | None, in_a_row: int) -> list[float] | None:
    """Steps until each seed reaches the threshold; None where there is nothing to reach, or no evaluation."""
    if threshold is None or not curves:
        return None
    return [steps_to_threshold(curve, threshold, in_a_row) for curve in curves]


def upper_median(values: Sequence[float]) -> float:
    """A median that infinities cannot turn into NaN: the middle value, of two the larger."""
    return sorted(values)[len(values) // 2]


def pair(x: Entry, y: Entry) -> Pair:
    areas = [np.array([area_under_curve(curve) for curve in entry.curves()]) for entry in (x, y)]
    final = bootstrap_difference(x.final_returns, y.final_returns)
    area = bootstrap_difference(areas[0], areas[1]) if all(map(len, areas)) else None
    is_testable = min(len(x.seeds), len(y.seeds)) >= FEW_SEEDS
    return Pair(
        better=x.label,
        worse=y.label,
        probability_of_improvement=probability_of_improvement(x.final_returns, y.final_returns),
        probability_interval=bootstrap_probability_of_improvement(x.final_returns, y.final_returns),
        final_difference=float(iqm(x.final_returns) - iqm(y.final_returns)),
        final_difference_interval=final,
        final_differs=final.excludes_zero if is_testable else None,
        area_difference=float(iqm(areas[0]) - iqm(areas[1])) if area else None,
        area_difference_interval=area,
        area_differs=area.excludes_zero if is_testable and area is not None else None,
    )
