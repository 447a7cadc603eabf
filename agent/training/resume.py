"""What a resumed run must agree in with the run that it was."""

import json
from pathlib import Path
from typing import Any

from agent.config import Config
from agent.config_fields import ConfigError
from agent.config_loader import flat, load_config, member_with_new_keys
from agent.training.checkpoint import Checkpoint, latest, read
from agent.training.tracking import METRICS_FILE
from envs.errors import UserError

# What may change; `device` is compared as it was resolved, below.
FREE = (
    "total_env_steps",
    "num_threads",
    "device",
    "compile_guards",
    "run_dir",
    "checkpoint.keep",
    "checkpoint.every_env_steps",
    "checkpoint.replay_gib",
    "env.on_error",
    "env.timeout_seconds",
)


def checkpoint_of(config: Config, run_dir: Path, device: str, num_data_ranks: int = 1) -> Checkpoint | None:
    """The newest checkpoint of a run that this config may resume; None where there is none yet.

    ConfigError where the config is not the run's, with every key that differs.
    """
    folder = latest(run_dir)
    if folder is None:
        if (run_dir / "config.yaml").exists():
            require_same(flat(load_config(run_dir / "config.yaml", of_run=True).model_dump()), config, run_dir)
        return None
    checkpoint = with_todays_members(read(folder))
    require_same(flat(checkpoint.info.config), config, run_dir)
    if checkpoint.info.device != device:
        raise ConfigError(
            f"device: {folder} was written on {checkpoint.info.device}, whose random streams {device} has not; "
            f"use device={checkpoint.info.device}"
        )
    if checkpoint.info.num_data_ranks != num_data_ranks:
        raise ConfigError(
            f"parallel.data: {folder} was written by {checkpoint.info.num_data_ranks} ranks, each of which has its own "
            f"environments and replay in it; it cannot be resumed by {num_data_ranks}"
        )
    done, total = checkpoint.info.env_steps, flat(checkpoint.info.config)["total_env_steps"]
    if config.total_env_steps < done and config.total_env_steps != total:  # the last step may lead beyond the end
        raise ConfigError(f"total_env_steps: got {config.total_env_steps}, but {run_dir} has {done} steps behind it")
    require_metrics(run_dir / METRICS_FILE, checkpoint.info.metrics_bytes)
    return checkpoint


def with_todays_members(checkpoint: Checkpoint) -> Checkpoint:
    """What its members have of their own under the keys of today."""
    best = [
        member.model_copy(update={"settings": member_with_new_keys(member.settings, checkpoint.info.config)})
        for member in checkpoint.info.best
    ]
    return checkpoint._replace(info=checkpoint.info.model_copy(update={"best": best}))


def require_metrics(path: Path, num_bytes: int) -> None:
    """UserError where lines are gone that were written before the checkpoint."""
    found = path.stat().st_size if path.exists() else 0
    if found < num_bytes:
        raise UserError(f"{path}: has lost lines: {found} bytes, the checkpoint was written after {num_bytes}")


def is_finished(config: Config) -> bool:
    """Whether the run in `run_dir` has come to the end that this config wants.  ConfigError: it is another's."""
    run_dir = Path(str(config.run_dir))
    if config.run_dir is None or not (run_dir / "result.json").is_file():
        return False
    require_same(flat(load_config(run_dir / "config.yaml", of_run=True).model_dump()), config, run_dir)
    try:
        env_steps = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))["env_steps"]
        return isinstance(env_steps, int) and env_steps >= config.total_env_steps
    except (OSError, ValueError, LookupError, TypeError):
        return False


def require_same(saved: dict[str, object], config: Config, run_dir: Path) -> None:
    own = flat(config.model_dump())
    may_differ = [key for key in own if key in FREE or key.startswith("wandb.")]
    differing = [key for key in own if key not in may_differ and ordered(key, own[key]) != ordered(key, saved[key])]
    if differing:
        listed = "\n".join(f"  {key}: {saved[key]!r} there, {own[key]!r} here" for key in differing)
        free = ", ".join(key for key in FREE if key != "run_dir")
        raise ConfigError(
            f"{run_dir} cannot be resumed with this config, other settings would make it another run:\n{listed}\n"
            f"only {free} and wandb.* may change"
        )


def ordered(key: str, value: Any) -> Any:
    """With the order of the swept settings, which numbers the members."""
    return list(value.items()) if key == "sweep" and isinstance(value, dict) else value


def config_of_run(run_dir: Path, overrides: list[str]) -> Config:
    """Of the run in a folder, with other values for some settings."""
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"--resume {run_dir}: not a run folder: no config.yaml")
    return load_config(run_dir / "config.yaml", overrides, of_run=True).model_copy(update={"run_dir": str(run_dir)})
