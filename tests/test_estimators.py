"""Estimators against their closed forms, enumeration and the distribution they must draw from."""

import itertools
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from oracles.estimators import closed_form
from torch import Generator, Tensor

from agent.action_space import IMPOSSIBLE, ActionSpace
from agent.config_sections import EstimatorConfig
from agent.diagnostics.gradient_quality import estimated_gradient
from agent.estimators import Estimator, Noise, conditional_gumbel, gumbel, hard_sample, make_estimator

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, -3.0]])  # K = 2 factors
CHI_SQUARE_1E6 = {1: 23.9, 2: 27.6, 4: 33.4}  # exceeded by chance once in 10^6, by degrees of freedom


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def gradient_of(objective: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(objective(logits).sum(), logits)[0]


def gumbel_noise(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return gumbel(torch.rand(shape, dtype=torch.float64, generator=generator))


def noise_for(estimator: Estimator, shape: tuple[int, ...], generator: Generator) -> Noise:
    num_members, *rest = shape
    uniform = torch.rand((num_members, estimator.num_samples, *rest), dtype=torch.float64, generator=generator)
    return estimator.noise(uniform)


def straight_through_sample(logits: Tensor, tau: float, noise: Tensor) -> Tensor:
    """What straight-through Gumbel-softmax shows to the critic, at [B, K, N] logits."""
    shown: list[Tensor] = []
    q = AnyQ(lambda action: shown.append(action) or action.sum((-2, -1)))
    made("straight_through_gumbel_softmax").surrogate(
        logits[None], torch.tensor(tau), Noise(noise[None], noise[None, :0]), q
    )
    return shown[0][0]


@pytest.mark.parametrize("tau", [0.1, 1.0, 10.0])
def test_draws_follow_softmax_for_every_tau(tau: float, generator: Generator) -> None:
    """Chi-square test; false alarm 2e-6 per tau."""
    logits = LOGITS.expand(200_000, 2, 3)
    z = straight_through_sample(logits, tau, gumbel_noise(tuple(logits.shape), generator))
    for k in range(2):
        assert chi_square(z[:, k].sum(0), LOGITS[k].softmax(-1)) < CHI_SQUARE_1E6[2]


def test_values_are_exactly_one_hot(generator: Generator) -> None:
    logits = torch.randn(10_000, 3, 7, generator=generator) * 5
    z = straight_through_sample(logits, 0.3, gumbel_noise(tuple(logits.shape), generator))
    assert ((z == 0.0) | (z == 1.0)).all() and (z.sum(-1) == 1.0).all()


@pytest.mark.parametrize("tau", [0.2, 1.0, 3.0])
def test_gradient_is_the_softmax_jacobian_at_the_drawn_noise(tau: float, generator: Generator) -> None:
    noise, v = gumbel_noise((1, 2, 3), generator), torch.randn(2, 3, generator=generator)
    gradient = gradient_of(lambda x: straight_through_sample(x, tau, noise) * v, LOGITS[None])[0]
    for k in range(2):
        y = ((LOGITS[k] + noise[0, k]) / tau).softmax(-1)
        jacobian = (y.diag() - torch.outer(y, y)) / tau
        torch.testing.assert_close(gradient[k], jacobian @ v[k], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("draw", [0.0, 5e-324, 0.5, 1 - 2.0**-53])
@pytest.mark.parametrize("tau", [1e-3, 1.0])
def test_finite_whatever_the_draw_and_the_logits(draw: float, tau: float) -> None:
    uniform = torch.full((3, 2, 4), 0.5, dtype=torch.float64)
    uniform.view(-1)[::2] = draw
    noise = gumbel(uniform)
    logits = torch.tensor([[1e4, -1e4, 0.0, 1e4]]).repeat(3, 2, 1).requires_grad_()
    z = straight_through_sample(logits, tau, noise)
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
    noise = gumbel_noise(tuple(logits.shape), generator)
    gradient = gradient_of(lambda x: straight_through_sample(x, tau, noise) * v, logits)
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


NAMES = get_args(EstimatorConfig.model_fields["name"].annotation)
VARIANTS: list[dict[str, Any]] = [{"name": name} for name in NAMES] + [{"name": "score_function", "baseline": "value"}]


def made(name: str, **settings: Any) -> Estimator:
    return make_estimator(EstimatorConfig(name=name, **settings))


class AnyQ:
    """Q(s, .) given as a differentiable function of [P, B, K, N] actions."""

    def __init__(self, q: Callable[[Tensor], Tensor]) -> None:
        self.q = q

    def __call__(self, action: Tensor) -> Tensor:
        return self.q(action)

    def value(self, action: Tensor) -> Tensor:
        return self.q(action)

    def value_and_gradient(self, action: Tensor) -> tuple[Tensor, Tensor]:
        action = action.clone().requires_grad_()
        value = self.q(action)
        return value.detach(), torch.autograd.grad(value.sum(), action)[0]

    def counterfactuals(self, action: Tensor) -> Tensor:
        values = torch.empty_like(action)
        for k, n in itertools.product(*map(range, action.shape[2:])):
            replaced = action.clone()
            replaced[..., k, :] = torch.nn.functional.one_hot(torch.tensor(n), action.shape[-1]).float()
            values[..., k, n] = self.q(replaced)
        return values


def estimate(estimator: Estimator, logits: Tensor, tau: float, noise: Noise, q: AnyQ) -> tuple[Tensor, Tensor]:
    """The surrogate's value and its gradient, at [P, B, K, N] logits."""
    taus = torch.full((len(logits),), tau)
    gradient = estimated_gradient(estimator, q, logits, taus, noise)
    return estimator.surrogate(logits, taus.view(-1, 1, 1, 1), noise, q), gradient


def linear_q(v: Tensor) -> AnyQ:
    return AnyQ(lambda action: (action * v).sum((-2, -1)))


def multilinear_q(action: Tensor) -> Tensor:
    """Linear in each of two factors given the other."""
    return 3 * action[..., 0, 1] * action[..., 1, 0] - 2 * action[..., 0, 2] * action[..., 1, 1] + action[..., 1, 2]


def curved_q(action: Tensor) -> Tensor:
    return action[..., 0, 1] * action[..., 1, 0] * 3 + (action[..., 0, 2] + action[..., 1, 1]) ** 2


def quadratic_q(action: Tensor) -> Tensor:
    """Of one factor."""
    return 3 * action[..., 0, 0] * action[..., 0, 1] + action[..., 0, 1] ** 2 - 2 * action[..., 0, 2]


def one_hots(num_factors: int, num_choices: int = 3) -> list[Tensor]:
    """Every joint action, [K, N] each."""
    joint = itertools.product(range(num_choices), repeat=num_factors)
    return [torch.nn.functional.one_hot(torch.tensor(choice), num_choices).float() for choice in joint]


def enumerated_gradient(logits: Tensor, q: AnyQ) -> Tensor:
    """d/dlogits of sum_a pi(a) Q(a) over all joint actions of [K, N] logits."""

    def expectation(x: Tensor) -> Tensor:
        total = torch.zeros(())
        for action in one_hots(*logits.shape):
            total = total + (x.softmax(-1) * action).sum(-1).prod() * q.value(action[None, None])[0, 0]
        return total

    return gradient_of(expectation, logits)


def sampled_gradients(
    estimator: Estimator, logits: Tensor, q: AnyQ, tau: float, num_draws: int, generator: Generator
) -> Tensor:
    """[num_draws, K, N] estimates at [K, N] logits."""
    noise = noise_for(estimator, (1, num_draws, *logits.shape), generator)
    return estimate(estimator, logits.expand(1, num_draws, *logits.shape), tau, noise, q)[1][0]


@pytest.mark.parametrize("tau", [0.3, 2.0])
@pytest.mark.parametrize("critic", ["curved", "multilinear"])
@pytest.mark.parametrize("settings", VARIANTS, ids=lambda settings: " ".join(settings.values()))
def test_value_and_gradient_are_the_closed_form(
    settings: dict[str, Any], critic: str, tau: float, generator: Generator
) -> None:
    """With masked and padding choices."""
    config = EstimatorConfig(gap=0.7, num_samples=5, **settings)
    estimator, by_hand = make_estimator(config), closed_form(config)
    legal = torch.rand(2, 50, 2, 3, generator=generator) < 0.6
    legal[..., 0], legal[..., 1, 2] = True, False
    logits = torch.randn(2, 50, 2, 3, generator=generator).masked_fill(~legal, IMPOSSIBLE)
    noise = noise_for(estimator, (2, 50, 2, 3), generator)
    q = AnyQ({"curved": curved_q, "multilinear": multilinear_q}[critic])
    value, gradient = estimate(estimator, logits, tau, noise, q)
    expected = by_hand(logits, torch.tensor(tau), noise, q)
    torch.testing.assert_close(value, expected.value)
    torch.testing.assert_close(gradient, expected.gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_factors", [1, 2])
def test_exact_equals_enumeration_for_a_linear_critic(num_factors: int, generator: Generator) -> None:
    logits, q = LOGITS[:num_factors], linear_q(torch.randn(num_factors, 3, generator=generator))
    gradient = sampled_gradients(made("exact"), logits, q, 1.0, 1, generator)[0]
    torch.testing.assert_close(gradient, enumerated_gradient(logits, q), rtol=1e-5, atol=1e-6)


def test_exact_equals_enumeration_for_a_multilinear_critic(generator: Generator) -> None:
    estimator, q = made("exact"), AnyQ(multilinear_q)
    noise = noise_for(estimator, (1, 1, 2, 3), generator)
    value, gradient = estimate(estimator, LOGITS[None, None], 1.0, noise, q)
    torch.testing.assert_close(gradient[0, 0], enumerated_gradient(LOGITS, q), rtol=1e-5, atol=1e-6)
    pi = LOGITS.softmax(-1)
    expected = sum((pi * a).sum(-1).prod() * multilinear_q(a) for a in one_hots(2))
    torch.testing.assert_close(value[0, 0], expected)


def test_local_expectation_of_one_factor_is_the_exact_sum_for_any_critic(generator: Generator) -> None:
    q = AnyQ(quadratic_q)
    gradients = sampled_gradients(made("local_expectation"), LOGITS[:1], q, 1.0, 50, generator)
    expected = enumerated_gradient(LOGITS[:1], q).expand_as(gradients)
    torch.testing.assert_close(gradients, expected, rtol=1e-5, atol=1e-6)


UNBIASED: list[tuple[dict[str, Any], Callable[[Tensor], Tensor], int]] = [  # estimator, critic, factors
    ({"name": "score_function", "num_samples": 2}, curved_q, 2),
    ({"name": "score_function", "num_samples": 5}, curved_q, 2),
    ({"name": "score_function", "baseline": "value", "num_samples": 1}, curved_q, 2),
    ({"name": "score_function", "baseline": "value", "num_samples": 3}, curved_q, 2),
    ({"name": "local_expectation"}, curved_q, 2),
    ({"name": "straight_through_softmax"}, multilinear_q, 2),
    ({"name": "reinmax"}, multilinear_q, 2),
    ({"name": "reinmax"}, quadratic_q, 1),
]


@pytest.mark.parametrize(("settings", "critic", "num_factors"), UNBIASED)
def test_mean_gradient_is_the_enumerated_one(
    settings: dict[str, Any], critic: Callable[[Tensor], Tensor], num_factors: int, generator: Generator
) -> None:
    """Five standard errors per entry: false alarm < 4e-6 each time."""
    logits, q, num_draws = LOGITS[:num_factors], AnyQ(critic), 200_000
    gradients = sampled_gradients(made(**settings), logits, q, 1.0, num_draws, generator)
    error = (gradients.mean(0) - enumerated_gradient(logits, q)).abs()
    assert (error < 5 * gradients.std(0) / num_draws**0.5 + 1e-6).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["straight_through_gumbel_softmax", "gapped_straight_through", "gumbel_rao"])
def test_mean_gradient_of_a_biased_estimator_is_not_the_enumerated_one(name: str, generator: Generator) -> None:
    """The negative control of the test above: off by more than 20 standard errors at tau = 1, linear critic."""
    q, num_draws = linear_q(torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, -1.0]])), 200_000
    gradients = sampled_gradients(made(name), LOGITS, q, 1.0, num_draws, generator)
    error = (gradients.mean(0) - enumerated_gradient(LOGITS, q)).abs()
    assert (error > 20 * gradients.std(0) / num_draws**0.5).any()


@pytest.mark.slow
@pytest.mark.parametrize("tau", [0.3, 1.0])
def test_gumbel_rao_keeps_the_mean_of_straight_through_and_lowers_its_variance(
    tau: float, generator: Generator
) -> None:
    """Means within five standard errors of their difference."""
    q, num_draws = AnyQ(curved_q), 200_000
    ours, theirs = (
        sampled_gradients(made(name), LOGITS, q, tau, num_draws, generator)
        for name in ("gumbel_rao", "straight_through_gumbel_softmax")
    )
    standard_error = ((ours.var(0) + theirs.var(0)) / num_draws).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 5 * standard_error).all()
    assert ours.var(0).sum() < 0.8 * theirs.var(0).sum()


def test_conditional_noise_has_its_argmax_at_the_choice_and_the_law_of_gumbels_that_do(generator: Generator) -> None:
    """Against rejection: the perturbed logits of the draws whose argmax is the choice. Means and second moments within
    five standard errors: false alarm < 4e-6 per entry."""
    log_pi = LOGITS[:1].log_softmax(-1)
    perturbed = log_pi + gumbel_noise((400_000, 1, 3), generator)
    rejected = perturbed[perturbed[:, 0].argmax(-1) == 1, 0]
    z = torch.tensor([[0.0, 1.0, 0.0]])
    drawn = conditional_gumbel(log_pi, z, gumbel_noise((100_000, 1, 3), generator))[:, 0]
    assert (drawn.argmax(-1) == 1).all()
    for power in (1, 2):
        ours, theirs = drawn**power, rejected**power
        standard_error = (ours.var(0) / len(ours) + theirs.var(0) / len(theirs)).sqrt()
        assert ((ours.mean(0) - theirs.mean(0)).abs() < 5 * standard_error).all()


@pytest.mark.parametrize("settings", VARIANTS)
def test_impossible_choices_get_no_gradient_and_extreme_logits_stay_finite(
    settings: dict[str, Any], generator: Generator
) -> None:
    estimator = made(**settings)
    actions = ActionSpace((3, 2))
    logits = torch.randn(1, 200, 2, 3, generator=generator) * torch.tensor([1.0, 1e3]).repeat(100)[:, None, None]
    masked = torch.rand(1, 200, 1, 3, generator=generator) < 0.3
    masked[..., 0] = False
    logits = actions.mask_logits(logits).masked_fill(masked, IMPOSSIBLE)
    noise = noise_for(estimator, (1, 200, 2, 3), generator)
    for tau in (0.05, 1.0):
        value, gradient = estimate(estimator, logits, tau, noise, AnyQ(curved_q))
        assert value.isfinite().all() and gradient.isfinite().all()
        assert (gradient[logits == IMPOSSIBLE] == 0).all() and gradient.abs().sum() > 0


@pytest.mark.parametrize("settings", VARIANTS)
def test_a_constant_added_to_the_critic_changes_no_gradient(settings: dict[str, Any], generator: Generator) -> None:
    estimator = made(**settings)
    logits = torch.randn(1, 50, 2, 3, generator=generator)
    noise = noise_for(estimator, (1, 50, 2, 3), generator)
    plain, shifted = (
        estimate(estimator, logits, 0.7, noise, AnyQ(lambda a, c=c: curved_q(a) + c * a.sum((-2, -1))))[1]
        for c in (0.0, 50.0)
    )
    torch.testing.assert_close(plain, shifted, rtol=0, atol=1e-3)


@pytest.mark.parametrize("settings", VARIANTS)
def test_tau_matters_where_the_config_says_so(settings: dict[str, Any], generator: Generator) -> None:
    estimator = made(**settings)
    noise = noise_for(estimator, (1, 50, 2, 3), generator)
    low, high = (estimate(estimator, LOGITS.expand(1, 50, 2, 3), tau, noise, AnyQ(curved_q))[1] for tau in (1.0, 3.0))
    assert torch.equal(low, high) != EstimatorConfig(**settings).depends_on_tau


@pytest.mark.parametrize("settings", [s for s in VARIANTS if s["name"] not in ("exact", "relaxed_gumbel_softmax")])
def test_value_is_that_of_the_critic_at_the_drawn_action(settings: dict[str, Any], generator: Generator) -> None:
    q, estimator = linear_q(torch.randn(2, 3, generator=generator)), made(**settings)
    noise = noise_for(estimator, (1, 8, 2, 3), generator)
    logits = LOGITS.expand(1, 8, 2, 3)
    value, _ = estimate(estimator, logits, 1.0, noise, q)
    torch.testing.assert_close(value, q(hard_sample(logits, noise.sample)))


def test_padding_choices_have_no_probability() -> None:
    logits = ActionSpace((3, 2)).mask_logits(torch.zeros(4, 2, 3))
    assert torch.equal(logits.softmax(-1)[0], torch.tensor([[1 / 3] * 3, [0.5, 0.5, 0.0]]))
    assert logits.min() == IMPOSSIBLE
