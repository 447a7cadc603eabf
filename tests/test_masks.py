"""Action masks: read in every form, and handed on beside the observations that they belong to."""

from functools import partial
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from masked_env import ALL, MaskedEnv, MaskedVectorEnv, padded_mask
from scripted_env import SCRIPTS, TERMINATED, TRUNCATED, Episode
from torch import Generator, Tensor

import envs
from envs import (
    FactoredActions,
    FunctionalEnv,
    FunctionalVectorEnv,
    GymnasiumAdapter,
    MaskReader,
    MemberEnvs,
    TensorEnv,
    UserError,
)

MODES = list(AutoresetMode)
DISCRETE, MULTI_DISCRETE, MULTI_BINARY = (
    spaces.Discrete(3, start=4),
    spaces.MultiDiscrete([3, 2]),
    spaces.MultiBinary(2),
)
GRID = spaces.MultiDiscrete([[1, 2], [2, 1]])
X, O = True, False  # noqa: E741


def legal_actions(mask: Tensor, generator: Generator) -> Tensor:
    """A legal choice of each factor, uniformly."""
    return (torch.rand(mask.shape, generator=generator) + mask).argmax(-1)


@pytest.mark.parametrize(
    ("space", "mask", "expected"),
    [
        (DISCRETE, np.array([1, 0, 1], np.int8), [[X, O, X]]),
        (DISCRETE, np.array([True, False, True]), [[X, O, X]]),
        (DISCRETE, np.array([1.0, 0.0, 1.0]), [[X, O, X]]),
        (DISCRETE, [1, 0, 1], [[X, O, X]]),
        (DISCRETE, (np.array([1, 0, 1], np.int8),), [[X, O, X]]),
        (MULTI_DISCRETE, np.array([1, 0, 1, 0, 1], np.int8), [[X, O, X], [O, X, O]]),
        (MULTI_DISCRETE, (np.array([1, 0, 1], np.int8), np.array([0, 1], np.int8)), [[X, O, X], [O, X, O]]),
        (MULTI_DISCRETE, [[True, False, True], [False, True]], [[X, O, X], [O, X, O]]),
        (MULTI_BINARY, np.array([1, 0, 1, 1], np.int8), [[X, O], [X, X]]),
        (MULTI_BINARY, np.array([[1, 0], [1, 1]], np.int8), [[X, O], [X, X]]),
        (MULTI_BINARY, (np.array([1, 0]), np.array([1, 1])), [[X, O], [X, X]]),
        (GRID, (([1], [0, 1]), ([1, 1], [1])), [[X, O], [O, X], [X, X], [X, O]]),
    ],
)
def test_mask_is_understood_in_every_form_alone_and_batched(
    space: spaces.Space, mask: Any, expected: list[list[bool]]
) -> None:
    reader = MaskReader(FactoredActions(space))
    assert reader.read(mask).tolist() == expected
    objects = np.full(2, None, dtype=object)
    objects[0] = objects[1] = mask
    batches = [[mask, mask], objects] + ([np.stack([mask, mask])] if isinstance(mask, np.ndarray) else [])
    for batch in batches:
        assert reader.read_each(batch).tolist() == [expected, expected]


def test_masks_are_copied() -> None:
    mask = np.array([[True, False, True]])
    read = MaskReader(FactoredActions(DISCRETE)).read_each(mask)
    mask[:] = False
    assert read.any()


@pytest.mark.parametrize(
    ("space", "mask", "message"),
    [
        (DISCRETE, np.ones(4, np.int8), r"of shape \[4\]; expected \[3\]$"),
        (DISCRETE, np.int8(1), r"of shape \[\]; expected \[3\]"),
        (DISCRETE, None, r"of shape \[\]; expected \[3\]"),
        (DISCRETE, np.full(3, 0.5), r"of float64, \[0.5, 0.5, 0.5\]; expected bool, or numbers 0 and 1"),
        (DISCRETE, np.array([1, 2, 0], np.int8), r"of int8, \[1, 2, 0\]; expected bool, or numbers 0 and 1"),
        (DISCRETE, {"a": np.ones(3)}, r"that is a dict; the action space is Discrete"),
        (MULTI_DISCRETE, np.ones((2, 3), np.int8), r"of shape \[2, 3\]; expected \[5\] or 2 arrays \[3\], \[2\]$"),
        (MULTI_DISCRETE, (np.ones(2), np.ones(3)), r"of shape 2 arrays \[2\], \[3\]; expected"),
        (MULTI_DISCRETE, (np.ones(3),), r"of shape \[3\]; expected"),
        (MULTI_BINARY, np.ones(2, np.int8), r"of shape \[2\]; expected \[4\] or \[2, 2\] or 2 arrays \[2\], \[2\]"),
    ],
)
def test_mask_that_does_not_fit_says_what_would(space: spaces.Space, mask: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"an action mask {message}"):
        MaskReader(FactoredActions(space)).read(mask)


def sync_env(mode: AutoresetMode, form: str = "tuple") -> VectorEnv:
    return SyncVectorEnv([partial(MaskedEnv, script, form) for script in SCRIPTS], autoreset_mode=mode)


def async_env(mode: AutoresetMode) -> VectorEnv:
    return AsyncVectorEnv([partial(MaskedEnv, script) for script in SCRIPTS], autoreset_mode=mode)


def own_env(mode: AutoresetMode) -> VectorEnv:
    return MaskedVectorEnv(SCRIPTS, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make_env", [sync_env, partial(sync_env, form="flat"), async_env, own_env])
def test_masks_are_those_of_their_observations(make_env: Any, mode: AutoresetMode, generator: Generator) -> None:
    adapter = GymnasiumAdapter(make_env(mode))
    obs, num_seen = adapter.reset(), {"terminated": 0, "truncated": 0, "filler": 0}
    assert adapter.masks.obs.tolist() == [padded_mask(*o) for o in obs]
    for _ in range(40):
        step = adapter.step(legal_actions(adapter.masks.obs, generator))
        for e in range(len(SCRIPTS)):
            expected = ALL if step.terminated[e] else padded_mask(*step.next_obs[e])
            assert adapter.masks.next_obs[e].tolist() == expected
            waits = mode is AutoresetMode.NEXT_STEP and bool(step.terminated[e])  # for its reset
            assert adapter.masks.obs[e].tolist() == (ALL if waits else padded_mask(*step.obs[e]))
            num_seen["terminated"] += int(step.terminated[e])
            num_seen["truncated"] += int(step.truncated[e] & ~step.terminated[e])
            num_seen["filler"] += int(~step.valid[e])
    adapter.close()
    assert min(num_seen["terminated"], num_seen["truncated"]) > 5
    assert (num_seen["filler"] > 10) == (mode is AutoresetMode.NEXT_STEP)


@pytest.mark.parametrize("vector_class", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("mode", MODES)
def test_masks_of_taxi_are_those_of_its_states(vector_class: Any, mode: AutoresetMode, generator: Generator) -> None:
    make = partial(gymnasium.make, "Taxi-v4", max_episode_steps=7)
    adapter, taxi = GymnasiumAdapter(vector_class([make] * 3, autoreset_mode=mode)), make().unwrapped
    obs, num_truncated = adapter.reset([0]), 0
    for _ in range(60):
        expected = np.array([taxi.action_mask(state) for state in obs.argmax(-1)], dtype=bool)
        assert np.array_equal(adapter.masks.obs[:, 0].numpy(), expected) and not expected.all()
        step = adapter.step(legal_actions(adapter.masks.obs, generator))
        for e in torch.nonzero(~step.terminated)[:, 0]:
            final = taxi.action_mask(int(step.next_obs[e].argmax()))
            assert adapter.masks.next_obs[e, 0].tolist() == final.astype(bool).tolist()
        obs, num_truncated = step.obs, num_truncated + int(step.truncated.sum())
    adapter.close()
    assert num_truncated > 15


def test_last_mask_survives_an_environment_that_reuses_its_arrays(generator: Generator) -> None:
    gymnasium.register("Test/Reuses-v0", MaskedEnv, kwargs={"script": SCRIPTS[2], "reuse": True})
    try:
        adapter = envs.make("Test/Reuses-v0", 1)
    finally:
        del gymnasium.registry["Test/Reuses-v0"]
    adapter.reset()
    num_truncated = 0
    for _ in range(20):
        step = adapter.step(legal_actions(adapter.masks.obs, generator))
        if step.truncated[0]:
            num_truncated += 1
            assert adapter.masks.next_obs[0].tolist() == padded_mask(*step.next_obs[0])
    assert num_truncated > 3


def test_masks_reach_another_device_in_place() -> None:
    adapter = GymnasiumAdapter(own_env(AutoresetMode.SAME_STEP), device="meta")
    adapter.reset()
    assert {mask.device.type for mask in adapter.masks} == {"meta"} and adapter.masks.obs.shape == (3, 2, 3)
    assert torch.from_numpy(adapter._hand_over_masks.host[0].numpy()).tolist() == [padded_mask(0, 0)] * 3


def test_environment_without_masks_has_none() -> None:
    for env in (envs.make("CartPole-v1", 2), envs.make("Tensor/CartPole-v1", 2)):
        env.reset([0])
        env.step(torch.zeros(2, 1, dtype=torch.int64))
        assert env.masks is None


def test_masks_are_ignored_where_the_key_is_none() -> None:
    adapter = envs.make("Taxi-v4", 1, action_mask_key=None)
    adapter.reset([0])
    assert adapter.masks is None


class Spoilt(MaskedEnv):
    """After two steps the info is the one given; under the key 'legal' before."""

    def __init__(self, info: dict[str, Any], ending: tuple[bool, bool] | None = None) -> None:
        super().__init__((Episode(9, *TERMINATED) if ending is None else Episode(2, *ending),), form="flat")
        self.spoilt = info

    def info(self, terminal: bool) -> dict[str, Any]:
        return self.spoilt if self.num_steps == 2 else {"legal": np.ones(5, np.int8)}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, _ = super(MaskedEnv, self).step(action)
        return obs, reward, terminated, truncated, self.info(terminated)


def run_spoilt(info: dict[str, Any], ending: tuple[bool, bool] | None, mode: AutoresetMode, key: str = "legal") -> None:
    fine = partial(Spoilt, {"legal": np.ones(5, np.int8)}, ending)
    adapter = GymnasiumAdapter(
        SyncVectorEnv([fine, partial(Spoilt, info, ending)], autoreset_mode=mode), action_mask_key=key
    )
    adapter.reset()
    for _ in range(3):
        adapter.step(torch.zeros(2, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("mask", "ending", "message"),
    [
        (np.array([1, 1, 0, 0, 0], np.int8), None, "environment 1 has no legal choice for action factor 1 at step 2"),
        (np.array([0, 0, 0, 1, 0], np.int8), TRUNCATED, "environment 1 has no legal choice for action factor 0 at ste"),
        (None, None, r"environment 1 gave no info\['legal'\] at step 2: where there are masks, one must"),
        (None, TRUNCATED, r"environment 1 gave no info\['legal'\] at step 2: where there are masks, one must"),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_state_without_legal_choice_or_mask_is_an_error(
    mask: np.ndarray | None, ending: tuple[bool, bool] | None, message: str, mode: AutoresetMode
) -> None:
    with pytest.raises(UserError, match=f"SyncVectorEnv: {message}"):
        run_spoilt({} if mask is None else {"legal": mask}, ending, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("info", [{}, {"legal": np.zeros(5, np.int8)}])
def test_terminal_state_needs_neither_legal_choice_nor_mask(info: dict[str, Any], mode: AutoresetMode) -> None:
    run_spoilt(info, TERMINATED, mode)


def test_mask_that_comes_late_is_an_error() -> None:
    with pytest.raises(UserError, match=r"gave info\['late'\] at step 2, but not at the first reset"):
        run_spoilt({"late": np.ones(5, np.int8)}, None, AutoresetMode.SAME_STEP, key="late")


def test_mask_of_the_wrong_shape_names_the_environment() -> None:
    class Wrong(MaskedEnv):
        def info(self, terminal: bool) -> dict[str, Any]:
            return {"action_mask": np.ones(6, np.int8)}

    with pytest.raises(
        UserError, match=r"SyncVectorEnv gave an action mask of shape \[6\]; expected \[5\] or 2 arrays"
    ):
        GymnasiumAdapter(SyncVectorEnv([Wrong])).reset()


class State(NamedTuple):
    step: Tensor  # of the episode
    barred: Tensor  # how many barred choices were taken


class Turnstile(FunctionalEnv):
    """Choice i of three is legal where i differs from the step, modulo three; of two, the first bars every other step.

    The episode terminates after five steps; with `stuck` the third step has no legal choice of the first factor.
    """

    observation_space = spaces.Box(0.0, 100.0, (2,))
    action_space = spaces.MultiDiscrete([3, 2])
    stuck = False

    def initial(self, rng: Any, params: None = None) -> State:
        zeros = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        return State(zeros, zeros.clone())

    def transition(self, state: State, action: Tensor, rng: Any, params: None = None) -> State:
        mask = self.action_mask(state)
        legal = mask[:, :3].gather(1, action[:, :1]) & mask[:, 3:].gather(1, action[:, 1:])
        return State(state.step + 1, state.barred + ~legal[:, 0])

    def observation(self, state: State, rng: Any, params: None = None) -> Tensor:
        return torch.stack(state, -1).float()

    def reward(self, state: State, action: Tensor, next_state: State, rng: Any, params: None = None) -> Tensor:
        return torch.ones_like(state.step, dtype=torch.float32)

    def terminal(self, state: State, rng: Any, params: None = None) -> Tensor:
        return state.step >= 5

    def action_mask(self, state: State) -> Tensor:
        first = torch.arange(3, device=self.device) != (state.step % 3).unsqueeze(-1)
        if self.stuck:
            first &= (state.step != 3).unsqueeze(-1)
        second = torch.stack([state.step % 2 == 0, torch.ones_like(state.step, dtype=torch.bool)], -1)
        return torch.cat([first, second], -1)


class TurnstileVectorEnv(FunctionalVectorEnv):
    def __init__(self, num_envs: int = 3, max_episode_steps: int | None = 4) -> None:
        super().__init__(Turnstile, num_envs, max_episode_steps)


@pytest.mark.parametrize("max_episode_steps", [None, 4])
def test_masks_of_tensor_environments_are_those_that_gymnasium_would_get(
    max_episode_steps: int | None, generator: Generator
) -> None:
    vector_env = TurnstileVectorEnv(3, max_episode_steps)
    tensor, adapter = vector_env.tensor_env(), GymnasiumAdapter(vector_env)
    tensor.reset([0]), adapter.reset([0])
    for _ in range(12):
        assert torch.equal(torch.stack(tensor.masks), torch.stack(adapter.masks))
        action = legal_actions(tensor.masks.obs, generator)
        step = tensor.step(action)
        adapter.step(action)
        first = step.obs[:, 0] % 3
        assert torch.equal(tensor.masks.obs[:, 0], torch.arange(3) != first.unsqueeze(-1))
        assert not tensor.masks.obs[:, 1, 2].any()  # padding
        assert (tensor.masks.next_obs.sum((1, 2)) == 5)[step.terminated].all()


def test_masks_of_members_with_a_vector_class_each_are_those_of_all(generator: Generator) -> None:
    members = MemberEnvs([GymnasiumAdapter(TurnstileVectorEnv(2)) for _ in range(3)])
    together = TensorEnv(Turnstile(6), 4, num_members=3)
    together.reset([0, 1, 2]), members.reset([0, 1, 2])
    for _ in range(12):
        assert torch.equal(torch.stack(together.masks), torch.stack(members.masks))
        action = legal_actions(together.masks.obs, generator)
        together.step(action), members.step(action)


def test_tensor_environment_without_legal_choice_is_an_error(generator: Generator) -> None:
    env = Turnstile(2)
    env.stuck = True
    tensor = TensorEnv(env)
    tensor.reset([0])
    with pytest.raises(UserError, match="Turnstile: environment 0 has no legal choice for action factor 0 at step 3"):
        for _ in range(3):
            tensor.step(legal_actions(tensor.masks.obs, generator))


def test_tensor_mask_of_the_wrong_shape_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Turnstile, "action_mask", lambda self, state: torch.ones(2, 6))
    with pytest.raises(ValueError, match=r"must give torch.bool \[2, 5\], .* got torch.float32 \[2, 6\]"):
        TensorEnv(Turnstile(2))
