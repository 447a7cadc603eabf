"""The tensor environments are Gymnasium's, step for step.

TENSOR_TRANSITIONS sets how many transitions each loop over Gymnasium's single environments compares, 20,000 if unset;
TENSOR_TRANSITIONS=1000000 pytest tests/test_tensor_dynamics.py takes a few minutes.
"""

import math
import os
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv
from torch import Generator, Tensor

from envs import RandomStreams
from envs.tensor.acrobot import Acrobot
from envs.tensor.cartpole import CartPole
from envs.tensor.frozen_lake import FrozenLake
from envs.tensor.functional import FunctionalEnv, TensorEnv
from envs.tensor.mountain_car import MountainCar

NUM_TRANSITIONS = int(os.environ.get("TENSOR_TRANSITIONS", 20_000))
PI = math.pi

# Bounds of the states to step from, wider than where an episode goes on
BOUNDS: dict[str, list[float]] = {
    "CartPole-v1": [2.6, 4.0, 0.25, 4.0],
    "Acrobot-v1": [PI, PI, 4 * PI, 9 * PI],
    "MountainCar-v0": [0.9, 0.07],
}
CENTRES: dict[str, list[float]] = {"MountainCar-v0": [-0.3, 0.0]}
ENVS: dict[str, Any] = {"CartPole-v1": CartPole, "Acrobot-v1": Acrobot, "MountainCar-v0": MountainCar}
# Relative error of float32 observations: of 99 in 100 transitions, and of all. Acrobot at 28 rad/s is ill-conditioned:
# each stage of its Runge-Kutta step multiplies the rounding of the one before.
FLOAT32_TOLERANCE = {"CartPole-v1": (2e-7, 1e-6), "Acrobot-v1": (2e-5, 0.05), "MountainCar-v0": (1e-7, 2e-7)}


def random_transitions(env_id: str, count: int, dtype: torch.dtype, generator: Generator) -> tuple[Tensor, Tensor]:
    """States of all kinds, one in ten of them at the edge of the state space, and actions."""
    bounds = torch.tensor(BOUNDS[env_id], dtype=dtype)
    unit = torch.rand(count, len(bounds), dtype=dtype, generator=generator) * 2 - 1
    unit = torch.where(torch.rand(unit.shape, generator=generator) < 0.1, unit.sign(), unit)
    state = unit * bounds + torch.tensor(CENTRES.get(env_id, [0.0] * len(bounds)), dtype=dtype)
    return state, torch.randint(int(ENVS[env_id]().action_space.n), (count,), generator=generator)


def gymnasium_steps(env_id: str, states: Tensor, actions: Tensor, **kwargs: Any) -> tuple[np.ndarray, ...]:
    """next_state, next_obs, reward and terminated of Gymnasium's own environment."""
    env: Any = gymnasium.make(env_id, **kwargs).unwrapped
    env.reset(seed=0)
    next_state, next_obs, rewards, terminations = [], [], [], []
    for state, action in zip(states.double().numpy(), actions.tolist(), strict=True):
        env.state, env.steps_beyond_terminated = state.copy(), None
        obs, reward, terminated, _, _ = env.step(action)
        next_state.append(np.array(env.state))
        next_obs.append(obs)
        rewards.append(reward)
        terminations.append(terminated)
    return np.array(next_state), np.array(next_obs), np.array(rewards), np.array(terminations)


def our_steps(env: FunctionalEnv, state: Tensor, action: Tensor) -> tuple[np.ndarray, ...]:
    rng = RandomStreams([0])  # nothing is drawn
    next_state = env.transition(state, action, rng)
    values = next_state, env.observation(next_state, rng), env.reward(state, action, next_state, rng)
    return tuple(value.numpy() for value in (*values, env.terminal(next_state, rng)))


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ENVS)
def test_float64_transitions_are_those_of_gymnasium(env_id: str, generator: Generator) -> None:
    state, action = random_transitions(env_id, NUM_TRANSITIONS, torch.float64, generator)
    next_state, next_obs, reward, terminated = our_steps(
        ENVS[env_id](NUM_TRANSITIONS, dtype=torch.float64), state, action
    )
    expected = gymnasium_steps(env_id, state, action)
    turn = 2 * PI if env_id == "Acrobot-v1" else math.inf  # pi and -pi are one angle
    difference = np.abs(next_state - expected[0])
    assert np.minimum(difference, np.abs(difference - turn)).max() < 1e-9
    assert (np.abs(next_state) <= np.abs(expected[0]).max(0) + 1e-9).all()  # angles are wrapped
    assert np.abs(next_obs - expected[1]).max() < 1e-5  # Gymnasium rounds observations to float32
    assert np.array_equal(reward, expected[2]) and np.array_equal(terminated, expected[3])
    assert 0.02 < terminated.mean() < 0.98


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ENVS)
def test_float32_observations_are_those_of_gymnasium_to_rounding(env_id: str, generator: Generator) -> None:
    state, action = random_transitions(env_id, NUM_TRANSITIONS, torch.float32, generator)
    _, next_obs, reward, terminated = our_steps(ENVS[env_id](NUM_TRANSITIONS), state, action)
    _, *expected = gymnasium_steps(env_id, state, action)
    assert next_obs.dtype == reward.dtype == np.float32
    error = (np.abs(next_obs - expected[0]) / np.maximum(1, np.abs(expected[0]))).max(1)
    most, worst = FLOAT32_TOLERANCE[env_id]
    assert np.quantile(error, 0.99) < most and error.max() < worst
    assert (terminated != expected[2]).mean() <= 1e-4  # on the threshold itself
    assert np.array_equal(reward[terminated == expected[2]], expected[1][terminated == expected[2]])


@pytest.mark.slow
@pytest.mark.parametrize("sutton_barto_reward", [False, True])
def test_cartpole_is_gymnasiums_vector_env_over_a_million_transitions(
    sutton_barto_reward: bool, generator: Generator
) -> None:
    count = 1_000_000
    state, action = random_transitions("CartPole-v1", count, torch.float64, generator)
    expected: Any = CartPoleVectorEnv(count, sutton_barto_reward=sutton_barto_reward)
    expected.reset(seed=0)
    expected.state = state.numpy().T
    _, expected_reward, expected_terminated, _, _ = expected.step(action.numpy())
    env = CartPole(count, dtype=torch.float64, sutton_barto_reward=sutton_barto_reward)
    next_state, _, reward, terminated = our_steps(env, state, action)
    assert np.abs(next_state - expected.state.T).max() < 1e-9
    assert np.array_equal(reward, expected_reward) and np.array_equal(terminated, expected_terminated)


@pytest.mark.parametrize("goal_velocity", [0, 0.03])
def test_mountain_car_ends_only_with_the_goal_velocity(goal_velocity: float, generator: Generator) -> None:
    state, action = random_transitions("MountainCar-v0", 2000, torch.float64, generator)
    *_, terminated = our_steps(MountainCar(2000, dtype=torch.float64, goal_velocity=goal_velocity), state, action)
    *_, expected = gymnasium_steps("MountainCar-v0", state, action, goal_velocity=goal_velocity)
    assert np.array_equal(terminated, expected) and terminated.any()


@pytest.mark.parametrize(("env_id", "time_limit"), [("CartPole-v1", 10), ("Acrobot-v1", 40), ("MountainCar-v0", 60)])
def test_episodes_are_those_of_gymnasium_with_its_time_limit(env_id: str, time_limit: int) -> None:
    num_envs, num_steps = 4, 300
    env = TensorEnv(ENVS[env_id](num_envs, dtype=torch.float64), time_limit)
    env.reset([0])
    twins: list[Any] = [gymnasium.make(env_id, max_episode_steps=time_limit) for _ in range(num_envs)]
    for twin, state in zip(twins, env.env_state.numpy(), strict=True):
        twin.reset(seed=0)
        twin.unwrapped.state = state.copy()
    actions = torch.randint(int(env.env.action_space.n), (num_steps, num_envs, 1), generator=Generator().manual_seed(0))
    actions[:, 0] = 0  # a constant action: CartPole falls as the time limit strikes
    endings = set()
    for action in actions:
        step = env.step(action)
        for i, twin in enumerate(twins):
            obs, reward, terminated, truncated, _ = twin.step(int(action[i, 0]))
            assert np.abs(step.next_obs[i].numpy() - obs).max() < 1e-5
            ending = bool(step.terminated[i]), bool(step.truncated[i])
            assert (step.reward[i], *ending) == (reward, terminated, truncated)
            endings.add(ending)
            if terminated or truncated:
                twin.reset()
                twin.unwrapped.state = env.env_state[i].numpy().copy()
            assert torch.equal(step.obs[i], env.env.observation(env.env_state, env.streams)[i].float())
            assert env.elapsed[i] == twin.get_wrapper_attr("_elapsed_steps")
    assert (False, True) in endings
    assert env_id != "CartPole-v1" or endings == {(False, False), (False, True), (True, False), (True, True)}


@pytest.mark.parametrize(
    ("env_id", "low", "high", "columns"),
    [("CartPole-v1", -0.05, 0.05, 4), ("Acrobot-v1", -0.1, 0.1, 4), ("MountainCar-v0", -0.6, -0.4, 1)],
)
@pytest.mark.parametrize("by_autoreset", [False, True])
def test_initial_states_are_uniform_as_gymnasiums(
    env_id: str, low: float, high: float, columns: int, by_autoreset: bool
) -> None:
    """Mean and variance within 5 standard errors; uniformity itself is tested with RandomStreams."""
    env = TensorEnv(ENVS[env_id](20_000), max_episode_steps=1)
    env.reset([0])
    if by_autoreset:
        env.step(torch.zeros(env.num_envs, 1, dtype=torch.int64))
    state = env.env_state.double()
    assert (state[:, columns:] == 0).all()
    drawn, width = state[:, :columns], high - low
    assert (drawn >= low - 1e-7).all() and (drawn <= high + 1e-7).all()
    mean_error = (drawn.mean(0) - (low + high) / 2).abs()
    assert (mean_error < 5 * width / math.sqrt(12 * env.num_envs)).all()
    variance_error = ((drawn - (low + high) / 2).square().mean(0) - width**2 / 12).abs()
    assert (variance_error < 5 * width**2 / math.sqrt(180 * env.num_envs)).all()
    assert (torch.corrcoef(drawn.T).reshape(columns, columns) - torch.eye(columns)).abs().max() < 5 / math.sqrt(
        env.num_envs
    )


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"map_name": "8x8"},
        {"map_name": "8x8", "is_slippery": False},
        {"success_rate": 0.75, "reward_schedule": (10, -1, 2)},
        {"desc": ["SFS", "HFG"]},
    ],
)
def test_frozen_lake_steps_as_the_table_of_gymnasium_says(kwargs: dict[str, Any]) -> None:
    """Every state and action: no outcome but those of the table, each within 5 standard errors of its probability."""
    table, draws = FrozenLakeEnv(**kwargs).P, 500
    pairs = [(tile, action) for tile in table for action in table[tile]]
    tile, action = torch.tensor(pairs).repeat_interleave(draws, 0).unbind(1)
    env = FrozenLake(len(tile), **kwargs)
    rng = RandomStreams(range(len(tile)))
    next_tile = env.transition(tile, action, rng)
    reward = env.reward(tile, action, next_tile, rng).view(-1, draws)
    terminated = env.terminal(next_tile, rng).view(-1, draws)
    next_tile = next_tile.view(-1, draws)
    for row, (from_tile, chosen) in enumerate(pairs):
        outcomes: dict[int, float] = {}
        for p, successor, expected_reward, expected_end in table[from_tile][chosen]:
            outcomes[successor] = outcomes.get(successor, 0.0) + p
            there = next_tile[row] == successor
            assert (reward[row, there] == expected_reward).all() and (terminated[row, there] == expected_end).all()
        frequency = torch.bincount(next_tile[row], minlength=len(table)).double() / draws
        assert set(frequency.nonzero().flatten().tolist()) == set(outcomes)
        for successor, p in outcomes.items():
            assert abs(frequency[successor] - p) <= 5 * math.sqrt(p * max(0.0, 1 - p) / draws) + 1e-12


def test_frozen_lake_starts_on_any_of_its_start_tiles() -> None:
    env = TensorEnv(FrozenLake(40_000, desc=["SFS", "HFG"]))
    start = env.reset([0]).mean(0)
    assert start.nonzero().flatten().tolist() == [0, 2]
    assert abs(start[0] - 0.5) < 5 * 0.5 / math.sqrt(40_000)
