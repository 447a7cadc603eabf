"""The environments with many factors are reached by every way."""

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from envs import TensorEnv, UserError, make
from envs.chain_bandit import ChainBandit

CHAIN, PARITY = "Tensor/ChainBandit-v0", "Tensor/ParityBandit-v0"
IDS = (CHAIN, PARITY)


def native(env_id: str, num_envs: int, **kwargs: Any) -> Any:
    env = make(env_id, num_envs, kwargs=kwargs)
    assert isinstance(env, TensorEnv)
    return env


SPACES: dict[str, tuple[str, dict[str, Any], Any, Any]] = {
    "chain bandit": (
        CHAIN,
        {"num_factors": 3, "num_choices": 5, "num_contexts": 4, "interaction": 2, "table_seed": 1},
        spaces.MultiDiscrete([5] * 3),
        spaces.Discrete(4),
    ),
    "parity bandit": (PARITY, {"num_bits": 6, "num_chosen": 3}, spaces.MultiBinary(6), spaces.MultiBinary(7)),
}


@pytest.mark.parametrize(("env_id", "kwargs", "action_space", "observation_space"), SPACES.values(), ids=SPACES)
def test_arguments_reach_every_way_to_make_one(
    env_id: str, kwargs: dict[str, Any], action_space: Any, observation_space: Any
) -> None:
    single, vector = gymnasium.make(env_id, **kwargs).unwrapped, gymnasium.make_vec(env_id, 2, **kwargs)
    assert (single.action_space, single.observation_space) == (action_space, observation_space)
    assert (vector.single_action_space, vector.single_observation_space) == (action_space, observation_space)
    env = native(env_id, 2, **kwargs)
    assert (env.env.action_space, env.env.observation_space) == (action_space, observation_space)
    if env_id == CHAIN:
        functional = ChainBandit(**kwargs)
        for other in (env.env, single.functional, vector._env.env):  # type: ignore[attr-defined]
            assert torch.equal(other.pairwise, functional.pairwise)


@pytest.mark.parametrize("env_id", IDS)
def test_single_environments_pass_gymnasiums_own_check(env_id: str) -> None:
    check_env(gymnasium.make(env_id).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("env_id", IDS)
def test_single_environments_start_and_step_as_tensors_do(env_id: str) -> None:
    single, env = gymnasium.make(env_id), native(env_id, 1)
    obs, _ = single.reset(seed=5)
    assert np.array_equal(env.observations.flatten_one(obs), env.reset(5)[0].numpy())
    action = torch.tensor([[1, 0] * (len(env.actions.num_choices) // 2)])
    obs, reward, terminated, _, _ = single.step(env.actions.decode(action[0].numpy()))
    step = env.step(action)
    assert np.array_equal(env.observations.flatten_one(obs), step.next_obs[0].numpy())
    assert (reward, terminated) == (step.reward.item(), step.terminated.item())


ERRORS: dict[str, tuple[str, dict[str, Any], str]] = {
    "factors": (CHAIN, {"num_factors": 0}, "num_factors must be an integer of at least 1; got 0"),
    "choices": (CHAIN, {"num_choices": 1}, "num_choices must be an integer of at least 2; got 1"),
    "contexts": (CHAIN, {"num_contexts": 2.5}, "num_contexts must be an integer of at least 1; got 2.5"),
    "table seed": (CHAIN, {"table_seed": -1}, "table_seed must be an integer of at least 0; got -1"),
    "interaction": (CHAIN, {"interaction": math.inf}, "interaction must be a finite number; got inf"),
    "text": (CHAIN, {"interaction": "strong"}, "interaction must be a finite number; got 'strong'"),
    "several": (
        CHAIN,
        {"num_factors": 0, "num_choices": "6"},
        "num_factors .* got 0; num_choices .* got '6'",
    ),
    "bits": (PARITY, {"num_bits": 1}, "num_bits must be an integer of at least 2; got 1"),
    "chosen": (PARITY, {"num_chosen": 1}, "num_chosen must be an integer of at least 2; got 1"),
    "too many": (PARITY, {"num_bits": 3, "num_chosen": 4}, "num_chosen must be at most num_bits, 3; got 4"),
    "unknown": (CHAIN, {"k": 8}, "does not know env.kwargs k; it takes: num_factors, num_choices, num_contexts, inter"),
}


@pytest.mark.parametrize(("env_id", "kwargs", "text"), ERRORS.values(), ids=ERRORS)
def test_wrong_arguments_are_explained(env_id: str, kwargs: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        make(env_id, 2, kwargs=kwargs)
