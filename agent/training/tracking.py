"""Metrics of a run on record: metrics.jsonl is the truth, W&B its mirror.

Nothing that W&B does, or fails to do, ends a run: the first exception turns it off with one warning.
"""

import contextlib
import json
import logging
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, SupportsFloat, TextIO

from agent.commands import command
from agent.config import Config, WandbConfig
from agent.metrics import FINAL, METRICS, Metric
from agent.training.checkpoint import CheckpointInfo
from envs.errors import UserError

METRICS_FILE = "metrics.jsonl"
UPLOAD_SECONDS = 300  # at most, at the end of a run; what is left stays in the run folder for `wandb sync`
CONNECT_SECONDS = 15  # to W&B's server, until the run is recorded offline instead

logger = logging.getLogger(__name__)


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
        self.wandb_step = 0 if resumed is None or resumed.wandb_id is None else resumed.wandb_step
        self.wandb_run: Any = None
        with self.wandb_may_fail():
            self.wandb_run = start_wandb(
                run_dir,
                config.wandb,
                group=config.env.id,
                job_type=config.algorithm,
                config=config.model_dump(),
                resumed=None if resumed is None or resumed.wandb_id is None else (resumed.wandb_id, resumed.wandb_step),
            )
            if self.wandb_run is not None:
                self.wandb_run.define_metric("*", step_metric="env_steps")

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
        if self.wandb_run is not None:
            with self.wandb_may_fail():
                self.wandb_run.log({"env_steps": env_steps, **mirrored(numbers)}, step=self.wandb_step)
                self.wandb_step += 1

    def summarize(self, rows: Sequence[Mapping[str, float]]) -> None:
        """The metrics of each member that only the end of a run has, in the summary of the W&B run."""
        assert all(name in FINAL for row in rows for name in row)
        if self.wandb_run is not None:
            with self.wandb_may_fail():
                self.wandb_run.summary.update(mirrored(rows))

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

    def wandb_position(self) -> tuple[str | None, int]:
        """Id of the W&B run, and its next step."""
        if self.wandb_run is None:
            return None, 0
        return str(self.wandb_run.id), self.wandb_step

    def close(self, failed: bool = False) -> None:
        """Ends the record; W&B shows the run as failed where it is. May be called twice."""
        self.file.close()
        if self.wandb_run is not None:
            try:
                self.wandb_run.finish(exit_code=int(failed))
            except Exception as error:
                folder = shlex.quote(str(self.wandb_run.settings.sync_dir))
                logger.warning("W&B has not got all of this run; wandb sync %s: %s", folder, in_one_line(error))
        self.wandb_run = None

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(failed=error_type is not None)

    @contextlib.contextmanager
    def wandb_may_fail(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is: a mirror never ends a run
            self.wandb_run = None
            logger.warning("W&B is off from here on, metrics.jsonl continues: %s", in_one_line(error))


def log_comparison(
    folder: Path, config: Mapping[str, Any], tables: Mapping[str, Sequence[Mapping[str, Any]]], figures: Sequence[Path]
) -> None:
    """A comparison as a W&B run of its own: tables and figures. Where that fails, one warning.

    Args:
        config: a run's settings by their dotted keys; its wandb settings say whether and where to.
    """
    try:
        settings = WandbConfig(**{key: config[f"wandb.{key}"] for key in WandbConfig.model_fields} | {"name": None})
        run = start_wandb(folder, settings, group=config["env.id"], job_type="comparison", config={})
        if run is None:
            return
        import wandb

        for name, rows in tables.items():
            run.log(
                {f"comparison/{name}": wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])}
            )
        run.log({f"comparison/{path.stem}": wandb.Image(str(path)) for path in figures})
        run.finish()
    except Exception as error:  # whatever it is: a mirror never ends a comparison
        logger.warning("W&B has not got this comparison, %s has: %s", folder, in_one_line(error))


def in_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def open_metrics(path: Path, num_bytes: int) -> TextIO:
    """To append to, cut to its first bytes."""
    try:
        file = path.open("a", encoding="utf-8")
        file.truncate(num_bytes)
        return file
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error}") from None


def start_wandb(
    folder: Path,
    settings: WandbConfig,
    *,
    group: str,
    job_type: str,
    config: dict[str, Any],
    resumed: tuple[str, int] | None = None,
) -> Any:
    """A W&B run, or None where the mode is disabled; its files land in the folder.

    Args:
        resumed: id and next step of the run to resume; what it has logged from there on is taken back.
    """
    wanted: str = settings.mode
    if wanted == "auto":
        wanted = os.environ.get("WANDB_MODE") or "auto"
    if wanted == "disabled":
        return None
    import wandb

    def init(mode: Literal["online", "offline"]) -> Any:
        again: dict[str, Any] = {}
        if resumed is not None:
            run_id, step = resumed
            rewind = mode == "online" and step > 0
            again = {"resume_from": f"{run_id}?_step={step - 1}"} if rewind else {"id": run_id, "resume": "allow"}
        return wandb.init(
            project=settings.project,
            group=settings.group or group,
            name=settings.name or folder.resolve().name,
            job_type=job_type,
            tags=settings.tags,
            config=config,
            dir=folder,
            mode=mode,
            reinit="create_new",
            **again,
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=CONNECT_SECONDS,
                finish_timeout=UPLOAD_SECONDS,
                finish_timeout_raises=True,
            ),
        )

    mode: Literal["online", "offline"] = "offline" if wanted == "offline" else mode_by_login(wandb, wanted)
    try:
        return init(mode)
    except Exception as error:  # whatever it is, say no network
        if mode == "offline":
            raise
        logger.warning("W&B cannot be reached, the run is recorded offline: %s", in_one_line(error))
        return init("offline")


def mode_by_login(wandb: Any, wanted: str) -> Literal["online", "offline"]:
    """Online where a login is found on this machine, without network or prompt; auto is offline where none is."""
    if wanted not in ("auto", "online"):
        raise ValueError(f"WANDB_MODE: got {wanted!r}, must be 'online', 'offline' or 'disabled'")
    mode = {"mode": wanted} if wanted == "online" else {}  # else WANDB_MODE=offline hides the login
    wandb.setup(settings=wandb.Settings(silent=True, **mode))
    if wandb.login(prompt=False, verify=False):
        return "online"
    if wanted == "online":
        raise ValueError("no login found for wandb.mode=online; run `wandb login`, or use wandb.mode=offline")
    return "offline"


def mirrored(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The metrics under W&B's keys: as they are for one member, else one by one and in aggregate."""
    if len(rows) == 1:
        return dict(rows[0])
    one_by_one = {f"member_{i}/{name}": value for i, row in enumerate(rows) for name, value in row.items()}
    return one_by_one | aggregates(rows)


def aggregates(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the members that have a metric, NaN left out; of returns and evaluations min and max too."""
    result = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row[name] for row in rows if not math.isnan(row.get(name, math.nan))]
        if not values:
            continue
        result[name] = sum(values) / len(values)
        if name.startswith("eval/") or name == "train/episode_return":
            result[f"{name}_min"], result[f"{name}_max"] = min(values), max(values)
    return result


def strict(value: float) -> float | None:
    """JSON knows no NaN and no infinity."""
    return value if math.isfinite(value) else None
