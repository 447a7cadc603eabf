"""Statistics agree with rliable (Agarwal et al. 2021): run here where it can be imported, else as stored."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from rliable_reference import STORED, TARGET, THRESHOLDS, TWO_TASKS, X, Y, of_rliable

from agent.analysis.statistics import (
    Interval,
    bootstrap_difference,
    bootstrap_probability_of_improvement,
    iqm,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
)

gap = partial(optimality_gap, target=TARGET)
OURS: dict[str, tuple[Callable[[], float], Callable[[], Interval]]] = {
    "iqm": (lambda: iqm(X), lambda: stratified_bootstrap(X, iqm)),
    "mean": (lambda: X.mean(), lambda: stratified_bootstrap(X, np.mean)),
    "median": (lambda: np.median(X), lambda: stratified_bootstrap(X, np.median)),
    "optimality_gap": (lambda: gap(X), lambda: stratified_bootstrap(X, gap)),
    "iqm of two tasks": (lambda: iqm(TWO_TASKS), lambda: stratified_bootstrap(TWO_TASKS, iqm)),
    "probability_of_improvement": (
        lambda: probability_of_improvement(X, Y),
        lambda: bootstrap_probability_of_improvement(X, Y),
    ),
    "difference of iqm": (lambda: iqm(X) - iqm(Y), lambda: bootstrap_difference(X, Y)),
}


@pytest.fixture(scope="module")
def reference() -> dict[str, list[float]]:
    try:
        return of_rliable(10_000)  # half a minute
    except Exception:  # not installed, or broken by a newer pandas
        return STORED


@pytest.mark.parametrize("name", OURS)
def test_estimate_is_that_of_rliable(name: str, reference: dict[str, list[float]]) -> None:
    assert OURS[name][0]() == pytest.approx(reference[name][0], abs=1e-6)


@pytest.mark.parametrize("name", OURS)
def test_interval_is_that_of_rliable_but_for_resampling_noise(name: str, reference: dict[str, list[float]]) -> None:
    """The ends of 10,000 resamples scatter by up to 2 % of the interval's width (20 seeds)."""
    _, low, high = reference[name]
    assert OURS[name][1]() == pytest.approx((low, high), abs=0.05 * (high - low))


def test_performance_profile_is_that_of_rliable(reference: dict[str, list[float]]) -> None:
    profile = performance_profile(X[:, 0], THRESHOLDS)
    assert profile.share.tolist() == pytest.approx(reference["profile"])
    assert profile.low.tolist() == pytest.approx(reference["profile low"])
    assert profile.high.tolist() == pytest.approx(reference["profile high"])
