"""Losses by hand."""

import math

import torch

from agent import losses
from agent.action_space import ActionSpace


def test_entropy_by_hand_sums_over_factors() -> None:
    logits = torch.tensor([[[[0.0, 0.0], [math.log(3.0), 0.0]]]])
    expected = math.log(2) - (0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    torch.testing.assert_close(losses.entropy(logits), torch.tensor([[expected]]))


def test_entropy_and_its_gradient_are_finite_with_padding_and_with_certainty() -> None:
    logits = torch.tensor([[[[0.0, 0.0, 0.0], [1e4, -1e4, 0.0]]]], requires_grad=True)
    entropy = losses.entropy(ActionSpace((3, 2)).mask_logits(logits))
    (gradient,) = torch.autograd.grad(entropy.sum(), logits)
    torch.testing.assert_close(entropy, torch.tensor([[math.log(3)]]))
    assert gradient.isfinite().all()


def test_critics_reduce_to_min_or_mean() -> None:
    q = torch.tensor([[[1.0, 4.0]], [[3.0, 2.0]]])
    assert losses.reduce_critics(q, "min").tolist() == [[1.0, 2.0]]
    assert losses.reduce_critics(q, "mean").tolist() == [[2.0, 3.0]]


def test_target_and_losses_by_hand() -> None:
    target = losses.td_target(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.9, 0.0]]), torch.tensor([[10.0, 10.0]]))
    assert target.tolist() == [[10.0, 2.0]]
    q = torch.tensor([[[11.0, 2.0]], [[10.0, 4.0]]])
    assert losses.critic_loss(q, target).tolist() == [(1 + 4) / 2]
    loss = losses.actor_loss(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.5, 0.7]]), torch.tensor([10.0]))
    torch.testing.assert_close(loss, torch.tensor([-8.0]))


def test_alpha_falls_while_entropy_is_above_its_target() -> None:
    gradient = losses.log_alpha_gradient(torch.tensor([[1.0, 1.0], [0.1, 0.1]]), torch.tensor([0.5, 0.5]))
    assert gradient[0] > 0 > gradient[1]  # a descent step lowers log alpha of the first member, raises the second's
