"""Compiled and captured loops against the plain one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loops import make_loop, run, state

from agent.training.acceleration import COMPILATION_PAYS_FROM, pays_to_compile


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_loops_do_what_the_plain_loop_does(tmp_path: Path) -> None:
    """Two of them alive at once, through ends of episodes and a replay that wraps."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": "."}
    command = [sys.executable, "tests/loops.py"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.strip().endswith("the same"), result.stderr[-3000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("env_id", ["Tensor/CartPole-v1", "CartPole-v1"])
@pytest.mark.parametrize("structure", ["per_action", "joint"])
def test_captured_loop_does_what_the_plain_loop_does_bit_for_bit(env_id: str, structure: str) -> None:
    plain, captured = (make_loop("cuda", f"env.id={env_id}", f"critic.structure={structure}") for _ in range(2))
    plain.graphs = None
    for loop in (plain, captured):
        run(loop)
    assert captured.graphs is not None and captured.graphs.graphs
    for name, tensor in state(plain).items():
        assert torch.equal(state(captured)[name], tensor), name


def test_only_long_runs_on_a_cpu_with_a_compiler_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    cpu = torch.device("cpu")
    assert pays_to_compile(COMPILATION_PAYS_FROM, cpu) and not pays_to_compile(COMPILATION_PAYS_FROM - 1, cpu)
    assert not pays_to_compile(COMPILATION_PAYS_FROM, torch.device("cuda"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not pays_to_compile(COMPILATION_PAYS_FROM, cpu)
