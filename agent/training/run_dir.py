"""The folder of a run: which it is, and that one process writes to it."""

import contextlib
import json
import os
import platform
import shlex
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from agent.commands import command
from agent.config import Config
from agent.config_fields import ConfigError
from agent.config_sections import ALGORITHMS
from agent.files import replaced
from agent.policy import PolicyInfo, may_be_imported
from agent.weights import CRITICS_FILE
from envs.errors import UserError
from envs.factories import factory_of, is_of_factory

LOCK, OWNER = ".lock", ".owner.json"


def make_run_dir(config: Config) -> Path:
    """The folder given, or a new one under runs/ named after environment, algorithm, seed and time."""
    if config.run_dir is not None:
        path = Path(config.run_dir)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"run_dir: {path} cannot be made: {error}") from None
        return path
    try:
        return new_run_dir(config)
    except OSError as error:
        raise ConfigError(f"runs/ cannot be written: {error}; run_dir=FOLDER chooses another place") from None


def new_run_dir(config: Config) -> Path:
    Path("runs").mkdir(exist_ok=True)
    env_name = config.env.id.split(":")[-1].replace("/", "-")
    stem = f"{env_name}-{config.algorithm_name}-s{config.seed}-{datetime.now():%Y%m%d-%H%M%S}"
    for suffix in ("", *(f"-{i}" for i in range(2, 1000))):
        path = Path("runs") / f"{stem}{suffix}"
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path
    raise RuntimeError(f"cannot make a run folder like runs/{stem}")


@contextlib.contextmanager
def sole_writer(run_dir: Path) -> Iterator[None]:
    """Holds the folder's lock. UserError where another process does; the lock of one that died is free."""
    lock = FileLock(run_dir / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{run_dir}: another process writes to it: {owner(run_dir)}; wait for it or stop it. The system frees the "
            "lock when that process ends, however it does: there is no file to remove"
        ) from None
    except OSError as error:
        raise UserError(f"{run_dir}: cannot be locked: {error}; choose a run_dir where files can be written") from None
    try:
        own = {"pid": os.getpid(), "host": platform.node(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        write_atomically(run_dir / OWNER, json.dumps(own))
        yield
    finally:
        (run_dir / OWNER).unlink(missing_ok=True)
        lock.release()


def owner(run_dir: Path) -> str:
    """Of the lock, in words."""
    try:
        own = json.loads((run_dir / OWNER).read_text(encoding="utf-8"))
        return f"process {own['pid']} on {own['host']}, since {own['since']}"
    except (OSError, ValueError, TypeError, KeyError):
        return "one that has just begun"


def require_new(run_dir: Path) -> None:
    """ConfigError where the folder holds a run."""
    if (run_dir / "config.yaml").exists():
        raise ConfigError(
            f"run_dir: {run_dir} already holds a run; resume it ({command('train', '--resume', run_dir)}), choose "
            "another folder or remove it"
        )


def not_writable(run_dir: Path, error: OSError) -> UserError:
    how = f"once it can, {command('train', '--resume', run_dir)} continues the run"
    return UserError(f"{run_dir} cannot be written: {error}; {how}")


def write_atomically(path: Path, text: str) -> None:
    with replaced(path) as staging:
        staging.write_text(text, encoding="utf-8")


def next_commands(run_dir: Path, info: PolicyInfo) -> list[str]:
    """What to do with a finished run. `info`: of its policies; what they name, the user has named."""
    trust = [] if all(map(may_be_imported, info.names())) else ["--trust"]
    offline = list(run_dir.glob("wandb/offline-run-*"))
    sync = [f"wandb sync {shlex.quote(str(run_dir))}/wandb/offline-run-*"] if offline else []
    if is_of_factory(info.env.id):
        return [f"in Python: evaluate(run, env={factory_of(info.env.id)}), with what made the environments", *sync]
    return [
        command("evaluate", run_dir, *trust),
        command("evaluate", run_dir, *trust, "--video", run_dir / "videos"),
        *([command("evaluate", run_dir, *trust, "--gradients")] if (run_dir / CRITICS_FILE).exists() else []),
        command("compare", run_dir / "config.yaml", "--algorithms", *ALGORITHMS, "--seeds", 10),
        *sync,
    ]
