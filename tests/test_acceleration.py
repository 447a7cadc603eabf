"""Compiled and captured loops against the plain one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from loops import KINDS, make_loop, run, state
from test_scripts import SHORT

import agent.training.loop as loop_module
import train
from agent.config import ConfigError, EstimatorConfig
from agent.config_loader import load_config
from agent.training.acceleration import COMPILATION_PAYS_FROM, EAGER_CALLS, CudaGraphs, pays_to_compile
from agent.training.setup import select_device

ESTIMATORS = get_args(EstimatorConfig.model_fields["name"].annotation)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_loops_do_what_the_plain_loop_does(tmp_path: Path) -> None:
    """Two of them alive at once, through ends of episodes and a replay that wraps."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": "."}
    command = [sys.executable, "tests/loops.py"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.strip().endswith("the same"), result.stderr[-3000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "kind",
    [
        *KINDS,
        ["env.id=CartPole-v1", "critic.structure=joint"],
        ["env.id=Taxi-v4", "critic.structure=joint", "updates_per_step=1"],
        *([*KINDS[2], f"estimator.name={name}"] for name in ESTIMATORS),
    ],
    ids=" ".join,
)
def test_captured_loop_does_what_the_plain_loop_does_bit_for_bit(kind: list[str]) -> None:
    plain, captured = (make_loop("cuda", *kind) for _ in range(2))
    plain.graphs = None
    for loop in (plain, captured):
        run(loop)
    assert captured.graphs is not None and captured.graphs.graphs
    for name, tensor in state(plain).items():
        assert torch.equal(state(captured)[name], tensor), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_replays_draw_what_plain_calls_do_on_a_device_that_lags_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to PyTorch 2.12 a capture zeroes the offset of random numbers, which once came after a replay had set it."""
    lag, until_it_is_over = 400_000_000, 800_000_000  # cycles: 0.2 and 0.4 s
    generator = torch.Generator("cuda").manual_seed(0)
    graphs, drawn = CudaGraphs([generator]), torch.zeros(4, device="cuda")
    torch.zeros(1, dtype=torch.int64, device="cuda").fill_(1)  # loads the kernel: loading would wait for the lag
    capture_begin, lags = torch.cuda.CUDAGraph.capture_begin, []

    def lag_and_begin(graph: torch.cuda.CUDAGraph, *args: Any, **kwargs: Any) -> None:
        torch.cuda._sleep(lag)
        lags.append(graph)
        capture_begin(graph, *args, **kwargs)

    def draw() -> None:
        torch.cuda._sleep(until_it_is_over)
        drawn.copy_(torch.rand(4, generator=generator, device="cuda"))

    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", lag_and_begin)
    plain = torch.Generator("cuda").manual_seed(0)
    for _ in range(EAGER_CALLS + 3):
        graphs(draw)
        assert torch.equal(drawn, torch.rand(4, generator=plain, device="cuda"))
    assert len(lags) == 1


@pytest.mark.parametrize("wanted", ["null", "true"])
def test_a_compiler_that_fails_ends_only_the_run_that_asked_for_it(
    wanted: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(function: object) -> object:
        def program(*args: object) -> None:
            raise RuntimeError("g++: internal error\nand much more")

        return program

    monkeypatch.setattr(loop_module, "compiled", broken)
    monkeypatch.setattr(loop_module, "pays_to_compile", lambda num_updates: True)
    loop = make_loop("cpu", "env.id=CartPole-v1", f"compile={wanted}")
    if wanted == "true":
        with pytest.raises(ConfigError, match="compile: got true, but that fails here: g\\+\\+: internal error$"):
            run(loop)
        return
    plain = make_loop("cpu", "env.id=CartPole-v1", "compile=false")
    run(loop, plain)
    assert "goes on uncompiled" in caplog.text and not loop.compiles
    for name, tensor in state(plain).items():
        assert torch.equal(state(loop)[name], tensor), name


@pytest.mark.parametrize("wanted", ["true", "false"])
def test_what_a_run_compiled_goes_with_it(wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the ninth run of a comparison could not be compiled."""
    compiled, reset = [], []
    monkeypatch.setattr(loop_module, "compiled", lambda function: compiled.append(1) or function)
    monkeypatch.setattr(torch.compiler, "reset", lambda: reset.append(len(compiled)))
    assert train.main([*SHORT, f"run_dir={tmp_path / 'run'}", f"compile={wanted}"]) == 0
    assert reset == ([1] if wanted == "true" else [])


def test_only_long_runs_where_there_is_a_compiler_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert pays_to_compile(COMPILATION_PAYS_FROM) and not pays_to_compile(COMPILATION_PAYS_FROM - 1)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not pays_to_compile(COMPILATION_PAYS_FROM)
    config = load_config(None, ["env.id=CartPole-v1", "compile=true", "device=cpu"])
    with pytest.raises(ConfigError, match="there is no C\\+\\+ compiler here"):
        select_device(config)
