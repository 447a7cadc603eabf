"""How a gradient passes a discrete sample: pure functions of (logits, tau, noise, Q).

An estimator is a surrogate objective [P, B]. Its gradient with respect to the policy's logits [P, B, K, N] estimates
that of E_{a ~ pi} Q(s, a). Its value is the critics' Q(s, .) at the action drawn, at the relaxed one or at the policy.
Noise comes in from outside, so that the same draw can be repeated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from agent.config_sections import EstimatorConfig


@runtime_checkable
class ActionValue(Protocol):
    """Q(s, .) at a batch of states: of one-hot and of relaxed actions [P, B, K, N]."""

    def __call__(self, action: Tensor) -> Tensor:
        """Q(s, action), [P, B], differentiable."""

    def counterfactuals(self, action: Tensor) -> Tensor:
        """[P, B, K, N]: Q(s, action) had factor k taken choice n, the other factors as they are in a one-hot action."""


class Noise(NamedTuple):
    """Standard Gumbel noise of an estimate."""

    sample: Float[Tensor, "P B K N"]  # of the action drawn
    further: Float[Tensor, "S P B K N"]  # of more draws, where an estimator averages over several


def gumbel(uniform: Float64[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """-log(-log u), standard Gumbel where u is uniform on [0, 1); always finite: -log u is clamped first.

    Float64 because a float32 u has 2^24 values, and none of them gives more than 16.6.
    """
    limits = torch.finfo(torch.float32)
    return uniform.log().neg().clamp(limits.tiny, limits.max).log().neg().float()


def one_hot_argmax(x: Float[Tensor, "*batch N"]) -> Float[Tensor, "*batch N"]:
    """A constant: no gradient passes it."""
    x = x.detach()
    return torch.zeros_like(x).scatter_(-1, x.argmax(-1, keepdim=True), 1.0)


def hard_sample(logits: Float[Tensor, "*batch K N"], noise: Float[Tensor, "*batch K N"]) -> Float[Tensor, "*batch K N"]:
    """One-hot argmax(logits + noise), distributed as softmax(logits).  Gumbel-max; Maddison et al. 2014."""
    return one_hot_argmax(logits + noise)


def through(value: Tensor, surrogate: Tensor) -> Tensor:
    """The value of one tensor, the gradient of another."""
    return value.detach() + (surrogate - surrogate.detach())


def straight_through_gumbel_softmax(logits: Tensor, tau: Tensor, noise: Noise, q: ActionValue) -> Tensor:
    """The critic sees the hard sample, and its gradient passes the relaxed one at the same noise.

        g ~ Gumbel(0, 1)                                noise.sample
        a = one_hot(argmax(logits + g))                 Jang et al. 2017, eq. 1
        y = softmax((logits + g) / tau)                 eq. 2
        Q(s, a + y - stop_gradient(y))                  sec. 2.2

    The draw is exact for every tau: P(a) = softmax(logits)_a. Only the gradient is biased; for a critic linear in a the
    bias vanishes as tau -> 0 while the variance grows as 1 / tau.
    """
    perturbed = logits + noise.sample
    a = one_hot_argmax(perturbed)
    y = (perturbed / tau).softmax(-1)
    return q(a + (y - y.detach()))


def relaxed_gumbel_softmax(logits: Tensor, tau: Tensor, noise: Noise, q: ActionValue) -> Tensor:
    """The exact gradient of Q at the relaxed sample: the critic sees y, which is no action.

    Q(s, y),  y = softmax((logits + g) / tau)                                 Maddison et al. 2017; Jang et al. 2017
    """
    return q(((logits + noise.sample) / tau).softmax(-1))


def straight_through_softmax(logits: Tensor, tau: Tensor, noise: Noise, q: ActionValue) -> Tensor:
    """The critic's gradient at the hard sample, through the policy's own probabilities; tau plays no part.

    Q(s, a + pi - stop_gradient(pi))                                                              Bengio et al. 2013

    Unbiased for a critic linear in each factor, where it is the local expectation.
    """
    return q(through(hard_sample(logits, noise.sample), logits.softmax(-1)))


def gumbel_rao(logits: Tensor, tau: Tensor, noise: Noise, q: ActionValue) -> Tensor:
    """Straight-through Gumbel-softmax, its relaxation averaged over noise that would have drawn the same action.

    a from noise.sample; then, for each further draw E_j = exp(-noise_j) ~ Exp(1) and i the choice drawn,
        l_i + g_i = -log E_i,   l_j + g_j = -log(E_j / pi_j + E_i)                Paulus et al. 2021
        y = mean softmax((l + g) / tau),   Q(s, a + y - stop_gradient(y))

    The same mean as straight-through Gumbel-softmax and never more variance, for one critic call.
    """
    a = hard_sample(logits, noise.sample)
    perturbed = conditional_gumbel(logits.log_softmax(-1), a, noise.further)
    y = (through(perturbed, logits) / tau).softmax(-1).mean(0)
    return q(through(a, y))


def conditional_gumbel(
    log_pi: Float[Tensor, "*batch K N"], a: Float[Tensor, "*batch K N"], noise: Float[Tensor, "S *batch K N"]
) -> Float[Tensor, "S *batch K N"]:
    """log_pi + g with g distributed as Gumbel noise given that the argmax is a.

    -log(E_j / pi_j + E_i) = -logsumexp(-noise_j - log_pi_j, -noise_i), so that no pi_j -> 0 overflows.
    """
    top = (noise * a).sum(-1, keepdim=True)  # of the choice drawn: the largest of all
    return torch.where(a.bool(), top, -torch.logaddexp(-noise - log_pi, -top))


def gapped_straight_through(logits: Tensor, tau: Tensor, noise: Noise, q: ActionValue, *, gap: float) -> Tensor:
    """Straight through a softmax whose logits are moved, without a gradient, until the choice drawn leads by a gap.

    a = one_hot(argmax(logits + g)),  i the choice drawn
    m = (max logits - logits_i) a - relu(logits + gap - max logits) (1 - a)                        Fan et al. 2022
    y = softmax((logits + m) / tau),   Q(s, a + y - stop_gradient(y))

    No randomness beyond a: less variance than straight-through Gumbel-softmax. Biased for a linear critic too.
    """
    a = hard_sample(logits, noise.sample)
    top = logits.amax(-1, keepdim=True)
    moved = torch.where(a.bool(), top, logits - (logits + gap - top).relu())
    return q(through(a, (through(moved, logits) / tau).softmax(-1)))


def reinmax(logits: Tensor, tau: Tensor, noise: Noise, q: ActionValue) -> Tensor:
    """Second-order straight-through: Heun's method where straight-through softmax is Euler's.

    a ~ pi,  p = (a + softmax(logits / tau)) / 2
    y = 2 softmax(stop_gradient(log p - logits) + logits) - softmax(logits) / 2           Liu et al. 2023, alg. 2
    Q(s, a + y - stop_gradient(y))

    At tau = 1 unbiased for a critic linear or quadratic in a factor. tau below 1 counts as 1: the authors' range.
    """
    a = hard_sample(logits, noise.sample)
    p = 0.5 * (a + (logits / tau.clamp(min=1.0)).softmax(-1))
    y = 2 * through(p.log(), logits).softmax(-1) - 0.5 * logits.softmax(-1)
    return q(through(a, y))


def local_expectation(logits: Tensor, tau: Tensor, noise: Noise, q: ActionValue) -> Tensor:
    """Each factor's exact sum over its choices, the other factors held at their sample.

    a ~ pi,  q_kn = Q(s, a with the choice of factor k replaced by n)
    sum_k pi_k . stop_gradient(q_k)                             Titsias & Lazaro-Gredilla 2015

    Unbiased for any critic, and exact for a single factor. One evaluation where the critic is linear in each factor;
    sum_k n_k of them, as one batch, where it is not.
    """
    a = hard_sample(logits, noise.sample)
    counterfactuals = q.counterfactuals(a).detach()
    value = (counterfactuals * a).sum(-1)[..., 0]  # at a itself, whichever the factor
    return through(value, (logits.softmax(-1) * counterfactuals).sum((-2, -1)))


def exact(logits: Tensor, tau: Tensor, noise: Noise, q: ActionValue) -> Tensor:
    """E_{a ~ pi} Q(s, a) = Q(s, pi_1 ... pi_K), exact for the mean of critics that are linear in each factor.

    With K = 1 this is the sum over actions of discrete SAC (Christodoulou 2019, eq. 12). Differs from it: a min over
    twin critics is taken after the expectation, where it stays a bound for K > 1 too.
    """
    return q(logits.softmax(-1))


def score_function_leave_one_out(logits: Tensor, tau: Tensor, noise: Noise, q: ActionValue) -> Tensor:
    """REINFORCE with the critic as return: several samples, the mean of the others as the baseline of each.

        1 / (m - 1) sum_i stop_gradient(Q_i - mean_j Q_j) log pi(a_i)                      Kool et al. 2019, eq. 8

    Unbiased for any critic; needs no gradient of Q. The value is Q at the first sample. The logits stand in for log pi:
    the weights sum to zero, so that its normalizer cancels.
    """
    samples = [hard_sample(logits, g) for g in (noise.sample, *noise.further)]
    values = torch.stack([q(a) for a in samples]).detach()
    weights = (values - values.mean(0)) / (len(samples) - 1)
    return through(values[0], (weights * (torch.stack(samples) * logits).sum((-2, -1))).sum(0))


def score_function_value(logits: Tensor, tau: Tensor, noise: Noise, q: ActionValue) -> Tensor:
    """REINFORCE with the critic as return and Q(s, pi_1 ... pi_K) as baseline.

        mean_i stop_gradient(Q_i - Q(s, pi)) log pi(a_i)                                              Williams 1992

    Unbiased for any critic, since the baseline depends on no sample; it is V(s) where the critic is linear in each
    factor and an approximation of it elsewhere.
    """
    samples = [hard_sample(logits, g) for g in (noise.sample, *noise.further)]
    values = torch.stack([q(a) for a in samples]).detach()
    baseline = q(logits.softmax(-1).detach()).detach()
    log_pi = (torch.stack(samples) * logits.log_softmax(-1)).sum((-2, -1))
    return through(values[0], ((values - baseline) * log_pi).mean(0))


@dataclass(frozen=True)
class Estimator:
    """Its surrogate objective, and how many draws of noise it is given."""

    surrogate: Callable[[Tensor, Tensor, Noise, ActionValue], Tensor]
    num_samples: int = 1
    is_random: bool = True

    def noise(self, uniform: Float64[Tensor, "P S B K N"]) -> Noise:
        """From `num_samples` uniform numbers for every logit."""
        draws = gumbel(uniform).transpose(0, 1)
        return Noise(sample=draws[0], further=draws[1:])


def make_estimator(config: EstimatorConfig) -> Estimator:
    """The estimator that a config names, with its settings."""
    match config.name:
        case "straight_through_gumbel_softmax":
            return Estimator(straight_through_gumbel_softmax)
        case "relaxed_gumbel_softmax":
            return Estimator(relaxed_gumbel_softmax)
        case "straight_through_softmax":
            return Estimator(straight_through_softmax)
        case "gumbel_rao":
            return Estimator(gumbel_rao, num_samples=1 + config.num_samples)
        case "gapped_straight_through":
            return Estimator(partial(gapped_straight_through, gap=config.gap))
        case "reinmax":
            return Estimator(reinmax)
        case "score_function":
            baselines = {"leave_one_out": score_function_leave_one_out, "value": score_function_value}
            return Estimator(baselines[config.baseline], config.num_samples)
        case "local_expectation":
            return Estimator(local_expectation)
        case "exact":
            return Estimator(exact, is_random=False)
