"""Preprocessing: Atari's is the same for the vector class and a single environment; MiniGrid's codes are one-hot."""

import contextlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec

import envs
from agent.algorithms.base import Task
from agent.cli import train
from agent.config_loader import load_config
from agent.training.loop import TrainingLoop
from agent.training.setup import in_force
from envs import UserError
from envs.preprocessing import preprocessing_of
from envs.spaces import ObsPart
from envs.vector_environment import environment_seeds

PONG = EnvSpec("ALE/Pong-v5", entry_point="ale_py.env:AtariEnv", kwargs={"repeat_action_probability": 0.25})
OLD_PONG = EnvSpec("PongNoFrameskip-v4", entry_point="ale_py.env:AtariEnv")
CARTPOLE = EnvSpec("CartPole-v1", entry_point="gymnasium.envs.classic_control:CartPoleEnv")


@pytest.mark.parametrize(
    ("spec", "kwargs", "wanted", "found"),
    [
        (PONG, {}, "auto", "atari"),
        (OLD_PONG, {}, "auto", "atari"),
        (PONG, {"obs_type": "ram"}, "auto", "none"),
        (PONG, {"repeat_action_probability": 0.0, "difficulty": 1}, "atari", "atari"),
        (PONG, {"frameskip": 2}, "none", "none"),
        (CARTPOLE, {}, "auto", "none"),
    ],
)
def test_auto_is_atari_for_frames_of_ale(spec: EnvSpec, kwargs: dict[str, Any], wanted: str, found: str) -> None:
    assert preprocessing_of(spec, kwargs, wanted) == found


@pytest.mark.parametrize(
    ("spec", "kwargs", "wanted", "message"),
    [
        (PONG, {}, "Atari", "env.preprocessing must be one of auto, none, atari, minigrid; got 'Atari'"),
        (CARTPOLE, {}, "atari", "env.preprocessing=atari is for the ids of ALE; CartPole-v1 is none of them"),
        (PONG, {"frameskip": 2}, "auto", "env.kwargs.frameskip is decided by env.preprocessing=atari; .*env.wrappers"),
        (PONG, {"reward_clipping": True}, "auto", "to learn from clipped rewards, set clip_reward=1"),
    ],
)
def test_what_does_not_fit_is_explained(spec: EnvSpec, kwargs: dict[str, Any], wanted: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        preprocessing_of(spec, kwargs, wanted)


needs_ale = pytest.mark.skipif(importlib.util.find_spec("ale_py") is None, reason="needs ale-py")


@needs_ale
def test_vector_class_and_single_environment_give_the_same_frames_and_rewards() -> None:
    pytest.importorskip("cv2")
    kwargs = {"repeat_action_probability": 0.0}
    settings = {"kwargs": kwargs, "preprocessing": "auto"}
    many = [envs.make("ale_py:ALE/Breakout-v5", 1, vectorization_mode=mode, **settings) for mode in ("auto", "sync")]
    one = envs.make_single("ale_py:ALE/Breakout-v5", **settings)
    assert [env.observations.space for env in many] == [one.observation_space] * 2
    assert [env.actions.space for env in many] == [one.action_space] * 2
    assert [type(env.vector_env).__name__ for env in many] == ["AtariVectorEnv", "SyncVectorEnv"]  # type: ignore[attr-defined]
    for env in many:
        env.close()
    # Without no-ops, which each draws from numbers of its own, a step is the same in both.
    vector_class = gymnasium.make_vec(
        "ALE/Breakout-v5", 1, **kwargs, **{**envs.preprocessing.OF_VECTOR_CLASS, "noop_max": 0}
    )
    one.env.noop_max = 0  # type: ignore[attr-defined]
    obs, (single_obs, _) = vector_class.reset(seed=1)[0], one.reset(seed=1)
    rewards: list[tuple[float, float]] = []
    for action in np.random.default_rng(0).integers(one.action_space.n, size=150):  # type: ignore[attr-defined]
        assert np.array_equal(obs[0], single_obs)
        obs, reward, *_ = vector_class.step(np.array([action]))
        single_obs, single_reward, *_ = one.step(action)
        rewards.append((float(reward[0]), float(single_reward)))
    assert all(own == other for own, other in rewards)


@needs_ale
@pytest.mark.parametrize("mode", ["auto", "sync"])
def test_rewards_of_ale_are_the_games_own(mode: str) -> None:
    """A row of Ms. Pac-Man's pills counts 10 each."""
    env = envs.make("ale_py:ALE/MsPacman-v5", 1, vectorization_mode=mode)
    env.reset([0])
    rewards = [env.step(torch.tensor([[3]])).reward.item() for _ in range(100)]
    env.close()
    assert max(rewards) >= 10


@needs_ale
def test_what_is_in_force_is_printed_and_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["env.id=ale_py:ALE/Pong-v5", "hidden_sizes=[4]", "total_env_steps=12", "learning_starts=10"]
    settings += ["replay_capacity=20", "evaluation.final_episodes=1", "evaluation.episodes=1", "wandb.mode=disabled"]
    settings += ["env.kwargs={max_num_frames_per_episode: 200}", "batch_size=4", "compile=false", "clip_reward=1"]
    assert train.main([*settings, "checkpoint.every_env_steps=null", f"run_dir={tmp_path / 'run'}"]) == 0
    out = capsys.readouterr().out
    assert "Preprocessing: 84x84 grey frames, four of them stacked" in out and "repeated with probability 0.25" in out
    assert "rewards clipped to [-1, 1] for the learner, not in returns" in out
    info = json.loads((tmp_path / "run" / "policy" / "final" / "policy.json").read_text())
    assert info["env"]["preprocessing"] == "atari"


def test_nothing_is_printed_where_nothing_is_done() -> None:
    assert in_force(load_config(None, ["env.id=CartPole-v1"]))[1] == ""


class Recorder:
    """An algorithm that remembers what it is given."""

    is_static, keeps_frames, metrics = False, False, {}  # noqa: RUF012

    def __init__(self, config: Any, task: Task) -> None:
        self.rewards: list[float] = []
        self.task = task

    def is_warming_up(self, env_steps: int) -> bool:
        return False

    def updates_due(self, env_steps: int) -> int:
        return 0

    def act(self, obs: Any, mask: Any = None, *, uniform: bool = False) -> Any:
        return torch.zeros(*obs.shape[:2], 1, dtype=torch.int64)

    def store(self, obs: Any, action: Any, step: Any, masks: Any = None) -> None:
        self.rewards.append(step.reward.item())


@pytest.mark.parametrize(("clip", "expected"), [("null", [0, 1, 2, 100]), ("1.5", [0, 1, 1.5, 1.5])])
def test_the_learner_sees_clipped_rewards_and_statistics_do_not(
    monkeypatch: pytest.MonkeyPatch, clip: str, expected: list[float]
) -> None:
    monkeypatch.setattr("agent.training.loop.make_algorithm", Recorder)
    monkeypatch.setattr("gymnasium.registry", registered := gymnasium.registry.copy())
    monkeypatch.setattr("gymnasium.envs.registration.registry", registered)
    gymnasium.register("Scripted-v0", "scripted_env:ScriptedEnv")
    config = load_config(None, ["env.id=Scripted-v0", "env.num_envs=1", f"clip_reward={clip}"])
    env = envs.make("Scripted-v0", 1)
    loop = TrainingLoop(config, env, torch.device("cpu"))
    for step in range(4):
        loop.run_iteration(step)
    env.close()
    assert loop.learner.rewards == pytest.approx(expected)  # type: ignore[attr-defined]
    assert loop.episodes.read_()["train/episode_return"][0] == pytest.approx((0 + 1 + 2 + 100) / 2)


DOOR_KEY = "minigrid:MiniGrid-DoorKey-5x5-v0"


def test_codes_of_minigrid_are_one_hot() -> None:
    single = gymnasium.make(DOOR_KEY)
    obs, _ = single.reset(seed=environment_seeds([3], 1)[0])
    with contextlib.closing(envs.make(DOOR_KEY, 1)) as env:
        flat = env.reset([3])[0].numpy()
        direction, image = env.observations.parts
    assert (direction.name, image.name, image.shape) == ("direction", "image", (7, 7, 21)) and image.is_image
    cells = flat[direction.size :].reshape(image.shape)
    for codes, (first, last) in zip(np.moveaxis(obs["image"], -1, 0), [(0, 11), (11, 17), (17, 21)], strict=True):
        assert np.array_equal(cells[..., first:last].argmax(-1), codes)
    assert (cells.sum(-1) == 3).all()


def test_other_codes_of_minigrid_are_one_hot_on_demand() -> None:
    wrappers = ["minigrid.wrappers:FullyObsWrapper", "envs.preprocessing:CellCodes", "minigrid.wrappers:ImgObsWrapper"]
    with contextlib.closing(envs.make(DOOR_KEY, 1, wrappers=wrappers)) as env:
        assert env.observations.parts == (ObsPart("", (5, 5, 21), is_image=True),)
        env.reset([0])


def test_codes_are_refused_where_there_are_none() -> None:
    for settings in ({"wrappers": ["envs.preprocessing:CellCodes"]}, {"preprocessing": "minigrid"}):
        with pytest.raises(UserError, match="codes of cells are expected in observations, but these are Box"):
            envs.make("CartPole-v1", 1, **settings)
