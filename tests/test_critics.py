"""Critics: what each structure can express, and that values and gradients are those by hand."""

import itertools

import oracles.critics
import pytest
import torch
from torch import Generator, Tensor

from agent.action_space import ActionSpace
from agent.config_loader import load_config
from agent.networks.heads import Critics, make_critics
from envs.spaces import ObsPart

STRUCTURES = ["per_action", "multilinear", "joint"]
MULTILINEAR = ["per_action", "multilinear"]


def twin_critics(structure: str, actions: ActionSpace, num_members: int = 2, rank: int = 3) -> Critics:
    settings = [f"critic.structure={structure}", f"critic.rank={rank}", f"seeds={num_members}", "hidden_sizes=[8]"]
    return make_critics(load_config(None, ["env.id=Test-v0", *settings]), [ObsPart("", (3,))], actions)


def all_actions(actions: ActionSpace) -> Tensor:
    """Every joint action as [A, K, N] one-hots."""
    joint = list(itertools.product(*map(range, actions.num_choices)))
    return actions.one_hot(torch.tensor(joint))


@pytest.mark.parametrize("num_choices", [(3,), (3, 2, 3)])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_values_and_gradients_are_those_by_hand(
    structure: str, num_choices: tuple[int, ...], generator: Generator
) -> None:
    """Q, and sum_c w_c Q_c with respect to the action and to the parameters, at relaxed actions."""
    actions = ActionSpace(num_choices)
    critics = twin_critics(structure, actions)
    config = load_config(None, ["env.id=Test-v0", f"critic.structure={structure}", "critic.rank=3"]).critic
    by_hand = oracles.critics.make_critics(config, 3, actions, [8], 4, 2)
    by_hand.mlp.flat.copy_(critics.network.flat)
    obs, weight = torch.randn(2, 5, 3, generator=generator), torch.randn(2, 2, 5, generator=generator)
    action = torch.rand(2, 5, *actions.shape, generator=generator).requires_grad_()
    encoded = critics.encode(obs)
    q = critics.evaluate(encoded, action)
    (of_action,) = torch.autograd.grad((q * weight).sum(), action)
    of_parameters, _, _ = critics.network.gradient(
        lambda p: ((critics.evaluate(critics.encode(obs, p), action.detach(), p) * weight).sum((0, 2)), None)
    )
    expected = by_hand.evaluate(by_hand.encode(obs), action.detach())
    torch.testing.assert_close(q.detach(), expected.q)
    weighted = by_hand.action_gradient(expected) * weight[..., None, None]
    torch.testing.assert_close(of_action, weighted.sum(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(of_parameters, by_hand.parameter_gradient(expected, weight), rtol=1e-4, atol=1e-6)


def test_multilinear_critics_are_their_definition(generator: Generator) -> None:
    """Q = mean_k f_k . a_k + 1/K sum_{k<l} a_k' U_k S U_l' a_l, pair by pair."""
    actions, rank = ActionSpace((3, 2, 3)), 3
    critics = twin_critics("multilinear", actions, rank=rank)
    encoded = critics.encode(torch.randn(2, 5, 3, generator=generator))
    action = torch.rand(2, 5, 3, 3, generator=generator)
    f, u = encoded[..., :9].unflatten(-1, (3, 3)), encoded[..., 9:].unflatten(-1, (3, 3, rank))
    expected = (f * action).sum((-2, -1)) / 3
    sign = torch.tensor([1.0, -1.0, 1.0])
    for k, m in itertools.combinations(range(3), 2):
        left, right = (torch.einsum("pbn,cpbnr->cpbr", action[:, :, i], u[..., i, :, :]) for i in (k, m))
        expected = expected + (left * sign * right).sum(-1) / 3
    torch.testing.assert_close(critics.evaluate(encoded, action), expected)


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
        expected = expected + probability * critics.evaluate(encoded, action.expand(shape))
    torch.testing.assert_close(critics.evaluate(encoded, pi), expected)


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
            expected = critics.evaluate(encoded, actions.one_hot(replaced))
            torch.testing.assert_close(counterfactuals[..., k, n], expected)


def test_every_structure_but_per_action_sees_interactions(generator: Generator) -> None:
    actions = ActionSpace((2, 2))
    obs = torch.randn(1, 1, 3, generator=generator)
    interaction = {}
    for structure in STRUCTURES:
        critics = twin_critics(structure, actions, num_members=1)
        q = [critics.evaluate(critics.encode(obs), a.expand(1, 1, 2, 2))[0, 0, 0] for a in all_actions(actions)]
        interaction[structure] = float((q[0] - q[1] - q[2] + q[3]).abs())
    assert interaction["per_action"] < 1e-6 < 1e-3 < min(interaction["multilinear"], interaction["joint"])


def test_one_factor_needs_no_embeddings() -> None:
    actions = ActionSpace((4,))
    multilinear, per_action = (twin_critics(structure, actions) for structure in MULTILINEAR)
    assert torch.equal(multilinear.network.flat, per_action.network.flat)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_interactions_of_either_sign_can_be_learnt(sign: float, generator: Generator) -> None:
    """Q = +-1 where two factors agree: fitted by gradient descent to a mean squared error below 0.01."""
    actions = ActionSpace((2, 2))
    critics = twin_critics("multilinear", actions, num_members=1, rank=2)
    obs, action = torch.ones(1, 4, 3), all_actions(actions).unsqueeze(0)
    target = torch.tensor([sign, 0.0, 0.0, sign])
    loss = torch.ones(())
    for _ in range(2000):
        gradient, loss, _ = critics.network.gradient(
            lambda p: ((critics.evaluate(critics.encode(obs, p), action) - target).square().sum((0, 2)) / 2, None)
        )
        critics.network.flat.sub_(gradient, alpha=0.05)
    assert loss.item() / 4 < 0.01
