"""A run that was stopped and resumed is the run that was never stopped, bit for bit."""

import json
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from failing_env import ENV_ID, FailingEnv
from loops import make_loop
from safetensors.torch import load_file, save_file

import agent.training.trainer as trainer_module
from agent import Policy, evaluation
from agent.config import Config
from agent.config_fields import ConfigError
from agent.config_loader import flat, load_config
from agent.exit_codes import Stopped
from agent.state import capture, restore_
from agent.training.checkpoint import CheckpointError, sums
from agent.training.loop import TrainingLoop
from agent.training.resume import config_of_run, require_same
from agent.training.stopping import StopSignals
from agent.training.trainer import train
from envs import GymnasiumAdapter, UserError

SHORT = [
    "env.id=CartPole-v1",
    "env.num_envs=1",
    "total_env_steps=120",
    "learning_starts=30",
    "batch_size=8",
    "hidden_sizes=[8]",
    "seeds=2",
    "checkpoint.every_env_steps=50",
    "evaluation.every_env_steps=40",
    "evaluation.episodes=1",
    "evaluation.final_episodes=2",
    "log_every_env_steps=10",
    "reinforce.rollout_steps=16",
    "wandb.mode=disabled",
]


def short(run_dir: Path, *overrides: str) -> Config:
    return load_config(None, [*SHORT, f"run_dir={run_dir}", *overrides])


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has SIGTERM come to every process of the run while the iteration after so many steps is under way, once."""

    def stop_at(env_steps: int) -> None:
        run_iteration = TrainingLoop.run_iteration

        def run_and_stop(loop: TrainingLoop, now: int) -> None:
            run_iteration(loop, now)
            if now >= env_steps:
                monkeypatch.setattr(TrainingLoop, "run_iteration", run_iteration)
                for pid in (os.getpid(), *(worker.pid for worker in multiprocessing.active_children())):
                    os.kill(pid, signal.SIGTERM)

        monkeypatch.setattr(TrainingLoop, "run_iteration", run_and_stop)

    return stop_at


def metrics(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def assert_same(run: Path, other: Path) -> None:
    assert metrics(run) == metrics(other)
    for file in ("policy/final/weights.safetensors", "policy/best/weights.safetensors", "policy/best/policy.json"):
        assert (run / file).read_bytes() == (other / file).read_bytes(), file
    results = [json.loads((folder / "result.json").read_text())["members"] for folder in (run, other)]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "kind",
    [
        ["env.num_envs=2", "tau.schedule=adaptive"],
        ["seeds=1", "env.vectorization_mode=async", "critic.structure=joint", "n_step=1"],
        ["env.id=Tensor/CartPole-v1", "seeds=2", "sweep={n_step: [3, [3, 1]]}"],
        ["env.id=Taxi-v4", "env.kwargs={max_episode_steps: 7}"],  # with masks
        ["network.memory=mingru", "batch_size=16", "sequence_length=4", "burn_in=2"],
        ["algorithm=reinforce", "env.num_envs=3"],  # does not divide the budget
        ["algorithm=reinforce", "network.memory=gru", "sequence_length=4"],
        ["algorithm=reinforce", "env.id=Tensor/CartPole-v1"],
    ],
    ids=" ".join,
)
def test_stopped_and_resumed_is_as_never_stopped(
    tmp_path: Path, kind: list[str], stop_at: Callable[[int], None]
) -> None:
    unbroken = train(short(tmp_path / "unbroken", *kind)).folder
    broken = short(tmp_path / "broken", *kind)
    for step in (20, 70, 113):  # while acting at random, after a boundary, near the end
        stop_at(step)
        with pytest.raises(Stopped, match=rf"saved; .*python train\.py --resume {tmp_path / 'broken'}"):
            train(broken, resume=True)
        assert not (tmp_path / "broken" / "result.json").exists()
    assert_same(train(broken, resume=True).folder, unbroken)


def test_stopped_in_an_evaluation_it_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = train(short(tmp_path / "unbroken")).folder
    check, num_evaluations = StopSignals.check, 0

    def run_episodes(*args: object, **kwargs: object) -> evaluation.Episodes:
        nonlocal num_evaluations
        num_evaluations += 1
        if num_evaluations in (3, 9):  # greedy or sampled, on the way and at the end
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args, **kwargs)

    original = evaluation.run_episodes
    monkeypatch.setattr(evaluation, "run_episodes", run_episodes)
    for last in (False, True):
        with pytest.raises(Stopped) as stopped:
            train(short(tmp_path / "broken"), resume=True)
        assert stopped.value.signum == signal.SIGINT
        assert (tmp_path / "broken" / "policy" / "final").exists() == last
    final = Policy.load(tmp_path / "broken", member="all")  # before the last evaluation has come to its end
    assert [member.env_steps for member in final.info.members] == [120, 120]
    assert torch.equal(final.tensors()["normalizer.mean"], Policy.load(unbroken, member="all").normalizer.mean)
    assert StopSignals.check is check
    assert_same(train(short(tmp_path / "broken"), resume=True).folder, unbroken)


ESTIMATORS = [
    *(f"estimator.name={name}" for name in ("straight_through_gumbel_softmax", "relaxed_gumbel_softmax")),
    *(f"estimator.name={name}" for name in ("straight_through_softmax", "gumbel_rao", "gapped_straight_through")),
    *(f"estimator.name={name}" for name in ("reinmax", "score_function", "local_expectation", "exact")),
]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("settings", ["env.id=CartPole-v1 n_step=3", "env.id=Tensor/CartPole-v1 n_step=1"])
def test_a_loop_restored_goes_on_as_the_first(estimator: str, settings: str) -> None:
    """Without what surrounds it; the replay has wrapped by then."""

    def loop() -> TrainingLoop:
        return make_loop("cpu", *settings.split(), estimator)

    def iterate(loop: TrainingLoop, iterations: range) -> None:
        for i in iterations:
            loop.run_iteration(2 * i)

    first, second = loop(), loop()
    first.env.make_repeatable_()
    iterate(first, range(34))
    saved = capture(first.state())
    second.make_room_(saved)
    restore_(second.state(), saved)
    if not first.env.has_state:
        second.env.repeat(first.env.journal())
    iterate(first, range(34, 40))
    assert any(not torch.equal(saved[name], value) for name, value in capture(first.state()).items())
    iterate(second, range(34, 40))
    for name, value in capture(first.state()).items():
        torch.testing.assert_close(capture(second.state())[name], value, rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("mode", ["sync", "vector_entry_point"])
def test_a_run_does_not_depend_on_its_checkpoints(tmp_path: Path, mode: str) -> None:
    settings = [f"env.vectorization_mode={mode}", "env.num_envs=2", "checkpoint.every_env_steps="]
    often, seldom = (
        train(short(tmp_path / every, *settings[:2], settings[2] + every)).folder for every in ("10", "null")
    )
    assert metrics(often) == metrics(seldom)
    assert any("train/episode_return" in row for row in metrics(often))


def test_a_finished_run_is_left_alone_and_can_be_made_longer(tmp_path: Path) -> None:
    run = train(short(tmp_path / "run")).folder
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert train(short(run), resume=True).folder == run
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    train(short(run, "total_env_steps=200"), resume=True)
    assert json.loads((run / "result.json").read_text())["env_steps"] == 200
    steps = [row["env_steps"] for row in metrics(run) if row["member"] == 0 and "actor/entropy" in row]
    assert steps == sorted(set(steps)) and steps[-1] == 200
    assert load_config(run / "config.yaml").total_env_steps == 200


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rate=0.1", "learning_rate: 0.003 there, 0.1 here"),
        ("seeds=3", "seeds: 2 there, 3 here"),
        ("total_env_steps=60", "got 60, but .* has 120 steps behind it"),
    ],
)
def test_another_config_is_refused_and_nothing_is_lost(tmp_path: Path, override: str, message: str) -> None:
    run = train(short(tmp_path / "run")).folder
    (run / "result.json").unlink()
    before = (run / "metrics.jsonl").read_bytes(), (run / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=message):
        train(short(run, override), resume=True)
    assert before == ((run / "metrics.jsonl").read_bytes(), (run / "config.yaml").read_bytes())


def test_what_an_error_advises_can_be_changed(tmp_path: Path, stop_at: Callable[[int], None]) -> None:
    settings = [f"env.id={ENV_ID}", "env.kwargs={how: raises, at: 70}", "env.num_envs=1"]
    with pytest.raises(UserError, match="env.on_error=restart continues with a new environment"):
        train(short(tmp_path / "run", *settings))
    changed = ["env.on_error=restart", "env.timeout_seconds=9", "checkpoint.replay_gib=0"]
    assert train(short(tmp_path / "run", *settings, *changed), resume=True).folder == tmp_path / "run"


class Slow(FailingEnv):
    def step(self, action: Any) -> Any:
        time.sleep(0.02)
        return super().step(action)


def test_a_slow_environment_has_time_to_repeat_its_steps(
    tmp_path: Path, stop_at: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gymnasium.registry, "Slow-v0", gymnasium.envs.registration.EnvSpec("Slow-v0", Slow))
    settings = ["env.id=Slow-v0", "env.vectorization_mode=async", "env.timeout_seconds=0.6", "env.num_envs=1"]
    stop_at(60)
    with pytest.raises(Stopped):
        train(short(tmp_path / "run", *settings))
    train(short(tmp_path / "run", *settings), resume=True)


def test_a_run_that_cannot_go_on_is_left_as_it_was(tmp_path: Path) -> None:
    run = train(short(tmp_path / "run")).folder
    state = next((run / "checkpoints").glob("step_120")) / "state.safetensors"
    tensors = load_file(state)
    save_file({name: tensor for name, tensor in tensors.items() if name != "learner/log_alpha"}, state)
    (state.parent / "SHA256SUMS").write_text(sums(state.parent))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(CheckpointError, match="lacks 'learner/log_alpha'"):
        train(short(run, "total_env_steps=200"), resume=True)
    metrics_file = run / "metrics.jsonl"
    whole = metrics_file.read_bytes()
    metrics_file.write_bytes(whole[:100])
    with pytest.raises(UserError, match="lost lines: 100 bytes, the checkpoint was written after"):
        train(short(run, "total_env_steps=200"), resume=True)
    metrics_file.write_bytes(whole)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("name", ["2024-01-05", "007", "a: b", "x #2"])
def test_any_folder_can_be_resumed_by_its_name(tmp_path: Path, name: str) -> None:
    run = tmp_path / name
    run.mkdir()
    (run / "config.yaml").write_text("env: {id: CartPole-v1}")
    assert config_of_run(run, []).run_dir == str(run)


def test_the_order_of_swept_settings_is_that_of_the_run(tmp_path: Path) -> None:
    saved = short(tmp_path, "sweep={gamma: [0.9, 0.99], tau.start: [1, 2]}")
    other = short(tmp_path, "sweep={tau.start: [1, 2], gamma: [0.9, 0.99]}")
    require_same(flat(saved.model_dump()), saved, tmp_path)
    with pytest.raises(ConfigError, match="sweep: "):
        require_same(flat(saved.model_dump()), other, tmp_path)


def test_a_run_with_old_keys_is_resumed(tmp_path: Path, stop_at: Callable[[int], None]) -> None:
    pairs = ["env.num_envs=2", "n_step=[3, 1]", "sweep={noise_persistence: [[0, 0.9], [0.5, 0.9]]}"]
    unbroken = train(short(tmp_path / "unbroken", *pairs)).folder
    stop_at(60)
    with pytest.raises(Stopped):
        train(short(tmp_path / "old", *pairs))
    (folder,) = (tmp_path / "old" / "checkpoints").glob("step_*")
    info = json.loads((folder / "checkpoint.json").read_text())
    old = {"n_step": 3, "n_step_end": 1, "noise_persistence": 0.5, "noise_persistence_max": 0.9}
    info["config"] |= old | {"sweep": {"noise_persistence": [0.0, 0.5]}}
    for member in info["best"]:
        member["settings"] = {"noise_persistence": member["settings"]["noise_persistence"][0]}
    (folder / "checkpoint.json").write_text(json.dumps(info))
    (folder / "SHA256SUMS").write_text(sums(folder))
    (tmp_path / "old" / "config.yaml").write_text(json.dumps(info["config"]))  # which is YAML too
    config = config_of_run(tmp_path / "old", [])
    assert (config.n_step, config.sweep) == ([3, 1], {"noise_persistence": [[0.0, 0.9], [0.5, 0.9]]})
    assert_same(train(config, resume=True).folder, unbroken)


def test_infinity_among_kwargs_survives(tmp_path: Path) -> None:
    run = train(short(tmp_path / "run", f"env.id={ENV_ID}", "env.kwargs={how: '', at: .inf}")).folder
    assert Policy.load(run).info.env.kwargs == {"how": "", "at": math.inf}
    train(short(run, f"env.id={ENV_ID}", "env.kwargs={how: '', at: .inf}", "total_env_steps=200"), resume=True)
    assert json.loads((run / "result.json").read_text())["env_steps"] == 200


def test_a_longer_run_moves_its_schedules_as_if_it_had_always_been_so_long(tmp_path: Path) -> None:
    settings = ["tau.env_steps=100", "tau.schedule=linear", "log_every_env_steps=40"]
    fresh = train(short(tmp_path / "fresh", *settings, "total_env_steps=240")).folder
    run = train(short(tmp_path / "run", *settings)).folder
    run = train(short(run, *settings, "total_env_steps=240"), resume=True).folder
    taus = [
        {row["env_steps"]: row["estimator/tau"] for row in metrics(folder) if "estimator/tau" in row}
        for folder in (fresh, run)
    ]
    assert taus[1] == pytest.approx(taus[0], rel=2e-3) and taus[1][240] == 0.5  # read by thousandths of a run


def test_a_resume_with_other_kernels_is_named(
    tmp_path: Path, stop_at: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stop_at(60)
    with pytest.raises(Stopped):
        train(short(tmp_path / "run"))
    found = trainer_module.versions
    monkeypatch.setattr(trainer_module, "versions", lambda device: found(device) | {"kernels": "others"})
    train(short(tmp_path / "run"), resume=True)
    assert "and resumes with others: it continues, but not bit for bit" in caplog.text


def test_an_environment_that_its_seed_does_not_decide_is_named(
    tmp_path: Path, stop_at: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stop_at(20)
    with pytest.raises(Stopped):
        train(short(tmp_path / "run"))
    repeat = GymnasiumAdapter.repeat
    monkeypatch.setattr(GymnasiumAdapter, "repeat", lambda env, journal: repeat(env, journal) + 1)
    train(short(tmp_path / "run"), resume=True)
    assert "CartPole-v1 is not deterministic given its seed" in caplog.text


def test_without_checkpoints_nothing_is_written_and_the_user_is_told(
    tmp_path: Path, stop_at: Callable[[int], None]
) -> None:
    stop_at(20)
    with pytest.raises(Stopped, match="there is no checkpoint to resume"):
        train(short(tmp_path / "run", "checkpoint.every_env_steps=null"))
    assert not (tmp_path / "run" / "checkpoints").exists()
    run = train(short(tmp_path / "run", "checkpoint.every_env_steps=null"), resume=True).folder  # from the beginning
    assert metrics(run)[0]["env_steps"] == 10 and not (run / "checkpoints").exists()


def test_a_replay_too_large_for_checkpoints_is_filled_again(
    tmp_path: Path, stop_at: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    config = short(tmp_path / "run", "checkpoint.replay_gib=0", "log_every_env_steps=1", "tau.schedule=adaptive")
    stop_at(69)
    with pytest.raises(Stopped):
        train(config)
    assert "GiB, more than checkpoint.replay_gib" in caplog.text
    (state,) = (tmp_path / "run" / "checkpoints").glob("step_70/state.safetensors")
    assert state.stat().st_size < 100_000
    rows = metrics(train(config, resume=True).folder)
    for metric in ("critic/loss", "gradient/relative_bias"):  # an empty replay is not inspected either
        measured = {row["env_steps"] for row in rows if metric in row}
        assert {70, 102} <= measured and not measured & set(range(72, 101)), metric


def test_a_run_stopped_while_its_replay_is_filled_again_learns_where_it_would_have(
    tmp_path: Path, stop_at: Callable[[int], None]
) -> None:
    """The first stop leaves its replay out; at the second it is small enough to be saved."""
    settings = ["checkpoint.replay_gib=4e-6", "log_every_env_steps=1", "tau.schedule=adaptive"]  # about 50 steps
    for name, steps in (("once", [69]), ("twice", [69, 80])):
        for env_steps in steps:
            stop_at(env_steps)
            with pytest.raises(Stopped):
                train(short(tmp_path / name, *settings), resume=True)
        train(short(tmp_path / name, *settings), resume=True)
    assert_same(tmp_path / "twice", tmp_path / "once")


def test_a_second_signal_ends_the_process_at_once() -> None:
    child = os.fork()
    if child == 0:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.received == signal.SIGTERM
            os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
