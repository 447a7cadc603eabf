"""The bandits are what their docstrings say, and their values are those of enumeration."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from envs import RandomStreams, TensorEnv, make
from envs.tensor.chain_bandit import ChainBandit
from envs.tensor.parity_bandit import ParityBandit

CHAIN, PARITY = "Tensor/ChainBandit-v0", "Tensor/ParityBandit-v0"


def tensor_env(env_id: str, num_envs: int, **kwargs: Any) -> Any:
    env = make(env_id, num_envs, kwargs=kwargs)
    assert isinstance(env, TensorEnv)
    return env


def joint_actions(num_factors: int, num_choices: int) -> Tensor:
    """All of them, [num_choices ** num_factors, num_factors]."""
    return torch.cartesian_prod(*[torch.arange(num_choices)] * num_factors).view(-1, num_factors)


# --- ChainBandit ---


def rewards(env: ChainBandit, actions: Tensor) -> Tensor:
    """Of every action in every context, [S, A]."""
    context = torch.arange(env.num_contexts).repeat_interleave(len(actions))
    reward = env.reward(context, actions.repeat(env.num_contexts, 1), context, RandomStreams([0]))
    assert reward.dtype == torch.float32
    return reward.view(env.num_contexts, -1).double()


@pytest.mark.parametrize("interaction", [0.0, 0.5, 3.0, -3.0])
@pytest.mark.parametrize(("num_factors", "num_choices"), [(1, 5), (2, 2), (3, 4), (5, 3)])
def test_chain_bandits_values_are_those_of_enumeration(num_factors: int, num_choices: int, interaction: float) -> None:
    env = ChainBandit(num_factors=num_factors, num_choices=num_choices, num_contexts=7, interaction=interaction)
    reward = rewards(env, joint_actions(num_factors, num_choices))
    torch.testing.assert_close(env.optimum_per_context(), reward.amax(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(env.random_value_per_context(), reward.mean(1), rtol=0, atol=1e-6)
    assert env.optimum() == pytest.approx(reward.amax(1).mean().item(), abs=1e-6)
    assert env.random_value() == pytest.approx(reward.mean(1).mean().item(), abs=1e-6)


@pytest.mark.slow
def test_chain_bandits_optimum_is_that_of_enumeration_over_a_million_actions() -> None:
    env = ChainBandit(num_factors=8, num_choices=6, num_contexts=1, interaction=2.0)
    reward = rewards(env, joint_actions(8, 6))
    assert reward.shape == (1, 1_679_616)
    assert env.optimum() == pytest.approx(reward.max().item(), abs=1e-5)
    assert env.random_value() == pytest.approx(reward.mean().item(), abs=1e-5)


def test_chain_bandits_reward_is_the_formula_of_its_docstring(generator: Generator) -> None:
    num_factors, num_choices, c = 4, 3, 1.5
    env = ChainBandit(50, num_factors=4, num_choices=3, num_contexts=5, interaction=c, table_seed=9)
    tables = Generator().manual_seed(9)
    u = torch.randn(5, num_factors, num_choices, generator=tables)
    w = torch.randn(5, num_factors - 1, num_choices, num_choices, generator=tables)
    rng = RandomStreams(range(50))
    context, action = env.initial(rng), torch.randint(num_choices, (50, num_factors), generator=generator)
    reward = env.reward(context, action, env.transition(context, action, rng), rng)
    for s, a, r in zip(context.tolist(), action.tolist(), reward.tolist(), strict=True):
        own = sum(u[s, k, a[k]].item() for k in range(num_factors))
        links = sum(w[s, k, a[k], a[k + 1]].item() for k in range(num_factors - 1))
        assert r == pytest.approx((own + c * links) / math.sqrt(num_factors + c**2 * (num_factors - 1)), abs=1e-5)


@pytest.mark.parametrize("num_factors", [1, 4])
@pytest.mark.parametrize("interaction", [0.0, 1.0, 4.0])
def test_chain_bandits_reward_has_variance_one(num_factors: int, interaction: float) -> None:
    """And the share of it that no sum of one term per factor reaches, left when such a sum is fitted."""
    n, num_contexts = 3, 2000
    env = ChainBandit(num_factors=num_factors, num_choices=n, num_contexts=num_contexts, interaction=interaction)
    actions = joint_actions(num_factors, n)
    reward = rewards(env, actions)
    assert reward.square().mean().item() == pytest.approx(1, abs=5 * math.sqrt(2 / num_contexts))
    features = torch.nn.functional.one_hot(actions, n).flatten(1).double()
    residual = reward.T - features @ torch.linalg.pinv(features) @ reward.T
    links = interaction**2 * (num_factors - 1)
    share = (1 - 1 / n) ** 2 * links / (num_factors + links)
    assert residual.square().mean().item() == pytest.approx(share, abs=5 * math.sqrt(2 / num_contexts) * share + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("num_factors", "num_choices"), [(8, 10), (12, 10)])
def test_chain_bandit_holds_a_trillion_actions(num_factors: int, num_choices: int) -> None:
    """The best of 500 ascents, which choose for two neighbours at a time, is the optimum."""
    env = tensor_env(CHAIN, 500, num_factors=num_factors, num_choices=num_choices, num_contexts=1)
    assert math.prod(env.actions.num_choices) == num_choices**num_factors
    context = torch.zeros(500, dtype=torch.int64)
    action = torch.randint(num_choices, (500, num_factors), generator=Generator().manual_seed(0))
    for pair in [*range(num_factors - 1)] * 6:
        tried = []
        for first, second in itertools.product(range(num_choices), repeat=2):
            candidate = action.clone()
            candidate[:, pair], candidate[:, pair + 1] = first, second
            tried.append(env.env.reward(context, candidate, context, env.streams))
        best = torch.stack(tried).argmax(0)
        action[:, pair], action[:, pair + 1] = best // num_choices, best % num_choices
    env.reset([0])
    reward = env.step(action).reward
    assert reward.max().item() == pytest.approx(env.env.optimum(), abs=1e-4)


def test_chain_bandits_tables_come_from_their_seed_alone() -> None:
    first, again, other = ChainBandit(2), ChainBandit(7), ChainBandit(table_seed=1)
    for table in ("unary", "pairwise"):
        assert torch.equal(getattr(first, table), getattr(again, table))
        assert not torch.equal(getattr(first, table), getattr(other, table))


def test_chain_bandit_shows_the_context_that_pays() -> None:
    env = tensor_env(CHAIN, 400, num_contexts=5)
    obs = env.reset([0])
    assert env.observations.size == 5 and (obs.sum(1) == 1).all() and obs.any(0).all()
    action = torch.randint(6, (400, 8), generator=Generator().manual_seed(0))
    expected = rewards(env.env, action)[obs.argmax(1), torch.arange(400)]
    torch.testing.assert_close(env.step(action).reward.double(), expected)


# --- ParityBandit ---


def parity_contexts(num_bits: int, num_chosen: int) -> Tensor:
    """All of them, as states."""
    masks = [mask for mask in itertools.product((0, 1), repeat=num_bits) if sum(mask) == num_chosen]
    return torch.tensor([[*mask, wanted] for mask in masks for wanted in (0, 1)], dtype=torch.int8)


@pytest.mark.parametrize(("num_bits", "num_chosen"), [(2, 2), (5, 2), (5, 3), (6, 6)])
def test_no_choice_of_fewer_bits_than_chosen_has_an_advantage(num_bits: int, num_chosen: int) -> None:
    """The mean over the other bits is one half, whichever of the bits are held at whatever values."""
    actions, rng = joint_actions(num_bits, 2).to(torch.int8), RandomStreams([0])
    for context in parity_contexts(num_bits, num_chosen):
        state = context.expand(len(actions), -1)
        reward = ParityBandit(num_bits=num_bits, num_chosen=num_chosen).reward(state, actions, state, rng)
        table = reward.view([2] * num_bits)
        for held in itertools.product((0, 1, slice(None)), repeat=num_bits):
            if sum(value != slice(None) for value in held) < num_chosen:
                assert table[held].mean() == 0.5
        assert set(table.flatten().tolist()) == {0.0, 1.0}


def test_parity_bandit_rewards_the_wanted_parity_of_the_chosen_bits() -> None:
    env, rng = ParityBandit(num_bits=3, num_chosen=2), RandomStreams([0])
    state = torch.tensor([[1, 0, 1, 0], [1, 0, 1, 1], [0, 1, 1, 1], [0, 1, 1, 0]], dtype=torch.int8)
    action = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 0]], dtype=torch.int8)
    reward = env.reward(state, action, state, rng)
    assert reward.tolist() == [1, 0, 1, 0] and reward.dtype == torch.float32


def test_parity_bandits_optimum_and_random_value_are_those_of_enumeration() -> None:
    env, rng, actions = ParityBandit(num_bits=5, num_chosen=3), RandomStreams([0]), joint_actions(5, 2).to(torch.int8)
    states = [context.expand(len(actions), -1) for context in parity_contexts(5, 3)]
    reward = torch.stack([env.reward(state, actions, state, rng) for state in states])
    assert (reward.amax(1) == env.optimum()).all() and (reward.mean(1) == env.random_value()).all()


def test_parity_bandits_contexts_are_all_alike() -> None:
    """Within 5 standard errors of the uniform distribution over C(5, 3) * 2 contexts."""
    count, contexts = 40_000, parity_contexts(5, 3)
    drawn = ParityBandit(count, num_bits=5, num_chosen=3).initial(RandomStreams(range(count)))
    share = (drawn.unsqueeze(1) == contexts).all(2).double().mean(0)
    assert len(share) == 20 and share.sum() == pytest.approx(1)
    assert (share - 1 / 20).abs().max() < 5 * math.sqrt(19 / 400 / count)


@pytest.mark.parametrize("env_id", [CHAIN, PARITY])
def test_every_step_of_a_bandit_terminates_and_draws_another_context(env_id: str) -> None:
    env = tensor_env(env_id, 100)
    obs = env.reset([0])
    for _ in range(3):
        step = env.step(torch.zeros(100, len(env.actions.num_choices), dtype=torch.int64))
        assert step.terminated.all() and not step.truncated.any()
        assert torch.equal(step.next_obs, obs) and (step.obs != obs).any(1).sum() > 50
        obs = step.obs
