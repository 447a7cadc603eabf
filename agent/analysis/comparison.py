"""Which of several algorithms or settings is better: what is trained, what is computed, what is written."""

import csv
import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from agent.analysis import figures
from agent.analysis.run_folder import Entry, load_entries
from agent.analysis.statistics import (
    Interval,
    area_under_curve,
    bootstrap_difference,
    bootstrap_probability_of_improvement,
    iqm,
    on_common_grid,
    probability_of_improvement,
    steps_to_threshold,
    stratified_bootstrap,
)
from agent.config import Config
from agent.config_loader import load_config

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
    final_median: float
    final_worst: float
    area: float | None  # IQM over seeds of the mean greedy return during training
    area_interval: Interval | None
    num_reached: int | None  # seeds with an evaluation at or above the threshold
    steps_to_reach: float | None  # median over seeds; infinite where most never do
    steps_to_hold: float | None  # likewise, from when three evaluations in a row are
    wall_seconds: float  # of the whole run


@dataclass(frozen=True)
class Pair:
    """How one entry does against another."""

    better: str
    worse: str
    probability_of_improvement: float
    probability_interval: Interval
    final_difference: float  # of the IQMs of the final returns
    final_difference_interval: Interval
    area_difference: float | None
    area_difference_interval: Interval | None


@dataclass(frozen=True)
class Comparison:
    env_id: str
    threshold: float | None
    entries: list[Entry]
    summaries: list[Summary]
    pairs: list[Pair]  # both ways round


def compare(entries: Sequence[Entry]) -> Comparison:
    """Statistics of each entry and of each pair."""
    pairs = [pair(x, y) for x, y in permutations(entries, 2)]
    threshold = entries[0].threshold
    return Comparison(entries[0].env_id, threshold, list(entries), [summarize(e) for e in entries], pairs)


def summarize(entry: Entry) -> Summary:
    scores = entry.final_returns
    areas = np.array([area_under_curve(curve) for curve in entry.curves])
    reached, held = (
        None
        if entry.threshold is None or not entry.curves
        else [steps_to_threshold(curve, entry.threshold, in_a_row) for curve in entry.curves]
        for in_a_row in (1, HELD)
    )
    return Summary(
        label=entry.label,
        num_seeds=len(entry.seeds),
        env_steps=entry.env_steps,
        final_iqm=float(iqm(scores)),
        final_interval=stratified_bootstrap(scores),
        final_mean=float(scores.mean()),
        final_median=float(np.median(scores)),
        final_worst=float(scores.min()),
        area=float(iqm(areas)) if len(areas) else None,
        area_interval=stratified_bootstrap(areas) if len(areas) else None,
        num_reached=None if reached is None else int(np.isfinite(reached).sum()),
        steps_to_reach=None if reached is None else upper_median(reached),
        steps_to_hold=None if held is None else upper_median(held),
        wall_seconds=entry.wall_seconds,
    )


def upper_median(values: Sequence[float]) -> float:
    """A median that infinities cannot turn into NaN: the middle value, of two the larger."""
    return sorted(values)[len(values) // 2]


def pair(x: Entry, y: Entry) -> Pair:
    areas = [np.array([area_under_curve(curve) for curve in entry.curves]) for entry in (x, y)]
    return Pair(
        better=x.label,
        worse=y.label,
        probability_of_improvement=probability_of_improvement(x.final_returns, y.final_returns),
        probability_interval=bootstrap_probability_of_improvement(x.final_returns, y.final_returns),
        final_difference=float(iqm(x.final_returns) - iqm(y.final_returns)),
        final_difference_interval=bootstrap_difference(x.final_returns, y.final_returns),
        area_difference=float(iqm(areas[0]) - iqm(areas[1])) if all(map(len, areas)) else None,
        area_difference_interval=bootstrap_difference(areas[0], areas[1]) if all(map(len, areas)) else None,
    )


def plan(config_file: str, algorithms: Sequence[str], seeds: int | None, overrides: Sequence[str]) -> list[Config]:
    """The runs that a comparison needs, each in a folder that its settings alone decide."""
    configs = []
    for algorithm in algorithms:
        own = [f"algorithm={algorithm}", *([] if seeds is None else [f"seeds={seeds}"])]
        config = load_config(config_file, [*overrides, *own, "run_dir=null"])
        digest = hashlib.sha256(config.model_copy(update={"device": "auto"}).to_yaml().encode()).hexdigest()[:8]
        folder = Path("runs") / f"compare-{name_of(config_file)}-{algorithm}-{digest}"
        configs.append(config.model_copy(update={"run_dir": str(folder)}))
    return configs


def name_of(path: str) -> str:
    """What to call a comparison of a config file or run: its name, a run's config.yaml by its folder's."""
    return Path(path).parent.name if Path(path).name == "config.yaml" else Path(path).stem


def train_missing(configs: Sequence[Config], train: Callable[[Config], Path], announce: Callable[[str], None]) -> None:
    """Trains those of the runs that are not finished; one that was broken off starts anew."""
    for number, config in enumerate(configs, 1):
        folder = Path(str(config.run_dir))
        if (folder / "result.json").is_file():
            announce(f"[{number}/{len(configs)}] {folder}: trained before")
            continue
        announce(f"[{number}/{len(configs)}] training {config.algorithm}, {len(config.members())} members: {folder}")
        set_aside(folder)
        train(config)


def set_aside(folder: Path) -> None:
    """Moves an unfinished run out of the way without deleting anything."""
    if folder.exists():
        taken = (folder.with_name(f"{folder.name}.unfinished-{i}") for i in range(1, 10_000))
        folder.rename(next(path for path in taken if not path.exists()))


def compare_runs(runs: Sequence[Path]) -> Comparison:
    return compare(load_entries(runs))


def write(comparison: Comparison, folder: Path, command: str) -> None:
    """results.json, results.csv and learning_curves.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(as_json(comparison, command), indent=1), encoding="utf-8")
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [flat(dataclasses.asdict(summary)) for summary in comparison.summaries]
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    curves = {entry.label: on_common_grid(entry.curves) for entry in comparison.entries if entry.curves}
    figures.learning_curves(curves, folder / "learning_curves.png", comparison.threshold, comparison.env_id)


def as_json(comparison: Comparison, command: str) -> dict[str, Any]:
    """Everything in figures; infinite step counts become null."""
    seeds = {
        entry.label: {
            "run": entry.run,
            "seeds": entry.seeds,
            "final_returns": entry.final_returns.tolist(),
        }
        for entry in comparison.entries
    }
    return finite(
        {
            "env_id": comparison.env_id,
            "command": command,
            "threshold": comparison.threshold,
            "entries": [dataclasses.asdict(s) | seeds[s.label] for s in comparison.summaries],
            "pairs": [dataclasses.asdict(p) for p in comparison.pairs],
        }
    )


def finite(value: Any) -> Any:
    """Strict JSON: infinity and NaN as null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """Intervals as two columns."""
    columns: dict[str, Any] = {}
    for key, value in row.items():
        if key.endswith("interval"):
            low, high = value or (None, None)
            columns |= {f"{key}_low": low, f"{key}_high": high}
        else:
            columns[key] = value
    return columns
