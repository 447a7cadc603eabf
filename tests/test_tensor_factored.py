"""KCartPole and KWalkers are what their docstrings say; the environments with many factors are reached by every way."""

import itertools
import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from torch import Generator, Tensor

from envs import RandomStreams, TensorEnv, UserError, make
from envs.tensor.cartpole import CartPole
from envs.tensor.chain_bandit import ChainBandit
from envs.tensor.k_cartpole import KCartPole
from envs.tensor.k_walkers import KWalkers

CHAIN, POLES = "Tensor/ChainBandit-v0", "Tensor/KCartPole-v0"
WALKERS, PARITY = "Tensor/KWalkers-v0", "Tensor/ParityBandit-v0"
IDS = (CHAIN, POLES, WALKERS, PARITY)


def tensor_env(env_id: str, num_envs: int, **kwargs: Any) -> Any:
    env = make(env_id, num_envs, kwargs=kwargs)
    assert isinstance(env, TensorEnv)
    return env


# --- KCartPole ---


@pytest.mark.parametrize("num_poles", [1, 3])
def test_poles_move_and_fall_as_that_many_cartpoles(num_poles: int, generator: Generator) -> None:
    count, float64 = 2000, torch.float64
    env, alone = KCartPole(count, dtype=float64, num_poles=num_poles), CartPole(count, dtype=float64)
    unit = torch.rand(count, num_poles, 4, generator=generator, dtype=float64) * 2 - 1
    state = unit * torch.tensor([2.6, 4.0, 0.25, 4.0], dtype=float64)  # wider than where an episode goes on
    action = torch.randint(2, (count, num_poles), generator=generator)
    successor = env.transition(state, action, generator)
    obs, terminated = env.observation(successor, generator), env.terminal(successor, generator)
    fallen = []
    for k in range(num_poles):
        expected = alone.transition(state[:, k], action[:, k], generator)
        torch.testing.assert_close(obs[:, 4 * k : 4 * k + 4], expected, rtol=1e-12, atol=1e-12)
        fallen.append(alone.terminal(expected, generator))
    assert torch.equal(terminated, torch.stack(fallen).any(0)) and 0.1 < terminated.double().mean() < 0.9
    assert (env.reward(state, action, successor, generator) == 1).all()


@pytest.mark.slow
def test_one_pole_is_cartpole_step_for_step() -> None:
    env, cartpole = tensor_env(POLES, 16, num_poles=1), tensor_env("Tensor/CartPole-v1", 16)
    obs, ended = env.reset([0]), 0
    assert torch.equal(obs, cartpole.reset([0])) and obs.is_contiguous()
    for action in torch.randint(2, (200, 16, 1), generator=Generator().manual_seed(0)):
        for ours, theirs in zip(env.step(action), cartpole.step(action), strict=True):
            torch.testing.assert_close(ours, theirs)
        ended += int((env.elapsed == 0).sum())
    assert ended > 50


@pytest.mark.parametrize("pole", [0, 1, 2])
def test_one_fallen_pole_ends_the_episode(pole: int) -> None:
    env, state = KCartPole(2, num_poles=3), torch.zeros(2, 3, 4)
    state[1, pole, 2] = 0.3
    assert env.terminal(state, RandomStreams(range(2))).tolist() == [False, True]


def test_kept_upright_the_poles_return_their_optimum() -> None:
    """A controller with the signs of a full state feedback balances all of them."""
    env = tensor_env(POLES, 3)
    obs, total = env.reset([0]), torch.zeros(3)
    assert env.max_episode_steps == env.env.optimum() == 500 and env.env.optimum(9) == 9
    gain = torch.tensor([0.1, 0.3, 1.0, 1.0])
    for i in range(500):
        step = env.step(((obs.view(3, 4, 4) * gain).sum(2) > 0).long())
        obs, total = step.obs, total + step.reward
        assert not step.terminated.any() and bool(step.truncated.all()) == (i == 499)
    assert (total == env.env.optimum()).all()


# --- KWalkers ---


def way_home(state: Tensor, home: int) -> Tensor:
    """Up or down first, then left or right; [E, K]."""
    down, right = (home - state).unbind(2)
    across = torch.where(right > 0, 2, torch.where(right < 0, 4, 0))
    return torch.where(down < 0, 1, torch.where(down > 0, 3, across))


@pytest.mark.parametrize(("num_walkers", "size"), [(1, 2), (3, 4), (4, 7)])
def test_the_straight_way_home_returns_exactly_the_optimum(num_walkers: int, size: int) -> None:
    env = tensor_env(WALKERS, 200, num_walkers=num_walkers, size=size)
    env.reset([0])
    optimum = env.env.optimum_from(env.env_state)
    total, running = torch.zeros(200), torch.ones(200, dtype=torch.bool)
    for _ in range(2 * size):
        step = env.step(way_home(env.env_state, size // 2))
        total += step.reward * running
        running &= ~step.terminated
    assert not running.any() and torch.equal(total, optimum) and optimum.max() < 0


@pytest.mark.parametrize(("num_walkers", "size"), [(1, 2), (2, 2), (1, 5), (2, 3), (3, 3)])
def test_mean_optimum_is_that_of_all_starts(num_walkers: int, size: int) -> None:
    cells = [c for c in itertools.product(range(size), repeat=2) if c != (size // 2, size // 2)]
    starts = torch.tensor(list(itertools.product(cells, repeat=num_walkers)))
    env = KWalkers(num_walkers=num_walkers, size=size)
    assert env.optimum() == pytest.approx(env.optimum_from(starts).double().mean().item(), abs=1e-6)
    farthest = [max(abs(r - size // 2) + abs(c - size // 2) for r, c in start) for start in starts.tolist()]
    assert env.optimum_from(starts).tolist() == [-distance for distance in farthest]


def test_walkers_start_anywhere_but_at_home() -> None:
    count = 20_000
    state = KWalkers(count, num_walkers=2, size=3).initial(RandomStreams(range(count)))
    cell = state[..., 0] * 3 + state[..., 1]
    pair = torch.bincount(cell[:, 0] * 9 + cell[:, 1], minlength=81).double().view(9, 9) / count
    away = torch.arange(9) != 4
    assert pair[4].sum() == pair[:, 4].sum() == 0
    assert (pair[away][:, away] - 1 / 64).abs().max() < 5 * math.sqrt(63 / 64**2 / count)


def test_walkers_move_as_told_stop_at_walls_and_stay_at_home() -> None:
    env, rng = KWalkers(5, num_walkers=3, size=3), RandomStreams([0])
    state = torch.tensor([[0, 0], [1, 1], [2, 2]]).expand(5, 3, 2)
    action = torch.arange(5).unsqueeze(1).expand(5, 3)
    successor = env.transition(state, action, rng)
    assert successor[:, 0].tolist() == [[0, 0], [0, 0], [0, 1], [1, 0], [0, 0]]
    assert successor[:, 1].tolist() == [[1, 1]] * 5
    assert successor[:, 2].tolist() == [[2, 2], [1, 2], [2, 2], [2, 2], [2, 1]]


def test_walkers_are_done_when_the_last_is_home() -> None:
    env, rng = KWalkers(3, num_walkers=2, size=3), RandomStreams([0])
    state = torch.tensor([[[1, 1], [1, 1]], [[1, 1], [1, 0]], [[0, 1], [1, 1]]])
    assert env.terminal(state, rng).tolist() == [True, False, False]
    assert env.reward(state, torch.zeros(3, 2, dtype=torch.int64), state, rng).tolist() == [-1, -1, -1]


# --- Registration and arguments ---


SPACES: dict[str, tuple[str, dict[str, Any], Any, Any]] = {
    "chain bandit": (
        CHAIN,
        {"num_factors": 3, "num_choices": 5, "num_contexts": 4, "interaction": 2, "table_seed": 1},
        spaces.MultiDiscrete([5] * 3),
        spaces.Discrete(4),
    ),
    "parity bandit": (PARITY, {"num_bits": 6, "num_chosen": 3}, spaces.MultiBinary(6), spaces.MultiBinary(7)),
    "walkers": (WALKERS, {"num_walkers": 3, "size": 9}, spaces.MultiDiscrete([5] * 3), spaces.MultiDiscrete([9] * 6)),
}


@pytest.mark.parametrize(("env_id", "kwargs", "action_space", "observation_space"), SPACES.values(), ids=SPACES)
def test_arguments_reach_every_way_to_make_one(
    env_id: str, kwargs: dict[str, Any], action_space: Any, observation_space: Any
) -> None:
    single, vector = gymnasium.make(env_id, **kwargs).unwrapped, gymnasium.make_vec(env_id, 2, **kwargs)
    assert (single.action_space, single.observation_space) == (action_space, observation_space)
    assert (vector.single_action_space, vector.single_observation_space) == (action_space, observation_space)
    env = tensor_env(env_id, 2, **kwargs)
    assert (env.env.action_space, env.env.observation_space) == (action_space, observation_space)
    if env_id == CHAIN:
        functional = ChainBandit(**kwargs)
        for other in (env.env, single.functional, vector._env.env):  # type: ignore[attr-defined]
            assert torch.equal(other.pairwise, functional.pairwise)


def test_poles_are_counted_by_their_argument() -> None:
    for made in (gymnasium.make(POLES, num_poles=3).unwrapped, tensor_env(POLES, 2, num_poles=3).env):
        assert made.action_space == spaces.MultiDiscrete([2] * 3)
        high = CartPole().observation_space.high  # type: ignore[attr-defined]
        assert np.array_equal(made.observation_space.high, np.concatenate([high] * 3))  # type: ignore[attr-defined]


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.filterwarnings("ignore:.*Box observation space .*infinity")  # the speeds of CartPole
def test_single_environments_pass_gymnasiums_own_check(env_id: str) -> None:
    check_env(gymnasium.make(env_id).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("env_id", IDS)
def test_single_environments_start_and_step_as_tensors_do(env_id: str) -> None:
    single, env = gymnasium.make(env_id), tensor_env(env_id, 1)
    obs, _ = single.reset(seed=5)
    env.start_([5])
    assert np.array_equal(env.observations.flatten_one(obs), env.repeat({})[0].numpy())
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
    "poles": (POLES, {"num_poles": 0}, "num_poles must be an integer of at least 1; got 0"),
    "walkers": (WALKERS, {"num_walkers": 0}, "num_walkers must be an integer of at least 1; got 0"),
    "size": (WALKERS, {"size": 1}, "size must be an integer of at least 2; got 1"),
    "bits": (PARITY, {"num_bits": 1}, "num_bits must be an integer of at least 2; got 1"),
    "chosen": (PARITY, {"num_chosen": 1}, "num_chosen must be an integer of at least 2; got 1"),
    "too many": (PARITY, {"num_bits": 3, "num_chosen": 4}, "num_chosen must be at most num_bits, 3; got 4"),
    "unknown": (CHAIN, {"k": 8}, "does not know env.kwargs k; it takes: num_factors, num_choices, num_contexts, inter"),
}


@pytest.mark.parametrize(("env_id", "kwargs", "text"), ERRORS.values(), ids=ERRORS)
def test_wrong_arguments_are_explained(env_id: str, kwargs: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        make(env_id, 2, kwargs=kwargs)
