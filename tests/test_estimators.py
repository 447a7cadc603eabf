"""Estimators against their closed forms, enumeration and the distribution they must draw from."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from agent import estimators
from agent.action_space import ActionSpace
from agent.estimators import ESTIMATORS, gumbel_noise, gumbel_of, hard_sample, straight_through_gumbel_softmax

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, -3.0]])  # K = 2 factors
CHI_SQUARE_1E6 = {1: 23.9, 2: 27.6, 4: 33.4}  # exceeded by chance once in 10^6, by degrees of freedom


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def gradient_of(objective: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(objective(logits).sum(), logits)[0]


@pytest.mark.parametrize("tau", [0.1, 1.0, 10.0])
def test_draws_follow_softmax_for_every_tau(tau: float, generator: Generator) -> None:
    """Chi-square test; false alarm 2e-6 per tau."""
    z = straight_through_gumbel_softmax(LOGITS.expand(200_000, 2, 3), tau, generator)
    for k in range(2):
        assert chi_square(z[:, k].sum(0), LOGITS[k].softmax(-1)) < CHI_SQUARE_1E6[2]


def test_hard_sample_follows_softmax(generator: Generator) -> None:
    logits = LOGITS.expand(200_000, 2, 3)
    z = hard_sample(logits, gumbel_noise(tuple(logits.shape), generator))
    assert chi_square(z[:, 0].sum(0), LOGITS[0].softmax(-1)) < CHI_SQUARE_1E6[2]


def test_values_are_exactly_one_hot(generator: Generator) -> None:
    z = straight_through_gumbel_softmax(torch.randn(10_000, 3, 7, generator=generator) * 5, 0.3, generator)
    assert ((z == 0.0) | (z == 1.0)).all() and (z.sum(-1) == 1.0).all()


def test_masked_choices_are_never_drawn_and_get_no_gradient(generator: Generator) -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    logits = torch.tensor([[0.0, 1.0, 50.0], [0.0, 50.0, 50.0]]).repeat(50_000, 1, 1).requires_grad_()
    z = straight_through_gumbel_softmax(logits, 0.5, generator, mask=mask)
    assert (z * ~mask).sum() == 0
    (gradient,) = torch.autograd.grad((z * torch.randn(2, 3, generator=generator)).sum(), logits)
    assert (gradient * ~mask == 0).all() and gradient.isfinite().all()
    assert chi_square(z[:, 0, :2].sum(0).detach(), torch.tensor([0.0, 1.0]).softmax(-1)) < CHI_SQUARE_1E6[1]


@pytest.mark.parametrize("tau", [0.2, 1.0, 3.0])
def test_gradient_is_the_softmax_jacobian_at_the_drawn_noise(tau: float, generator: Generator) -> None:
    noise, v = gumbel_noise((2, 3), generator), torch.randn(2, 3, generator=generator)
    gradient = gradient_of(lambda x: straight_through_gumbel_softmax(x, tau, noise=noise) * v, LOGITS)
    for k in range(2):
        y = ((LOGITS[k] + noise[k]) / tau).softmax(-1)
        jacobian = (y.diag() - torch.outer(y, y)) / tau
        torch.testing.assert_close(gradient[k], jacobian @ v[k], rtol=1e-5, atol=1e-6)


def test_a_constant_in_the_critic_changes_no_gradient(generator: Generator) -> None:
    noise, v = gumbel_noise((2, 3), generator), torch.randn(2, 3, generator=generator)
    plain, shifted = (
        gradient_of(lambda x, c=c: straight_through_gumbel_softmax(x, 0.7, noise=noise) * (v + c), LOGITS)
        for c in (torch.zeros(2, 1), torch.tensor([[100.0], [-7.0]]))
    )
    torch.testing.assert_close(plain, shifted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("draw", [0.0, 5e-324, 0.5, 1 - 2.0**-53])
@pytest.mark.parametrize("tau", [1e-3, 1.0])
def test_finite_whatever_the_draw_and_the_logits(draw: float, tau: float) -> None:
    uniform = torch.full((3, 2, 4), 0.5, dtype=torch.float64)
    uniform.view(-1)[::2] = draw
    noise = gumbel_of(uniform)
    logits = torch.tensor([[1e4, -1e4, 0.0, 1e4]]).repeat(3, 2, 1).requires_grad_()
    z = straight_through_gumbel_softmax(logits, tau, noise=noise)
    (gradient,) = torch.autograd.grad((z * torch.arange(4.0)).sum(), logits)
    assert noise.isfinite().all()
    assert z.isfinite().all() and (z.sum(-1) == 1).all() and gradient.isfinite().all()


@pytest.mark.parametrize("num_draws", [5_000_000, pytest.param(100_000_000, marks=pytest.mark.slow)])
def test_noise_is_finite_over_many_draws(num_draws: int, generator: Generator) -> None:
    for _ in range(num_draws // 5_000_000):
        assert gumbel_noise((5_000_000,), generator).isfinite().all()


def test_noise_has_the_mean_and_variance_of_a_gumbel(generator: Generator) -> None:
    """Mean 0.5772, variance pi^2 / 6; five standard errors at a million draws."""
    g = gumbel_noise((1_000_000,), generator)
    assert abs(g.mean() - 0.57722) < 0.0065 and abs(g.var() - 1.64493) < 0.02


def straight_through_moments(tau: float, v: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Mean and total variance of the gradient of z . v at LOGITS[0]."""
    logits = LOGITS[:1].expand(400_000, 1, 3)
    gradient = gradient_of(lambda x: straight_through_gumbel_softmax(x, tau, generator) * v, logits)
    return gradient.mean(0)[0], gradient.var(0).sum()


def test_bias_vanishes_and_variance_grows_as_tau_falls(generator: Generator) -> None:
    """For a critic linear in the action the mean gradient tends to p (v - p . v); at tau = 0.1 within 5 % of its norm,
    ten times the standard error."""
    v, p = torch.tensor([1.0, -2.0, 0.5]), LOGITS[0].softmax(-1)
    exact = p * (v - p @ v)
    moments = [straight_through_moments(tau, v, generator) for tau in (2.0, 0.5, 0.1)]
    errors = [float((mean - exact).norm() / exact.norm()) for mean, _ in moments]
    variances = [float(variance) for _, variance in moments]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.05
    assert variances[0] < variances[1] < variances[2]


class AnyQ:
    """Q(s, .) given as a differentiable function of [P, B, K, N] actions."""

    def __init__(self, q: Callable[[Tensor], Tensor]) -> None:
        self.value = q

    def value_and_gradient(self, action: Tensor) -> tuple[Tensor, Tensor]:
        action = action.clone().requires_grad_()
        value = self.value(action)
        return value.detach(), torch.autograd.grad(value.sum(), action)[0]


def linear_q(v: Tensor) -> AnyQ:
    return AnyQ(lambda action: (action * v).sum((-2, -1)))


def curved_q(action: Tensor) -> Tensor:
    return action[..., 0, 1] * action[..., 1, 0] * 3 + (action[..., 0, 2] + action[..., 1, 1]) ** 2


def enumerated_gradient(logits: Tensor, q: AnyQ) -> Tensor:
    """d/dlogits of sum_a pi(a) Q(a) over all joint actions of [K, N] logits."""

    def expectation(x: Tensor) -> Tensor:
        total = torch.zeros(())
        for joint in itertools.product(range(logits.shape[1]), repeat=logits.shape[0]):
            action = torch.nn.functional.one_hot(torch.tensor(joint), logits.shape[1]).float()
            total = total + (x.softmax(-1) * action).sum(-1).prod() * q.value(action[None, None])[0, 0]
        return total

    return gradient_of(expectation, logits)


@pytest.mark.parametrize("tau", [0.3, 2.0])
def test_straight_through_is_the_gradient_through_its_sample(tau: float, generator: Generator) -> None:
    """The closed form against autograd through `straight_through_gumbel_softmax`, at a critic that is not linear."""
    logits = torch.randn(2, 50, 2, 3, generator=generator)
    noise = gumbel_noise((1, 2, 50, 2, 3), generator)
    expected = gradient_of(lambda x: curved_q(straight_through_gumbel_softmax(x, tau, noise=noise[0])), logits)
    estimate = ESTIMATORS["straight_through_gumbel_softmax"].estimate
    _, gradient = estimate(logits, torch.tensor(tau), noise, AnyQ(curved_q))
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_factors", [1, 2])
def test_exact_equals_enumeration_for_a_linear_critic(num_factors: int, generator: Generator) -> None:
    logits, q = LOGITS[:num_factors], linear_q(torch.randn(num_factors, 3, generator=generator))
    _, gradient = ESTIMATORS["exact"].estimate(logits[None, None], torch.ones(()), torch.zeros(0), q)
    torch.testing.assert_close(gradient[0, 0], enumerated_gradient(logits, q), rtol=1e-5, atol=1e-6)


def test_score_function_is_unbiased_for_a_critic_that_is_not_linear(generator: Generator) -> None:
    """Five standard errors per entry: false alarm < 4e-6."""
    num_draws, q = 200_000, AnyQ(curved_q)
    noise = gumbel_noise((2, 1, num_draws, 2, 3), generator)
    estimate = ESTIMATORS["score_function"].estimate
    gradient = estimate(LOGITS.expand(1, num_draws, 2, 3), torch.ones(()), noise, q).gradient[0]
    error = (gradient.mean(0) - enumerated_gradient(LOGITS, q)).abs()
    assert (error < 5 * gradient.std(0) / num_draws**0.5).all()


@pytest.mark.parametrize("name", ["straight_through_gumbel_softmax", "score_function"])
def test_value_is_that_of_the_critic_at_the_drawn_action(name: str, generator: Generator) -> None:
    q = linear_q(torch.randn(2, 3, generator=generator))
    noise = gumbel_noise((ESTIMATORS[name].num_samples, 1, 8, 2, 3), generator)
    logits = LOGITS.expand(1, 8, 2, 3)
    value, _ = ESTIMATORS[name].estimate(logits, torch.ones(()), noise, q)
    torch.testing.assert_close(value, q.value(hard_sample(logits, noise[0])))


def test_padding_choices_have_no_probability() -> None:
    logits = ActionSpace((3, 2)).mask_logits(torch.zeros(4, 2, 3))
    assert torch.equal(logits.softmax(-1)[0], torch.tensor([[1 / 3] * 3, [0.5, 0.5, 0.0]]))
    assert logits.min() == estimators.IMPOSSIBLE
