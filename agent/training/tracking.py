"""Metrics of a run on record: metrics.jsonl is the truth, W&B its mirror."""

import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import SupportsFloat, TextIO

from agent.commands import command
from agent.config import Config
from agent.metrics import FINAL, METRICS, Metric
from agent.training.checkpoint import CheckpointInfo
from agent.training.wandb_mirror import Position, WandbMirror
from envs.errors import UserError

METRICS_FILE = "metrics.jsonl"


class Tracker:
    """Writes metrics to the run folder, and to W&B where `config.wandb.mode` wants it."""

    def __init__(
        self,
        run_dir: Path,
        config: Config,
        resumed: CheckpointInfo | None = None,
        metrics: Mapping[str, Metric] = METRICS,
    ) -> None:
        """
        Args:
            resumed: the checkpoint that the run resumes from; lines written after it are removed.
            metrics: the metrics that may be written.
        """
        self.num_members, self.known = len(config.members()), frozenset(metrics)
        self.run_dir, self.path = run_dir, run_dir / METRICS_FILE
        self.file = open_metrics(self.path, 0 if resumed is None else resumed.metrics_bytes)
        known = resumed is not None and resumed.wandb_id is not None
        at = Position(resumed.wandb_id, resumed.wandb_step) if resumed is not None and known else None
        self.wandb = WandbMirror(run_dir, config, at)

    def write(self, env_steps: int, rows: Sequence[Mapping[str, SupportsFloat]]) -> None:
        """Appends the metrics of each member, rows[i] those of member i; a member may lack any of them, or all."""
        assert len(rows) == self.num_members, f"expected {self.num_members} rows, one per member, got {len(rows)}"
        unknown = {name for row in rows for name in row} - self.known
        assert not unknown, f"no metrics are declared with the names {sorted(unknown)}"
        self.require_in_place()
        numbers = [{name: float(value) for name, value in row.items()} for row in rows]
        for member, row in enumerate(numbers):
            if not row:
                continue
            line = {"env_steps": env_steps, "member": member, **{name: strict(value) for name, value in row.items()}}
            self.file.write(json.dumps(line, allow_nan=False) + "\n")
        self.file.flush()
        self.wandb.log(env_steps, numbers)

    def summarize(self, rows: Sequence[Mapping[str, float]]) -> None:
        """The metrics of each member that only the end of a run has, in the summary of the W&B runs."""
        assert all(name in FINAL for row in rows for name in row)
        self.wandb.summarize(rows)

    def require_in_place(self) -> None:
        """UserError where the run folder is no longer where it was: what is written would not be found there."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(self.path.stat(), os.fstat(self.file.fileno())):
                return
        raise UserError(
            f"{self.run_dir} was moved or removed while the run wrote to it: the run ends; with the folder back in its "
            f"place, {command('train', '--resume', self.run_dir)} continues the run"
        )

    def num_bytes(self) -> int:
        """Of metrics.jsonl, once all of it is on disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return os.fstat(self.file.fileno()).st_size

    def close(self, failed: bool = False) -> None:
        """Ends the record; W&B shows the run as failed where it is. May be called twice."""
        self.file.close()
        self.wandb.close(failed)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(failed=error_type is not None)


def open_metrics(path: Path, num_bytes: int) -> TextIO:
    """To append to, cut to its first bytes."""
    try:
        file = path.open("a", encoding="utf-8")
        file.truncate(num_bytes)
        return file
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error}") from None


def strict(value: float) -> float | None:
    """JSON knows no NaN and no infinity."""
    return value if math.isfinite(value) else None
