"""Fixed scores, and what rliable says of them: python tests/rliable_reference.py prints STORED where rliable is
installed (rliable 1.2.0 with arch 7.2.0 needs pandas < 3)."""

from typing import Any

import numpy as np

X = np.array([499.8, 466.2, 500.0, 139.7, 500.0, 421.3, 388.9, 500.0, 275.0, 475.0])[:, None]  # [seeds, tasks]
Y = np.array([427.6, 203.8, 499.0, 388.0, 422.0, 500.0, 350.0, 232.0])[:, None]
TWO_TASKS = np.column_stack([X[:, 0] / 500, np.array([0.1, 0.7, 0.2, 0.4, 0.9, 0.3, 0.3, 1.2, 0.6, 0.8])])
TARGET = 475.0
# None where the 2.5 % quantile of the resampled share lies between two shares by a hair.
THRESHOLDS = np.array([100.0, 250.0, 300.0, 450.0, 470.0, 480.0])

STORED: dict[str, list[float]] = {
    "iqm": [458.533333, 351.55, 495.766667],
    "mean": [416.59, 338.87, 478.381],
    "median": [470.6, 348.15, 500.0],
    "optimality_gap": [68.39, 10.74, 142.13025],
    "iqm of two tasks": [0.74528, 0.542917, 0.89274],
    "probability_of_improvement": [0.64375, 0.375, 0.89375],
    "difference of iqm": [61.633333, -64.750417, 183.95],
    "profile": [1.0, 0.9, 0.8, 0.6, 0.5, 0.4],
    "profile low": [1.0, 0.7, 0.5, 0.3, 0.2, 0.1],
    "profile high": [1.0, 1.0, 1.0, 0.9, 0.8, 0.7],
}


def of_rliable(reps: int) -> dict[str, list[float]]:
    """Estimates and ends of 95 % percentile intervals over `reps` resamples; raises what importing it raises."""
    from rliable import library, metrics

    np.random.seed(0)

    def figures(name: str, scores: Any, statistic: Any) -> dict[str, list[float]]:
        points, intervals = library.get_interval_estimates(
            {name: scores}, lambda *data: np.array([statistic(*data)]), reps=reps
        )
        return {name: [float(points[name][0]), *map(float, intervals[name][:, 0])]}

    profile, bands = library.create_performance_profile({"x": X}, THRESHOLDS, reps=reps)
    return (
        figures("iqm", X, metrics.aggregate_iqm)
        | figures("mean", X, metrics.aggregate_mean)
        | figures("median", X, np.median)  # of seeds; rliable's own is over tasks, each task its mean
        | figures("optimality_gap", X, lambda scores: metrics.aggregate_optimality_gap(scores, TARGET))
        | figures("iqm of two tasks", TWO_TASKS, metrics.aggregate_iqm)
        | figures("probability_of_improvement", (X, Y), metrics.probability_of_improvement)
        | figures("difference of iqm", (X, Y), lambda x, y: metrics.aggregate_iqm(x) - metrics.aggregate_iqm(y))
        | {
            "profile": profile["x"].tolist(),
            "profile low": bands["x"][0].tolist(),
            "profile high": bands["x"][1].tolist(),
        }
    )


if __name__ == "__main__":
    for name, values in of_rliable(50_000).items():
        print(f'    "{name}": {[round(float(value), 6) for value in values]},')
