"""Checkpoints: the full training state of a run in safetensors and JSON, each whole or not there at all.

    checkpoints/step_20000/state.safetensors    every tensor that training changes, random streams included
    checkpoints/step_20000/checkpoint.json      counters, config, versions
    checkpoints/step_20000/SHA256SUMS           of both, as sha256sum has them
    checkpoints/latest                          the name of the newest

Each is written to a temporary folder, flushed and renamed; `latest` is replaced atomically.
"""

import contextlib
import hashlib
import logging
import math
import os
import re
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from agent.files import replaced
from agent.policy import MemberInfo
from envs.errors import UserError

FOLDER, LATEST = "checkpoints", "latest"
TENSORS, INFO, SUMS = "state.safetensors", "checkpoint.json", "SHA256SUMS"
NAME = re.compile(r"step_(\d+)(?:-(\d+))?")

logger = logging.getLogger(__name__)


class CheckpointError(UserError):
    """A checkpoint that cannot be used: the text says which file and why."""


class CheckpointInfo(BaseModel):
    """checkpoint.json: all that is not a tensor."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, ser_json_inf_nan="constants"
    )
    format: Literal[6] = 6
    env_steps: int = Field(ge=0)  # of a member
    num_updates: int = Field(ge=0)
    updates_before_refill: int = Field(0, ge=0)  # of them, before the run last resumed with an empty replay; else 0
    milestones: dict[str, int]  # where the next log line, evaluation, … is due
    elapsed_seconds: float = Field(ge=0)
    metrics_bytes: int = Field(ge=0)  # of metrics.jsonl
    mean_return: float | None  # over members, greedy, of the last evaluation
    failed: dict[int, int]  # members with parameters that are not finite: since which step
    best: list[MemberInfo]
    wandb_id: str | None
    wandb_step: int
    device: str
    num_data_ranks: int = Field(1, ge=1)  # which shared the data of each member
    config: dict[str, Any]
    versions: dict[str, str]


class Checkpoint(NamedTuple):
    folder: Path
    info: CheckpointInfo
    tensors: dict[str, Tensor]


class CheckpointWriter:
    """Writes the checkpoints of one run beside its training, and removes old ones."""

    def __init__(self, run_dir: Path, keep: int) -> None:
        """`keep`: how many of the newest stay, besides the one of the highest return."""
        self.folder, self.keep = run_dir / FOLDER, keep
        self.thread: threading.Thread | None = None
        self.failure: Exception | None = None
        self.last_was_written = True
        self.remove_unfinished()  # of a process that was killed while writing

    def save(self, info: CheckpointInfo, tensors: dict[str, Tensor]) -> None:
        """Begins to write; nothing may write to `tensors` from here on. Waits for the one before."""
        self.wait()
        self.thread = threading.Thread(target=self.try_to_write, args=(info, tensors))
        self.thread.start()

    def wait(self) -> None:
        """Returns once what was begun is on disk."""
        if self.thread is not None:
            self.thread.join()
        self.thread = None
        if self.failure is not None:
            raise self.failure

    def try_to_write(self, info: CheckpointInfo, tensors: dict[str, Tensor]) -> None:
        try:
            self.write(info, tensors)
            self.last_was_written = True
        except OSError as error:  # the run continues: what it has saved before still exists
            self.last_was_written = False
            logger.warning("no checkpoint at step %d, training continues: %s", info.env_steps, error)
        except Exception as error:  # of ours: the training thread raises it
            self.failure = error

    def write(self, info: CheckpointInfo, tensors: dict[str, Tensor]) -> None:
        self.folder.mkdir(exist_ok=True)
        staging = self.folder / ".writing"
        try:
            staging.mkdir()
            with replaced(staging / TENSORS) as file:
                save_file(tensors, file)
            (staging / INFO).write_text(info.model_dump_json(indent=1), encoding="utf-8")
            (staging / SUMS).write_text(sums(staging), encoding="utf-8")
            for path in (*staging.iterdir(), staging):
                flush(path)
            name = self.new_name(info.env_steps)
            os.replace(staging, self.folder / name)
            (self.folder / ".latest").write_text(name, encoding="utf-8")
            flush(self.folder / ".latest")
            os.replace(self.folder / ".latest", self.folder / LATEST)
            flush(self.folder)
        finally:
            self.remove_unfinished()
        self.remove_old()

    def new_name(self, env_steps: int) -> str:
        """step_N, or step_N-2 where there is one: a folder cannot be replaced in one step."""
        taken = [number for step, number, _ in found(self.folder) if step == env_steps]
        return f"step_{env_steps}-{max(taken) + 1}" if taken else f"step_{env_steps}"

    def remove_unfinished(self) -> None:
        for path in self.folder.glob(".*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def remove_old(self) -> None:
        """Leaves the newest, the best, and the newest in which most members are sound."""
        existing = [path for _, _, path in found(self.folder)]
        best = max(existing, key=lambda path: (mean_return(path), existing.index(path)))
        sound = max(existing, key=lambda path: (-num_failed(path), existing.index(path)))
        for path in existing[: -self.keep]:
            if path not in (best, sound):
                shutil.rmtree(path, ignore_errors=True)


def found(folder: Path) -> list[tuple[int, int, Path]]:
    """The checkpoints in a folder with steps and number, the newest last."""
    named = [(NAME.fullmatch(path.name), path) for path in folder.glob("step_*")]
    return sorted((int(match[1]), int(match[2] or 1), path) for match, path in named if match)


def mean_return(folder: Path) -> float:
    with contextlib.suppress(CheckpointError):
        if (value := read_info(folder).mean_return) is not None:
            return value
    return -math.inf


def num_failed(folder: Path) -> int | float:
    with contextlib.suppress(CheckpointError):
        return len(read_info(folder).failed)
    return math.inf


def flush(path: Path) -> None:
    """Has what is written reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sums(folder: Path) -> str:
    lines = []
    for name in (TENSORS, INFO):
        with (folder / name).open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines)


def latest(run_dir: Path) -> Path | None:
    """The newest checkpoint of a run; None where it has none."""
    folder = run_dir / FOLDER
    pointer = folder / LATEST
    with contextlib.suppress(OSError, UnicodeDecodeError):
        name = pointer.read_text(encoding="utf-8")
        if NAME.fullmatch(name) and (folder / name).is_dir():
            return folder / name
    existing = found(folder)
    return existing[-1][-1] if existing else None


def read(folder: Path) -> Checkpoint:
    """A checkpoint, as it was written. CheckpointError where a file has changed since."""
    try:
        written = (folder / SUMS).read_text(encoding="utf-8", errors="replace")
        if written != sums(folder):
            raise CheckpointError(f"{folder}: its files are not what was written: {SUMS} differs; {instead(folder)}")
        return Checkpoint(folder, read_info(folder), load_file(folder / TENSORS))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: not readable: {error}; {instead(folder)}") from None


def read_info(folder: Path) -> CheckpointInfo:
    path = folder / INFO
    try:
        return CheckpointInfo.model_validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        if fault["loc"] == ("format",):
            raise CheckpointError(
                f"{path}: is of format {fault['input']}, this version resumes format 6; the policies of the run can "
                f"still be evaluated and compared; {instead(folder)}"
            ) from None
        where = ".".join(map(str, fault["loc"]))
        raise CheckpointError(f"{path}: {where + ': ' if where else ''}{fault['msg']}; {instead(folder)}") from None
    except (OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable: {error}; {instead(folder)}") from None


def instead(folder: Path) -> str:
    """What to do without this checkpoint."""
    others = [path.name for _, _, path in found(folder.parent) if path != folder]
    next_time = f"the run resumes from {others[-1]}" if others else "the run starts over"
    return f"remove {folder} and {next_time}"


def require_fit(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """CheckpointError where the tensors of a checkpoint are not those of this run, by name, shape or type."""
    path = folder / TENSORS
    for name, own in state.items():
        if name not in tensors:
            raise CheckpointError(f"{path}: lacks '{name}'; it was written by another version of this project")
        saved = tensors[name]
        if (saved.shape, saved.dtype) != (own.shape, own.dtype):
            raise CheckpointError(
                f"{path}: {name}: expected {own.dtype} {list(own.shape)}, found {saved.dtype} {list(saved.shape)}"
            )
