"""Stacked frames are found and kept once; what only looks like a stack is kept whole, and learned from all the same."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.wrappers import FrameStackObservation
from loops import make_loop
from test_resume import assert_same, short, stop_at

import agent.training.loop as loop_module
from agent.exit_codes import Stopped
from agent.training.loop import TrainingLoop
from agent.training.trainer import train
from envs import FrameStack, find_frame_stack, make

__all__ = ["stop_at"]  # a fixture

KINDS = ("reset", "zeros", "last", "lies", "constant", "colours", "masks")
LIES_FROM = 80  # steps since the seeded reset: more than the probe takes


class Lies(gymnasium.Wrapper):
    """From some step on the newest frame takes the place of the oldest."""

    num_steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.num_steps = self.num_steps if seed is None else 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        self.num_steps += 1
        obs, *rest = self.env.step(action)
        if self.num_steps > LIES_FROM:
            obs = obs.copy()
            obs[0] = obs[-1]
        return obs, *rest


class Last(gymnasium.ObservationWrapper):
    """Frames along the last axis."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        space = env.observation_space
        self.observation_space = spaces.Box(np.moveaxis(space.low, 0, -1), np.moveaxis(space.high, 0, -1))

    def observation(self, obs: Any) -> Any:
        return np.moveaxis(obs, 0, -1)


class Colours(gymnasium.ObservationWrapper):
    """Three colours of two pixels in a frame, four frames side by side along the last axis."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.observation_space = spaces.Box(0, 255, (1, 2, 12), np.uint8)

    def observation(self, obs: Any) -> Any:
        colours = (100 * np.concatenate([obs, obs[:, :2]], 1)).astype(np.int64) % 256  # [F, 6]
        return colours.reshape(4, 1, 2, 3).transpose(1, 2, 0, 3).reshape(1, 2, 12).astype(np.uint8)


class Masks(gymnasium.Wrapper):
    """One action is legal, by the sign of the newest frame's last number."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        obs, info = self.env.reset(seed=seed, options=options)
        return obs, info | {"action_mask": mask(obs)}

    def step(self, action: Any) -> Any:
        *values, info = self.env.step(action)
        return *values, info | {"action_mask": mask(values[0])}


def mask(obs: Any) -> Any:
    return np.array([obs[-1, -1] < 0, obs[-1, -1] >= 0])


class Constant(gymnasium.ObservationWrapper):
    def observation(self, obs: Any) -> Any:
        return np.zeros_like(obs)


def cartpole(kind: str) -> gymnasium.Env:
    """`repeats` pads the first frames with the first observation, as FrameStackObservation does; zeros pads with 0."""
    padding = "zero" if kind == "zeros" else "reset"
    num_frames = 4 if kind == "colours" else 3
    env = FrameStackObservation(gymnasium.make("CartPole-v1"), num_frames, padding_type=padding)
    wrappers = {"last": Last, "lies": Lies, "constant": Constant, "colours": Colours, "masks": Masks}
    return wrappers.get(kind, lambda env: env)(env)


class Image(gymnasium.Env):
    """Random numbers in the shape of a stack of three frames, which it is not."""

    observation_space, action_space = spaces.Box(0, 255, (3, 3), np.uint8), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.np_random.integers(0, 256, (3, 3), dtype=np.uint8), {}

    def step(self, action: Any) -> Any:
        return (
            self.np_random.integers(0, 256, (3, 3), dtype=np.uint8),
            1.0,
            bool(self.np_random.random() < 0.1),
            False,
            {},
        )


for name, kwargs in {kind: {"kind": kind} for kind in KINDS}.items():
    if f"Stacked/{name}-v0" not in gymnasium.registry:
        gymnasium.register(f"Stacked/{name}-v0", cartpole, kwargs=kwargs)
if "Stacked/image-v0" not in gymnasium.registry:
    gymnasium.register("Stacked/image-v0", Image)


def found(env_id: str, **settings: Any) -> FrameStack | None:
    with closing(make(env_id, 2, **settings)) as env:
        return find_frame_stack(env, [0])


@pytest.mark.parametrize("kind", ["reset", "zeros", "last", "lies"])
def test_a_stack_is_found_along_the_first_or_the_last_axis(kind: str) -> None:
    stack = found(f"Stacked/{kind}-v0")
    assert stack is not None and stack.num_frames == 3
    frames = torch.arange(12.0).view(3, 4)
    flat = (frames.T if kind == "last" else frames).flatten()
    assert torch.equal(stack.frames(flat), frames) and torch.equal(stack.observations(frames), flat)


def test_a_frame_may_have_several_colours() -> None:
    assert found("Stacked/colours-v0") == FrameStack(num_frames=4, num_blocks=2)


@pytest.mark.parametrize("fails_at", [10, 100], ids=["while it is looked for", "later"])
def test_an_environment_that_fails_and_is_replaced_keeps_its_stack(
    fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(env: CartPoleEnv, action: Any) -> Any:
        counted.append(action)
        if len(counted) == fails_at:
            raise OSError("gone")
        return unbroken(env, action)

    counted: list[Any] = []
    unbroken = CartPoleEnv.step
    monkeypatch.setattr(CartPoleEnv, "step", step)
    with closing(make("Stacked/reset-v0", 1, on_error="restart")) as env:
        stack = find_frame_stack(env, [0])
        assert stack is not None and stack.num_frames == 3
        env.expect_frame_stack_(stack)
        env.reset([0])
        for _ in range(150):
            env.step(torch.zeros(1, 1, dtype=torch.int64))
        assert env.frame_stack_holds and len(counted) > fails_at


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Stacked/constant-v0", "Stacked/image-v0", "Tensor/Harvest-v0"])
def test_what_is_no_stack_is_kept_whole(env_id: str) -> None:
    assert found(env_id) is None


def run(kind: str, monkeypatch: pytest.MonkeyPatch, *, whole: bool) -> TrainingLoop:
    with monkeypatch.context() as patched:
        if whole:
            patched.setattr(loop_module, "find_frame_stack", lambda env, seeds: None)
        loop = make_loop("cpu", f"env.id=Stacked/{kind}-v0", "replay_capacity=1000", "n_step=2", "total_env_steps=200")
        for env_steps in range(0, 200, 2):
            loop.run_iteration(env_steps)
    return loop


@pytest.mark.parametrize("kind", ["reset", "zeros", "last", "lies", "masks"])
def test_learning_is_that_of_whole_observations_bit_for_bit(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stacked, whole = (run(kind, monkeypatch, whole=whole) for whole in (False, True))
    assert torch.equal(stacked.learner.actor.network.flat, whole.learner.actor.network.flat)
    assert torch.equal(stacked.learner.critics.network.flat, whole.learner.critics.network.flat)
    width = stacked.learner.replay.frames.shape[1]
    assert whole.learner.replay.frames.shape[1] == 12 and width == (12 if kind == "lies" else 4)
    assert caplog.text.count("the replay keeps whole observations") == (kind == "lies")


@pytest.mark.parametrize("kind", ["last", "lies"])
def test_a_run_resumes_before_and_after_its_stack_is_given_up(
    kind: str, tmp_path: Path, stop_at: Callable[[int], None]
) -> None:
    settings = [f"env.id=Stacked/{kind}-v0", "seeds=1", "compile=false"]
    unbroken = train(short(tmp_path / "unbroken", *settings)).folder
    for env_steps in (25, 100):
        stop_at(env_steps)
        with pytest.raises(Stopped):
            train(short(tmp_path / "broken", *settings), resume=True)
    assert_same(train(short(tmp_path / "broken", *settings), resume=True).folder, unbroken)
