"""Statistics: by hand, by symmetry, and the coverage that the intervals claim."""

import numpy as np
import pytest

from agent import bootstrap
from agent.analysis.statistics import (
    Curve,
    area_under_curve,
    bootstrap_difference,
    bootstrap_probability_of_improvement,
    iqm,
    on_common_grid,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    steps_to_threshold,
    stratified_bootstrap,
)


def curve(steps: list[int], returns: list[float]) -> Curve:
    return Curve(np.array(steps), np.array(returns))


@pytest.mark.parametrize(
    ("scores", "value"),
    [([1.0, 2.0, 3.0, 100.0], 2.5), ([5.0], 5.0), ([1.0, 3.0], 2.0), ([0.0, 1, 2, 3, 4, 5, 6, 70], 3.5)],
)
def test_iqm_by_hand(scores: list[float], value: float) -> None:
    assert iqm(np.array(scores)) == value


def test_iqm_along_an_axis_treats_columns_apart() -> None:
    scores = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [100.0, 1000.0]])
    assert iqm(scores, axis=0).tolist() == [2.5, 25.0]


def test_interval_of_constant_scores_is_a_point_and_of_one_seed_too() -> None:
    assert stratified_bootstrap(np.full(5, 3.0)) == (3.0, 3.0)
    assert stratified_bootstrap(np.array([7.0])) == (7.0, 7.0)


def test_intervals_repeat() -> None:
    scores = np.random.default_rng(0).normal(size=10)
    assert stratified_bootstrap(scores) == stratified_bootstrap(scores)


def test_interval_of_the_mean_covers_the_truth_about_as_often_as_it_says() -> None:
    """300 samples of ten normal scores: the percentile bootstrap covers in about 90 %; outside 84 to 96 % by chance
    less than once in a thousand."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        low, high = stratified_bootstrap(rng.normal(size=10), np.mean, num_resamples=500)
        hits += low <= 0 <= high
    assert 0.84 < hits / 300 < 0.96


def test_resamples_in_parts_are_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).normal(size=20)
    whole = stratified_bootstrap(scores)
    monkeypatch.setattr(bootstrap, "MAX_DRAWN", 60)
    np.testing.assert_allclose(stratified_bootstrap(scores), whole, atol=0.05)


def test_resampling_stays_within_tasks() -> None:
    """Two tasks of constant but different scores: resampling across them would spread the mean."""
    assert stratified_bootstrap(np.array([[0.0, 10.0]] * 5), np.mean) == (5.0, 5.0)


def test_difference_excludes_zero_where_scores_are_far_apart_and_not_where_equal() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(10, 1, 10), rng.normal(0, 1, 10)
    low, high = bootstrap_difference(x, y)
    assert 8 < low < 10 < high < 12
    low, high = bootstrap_difference(x, x)
    assert low < 0 < high


def test_probability_of_improvement_by_hand_and_its_symmetry() -> None:
    x, y = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0])
    assert probability_of_improvement(x, y) == (2 + 0.5 * 2) / 6
    assert probability_of_improvement(x, y) + probability_of_improvement(y, x) == 1.0
    low, high = bootstrap_probability_of_improvement(x, y)
    assert 0 <= low <= 0.5 <= high <= 1


def test_area_is_the_mean_height_of_the_trapezoids() -> None:
    assert area_under_curve(curve([0, 10, 40], [0.0, 10.0, 10.0])) == (50 + 300) / 40
    assert area_under_curve(curve([10], [3.0])) == 3.0


def test_steps_to_threshold_first_and_three_in_a_row() -> None:
    returns = curve([1, 2, 3, 4, 5, 6], [0.0, 5.0, 0.0, 5.0, 6.0, 5.0])
    assert steps_to_threshold(returns, 5.0) == 2
    assert steps_to_threshold(returns, 5.0, in_a_row=3) == 4
    assert steps_to_threshold(returns, 7.0) == float("inf")
    assert steps_to_threshold(curve([1], [9.0]), 5.0, in_a_row=3) == float("inf")


def test_curves_meet_on_the_union_of_their_steps_as_far_as_all_reach() -> None:
    common = on_common_grid([curve([0, 10, 20], [0.0, 10.0, 20.0]), curve([0, 5, 15], [0.0, 50.0, 150.0])])
    assert common.env_steps.tolist() == [0, 5, 10, 15]
    assert common.returns.tolist() == [[0, 5, 10, 15], [0, 50, 100, 150]]


def test_optimality_gap_counts_only_what_is_missing() -> None:
    assert optimality_gap(np.array([0.5, 1.5]), 1.0) == 0.25


def test_profile_is_the_share_of_seeds_above_each_score_in_a_band() -> None:
    profile = performance_profile(np.array([1.0, 2.0, 2.0, 4.0]), np.array([0.0, 1.0, 2.0, 4.0]))
    assert profile.share.tolist() == [1.0, 0.75, 0.25, 0.0]
    assert (profile.low <= profile.share).all() and (profile.share <= profile.high).all()
    assert (profile.low[0], profile.high[0]) == (1.0, 1.0) and profile.low[1] < 0.75 < profile.high[1]
