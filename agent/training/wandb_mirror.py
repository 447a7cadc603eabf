"""What W&B shows of a run: nothing that W&B does, or fails to do, ends a run.

Up to 16 members have a W&B run each, with their own seed and swept settings as its config, in one group; another run of
the group has the population's means and intervals. A single member has one run, and more than 16 share one with the
means. So has a run of a W&B sweep, whose agent expects one run.
"""

import contextlib
import logging
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from agent.bootstrap import stratified_bootstrap
from agent.config import Config
from agent.config_fields import put
from agent.config_sections import WandbConfig

UPLOAD_SECONDS = 300  # at most, at the end of a run; what is left stays in the run folder for `wandb sync`
CONNECT_SECONDS = 15  # to W&B's server, until the run is recorded offline instead
MOST_RUNS = 16  # members with a W&B run of their own
RESAMPLES = 1_000  # of the intervals over members
OF_A_SWEEP = ("WANDB_SWEEP_ID", "WANDB_RUN_ID")  # set by who wants exactly one run, as `wandb agent` does

logger = logging.getLogger(__name__)


class Position(NamedTuple):
    """Where a record stands: the id of the population's W&B run, or of the only one, and its next step."""

    run_id: str | None
    step: int


class WandbMirror:
    """The W&B runs of a run; none where the mode is disabled, or once W&B has failed."""

    def __init__(self, run_dir: Path, config: Config, resumed: Position | None = None) -> None:
        """`resumed`: where the record stood when the checkpoint was written; what came after it is taken back."""
        self.members, self.all, self.step = config.members(), [], 0 if resumed is None else resumed.step
        self.num_own = len(self.members)
        if self.num_own == 1 or self.num_own > MOST_RUNS or any(map(os.environ.get, OF_A_SWEEP)):
            self.num_own = 0  # one run for all
        name = config.wandb.name or run_dir.resolve().name
        with self.may_fail():
            group = config.env.id if self.num_own == 0 else name
            kind = config.algorithm if self.num_own == 0 else "population"
            own = start_wandb(
                run_dir,
                settings=config.wandb,
                group=group,
                name=name,
                job_type=kind,
                config=config.model_dump(),
                resumed=resumed,
            )
            self.all = [] if own is None else [own]
            for i in range(self.num_own if own is not None else 0):
                start = None if resumed is None else Position(f"{resumed.run_id}-{i}", resumed.step)
                self.all.append(
                    start_wandb(
                        run_dir,
                        settings=config.wandb,
                        group=group,
                        name=f"{name}-seed{self.members[i].seed}-{i}",
                        job_type=config.algorithm,
                        config=of_member(config, i),
                        run_id=f"{own.id}-{i}",
                        mode=mode_of(own),
                        resumed=start,
                    )
                )
            for run in self.all:
                run.define_metric("*", step_metric="env_steps")

    def log(self, env_steps: int, rows: Sequence[Mapping[str, float]]) -> None:
        """The metrics of each member at one time."""
        if not self.all:
            return
        with self.may_fail():
            for run, row in zip(self.all, self.views(rows), strict=True):
                if row:
                    run.log({"env_steps": env_steps, **row}, step=self.step)
            self.step += 1

    def summarize(self, rows: Sequence[Mapping[str, float]]) -> None:
        """The metrics that only the end of a run has, in each run's summary."""
        with self.may_fail():
            for run, row in zip(self.all, self.views(rows) if self.all else [], strict=True):
                run.summary.update(row)

    def views(self, rows: Sequence[Mapping[str, float]]) -> list[Mapping[str, float]]:
        """What each W&B run shows of the members' rows."""
        if len(self.members) == 1:
            return [rows[0]]
        return [aggregates(rows), *rows[: self.num_own]]

    def log_policy(self, folder: Path, name: str) -> None:
        """A folder of policies as an artifact."""
        if not self.all:
            return
        with self.may_fail():
            import wandb

            artifact = wandb.Artifact(f"{name}-{self.all[0].id}", type="model")
            for file in filter(Path.is_file, folder.rglob("*")):  # add_dir would print
                artifact.add_file(str(file), name=str(file.relative_to(folder)))
            self.all[0].log_artifact(artifact)

    def log_video(self, file: Path) -> None:
        """An MP4 as media."""
        if not self.all:
            return
        with self.may_fail():
            import wandb

            self.all[0].log({"video": wandb.Video(str(file), format="mp4")}, step=self.step)

    def position(self) -> Position:
        return Position(str(self.all[0].id), self.step) if self.all else Position(None, 0)

    def close(self, failed: bool = False) -> None:
        """Ends the record; W&B shows the run as failed where it is. May be called twice."""
        for run in self.all:
            try:
                run.finish(exit_code=int(failed))
            except Exception as error:
                folder = shlex.quote(str(run.settings.sync_dir))
                logger.warning("W&B has not got all of this run; wandb sync %s: %s", folder, in_one_line(error))
        self.all = []

    @contextlib.contextmanager
    def may_fail(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is: a mirror never ends a run
            self.all = []
            logger.warning("W&B is off from here on, metrics.jsonl continues: %s", in_one_line(error))


def of_member(config: Config, member: int) -> dict[str, Any]:
    """The config of one member alone, as grouping and parallel coordinates read it."""
    own = config.members()[member]
    values = config.model_dump(exclude={"sweep"}) | {"seed": own.seed, "seeds": 1, "member": member}
    for key, value in own.settings.items():
        put(values, key, value)
    return values


def log_comparison(
    folder: Path, config: Mapping[str, Any], tables: Mapping[str, Sequence[Mapping[str, Any]]], figures: Sequence[Path]
) -> None:
    """A comparison as a W&B run of its own: tables and figures. Where that fails, one warning.

    Args:
        config: a run's settings by their dotted keys; its wandb settings say whether and where to.
    """
    try:
        settings = WandbConfig(**{key: config[f"wandb.{key}"] for key in WandbConfig.model_fields})
        name = folder.resolve().name
        run = start_wandb(
            folder, settings=settings, group=config["env.id"], name=name, job_type="comparison", config={}
        )
        if run is None:
            return
        import wandb

        for title, rows in tables.items():
            run.log(
                {f"comparison/{title}": wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])}
            )
        run.log({f"comparison/{path.stem}": wandb.Image(str(path)) for path in figures})
        run.finish()
    except Exception as error:  # whatever it is: a mirror never ends a comparison
        logger.warning("W&B has not got this comparison, %s has: %s", folder, in_one_line(error))


def in_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


Mode = Literal["online", "offline"]


def start_wandb(
    folder: Path,
    *,
    settings: WandbConfig,
    group: str,
    name: str,
    job_type: str,
    config: dict[str, Any],
    run_id: str | None = None,
    mode: Mode | None = None,
    resumed: Position | None = None,
) -> Any:
    """A W&B run, or None where the mode is disabled; its files land in the folder.

    Args:
        run_id: of a new run; None: W&B's choice.
        mode: where it is known already.
        resumed: the run to resume; what it has logged from that step on is taken back.
    """
    wanted: str = settings.mode
    if wanted == "auto":
        wanted = os.environ.get("WANDB_MODE") or "auto"
    if wanted == "disabled":
        return None
    import wandb

    def init(mode: Mode) -> Any:
        which: dict[str, Any] = {} if run_id is None else {"id": run_id}
        if resumed is not None and resumed.run_id is not None:
            rewind = mode == "online" and resumed.step > 0
            which = {"id": resumed.run_id, "resume": "allow"}
            if rewind:
                which = {"resume_from": f"{resumed.run_id}?_step={resumed.step - 1}"}
        return wandb.init(
            project=settings.project,
            entity=settings.entity,
            group=settings.group or group,
            name=name,
            job_type=job_type,
            tags=settings.tags,
            config=config,
            dir=folder,
            mode=mode,
            reinit="create_new",
            **which,
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=CONNECT_SECONDS,
                finish_timeout=UPLOAD_SECONDS,
                finish_timeout_raises=True,
            ),
        )

    chosen: Mode = mode or ("offline" if wanted == "offline" else mode_by_login(wandb, wanted))
    try:
        return init(chosen)
    except Exception as error:  # whatever it is, say no network
        if chosen == "offline":
            raise
        logger.warning("W&B cannot be reached, the run is recorded offline: %s", in_one_line(error))
        return init("offline")


def mode_of(run: Any) -> Mode:
    return "offline" if run.offline is True else "online"


def mode_by_login(wandb: Any, wanted: str) -> Mode:
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


def aggregates(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the members that have a metric, NaN left out.

    Of returns and evaluations also min, max, and the ends of the 95 % bootstrap interval of the mean.
    """
    result = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row[name] for row in rows if not math.isnan(row.get(name, math.nan))]
        if not values:
            continue
        result[name] = sum(values) / len(values)
        if name.startswith("eval/") or name == "train/episode_return":
            low, high = stratified_bootstrap(np.array(values), np.mean, RESAMPLES)
            result |= {f"{name}_min": min(values), f"{name}_max": max(values), f"{name}_low": low, f"{name}_high": high}
    return result
