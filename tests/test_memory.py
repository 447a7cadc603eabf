"""What is free is found within every limit, and what does not fit is told in one sentence."""

from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from test_resume import short

from agent import memory
from agent.memory import free_memory, release_free_memory, told_if_it_runs_out
from agent.training.trainer import train
from envs import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("own", "folder", "limit", "used", "stat"),
    [
        ("0::/a/b", "a", "memory.max", "memory.current", "inactive_file"),  # the outer one has the limit
        ("0::/elsewhere", ".", "memory.max", "memory.current", "inactive_file"),  # as a container sees it
        ("3:cpu,memory:/a", "memory/a", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_memory_is_free_within_the_limits_of_control_groups(
    own: str, folder: str, limit: str, used: str, stat: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages of files that nobody uses count as free: the system takes them back when they are needed."""
    group = tmp_path / folder
    group.mkdir(parents=True, exist_ok=True)
    (tmp_path / "groups").write_text(f"7:cpuset:/\n{own}\n")
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "groups")
    (group / limit).write_text("9000\n")
    (group / used).write_text("8000\n")
    (group / "memory.stat").write_text(f"cache 600\n{stat} 500\n")
    assert free_memory(CPU) == 1500
    (group / limit).write_text("max\n")
    assert 2**20 < free_memory(CPU) < 2**50


def test_without_control_groups_it_is_that_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "none")
    assert 2**20 < free_memory(CPU) < 2**50


def test_memory_that_runs_out_all_the_same_is_no_traceback() -> None:
    for ask in (lambda: torch.empty(2**60), lambda: np.zeros(2**50)):
        with pytest.raises(UserError, match="^memory has run out; ask for less$"), told_if_it_runs_out("ask for less"):
            ask()
    with pytest.raises(RuntimeError, match="another"), told_if_it_runs_out("ask for less"):
        raise RuntimeError("another")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], r"the replay of \d+ slots for observations of 16 bytes .* are free; use"),
        (["algorithm=reinforce"], r"the buffer of REINFORCE .* are free; lower reinforce\.max_episode_steps"),
    ],
)
def test_a_run_that_memory_does_not_hold_leaves_no_folder(
    settings: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("agent.memory", "agent.replay"):
        monkeypatch.setattr(f"{module}.free_memory", lambda device: 1000)
    with pytest.raises(UserError, match=message):
        train(short(tmp_path / "run", *settings))
    assert not (tmp_path / "run").exists()


def test_free_memory_goes_back_to_the_system() -> None:
    """64 MiB in pieces of the heap, every other one freed: the C library keeps them all."""
    process = psutil.Process()
    pieces = [bytearray(b"x" * 2**16) for _ in range(2048)]
    del pieces[::2]
    before = process.memory_info().rss
    release_free_memory()
    assert before - process.memory_info().rss > 32 * 2**20
    assert all(len(piece) == 2**16 for piece in pieces)
