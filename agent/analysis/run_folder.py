"""Reads finished run folders: final returns, and curves of the metrics on the way."""

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from agent.analysis.statistics import Curve
from agent.config_fields import Value
from agent.config_loader import as_text, flat, member_with_new_keys, read_yaml, tell_once, with_new_keys
from envs.errors import UserError

GREEDY_RETURN = "eval/return_greedy"
GRADIENTS_FIGURE = Path("figures") / "gradients.png"
Settings = dict[str, Any]  # dotted key: value


class Greedy(BaseModel):
    mean: FiniteFloat
    cut: int = 0


class MemberResult(BaseModel):
    member: int
    seed: int
    settings: dict[str, Value]
    greedy: Greedy


class Result(BaseModel):
    """What a comparison reads of result.json."""

    env_id: str
    env_steps: int
    wall_seconds: FiniteFloat
    versions: dict[str, str] = {}
    members: list[MemberResult] = Field(min_length=1)


@dataclass(frozen=True)
class FinishedRun:
    """A finished run folder."""

    folder: str
    env_steps: int  # of one member
    wall_seconds: float
    versions: dict[str, str]  # empty where the run was made before they were recorded


@dataclass(frozen=True)
class Replication:
    """One member of a run: one seed."""

    run: FinishedRun
    member: int
    seed: int
    final_return: float  # mean greedy return of the evaluation at the end
    num_cut: int  # of its episodes
    curves: dict[str, Curve]  # by metric


@dataclass(frozen=True)
class Entry:
    """Members that differ in their seed only: one line of a comparison."""

    label: str
    name: str  # of its config or run folder
    env_id: str
    config: Settings  # as its members had them, swept settings included
    swept: list[str]
    replications: list[Replication]

    @property
    def algorithm(self) -> str:
        return str(self.config["algorithm"])

    @property
    def threshold(self) -> float | None:
        threshold = self.config["return_threshold"]
        return float(threshold) if isinstance(threshold, int | float) else None

    @property
    def runs(self) -> list[FinishedRun]:
        return list({r.run.folder: r.run for r in self.replications}.values())

    @property
    def seeds(self) -> list[int]:
        return [r.seed for r in self.replications]

    @property
    def final_returns(self) -> np.ndarray:  # [seeds]
        return np.array([r.final_return for r in self.replications])

    @property
    def env_steps(self) -> int:
        return max(run.env_steps for run in self.runs)

    @property
    def wall_seconds(self) -> float:
        return sum(run.wall_seconds for run in self.runs)

    @property
    def metrics(self) -> list[str]:
        """Metrics that every seed has."""
        return [name for name in self.replications[0].curves if all(name in r.curves for r in self.replications)]

    def curves(self, metric: str = GREEDY_RETURN) -> list[Curve]:
        """One per seed; none where a seed lacks the metric."""
        return [r.curves[metric] for r in self.replications] if metric in self.metrics else []


def load_run(folder: Path, name: str | None = None) -> list[Entry]:
    """A finished run as one entry per combination of swept settings."""
    result, values = read_result(folder), read_yaml(folder / "config.yaml")
    config = read_config(folder)
    metrics = read_metrics(folder / "metrics.jsonl", is_compared)
    run = FinishedRun(str(folder), result.env_steps, result.wall_seconds, result.versions)
    groups: dict[str, list[Replication]] = defaultdict(list)  # by settings, as JSON
    for m in result.members:
        own = Replication(run, m.member, m.seed, m.greedy.mean, m.greedy.cut, metrics.get(m.member, {}))
        groups[json.dumps(member_with_new_keys(m.settings, values))].append(own)
    return [
        Entry(
            label=" ".join([str(config["algorithm"]), *(f"{key}={as_text(value)}" for key, value in settings.items())]),
            name=name or folder.name,
            env_id=result.env_id,
            config=config | settings,
            swept=list(settings),
            replications=members,
        )
        for settings, members in ((json.loads(text), members) for text, members in groups.items())
    ]


def is_compared(metric: str) -> bool:
    return metric in (GREEDY_RETURN, "estimator/tau", "actor/entropy") or metric.startswith("gradient/")


def read_config(folder: Path) -> Settings:
    path = folder / "config.yaml"
    values, renamed = with_new_keys(read_yaml(path))
    tell_once(str(path), renamed, once_per="finished runs")  # there may be many
    return flat(values)


def swept_settings(config: Settings) -> list[Settings]:
    """The settings of each combination of swept values; of a run without sweep its own."""
    swept = config["sweep"] if isinstance(config["sweep"], dict) else {}
    sweep = {key: values for key, values in swept.items() if isinstance(values, list)}
    return [config | dict(zip(sweep, values, strict=True)) for values in itertools.product(*sweep.values())]


def read_result(folder: Path) -> Result:
    """result.json of a run folder; UserError where the run has not come to its end."""
    path = folder / "result.json"
    if not path.is_file():
        what = "the run did not finish" if (folder / "config.yaml").is_file() else "not a run folder"
        raise UserError(f"{folder}: {what}: no result.json; expected the folder of a finished run, or a config file")
    try:
        return Result.model_validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise UserError(
            f"{path}: not the result of a run: {where + ': ' if where else ''}{fault['msg']}; "
            "remove the file and train the run again"
        ) from None


def read_metrics(path: Path, wanted: Callable[[str], bool]) -> dict[int, dict[str, Curve]]:
    """The wanted metrics of each member; of two values at the same step the later counts.

    Lines that a crash cut short, and values that are not finite, are passed over.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; it holds the evaluations of the run")
    values: dict[int, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if not isinstance(row, dict) or not all(isinstance(row.get(k), int) for k in ("env_steps", "member")):
                continue
            for name in filter(wanted, row):
                if isinstance(row[name], int | float) and math.isfinite(row[name]):
                    values[row["member"]][name][row["env_steps"]] = float(row[name])
    return {member: {name: to_curve(v) for name, v in metrics.items()} for member, metrics in values.items()}


def to_curve(values: dict[int, float]) -> Curve:
    env_steps = sorted(values)
    return Curve(np.array(env_steps), np.array([values[step] for step in env_steps]))


def require_one_env(env_ids: dict[str, str]) -> None:
    """UserError where runs, or runs to be, are not of the same environment."""
    if len(set(env_ids.values())) > 1:
        listed = "\n".join(f"  {run}: {env_id}" for run, env_id in env_ids.items())
        raise UserError(f"only runs of one environment can be compared, got\n{listed}")


def common_threshold(entries: Sequence[Entry]) -> float | None:
    """The return that counts as solved, where the entries that name one agree."""
    named = {entry.threshold for entry in entries} - {None}
    return named.pop() if len(named) == 1 else None
