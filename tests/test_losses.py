"""Losses by hand."""

import math

import oracles.losses
import torch
from torch import Generator

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
    torch.testing.assert_close(entropy.detach(), torch.tensor([[math.log(3)]]))
    assert gradient.isfinite().all() and gradient[0, 0, 1, 2] == 0


def test_gradients_of_the_losses_are_those_by_hand(generator: Generator) -> None:
    logits = torch.randn(2, 5, 3, 4, generator=generator, requires_grad=True)
    v, alpha = torch.randn(2, 5, 3, 4, generator=generator), torch.tensor([0.5, 2.0])
    loss = losses.actor_loss((logits * v).sum((-2, -1)), losses.entropy(logits), alpha)
    entropy, entropy_gradient = oracles.losses.entropy_and_gradient(logits.detach())
    expected = oracles.losses.actor_loss_gradient(v, entropy_gradient, alpha)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), logits)[0], expected)

    q, target = torch.randn(2, 2, 5, generator=generator, requires_grad=True), torch.randn(2, 5, generator=generator)
    (gradient,) = torch.autograd.grad(losses.critic_loss(q, target).sum(), q)
    torch.testing.assert_close(gradient, oracles.losses.critic_loss_gradient(q.detach(), target))

    log_alpha = torch.zeros(2, requires_grad=True)
    (gradient,) = torch.autograd.grad(losses.alpha_loss(log_alpha, entropy, target[:, 0]).sum(), log_alpha)
    torch.testing.assert_close(gradient, oracles.losses.log_alpha_gradient(entropy.mean(-1), target[:, 0]))


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


def test_n_moves_linearly_and_is_rounded_at_random(generator: Generator) -> None:
    """Halfway from 4 to 1 it is 2 or 3, alike: five standard errors, false alarm < 1e-6."""
    uniform = torch.rand((1, 10_000), dtype=torch.float64, generator=generator)
    length, four, one = torch.full((1, 10_000), 4), torch.tensor([4.0]), torch.tensor([1.0])
    for progress, expected in ((0.0, {4}), (0.5, {2, 3}), (1.0, {1}), (1.1, {1})):  # the last step may lead beyond
        assert (
            set(losses.steps_counted(length, four, one, torch.tensor(progress), uniform).unique().tolist()) == expected
        )
    halfway = losses.steps_counted(length, four, one, torch.tensor(0.5), uniform)
    assert abs(halfway.double().mean().item() - 2.5) < 5 * 0.5 / 100


def test_no_more_steps_count_than_a_window_has() -> None:
    length, uniform = torch.tensor([[1, 2, 5]]), torch.zeros((1, 3), dtype=torch.float64)
    three = torch.tensor([3.0])
    assert losses.steps_counted(length, three, three, torch.tensor(0.0), uniform).tolist() == [[1, 2, 3]]


def test_n_may_differ_between_members() -> None:
    length, uniform = torch.full((2, 1), 5), torch.zeros((2, 1), dtype=torch.float64)
    start, end = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0])
    counted = [losses.steps_counted(length, start, end, torch.tensor(at), uniform).tolist() for at in (0.0, 0.5, 1.0)]
    assert counted == [[[3], [1]], [[2], [1]], [[1], [1]]]


def test_alpha_falls_while_entropy_is_above_its_target() -> None:
    log_alpha = torch.zeros(2, requires_grad=True)
    loss = losses.alpha_loss(log_alpha, torch.tensor([[1.5, 0.5], [0.1, 0.1]]), torch.tensor([0.5, 0.5]))
    (gradient,) = torch.autograd.grad(loss.sum(), log_alpha)
    assert gradient[0] > 0 > gradient[1]  # a descent step lowers log alpha of the first member, raises the second's
