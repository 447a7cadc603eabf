"""Searching settings: the example with Optuna, and the sweeps of W&B."""

import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.cli import train

ROOT = Path(__file__).parents[1]
SEARCH = str(ROOT / "examples" / "search.py")
QUICK = ["seeds=1", "total_env_steps=120", "learning_starts=60", "hidden_sizes=[8]", "batch_size=8", "compile=false"]
QUICK += ["evaluation.every_env_steps=40", "evaluation.episodes=1", "evaluation.final_episodes=1"]


def command(folder: Path, trials: int) -> list[str]:
    return [sys.executable, SEARCH, "--trials", str(trials), "--runs", str(folder), "--warm-up", "40", *QUICK]


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """The URL of an empty database, whose server runs as a user of its own and stops at the end."""
    pytest.importorskip("psycopg2", reason="needs the driver psycopg2")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found or shutil.which("runuser") is None or os.geteuid() != 0:
        pytest.skip("needs PostgreSQL, and root to start it as the user postgres")
    programs = found[-1].parent
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        shutil.chown(folder, "postgres")

        def run(*command: str) -> None:
            subprocess.run(["runuser", "-u", "postgres", "--", *command], cwd="/", check=True, capture_output=True)

        data = f"{folder}/data"
        run(str(programs / "initdb"), "--auth=trust", "--pgdata", data)
        control = [str(programs / "pg_ctl"), "--pgdata", data, "--wait", "--silent"]
        run(*control, "--log", f"{folder}/log", "-o", f"-p {port} -h 127.0.0.1 -k {folder}", "start")
        try:
            yield f"postgresql+psycopg2://postgres@127.0.0.1:{port}/postgres"
        finally:
            run(*control, "--mode=immediate", "stop")


@pytest.mark.product
@pytest.mark.parametrize("kind", ["sqlite", "journal", "postgresql"])
def test_a_search_resumes_after_a_kill_and_is_shared_by_processes(kind: str, tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna", reason="needs the extra [search]")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with contextlib.ExitStack() as stack:
        place: Any = f"sqlite:///{tmp_path / 'search.db'}"
        told = []
        if kind == "journal":
            told = ["--storage", "journal"]
        if kind == "postgresql":
            place = stack.enter_context(postgresql())
            told = ["--storage", place]
        killed = subprocess.Popen([*command(tmp_path, 20), *told], env=environment, stderr=subprocess.PIPE, text=True)
        assert killed.stderr is not None
        for line in killed.stderr:
            if "Trial 1 " in line:
                break
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        killed.stderr.close()
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        both = [subprocess.Popen([*command(tmp_path, 8), *told], env=environment, **pipes) for _ in "12"]
        said = [process.communicate(timeout=240) for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        assert all("trials ran to their end" in out for out, _ in said)
        if kind == "journal":
            backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "search.journal"))
            place = optuna.storages.JournalStorage(backend)
        trials = optuna.load_study(study_name="cartpole", storage=place).trials
    states = [trial.state.name for trial in trials]
    assert 8 <= states.count("COMPLETE") + states.count("PRUNED") <= 9  # both may finish one at once
    assert states.count("RUNNING") <= 1  # the one that was killed
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert all(trial.intermediate_values for trial in trials if trial.state.name == "PRUNED")


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
