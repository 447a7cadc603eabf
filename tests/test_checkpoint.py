"""Checkpoints are whole or not there, whatever fails while one is written; one writer for a run folder."""

import errno
import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import short

from agent.training import checkpoint
from agent.training.checkpoint import CheckpointError, CheckpointInfo, CheckpointWriter, latest, read, require_fit
from agent.training.run_dir import sole_writer
from agent.training.trainer import train
from benchmarks import faults
from envs import UserError

INFO = CheckpointInfo(
    env_steps=0,
    num_updates=0,
    milestones={"log": 10},
    elapsed_seconds=0.0,
    metrics_bytes=0,
    mean_return=None,
    failed={},
    best=[],
    wandb_id=None,
    wandb_step=0,
    device="cpu",
    config={},
    versions={},
)


def write(folder: Path, env_steps: int, value: float = 0.0, *, keep: int = 1, **info_of: object) -> None:
    writer = CheckpointWriter(folder, keep)
    info = INFO.model_copy(update={"env_steps": env_steps, **info_of})
    writer.save(info, {"x": torch.tensor([value])})
    writer.wait()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_newest_and_best_stay(tmp_path: Path) -> None:
    for env_steps, mean_return in ((10, 1.0), (20, 5.0), (30, 2.0), (40, 3.0)):
        write(tmp_path, env_steps, mean_return=mean_return, keep=2)
    assert names(tmp_path) == ["latest", "step_20", "step_30", "step_40"]
    assert latest(tmp_path) == tmp_path / "checkpoints" / "step_40"


def test_the_last_in_which_no_member_had_failed_stays(tmp_path: Path) -> None:
    for env_steps, failed in ((10, {}), (20, {}), (30, {1: 25}), (40, {1: 25})):
        write(tmp_path, env_steps, failed=failed, mean_return=float(env_steps))
    assert names(tmp_path) == ["latest", "step_20", "step_40"]
    assert read(tmp_path / "checkpoints" / "step_40").info.failed == {1: 25}


def test_without_its_pointer_the_newest_is_found(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    for env_steps in (9, 10):
        write(tmp_path, env_steps, keep=2)
    pointer = tmp_path / "checkpoints" / "latest"
    for content in (b"step_10", b"step_11", b"\xff", b"../../x", b""):
        pointer.write_bytes(content)
        assert latest(tmp_path) == tmp_path / "checkpoints" / "step_10"
    pointer.unlink()
    assert latest(tmp_path) == tmp_path / "checkpoints" / "step_10"


WRITING = [
    (os, "replace"),
    (os, "fsync"),
    (os, "open"),
    (Path, "touch"),
    (checkpoint, "save_file"),
    (Path, "write_text"),
    (Path, "mkdir"),
    (Path, "chmod"),
]


@pytest.mark.parametrize("env_steps", [10, 20], ids=["in place of itself", "a newer one"])
def test_a_disk_that_fills_up_at_any_write_leaves_the_old_or_the_new(
    tmp_path: Path, env_steps: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fails_at, num_calls, outcomes = 0, 0, set()

    def failing(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal num_calls
            num_calls += 1
            if num_calls == fails_at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*args, **kwargs)

        return call

    while fails_at == 0 or num_calls >= fails_at:
        fails_at += 1
        folder = tmp_path / str(fails_at)
        folder.mkdir()
        write(folder, 10, value=1.0)
        with monkeypatch.context() as patched:
            for owner, name in WRITING:
                patched.setattr(owner, name, failing(getattr(owner, name)))
            num_calls = 0
            write(folder, env_steps, value=2.0)
        found = latest(folder)
        assert found is not None
        outcomes.add(read(found).tensors["x"].item())
        assert not list((folder / "checkpoints").glob(".*"))
    assert fails_at > 8 and outcomes == {1.0, 2.0}
    assert "training continues: [Errno 28] No space left on device" in caplog.text


@pytest.mark.parametrize("file", ["state.safetensors", "checkpoint.json", "SHA256SUMS"])
def test_what_was_not_written_is_not_read(tmp_path: Path, file: str) -> None:
    write(tmp_path, 10, value=1.0)
    whole = (tmp_path / "checkpoints" / "step_10" / file).read_bytes()
    draw = random.Random(0)
    for _ in range(100):
        at = draw.randrange(len(whole))
        flipped = bytes([whole[at] ^ 1 << draw.randrange(8)])
        damaged = draw.choice([whole[:at], whole[:at] + flipped + whole[at + 1 :], whole + b"x", b""])
        (tmp_path / "checkpoints" / "step_10" / file).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=rf"^{tmp_path}/checkpoints/step_10: .* remove .* starts over"):
            read(tmp_path / "checkpoints" / "step_10")


def test_tensors_of_another_run_are_named(tmp_path: Path) -> None:
    write(tmp_path, 10)
    found = read(tmp_path / "checkpoints" / "step_10")
    require_fit(found.folder, found.tensors, {"x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="lacks 'y'"):
        require_fit(found.folder, found.tensors, {"y": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"x: expected torch\.float32 \[2\], found torch\.float32 \[1\]"):
        require_fit(found.folder, found.tensors, {"x": torch.zeros(2)})


def test_two_processes_never_write_one_folder(tmp_path: Path) -> None:
    ready, go_on = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with sole_writer(tmp_path):
            os.write(ready[1], b"x")
            os.read(go_on[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    with pytest.raises(UserError, match=f"another process writes to it: process {child} on"):
        train(short(tmp_path))
    assert not (tmp_path / "config.yaml").exists()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with sole_writer(tmp_path):  # the lock of a dead process is free
        assert json.loads((tmp_path / ".owner.json").read_text())["pid"] == os.getpid()


@pytest.mark.slow
def test_a_short_form_of_the_fault_benchmark(tmp_path: Path) -> None:
    rows = [faults.kills(tmp_path, 2, random.Random(0)), *faults.damages(tmp_path, 180, random.Random(0))]
    assert sum(row["count"] for row in rows) >= 180 + 2
    assert [row for row in rows if row["lost"]] == []


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    write(tmp_path, 10)
    shutil.copytree(tmp_path / "checkpoints" / "step_10", tmp_path / "checkpoints" / ".writing-abc")
    CheckpointWriter(tmp_path, 1)
    assert names(tmp_path) == ["latest", "step_10"]
