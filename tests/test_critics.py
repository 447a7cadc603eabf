"""Critics: what each structure can express, and derivatives by hand against autograd."""

import itertools

import pytest
import torch
from plain_mlp import plain
from torch import Generator, Tensor

from agent.action_space import ActionSpace
from agent.config import CriticConfig
from agent.critics import Critics, make_critics
from agent.networks import member_generators

STRUCTURES = ["per_action", "multilinear", "joint"]
MULTILINEAR = ["per_action", "multilinear"]


def twin_critics(structure: str, actions: ActionSpace, num_members: int = 2, rank: int = 3) -> Critics:
    seeds = list(range(num_members))
    generators = member_generators(seeds, 0) + member_generators(seeds, 1)
    config = CriticConfig.model_validate({"structure": structure, "rank": rank})
    return make_critics(config, 3, actions, [8], generators, 2)


def all_actions(actions: ActionSpace) -> Tensor:
    """Every joint action as [A, K, N] one-hots."""
    joint = list(itertools.product(*map(range, actions.num_choices)))
    return actions.one_hot(torch.tensor(joint))


def q_by_definition(structure: str, critics: Critics, flat: Tensor, obs: Tensor, action: Tensor) -> Tensor:
    """[C, P, B] from the equations in the classes' docstrings, pair by pair, in a way that autograd follows."""
    num_factors, num_choices = action.shape[2:]
    if structure == "joint":
        return plain(critics.mlp, flat, torch.cat([obs, action.flatten(-2)], -1).repeat(2, 1, 1)).unflatten(0, (2, -1))[
            ..., 0
        ]
    heads = plain(critics.mlp, flat, obs.repeat(2, 1, 1)).unflatten(0, (2, -1))
    f = heads[..., : num_factors * num_choices].unflatten(-1, (num_factors, num_choices))
    q = (f * action).sum((-2, -1)) / num_factors
    if structure == "multilinear":
        u = heads[..., num_factors * num_choices :].unflatten(-1, (num_factors, num_choices, -1))
        sign = torch.tensor([(-1.0) ** r for r in range(u.shape[-1])])
        for k, m in itertools.combinations(range(num_factors), 2):
            left, right = (torch.einsum("pbn,cpbnr->cpbr", action[:, :, i], u[..., i, :, :]) for i in (k, m))
            q = q + (left * sign * right).sum(-1) / num_factors
    return q


@pytest.mark.parametrize("structure", STRUCTURES)
def test_values_and_gradients_are_those_of_the_definition(structure: str, generator: Generator) -> None:
    """Q, and sum_c w_c Q_c with respect to the action and to the parameters, at relaxed actions of three factors."""
    actions = ActionSpace((3, 2, 3))
    critics = twin_critics(structure, actions)
    obs, weight = torch.randn(2, 5, 3, generator=generator), torch.randn(2, 2, 5, generator=generator)
    action = torch.rand(2, 5, 3, 3, generator=generator).requires_grad_()
    flat = critics.mlp.flat.clone().requires_grad_()
    q = q_by_definition(structure, critics, flat, obs, action)
    per_critic = [torch.autograd.grad(q[c].sum(), action, retain_graph=True)[0] for c in range(2)]
    (expected,) = torch.autograd.grad((q * weight).sum(), flat)
    evaluation = critics.evaluate(critics.encode(obs), action.detach())
    torch.testing.assert_close(evaluation.q, q.detach())
    torch.testing.assert_close(critics.action_gradient(evaluation), torch.stack(per_critic))
    torch.testing.assert_close(critics.parameter_gradient(evaluation, weight), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_choices", [(3,), (3, 2), (3, 2, 2)])
@pytest.mark.parametrize("structure", MULTILINEAR)
def test_multilinear_critic_of_probabilities_is_the_enumerated_expectation(
    structure: str, num_choices: tuple[int, ...], generator: Generator
) -> None:
    actions = ActionSpace(num_choices)
    critics = twin_critics(structure, actions)
    obs = torch.randn(2, 1, 3, generator=generator)
    shape = (2, 1, actions.num_factors, actions.width)
    pi = actions.mask_logits(torch.randn(shape, generator=generator)).softmax(-1)
    encoded = critics.encode(obs)
    expected = torch.zeros(2, 2, 1)
    for action in all_actions(actions):
        probability = (pi * action).sum(-1).prod(-1)
        expected = expected + probability * critics.evaluate(encoded, action.expand(shape)).q
    torch.testing.assert_close(critics.evaluate(encoded, pi).q, expected)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_counterfactuals_are_q_with_one_choice_replaced(structure: str, generator: Generator) -> None:
    actions = ActionSpace((3, 2))
    critics = twin_critics(structure, actions)
    encoded = critics.encode(torch.randn(2, 5, 3, generator=generator))
    choice = torch.stack([torch.randint(n, (2, 5), generator=generator) for n in actions.num_choices], -1)
    counterfactuals = critics.counterfactuals(encoded, actions.one_hot(choice))
    for k, num_choices in enumerate(actions.num_choices):
        for n in range(num_choices):
            replaced = choice.clone()
            replaced[..., k] = n
            expected = critics.evaluate(encoded, actions.one_hot(replaced)).q
            torch.testing.assert_close(counterfactuals[..., k, n], expected)


def test_every_structure_but_per_action_sees_interactions(generator: Generator) -> None:
    actions = ActionSpace((2, 2))
    obs = torch.randn(1, 1, 3, generator=generator)
    interaction = {}
    for structure in STRUCTURES:
        critics = twin_critics(structure, actions, num_members=1)
        q = [critics.evaluate(critics.encode(obs), a.expand(1, 1, 2, 2)).q[0, 0, 0] for a in all_actions(actions)]
        interaction[structure] = float((q[0] - q[1] - q[2] + q[3]).abs())
    assert interaction["per_action"] < 1e-6 < 1e-3 < min(interaction["multilinear"], interaction["joint"])


def test_one_factor_needs_no_embeddings() -> None:
    actions = ActionSpace((4,))
    multilinear, per_action = (twin_critics(structure, actions) for structure in MULTILINEAR)
    assert torch.equal(multilinear.mlp.flat, per_action.mlp.flat)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_interactions_of_either_sign_can_be_learnt(sign: float, generator: Generator) -> None:
    """Q = +-1 where two factors agree: fitted by gradient descent to a mean squared error below 0.01."""
    actions = ActionSpace((2, 2))
    critics = twin_critics("multilinear", actions, num_members=1, rank=2)
    obs, action = torch.ones(1, 4, 3), all_actions(actions).unsqueeze(0)
    target = torch.tensor([sign, 0.0, 0.0, sign])
    error = torch.ones(())
    for _ in range(2000):
        evaluation = critics.evaluate(critics.encode(obs), action)
        error = evaluation.q - target
        critics.mlp.flat.sub_(critics.parameter_gradient(evaluation, error), alpha=0.05)
    assert error.square().mean() < 0.01
