"""What environments return: a value with one meaning is accepted, any other is one sentence, in every mode."""

import os
import signal
import sys
from contextlib import closing
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from envs import UserError, make

BOX, DISCRETE = spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(5)
OBS = np.array([0.5, 0.0, -0.5], dtype=np.float32)


class Returns(gymnasium.Env):
    """Returns what it is told to, from the second step on."""

    def __init__(
        self,
        space: spaces.Space = BOX,
        reset: Any = None,
        step: Any = None,
        exits: bool = False,
        kills: bool = False,
        **values: Any,
    ) -> None:
        self.observation_space, self.action_space = space, spaces.Discrete(2)
        self.of_reset, self.of_step, self.values = reset, step, values
        self.exits, self.kills = exits, kills

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.of_reset if self.of_reset is not None else (self.values.get("obs", OBS), {"seed": seed})

    def step(self, action: Any) -> Any:
        if self.exits:
            sys.exit(0)
        if self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        defaults = {"obs": OBS, "reward": 1.0, "terminated": False, "truncated": False, "info": {}}
        return self.of_step if self.of_step is not None else tuple({**defaults, **self.values}.values())


class ReturnsInVector(VectorEnv):
    """Two of them as a vector class."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs: int, space: spaces.Space = BOX, **values: Any) -> None:
        self.num_envs, self.values = num_envs, values
        self.single_observation_space, self.single_action_space = space, spaces.Discrete(2)
        self.observation_space = batch_space(space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return np.zeros(self.observation_space.shape or (), self.single_observation_space.dtype), {}

    def step(self, actions: Any) -> Any:
        n, values = self.num_envs, dict(self.values)
        info = values.pop("info", {})
        defaults = {
            "obs": np.stack([OBS] * n),
            "reward": np.ones(n),
            "terminated": np.zeros(n),
            "truncated": [0] * n,
        }
        return *{**defaults, **values}.values(), info


for name, env_class, vector_class in (("Returns-v0", Returns, None), ("ReturnsInVector-v0", None, ReturnsInVector)):
    if name not in gymnasium.registry:
        gymnasium.register(name, env_class, vector_entry_point=vector_class)


def first_step(env_id: str = "Returns-v0", mode: str = "auto", on_error: str = "stop", **kwargs: Any) -> Any:
    weights = kwargs.pop("reward_weights", None)
    settings: dict[str, Any] = {"kwargs": kwargs, "vectorization_mode": mode, "on_error": on_error}
    with closing(make(env_id, 2, reward_weights=weights, **settings)) as env:
        first = env.reset([0]).clone()
        return first, env.step(torch.zeros(2, 1, dtype=torch.int64))


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize(
    "values",
    [
        {"obs": OBS.tolist()},
        {"obs": OBS[None].astype(np.float64)},
        {"reward": np.array([1.0])},
        {"reward": np.float32(1.0)},
        {"reward": 1},
        {"reward": [1.0, 2.0], "reward_weights": [0.0, 0.5]},
        {"terminated": np.array([0]), "truncated": np.False_},
        {"info": None},
        {"info": {"seen": [1, 2], "of": object}},
    ],
    ids=str,
)
def test_a_value_with_one_meaning_is_accepted(values: dict[str, Any], mode: str) -> None:
    _, step = first_step(mode=mode, **values)
    assert torch.equal(step.obs, torch.from_numpy(OBS).expand(2, -1))
    assert step.reward.tolist() == [1.0, 1.0] and not step.terminated.any() and not step.truncated.any()


@pytest.mark.parametrize("obs", [3, np.int32(3), np.array([3]), np.array(3.0)], ids=repr)
def test_a_discrete_observation_may_be_an_array_of_one(obs: Any) -> None:
    _, step = first_step(space=DISCRETE, obs=obs)
    assert step.obs.tolist() == [[0, 0, 0, 1, 0]] * 2


class Alternates(Returns):
    """Its infos differ in keys, types and lengths from step to step and from one environment to the other."""

    num_steps = 0

    def step(self, action: Any) -> Any:
        self.num_steps += 1
        info = [{"x": [1]}, {"x": "text"}, {"x": {"deep": np.zeros(3)}}, {"x": np.zeros((2, 2))}][self.num_steps % 4]
        return OBS, 1.0, self.num_steps % 3 == 0, False, info


def test_infos_that_nobody_reads_may_be_anything() -> None:
    gymnasium.registry.pop("Alternates-v0", None)
    gymnasium.register("Alternates-v0", Alternates)
    with closing(make("Alternates-v0", 2)) as env:
        env.reset([0])
        for _ in range(8):
            env.step(torch.zeros(2, 1, dtype=torch.int64))


MISFITS: list[tuple[dict[str, Any], str]] = [
    (
        {"reward": np.array([1.0, 2.0])},
        r"step returned a reward of shape \(2,\), \[1.0, 2.0\]; expected one number: "
        r"env.reward_weights=\[1.0, 0.0\] makes one",
    ),
    ({"reward": 1.0, "reward_weights": [1.0, 2.0]}, "a reward of one number, .*; env.reward_weights has 2 numbers"),
    ({"reward": "much"}, "a reward that is str 'much'; expected numbers"),
    ({"reward": None}, "a reward that is NoneType None; expected numbers"),
    ({"reward": 1e30}, "a reward that is beyond .* too large for float32; scale it by a wrapper"),
    ({"obs": OBS * np.float32(1e20)}, r"an observation that is beyond 1e\+18"),
    ({"obs": OBS[:2]}, r"reset returned an observation of shape \(2,\), its space has \(3,\)"),
    ({"obs": None}, "an observation that is NoneType None; expected numbers"),
    ({"space": DISCRETE, "obs": 7}, r"an observation outside of its space Discrete\(5\): int 7"),
    ({"space": DISCRETE, "obs": 1e20}, r"an observation outside of its space Discrete\(5\): float 1e\+20"),
    ({"space": DISCRETE, "obs": np.array([1, 2])}, r"an observation outside of its space Discrete\(5\)"),
    ({"space": spaces.Dict(a=BOX, b=DISCRETE), "obs": {"a": OBS}}, "an observation without 'b' that is dict"),
    ({"space": spaces.MultiDiscrete([3, 3]), "obs": [1, 7]}, r"an observation outside of its space MultiDiscrete\("),
    (
        {"space": spaces.MultiBinary(2), "obs": [300, 1]},
        r"an observation of type int64, its space has int8: list \[300",
    ),
    ({"space": spaces.Box(-128, 127, (2,), np.int8), "obs": np.array([200, 1])}, "of type int64, its space has int8"),
    ({"space": spaces.Box(0, 9, (2,), np.int64), "obs": [0.5, 1.0]}, "of type float64, its space has int64"),
    ({"terminated": None}, "terminated that is NoneType None; expected True or False"),
    ({"terminated": 0.5}, "terminated that is float 0.5; expected True or False"),
    ({"step": (OBS, 1.0, False, {})}, r"4 values; expected \(obs, reward, terminated, truncated, info\)"),
    ({"reset": OBS}, r"reset returned ndarray .*; expected \(obs, info\), as Gymnasium's interface has it"),
]


@pytest.mark.parametrize("on_error", ["stop", "restart"])
@pytest.mark.parametrize(("values", "message"), MISFITS, ids=[message for _, message in MISFITS])
def test_any_other_value_is_one_sentence_at_once(
    values: dict[str, Any], message: str, on_error: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match=rf"Returns-v0: .*{message}") as caught:
        first_step(on_error=on_error, **values)
    assert "\n" not in str(caught.value) and not caplog.text  # not replaced: a new one would do the same


def test_a_process_that_is_killed_is_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="Returns-v0: the process of an environment has ended in a step$"):
        first_step(mode="async", kills=True)
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_an_environment_that_ends_the_process_is_an_error(mode: str) -> None:
    with pytest.raises(UserError, match=r"Returns-v0: step raised SystemExit: 0 \(.*, line"):
        first_step(mode=mode, exits=True)


@pytest.mark.parametrize("part", [np.array([np.nan, 0.0, 0.0], np.float32), np.array([0.0, np.inf, 0.0], np.float32)])
def test_a_part_that_is_not_finite_restarts_the_environment(part: np.ndarray) -> None:
    space = spaces.Dict(a=BOX, b=spaces.Tuple([DISCRETE, BOX]))
    reset = ({"a": OBS, "b": (0, OBS)}, {})
    _, step = first_step(on_error="restart", space=space, reset=reset, obs={"a": OBS, "b": (1, part)})
    assert step.truncated.all() and step.obs.isfinite().all()


def test_a_process_of_its_own_gives_the_sentence_alone(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"Returns-v0: step returned a reward of shape \(2,\)"):
        first_step(mode="async", reward=np.array([1.0, 2.0]))
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reward": np.ones((2, 3))}, r"step returned a reward of shape \(3,\)"),
        ({"reward": np.ones(3)}, r"step returned rewards of shape \(3,\); expected \(2,\), one for each environment"),
        ({"terminated": np.zeros(3, bool)}, r"step returned terminated of shape \(3,\) and type bool; expected \(2,\)"),
        ({"obs": np.zeros((2, 4), np.float32)}, "returned observations that do not fit Box"),
        ({"obs": np.full((2, 3), np.nan)}, "environment 0 gave an observation that is not finite"),
        ({"obs": np.zeros((2, 3, 4)), "space": spaces.Box(0, 1, (4, 3))}, "returned observations that do not fit Box"),
        ({"obs": [[0, 5]] * 2, "space": spaces.MultiBinary(2)}, "an observation outside of its space MultiBinary"),
        ({"info": {"final_info": [{}, {}]}}, "step returned an info that is list .*; expected a dict"),
        ({"obs": np.zeros((3, 3), np.float32)}, "returned observations that do not fit Box.*: 3 of them"),
        ({"terminated": np.array([np.nan, 7])}, r"step returned terminated that is ndarray .*; expected True or False"),
        ({"info": None}, "step returned an info that is NoneType None; expected a dict"),
        ({"info": [{}, {}]}, "step returned an info that is list .*; expected a dict"),
    ],
)
def test_a_vector_class_is_checked_as_well(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"ReturnsInVector-v0: .*{message}"):
        first_step("ReturnsInVector-v0", **values)


def test_a_vector_class_may_have_one_reward_in_an_axis_of_its_own() -> None:
    _, step = first_step("ReturnsInVector-v0", reward=np.ones((2, 1)))
    assert step.reward.tolist() == [1.0, 1.0]
    _, step = first_step("ReturnsInVector-v0", reward=np.ones((2, 3)), reward_weights=[1.0, 2.0, 3.0])
    assert step.reward.tolist() == [6.0, 6.0]


class EndsInVector(ReturnsInVector):
    """Each episode ends with its first step."""

    def __init__(self, num_envs: int, mode: AutoresetMode, final: Any = None) -> None:
        super().__init__(num_envs)
        self.metadata, self.final, self.num_resets = {"autoreset_mode": mode}, final, 0

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.num_resets += 1
        if self.num_resets > 1:
            raise OSError("no more")
        return super().reset()

    def step(self, actions: Any) -> Any:
        obs, _ = super().reset()
        return obs, np.ones(2), np.ones(2, bool), np.zeros(2, bool), {"final_obs": self.final}


@pytest.mark.parametrize(
    ("mode", "final", "message"),
    [
        (AutoresetMode.SAME_STEP, None, r"SAME_STEP autoreset but without info\['final_obs'\]"),
        (AutoresetMode.SAME_STEP, np.zeros((2, 4), np.float32), r"returned info\['final_obs'\] that do not fit Box"),
        (AutoresetMode.SAME_STEP, np.zeros((1, 3), np.float32), r"returned info\['final_obs'\] that do not fit Box"),
        (AutoresetMode.SAME_STEP, np.full(2, None, object), r"returned info\['final_obs'\] that do not fit Box"),
        (AutoresetMode.DISABLED, None, r"reset raised OSError: no more \(test_values.py, line"),
    ],
)
def test_the_end_of_an_episode_of_a_vector_class_is_checked(
    mode: AutoresetMode, final: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = gymnasium.envs.registration.EnvSpec("Ends-v0", vector_entry_point=EndsInVector)
    monkeypatch.setitem(gymnasium.registry, "Ends-v0", spec)
    with pytest.raises(UserError, match=f"Ends-v0: .*{message}"):
        with closing(make("Ends-v0", 2, kwargs={"mode": mode, "final": final})) as env:
            env.reset([0])
            env.step(torch.zeros(2, 1, dtype=torch.int64))
