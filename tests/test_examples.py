"""Searching settings: the example with Optuna, and the sweeps of W&B."""

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from agent.cli import train

ROOT = Path(__file__).parents[1]
SEARCH = str(ROOT / "examples" / "search.py")
QUICK = ["seeds=1", "total_env_steps=120", "learning_starts=60", "hidden_sizes=[8]", "batch_size=8", "compile=false"]
QUICK += ["evaluation.every_env_steps=40", "evaluation.episodes=1", "evaluation.final_episodes=1"]


def command(folder: Path, trials: int) -> list[str]:
    return [sys.executable, SEARCH, "--trials", str(trials), "--runs", str(folder), "--warm-up", "40", *QUICK]


@pytest.mark.product
def test_a_search_resumes_after_a_kill_and_is_shared_by_processes(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna", reason="needs the extra [search]")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen(command(tmp_path, 20), env=environment, stderr=subprocess.PIPE, text=True)
    assert killed.stderr is not None
    for line in killed.stderr:
        if "Trial 1 " in line:
            break
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stderr.close()
    both = [
        subprocess.Popen(
            command(tmp_path, 8), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in "12"
    ]
    told = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert all("trials ran to their end" in out for out, _ in told)
    study = optuna.load_study(study_name="cartpole", storage=f"sqlite:///{tmp_path / 'search.db'}")
    states = [trial.state.name for trial in study.trials]
    assert 8 <= states.count("COMPLETE") + states.count("PRUNED") <= 9  # both may finish one at once
    assert all(trial.intermediate_values for trial in study.trials if trial.state.name == "PRUNED")


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "sweeps").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_wandb_sweep_trains_what_it_says(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its command, with a value of each parameter as `wandb agent` writes them."""
    sweep = yaml.safe_load(file.read_text(encoding="utf-8"))
    values = {key: how["values"][-1] if "values" in how else how["min"] for key, how in sweep["parameters"].items()}
    *words, last = sweep["command"]
    assert words[:2] == ["gumbel", "train"] and last == "${args_no_hyphens}"
    assert train.main([*words[2:], *(f"{key}={value}" for key, value in values.items()), "--print-config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    for key, value in values.items():
        assert functools.reduce(lambda section, part: section[part], key.split("."), config) == value
    assert sweep["metric"] == {"name": "eval/final_return_greedy", "goal": "maximize"}
