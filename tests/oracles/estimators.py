"""Estimators in closed form: the gradient of each with respect to the logits, by hand."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from agent.config_sections import EstimatorConfig
from agent.estimators import Noise


@runtime_checkable
class ActionValue(Protocol):
    """Q(s, .) at a batch of states: of one-hot and of relaxed actions [P, B, K, N]."""

    def value(self, action: Tensor) -> Tensor:
        """Q(s, action), [P, B]."""

    def value_and_gradient(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Q(s, action), [P, B], and its gradient with respect to the action, [P, B, K, N]."""

    def counterfactuals(self, action: Tensor) -> Tensor:
        """[P, B, K, N]: Q(s, action) had factor k taken choice n, the other factors as they are in a one-hot action."""


class Estimate(NamedTuple):
    """Q at the action drawn, and the gradient of E_{a ~ pi} Q(s, a) with respect to the logits as estimated."""

    value: Float[Tensor, "P B"]
    gradient: Float[Tensor, "P B K N"]


def hard_sample(logits: Float[Tensor, "*batch K N"], noise: Float[Tensor, "*batch K N"]) -> Float[Tensor, "*batch K N"]:
    """One-hot argmax(logits + noise), distributed as softmax(logits).  Gumbel-max; Maddison et al. 2014."""
    return one_hot_argmax(logits + noise)


def one_hot_argmax(x: Float[Tensor, "*batch N"]) -> Float[Tensor, "*batch N"]:
    return torch.zeros_like(x).scatter_(-1, x.argmax(-1, keepdim=True), 1.0)


def softmax_gradient(y: Float[Tensor, "*batch N"], v: Float[Tensor, "*#batch N"]) -> Float[Tensor, "*batch N"]:
    """(diag(y) - y y^T) v: the gradient of softmax(x) . v with respect to x, where y = softmax(x)."""
    weighted = y * v
    return weighted.addcmul_(y, weighted.sum(-1, keepdim=True), value=-1)


def straight_through(logits: Tensor, tau: Tensor, noise: Noise, q: ActionValue) -> Estimate:
    """The critic's own gradient at the hard sample, through the relaxed one.

    z = one_hot(argmax(logits + g)),  y = softmax((logits + g) / tau)
    gradient = (diag(y) - y y^T) / tau  dQ/da (s, z)                                     Jang et al. 2017, sec. 2.2
    """
    perturbed = logits + noise.sample
    value, q_gradient = q.value_and_gradient(one_hot_argmax(perturbed))
    return Estimate(value, softmax_gradient((perturbed / tau).softmax(-1), q_gradient).div_(tau))


def relaxed_gumbel_softmax(logits: Tensor, tau: Tensor, noise: Noise, q: ActionValue) -> Estimate:
    """The exact gradient of Q at the relaxed sample: the critic sees y, which is no action.

    y = softmax((logits + g) / tau)
    gradient = (diag(y) - y y^T) / tau  dQ/da (s, y)                          Maddison et al. 2017; Jang et al. 2017
    """
    y = ((logits + noise.sample) / tau).softmax(-1)
    value, q_gradient = q.value_and_gradient(y)
    return Estimate(value, softmax_gradient(y, q_gradient).div_(tau))


def straight_through_softmax(logits: Tensor, tau: Tensor, noise: Noise, q: ActionValue) -> Estimate:
    """The critic's gradient at the hard sample, through the policy's own probabilities; tau plays no part.

    gradient = (diag(pi) - pi pi^T)  dQ/da (s, z)                                                 Bengio et al. 2013

    Unbiased for a critic linear in each factor, where it is the local expectation.
    """
    value, q_gradient = q.value_and_gradient(hard_sample(logits, noise.sample))
    return Estimate(value, softmax_gradient(logits.softmax(-1), q_gradient))


def gumbel_rao(logits: Tensor, tau: Tensor, noise: Noise, q: ActionValue) -> Estimate:
    """Straight-through Gumbel-softmax, its Jacobian averaged over noise that would have drawn the same action.

    z from noise.sample; then, for each further draw E_j = exp(-noise_j) ~ Exp(1) and i the choice drawn,
        l_i + g_i = -log E_i,   l_j + g_j = -log(E_j / pi_j + E_i)                Paulus et al. 2021
        y = softmax((l + g) / tau),   gradient = mean (diag(y) - y y^T) / tau  dQ/da (s, z)

    The same mean as straight-through Gumbel-softmax and never more variance, for one critic call.
    """
    z = hard_sample(logits, noise.sample)
    value, q_gradient = q.value_and_gradient(z)
    perturbed = conditional_gumbel(logits.log_softmax(-1), z, noise.further)
    gradient = softmax_gradient((perturbed / tau).softmax(-1), q_gradient)
    return Estimate(value, gradient.mean(0).div_(tau))


def conditional_gumbel(
    log_pi: Float[Tensor, "*batch K N"], z: Float[Tensor, "*batch K N"], noise: Float[Tensor, "S *batch K N"]
) -> Float[Tensor, "S *batch K N"]:
    """log_pi + g with g distributed as Gumbel noise given that the argmax is z.

    -log(E_j / pi_j + E_i) = -logsumexp(-noise_j - log_pi_j, -noise_i), so that no pi_j -> 0 overflows.
    """
    top = (noise * z).sum(-1, keepdim=True)  # of the choice drawn: the largest of all
    return torch.where(z.bool(), top, -torch.logaddexp(-noise - log_pi, -top))


def gapped_straight_through(logits: Tensor, tau: Tensor, noise: Noise, q: ActionValue, *, gap: float) -> Estimate:
    """Straight through a softmax whose logits are moved, without a gradient, until the choice drawn leads by a gap.

    z = one_hot(argmax(logits + g)),  i the choice drawn
    m = (max logits - logits_i) z - relu(logits + gap - max logits) (1 - z)                        Fan et al. 2022
    y = softmax((logits + m) / tau),   gradient = (diag(y) - y y^T) / tau  dQ/da (s, z)

    No randomness beyond z: less variance than straight-through Gumbel-softmax. Biased for a linear critic too.
    """
    z = hard_sample(logits, noise.sample)
    value, q_gradient = q.value_and_gradient(z)
    top = logits.amax(-1, keepdim=True)
    moved = torch.where(z.bool(), top, logits - (logits + gap - top).relu())
    return Estimate(value, softmax_gradient((moved / tau).softmax(-1), q_gradient).div_(tau))


def reinmax(logits: Tensor, tau: Tensor, noise: Noise, q: ActionValue) -> Estimate:
    """Second-order straight-through: Heun's method where straight-through softmax is Euler's.

    z ~ pi,  p = (z + softmax(logits / tau)) / 2
    gradient = 2 (diag(p) - p p^T) v - 1/2 (diag(pi) - pi pi^T) v,  v = dQ/da (s, z)  Liu et al. 2023, alg. 2

    At tau = 1 unbiased for a critic linear or quadratic in a factor. tau below 1 counts as 1: the authors' range.
    """
    z = hard_sample(logits, noise.sample)
    value, q_gradient = q.value_and_gradient(z)
    pi = logits.softmax(-1)
    p = 0.5 * (z + (logits / tau.clamp(min=1.0)).softmax(-1))
    gradient = 2 * softmax_gradient(p, q_gradient) - 0.5 * softmax_gradient(pi, q_gradient)
    return Estimate(value, gradient)


def local_expectation(logits: Tensor, tau: Tensor, noise: Noise, q: ActionValue) -> Estimate:
    """Each factor's exact sum over its choices, the other factors held at their sample.

    z ~ pi,  q_kn = Q(s, z with the choice of factor k replaced by n)
    gradient_k = (diag(pi_k) - pi_k pi_k^T) q_k                 Titsias & Lazaro-Gredilla 2015

    Unbiased for any critic, and exact for a single factor. One backward pass where the critic is linear in each
    factor; sum_k n_k critic evaluations, as one batch, where it is not.
    """
    z = hard_sample(logits, noise.sample)
    counterfactuals = q.counterfactuals(z)
    value = (counterfactuals * z).sum(-1)[..., 0]  # at z itself, whichever the factor
    return Estimate(value, softmax_gradient(logits.softmax(-1), counterfactuals))


def exact(logits: Tensor, tau: Tensor, noise: Noise, q: ActionValue) -> Estimate:
    """E_{a ~ pi} Q(s, a) = Q(s, pi_1 ... pi_K), exact for the mean of critics that are linear in each factor.

    With K = 1 this is the sum over actions of discrete SAC (Christodoulou 2019, eq. 12). Differs from it: a min over
    twin critics is taken after the expectation, where it stays a bound for K > 1 too.
    """
    pi = logits.softmax(-1)
    value, q_gradient = q.value_and_gradient(pi)
    return Estimate(value, softmax_gradient(pi, q_gradient))


def score_function_leave_one_out(logits: Tensor, tau: Tensor, noise: Noise, q: ActionValue) -> Estimate:
    """REINFORCE with the critic as return: several samples, the mean of the others as the baseline of each.

        gradient = 1 / (m - 1) sum_i (Q_i - mean_j Q_j) z_i                                Kool et al. 2019, eq. 8

    Unbiased for any critic; needs no gradient of Q. The value is Q at the first sample.
    """
    samples = [hard_sample(logits, g) for g in (noise.sample, *noise.further)]
    values = torch.stack([q.value(z) for z in samples])
    weights = (values - values.mean(0)) / (len(samples) - 1)
    return Estimate(values[0], (weights[..., None, None] * torch.stack(samples)).sum(0))


def score_function_value(logits: Tensor, tau: Tensor, noise: Noise, q: ActionValue) -> Estimate:
    """REINFORCE with the critic as return and Q(s, pi_1 ... pi_K) as baseline.

        gradient = mean_i (Q_i - Q(s, pi)) (z_i - pi)                                                 Williams 1992

    Unbiased for any critic, since the baseline depends on no sample; it is V(s) where the critic is linear in each
    factor and an approximation of it elsewhere.
    """
    pi = logits.softmax(-1)
    baseline = q.value(pi)
    samples = [hard_sample(logits, g) for g in (noise.sample, *noise.further)]
    values = [q.value(z) for z in samples]
    terms = [(value - baseline)[..., None, None] * (z - pi) for value, z in zip(values, samples, strict=True)]
    return Estimate(values[0], torch.stack(terms).mean(0))


def closed_form(config: EstimatorConfig) -> Callable[[Tensor, Tensor, Noise, ActionValue], Estimate]:
    """Of the estimator that a config names."""
    match config.name:
        case "straight_through_gumbel_softmax":
            return straight_through
        case "relaxed_gumbel_softmax":
            return relaxed_gumbel_softmax
        case "straight_through_softmax":
            return straight_through_softmax
        case "gumbel_rao":
            return gumbel_rao
        case "gapped_straight_through":
            return partial(gapped_straight_through, gap=config.gap)
        case "reinmax":
            return reinmax
        case "score_function":
            baselines = {"leave_one_out": score_function_leave_one_out, "value": score_function_value}
            return baselines[config.baseline]
        case "local_expectation":
            return local_expectation
        case "exact":
            return exact
