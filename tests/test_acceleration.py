"""Compiled and captured loops against the plain one."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from loops import KINDS, make_loop, run, state
from test_scripts import SHORT

import agent.training.acceleration as acceleration_module
import agent.training.loop as loop_module
from agent.cli import train
from agent.config_fields import ConfigError
from agent.config_loader import load_config
from agent.config_sections import EstimatorConfig
from agent.training.acceleration import COMPILATION_PAYS_FROM, CudaGraphs, pays_to_compile, run_plain
from agent.training.setup import select_device

ESTIMATORS = get_args(EstimatorConfig.model_fields["name"].annotation)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("loops", ["several", "guarded", "stacked", "functions"])
def test_compiled_loops_do_what_the_plain_loops_do(loops: str, tmp_path: Path) -> None:
    """Two alive at once, or one with the compiler's guards on; through ends of episodes and a replay that wraps.

    Functions that return tensors or set attributes to them do it in every call.
    """
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": "."}
    command = [sys.executable, "tests/loops.py", loops]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.strip().endswith("the same"), result.stderr[-3000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "kind",
    [
        *KINDS,
        ["env.id=CartPole-v1", "critic.structure=joint"],
        ["env.id=Taxi-v4", "critic.structure=joint", "updates_per_step=1"],
        ["env.id=Tensor/FrozenLake-v1", "env.num_envs=1"],  # an update in every second iteration: two graphs in turns
        *([*KINDS[2], f"estimator.name={name}"] for name in ESTIMATORS),
    ],
    ids=" ".join,
)
def test_captured_loop_does_what_the_plain_loop_does_bit_for_bit(kind: list[str]) -> None:
    plain, captured = (make_loop("cuda", *kind) for _ in range(2))
    plain.run_whole = plain.run_part = run_plain
    for loop in (plain, captured):
        run(loop)
    runners = [runner for runner in (captured.run_whole, captured.run_part) if isinstance(runner, CudaGraphs)]
    assert len(runners) == 1 and runners[0].graphs
    for name, tensor in state(plain).items():
        assert torch.equal(state(captured)[name], tensor), name
    assert all(map(torch.equal, captured.transition, plain.transition))


@pytest.mark.parametrize("wanted", ["null", "true"])
def test_a_compiler_that_fails_ends_only_the_run_that_asked_for_it(
    wanted: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(function: object, guards: bool) -> object:
        def program(*args: object) -> None:
            raise RuntimeError("g++: internal error\nand much more")

        return program

    monkeypatch.setattr(acceleration_module, "compiled", broken)
    monkeypatch.setattr(loop_module, "pays_to_compile", lambda num_updates: True)
    loop = make_loop("cpu", "env.id=CartPole-v1", f"compile={wanted}")
    if wanted == "true":
        with pytest.raises(ConfigError, match="compile: got true, but that fails here: g\\+\\+: internal error$"):
            run(loop)
        return
    plain = make_loop("cpu", "env.id=CartPole-v1", "compile=false")
    run(loop, plain)
    assert "continues uncompiled" in caplog.text and not loop.compiles
    for name, tensor in state(plain).items():
        assert torch.equal(state(loop)[name], tensor), name


@pytest.mark.parametrize("wanted", ["null", "true"])
def test_a_signal_that_ends_the_compiler_stops_the_run(
    wanted: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C reaches the compiler's process too, which then fails."""

    def interrupted(function: object, guards: bool) -> object:
        def program(*args: object) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            raise RuntimeError("g++ died")

        return program

    run_dir = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(acceleration_module, "compiled", interrupted)
        patched.setattr(loop_module, "pays_to_compile", lambda num_updates: True)
        settings = [*SHORT, f"run_dir={run_dir}", f"compile={wanted}", "checkpoint.every_env_steps=60"]
        assert train.main(settings) == 130
    error = capfd.readouterr().err
    assert "stopped at step 99 of 200 while programs were compiled; " in error and "train.py --resume" in error
    assert "g++ died" not in error and "uncompiled" not in error
    assert [path.name for path in (run_dir / "checkpoints").glob("step_*")] == ["step_60"]


@pytest.mark.slow
@pytest.mark.parametrize("wanted", ["true", "false"])
def test_what_a_run_compiled_goes_with_it(wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the ninth run of a comparison could not be compiled."""
    compiled, reset = [], []
    monkeypatch.setattr(acceleration_module, "compiled", lambda function, guards: compiled.append(function) or function)
    monkeypatch.setattr(torch.compiler, "reset", lambda: reset.append(len(compiled)))
    assert train.main([*SHORT, f"run_dir={tmp_path / 'run'}", f"compile={wanted}"]) == 0
    assert reset == ([2] if wanted == "true" else [])  # update; store and act


def test_only_long_runs_where_there_is_a_compiler_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert pays_to_compile(COMPILATION_PAYS_FROM) and not pays_to_compile(COMPILATION_PAYS_FROM - 1)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not pays_to_compile(COMPILATION_PAYS_FROM)
    config = load_config(None, ["env.id=CartPole-v1", "compile=true", "device=cpu"])
    with pytest.raises(ConfigError, match="there is no C\\+\\+ compiler here"):
        select_device(config)


def test_a_run_that_compiles_nothing_does_not_import_the_compiler() -> None:
    """It takes longer than everything else between `import torch` and the first action."""
    code = "import sys, train; from loops import make_loop; make_loop('cpu', 'env.id=CartPole-v1', 'compile=false');"
    code += "assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": ".:tests"}, check=True)
