"""Reads finished run folders: final returns, and curves of the evaluations on the way."""

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from agent.analysis.statistics import Curve
from agent.config_loader import read_yaml
from envs.errors import UserError


class Greedy(BaseModel):
    mean: FiniteFloat


class MemberResult(BaseModel):
    member: int
    seed: int
    settings: dict[str, float]
    greedy: Greedy


class Result(BaseModel):
    """What a comparison reads of result.json."""

    env_id: str
    env_steps: int
    wall_seconds: FiniteFloat
    members: list[MemberResult] = Field(min_length=1)


@dataclass(frozen=True)
class Entry:
    """Members of one run that differ in their seed only: one line of a comparison."""

    label: str
    algorithm: str
    settings: dict[str, float]  # swept settings, the same for all seeds
    run: str
    env_id: str
    seeds: list[int]
    final_returns: np.ndarray  # [seeds], mean greedy return of the evaluation at the end
    curves: list[Curve]  # one per seed, of eval/return_greedy; empty where a seed has none
    threshold: float | None
    env_steps: int  # of one member
    wall_seconds: float  # of the whole run


def load_entries(runs: Sequence[Path]) -> list[Entry]:
    """The entries of several runs, told apart by their labels. UserError unless all have the same environment."""
    entries = [entry for run in runs for entry in load_run(run)]
    require_one_env({entry.run: entry.env_id for entry in entries})
    count = Counter(entry.label for entry in entries)
    return [
        dataclasses.replace(entry, label=f"{entry.label} ({entry.run})") if count[entry.label] > 1 else entry
        for entry in entries
    ]


def require_one_env(env_ids: dict[str, str]) -> None:
    """UserError where runs, or runs to be, are not of the same environment."""
    if len(set(env_ids.values())) > 1:
        listed = "\n".join(f"  {run}: {env_id}" for run, env_id in env_ids.items())
        raise UserError(f"only runs of one environment can be compared, got\n{listed}")


def load_run(run: Path) -> list[Entry]:
    """A finished run as one entry per combination of swept settings."""
    result, config = read_result(run), read_yaml(run / "config.yaml")
    curves = read_curves(run / "metrics.jsonl")
    groups: dict[tuple[tuple[str, float], ...], list[MemberResult]] = defaultdict(list)
    for member in result.members:
        groups[tuple(member.settings.items())].append(member)
    algorithm, threshold = str(config.get("algorithm")), config.get("return_threshold")
    return [
        Entry(
            label=" ".join([algorithm, *(f"{key}={value:g}" for key, value in settings)]),
            algorithm=algorithm,
            settings=dict(settings),
            run=str(run),
            env_id=result.env_id,
            seeds=[m.seed for m in members],
            final_returns=np.array([m.greedy.mean for m in members]),
            curves=[curves[m.member] for m in members] if all(m.member in curves for m in members) else [],
            threshold=None if threshold is None else float(threshold),
            env_steps=result.env_steps,
            wall_seconds=result.wall_seconds,
        )
        for settings, members in groups.items()
    ]


def read_result(run: Path) -> Result:
    """result.json of a run folder; UserError where the run has not come to its end."""
    path = run / "result.json"
    if not path.is_file():
        raise UserError(f"{run}: no result.json; expected the folder of a finished run, or a config file")
    try:
        return Result.model_validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise UserError(f"{path}: not the result of a run: {where + ': ' if where else ''}{fault['msg']}") from None


def read_curves(path: Path) -> dict[int, Curve]:
    """Greedy evaluations of each member that has any; of two at the same step the later counts.

    Lines that a crash cut short, and lines without an evaluation, are passed over.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; it holds the evaluations of the run")
    returns: dict[int, dict[int, float]] = defaultdict(dict)
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if row.get("eval/return_greedy") is not None:
                returns[row["member"]][row["env_steps"]] = float(row["eval/return_greedy"])
    return {member: to_curve(values) for member, values in returns.items()}


def to_curve(values: dict[int, float]) -> Curve:
    env_steps = sorted(values)
    return Curve(np.array(env_steps), np.array([values[step] for step in env_steps]))
