"""Members whose parameters stop being numbers, environments that fail: said within a log interval, without loss."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from failing_env import ENV_ID, FailingEnv
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from test_resume import assert_same, metrics, short, stop_at

import envs
from agent import Policy
from agent.config import Config
from agent.exit_codes import Stopped
from agent.training.checkpoint import CheckpointWriter
from agent.training.loop import TrainingLoop
from agent.training.run_dir import write_atomically
from agent.training.tracking import Tracker
from agent.training.trainer import train
from envs import UserError

__all__ = ["stop_at"]  # a fixture


def failing(run_dir: Path, *overrides: str) -> Config:
    return short(
        run_dir, f"env.id={ENV_ID}", "env.kwargs={at: 25}", "seeds=1", "env.vectorization_mode=sync", *overrides
    )


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the last member's parameters NaN in the 60th step."""
    run_iteration = TrainingLoop.run_iteration

    def run_and_poison(loop: TrainingLoop, env_steps: int) -> None:
        run_iteration(loop, env_steps)
        if env_steps == 59:
            loop.learner.actor.network.flat[-1] = torch.nan

    monkeypatch.setattr(TrainingLoop, "run_iteration", run_and_poison)


@pytest.mark.parametrize("algorithm", ["gumbel_actor_critic", "reinforce"])
def test_a_member_that_fails_is_dropped_and_the_others_continue(
    tmp_path: Path, algorithm: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    settings = [f"algorithm={algorithm}", "env.id=Tensor/CartPole-v1"]
    sound = train(short(tmp_path / "sound", *settings)).folder
    request.getfixturevalue("poison")
    run = train(short(tmp_path / "run", *settings)).folder
    assert "member 1 (seed 1) is dropped at step 60: its parameters are not finite" in caplog.text
    of_first = [[row for row in metrics(folder) if row["member"] == 0] for folder in (run, sound)]
    assert of_first[0] == of_first[1] != []
    assert max(row["env_steps"] for row in metrics(run) if row["member"] == 1) == 50
    assert all(value is not None for row in metrics(run) for value in row.values())
    members = json.loads((run / "result.json").read_text())["members"]
    assert [member.get("failed_at_env_steps") for member in members] == [None, 60]
    policy = Policy.load(run, member=1)  # of the evaluation before
    assert policy.info.members[0].env_steps == 120 and policy.act(np.zeros(4, dtype=np.float32)) in (0, 1)
    assert sorted(path.name for path in (run / "checkpoints").glob("step_*")) == ["step_120", "step_50"]


def test_the_policy_of_a_dropped_member_outlives_a_stop(
    tmp_path: Path, poison: None, stop_at: Callable[[int], None]
) -> None:
    unbroken = train(short(tmp_path / "unbroken", "env.id=Tensor/CartPole-v1")).folder
    stop_at(96)
    with pytest.raises(Stopped):
        train(short(tmp_path / "run", "env.id=Tensor/CartPole-v1"))
    assert_same(train(short(tmp_path / "run", "env.id=Tensor/CartPole-v1"), resume=True).folder, unbroken)


def test_a_run_without_a_sound_member_ends_with_what_was_good(tmp_path: Path, poison: None) -> None:
    with pytest.raises(UserError, match="no member has finite parameters at step 60"):
        train(short(tmp_path / "run", "seeds=1"))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step_*")] == ["step_50"]
    assert Policy.load(tmp_path / "run", weights="best").info.members[0].env_steps == 40


def test_a_disk_that_fills_up_ends_the_run_with_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = train(short(tmp_path / "unbroken")).folder

    def full(tracker: Tracker, env_steps: int, rows: object) -> None:
        if env_steps == 70:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(tracker, env_steps, rows)

    write = Tracker.write
    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "write", full)
        with pytest.raises(
            UserError, match=r"No space left on device; once it can, .*python train.py --resume .* continues the run"
        ):
            train(short(tmp_path / "run"))
    assert_same(train(short(tmp_path / "run"), resume=True).folder, unbroken)


def test_a_result_that_cannot_be_written_is_shown_and_only_its_evaluation_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unbroken, steps = train(short(tmp_path / "unbroken")).folder, []

    def full(path: Path, text: str) -> None:
        if path.name == "result.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write_atomically(path, text)

    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr("agent.training.record.write_atomically", full)
        with pytest.raises(UserError, match=r"No space left on device; once it can, .*python train.py --resume"):
            train(short(tmp_path / "run"))
    shown = capsys.readouterr().out
    assert "0 (seed 0)" in shown and "saved in" not in shown
    monkeypatch.setattr(TrainingLoop, "run_iteration", lambda loop, env_steps: steps.append(env_steps))
    assert_same(train(short(tmp_path / "run"), resume=True).folder, unbroken)
    assert steps == []


def test_a_stop_that_cannot_be_saved_does_not_say_that_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: Callable[[int], None]
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(CheckpointWriter, "write", full)
    stop_at(20)
    with pytest.raises(
        Stopped, match="stopped at step 21 of 120; .*python train.py --resume .* at the last checkpoint"
    ):
        train(short(tmp_path / "run"))


@pytest.mark.parametrize("at", [20, 100, 120])
def test_a_run_folder_that_is_moved_away_is_an_error(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken, run, run_iteration = (
        train(short(tmp_path / "unbroken")).folder,
        tmp_path / "run",
        TrainingLoop.run_iteration,
    )

    def run_and_move(loop: TrainingLoop, env_steps: int) -> None:
        run_iteration(loop, env_steps)
        if env_steps + 1 == at:
            run.rename(tmp_path / "elsewhere")

    with monkeypatch.context() as patched:
        patched.setattr(TrainingLoop, "run_iteration", run_and_move)
        with pytest.raises(UserError, match=f"{run} was moved or removed while the run wrote to it"):
            train(short(run))
    assert not run.exists()
    (tmp_path / "elsewhere").rename(run)
    assert_same(train(short(run), resume=True).folder, unbroken)


def test_a_working_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()  # whoever runs the tests may be allowed to write to read-only folders
    with pytest.raises(UserError, match=r"runs/ cannot be written: .*; run_dir=FOLDER chooses another place"):
        train(short(tmp_path).model_copy(update={"run_dir": None}))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="run_dir: .*file/run cannot be made: .*Not a directory"):
        train(short(tmp_path / "file" / "run"))


FAULTS = [
    ("raises", r"step raised ZeroDivisionError: division by zero \(failing_env.py, line \d+\) \(env.on_error=restart"),
    ("shape", r"step returned an observation of shape \(1,\), its space has \(3,\)"),
    ("dtype", "step returned an observation that is ndarray array.*complex64.*; expected numbers"),
    ("reset", "reset raised OSError: no more"),
    ("nan", r"gave an observation that is not finite"),
    ("reward", "gave a reward that is not finite: inf"),
]


@pytest.mark.parametrize(("how", "message"), FAULTS)
def test_an_environment_that_fails_ends_the_run_clearly(how: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        train(failing(tmp_path / "run", f"env.kwargs.how={how}"))
    assert metrics(tmp_path / "run")[-1]["env_steps"] == 20


@pytest.mark.parametrize("how", [how for how, _ in FAULTS])
def test_an_environment_that_fails_can_be_replaced_on_record(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, stop_at: Callable[[int], None]
) -> None:
    settings = (f"env.kwargs.how={how}", "env.on_error=restart")
    run = train(failing(tmp_path / "run", *settings)).folder
    assert f"{ENV_ID}: {'reset' if how == 'reset' else 'step'} r" in caplog.text
    restarts = {row["env_steps"]: row["env/restarts"] for row in metrics(run) if "env/restarts" in row}
    assert restarts[30] == 1 and restarts[120] == 4
    assert all(value is not None for row in metrics(run) for value in row.values())
    stop_at(55)
    with pytest.raises(Stopped):
        train(failing(tmp_path / "stopped", *settings))
    assert_same(train(failing(tmp_path / "stopped", *settings), resume=True).folder, run)


def test_one_that_fails_again_is_replaced_again_and_each_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed, resets = [], iter([OSError("no"), OSError("no"), None, None])
    monkeypatch.setattr(FailingEnv, "close", lambda env: closed.append(env), raising=False)
    reset = FailingEnv.reset

    def failing_reset(env: FailingEnv, **kwargs: Any) -> Any:
        if (error := next(resets)) is not None:
            raise error
        return reset(env, **kwargs)

    monkeypatch.setattr(FailingEnv, "reset", failing_reset)
    env = envs.make(ENV_ID, 1, on_error="restart")
    env.reset([0])
    assert env.restarts.tolist() == [1] and len(closed) == 2


def test_an_environment_of_a_vector_class_cannot_be_replaced() -> None:
    with pytest.raises(UserError, match="has a vector class, which is one for all; set env.vectorization_mode=sync"):
        envs.make("CartPole-v1", 16, on_error="restart")
    envs.make("Tensor/CartPole-v1", 16, on_error="restart").close()  # never fails


def test_an_environments_own_files_are_not_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(env: CartPoleVectorEnv, action: Any) -> Any:
        raise FileNotFoundError("level_7.map")

    monkeypatch.setattr(CartPoleVectorEnv, "step", step)
    with pytest.raises(UserError, match="CartPole-v1: step raised FileNotFoundError: level_7.map"):
        train(short(tmp_path / "run", "env.num_envs=16"))


def test_an_environment_that_always_fails_is_not_replaced_for_ever(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="division by zero .*, 6 times in a row"):
        train(failing(tmp_path / "run", "env.kwargs={how: raises, at: 1}", "env.on_error=restart"))


def test_an_environment_that_hangs_ends_the_run_in_time(tmp_path: Path) -> None:
    settings = ("env.kwargs.how=hangs", "env.vectorization_mode=async", "env.timeout_seconds=0.5")
    with pytest.raises(UserError, match=r"Failing-v0: an environment has not answered a step within 0\.5 s"):
        train(failing(tmp_path / "run", *settings))


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_an_environment_that_fails_to_close_costs_nothing(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def close(env: FailingEnv) -> None:
        raise OSError("no display")

    monkeypatch.setattr(FailingEnv, "close", close, raising=False)
    run = train(failing(tmp_path / "run", "env.kwargs.at=1000", f"env.vectorization_mode={mode}")).folder
    assert (run / "result.json").exists() and f"{ENV_ID}: close raised OSError: no display" in caplog.text
