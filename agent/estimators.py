"""How a gradient passes a discrete sample: pure functions of (logits, tau, noise, Q).

An estimator turns the policy's logits [P, B, K, N] and the critics' Q(s, .) into an estimate of the gradient of
E_{a ~ pi} Q(s, a) with respect to the logits. Noise comes in from outside, [num_samples, P, B, K, N] standard Gumbel,
so that the same draw can be repeated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float32, Float64
from torch import Generator, Tensor

from agent.action_space import IMPOSSIBLE


@runtime_checkable
class ActionValue(Protocol):
    """Q(s, .) at a batch of states: of one-hot and of relaxed actions [P, B, K, N]."""

    def value(self, action: Tensor) -> Tensor:
        """Q(s, action), [P, B]."""

    def value_and_gradient(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Q(s, action), [P, B], and its gradient with respect to the action, [P, B, K, N]."""


class Estimate(NamedTuple):
    """Q at the action drawn, and the gradient of E_{a ~ pi} Q(s, a) with respect to the logits as estimated."""

    value: Float[Tensor, "P B"]
    gradient: Float[Tensor, "P B K N"]


def gumbel_noise(
    shape: tuple[int, ...], generator: Generator | None = None, device: torch.device | str | None = None
) -> Float[Tensor, "..."]:
    """Standard Gumbel draws."""
    return gumbel_of(torch.rand(shape, dtype=torch.float64, generator=generator, device=device))


def gumbel_of(uniform: Float64[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """-log(-log u), standard Gumbel where u is uniform on [0, 1); always finite: -log u is clamped first.

    Float64 because a float32 u has 2^24 values, and none of them gives more than 16.6.
    """
    limits = torch.finfo(torch.float32)
    return uniform.log().neg().clamp(limits.tiny, limits.max).log().neg().float()


def hard_sample(logits: Float[Tensor, "*batch K N"], noise: Float[Tensor, "*batch K N"]) -> Float[Tensor, "*batch K N"]:
    """One-hot argmax(logits + noise), distributed as softmax(logits).  Gumbel-max; Maddison et al. 2014."""
    return one_hot_argmax(logits + noise)


def one_hot_argmax(x: Float[Tensor, "*batch N"]) -> Float[Tensor, "*batch N"]:
    return torch.zeros_like(x).scatter_(-1, x.argmax(-1, keepdim=True), 1.0)


def straight_through_gumbel_softmax(
    logits: Float[Tensor, "*batch K N"],
    tau: float | Tensor,
    generator: Generator | None = None,
    *,
    mask: Bool[Tensor, "*#batch K N"] | None = None,
    noise: Float[Tensor, "*batch K N"] | None = None,
) -> Float[Tensor, "*batch K N"]:
    """Draws a one-hot action per factor; its gradient is that of the Gumbel-softmax relaxation at the same noise.

        g ~ Gumbel(0, 1)                                noise
        z = one_hot(argmax(logits + g))    returned     Jang et al. 2017, eq. 1
        y = softmax((logits + g) / tau)    relaxation   eq. 2
        dz/dlogits := dy/dlogits           gradient     sec. 2.2

    The draw is exact for every tau: P(z = a) = softmax(logits)_a. Only the gradient is biased; for an objective linear
    in z the bias vanishes as tau -> 0 while the variance grows as 1 / tau.

    Args:
        tau: temperature > 0, a number or a tensor that broadcasts against `logits`.
        mask: True where a choice is real; the others are never drawn and get no gradient.
        noise: the Gumbel draw to use; none: a new one from `generator`.
    """
    if mask is not None:
        logits = logits.masked_fill(~mask, IMPOSSIBLE)
    if noise is None:
        noise = gumbel_noise(logits.shape, generator, logits.device).to(logits.dtype)
    perturbed = logits + noise
    y = (perturbed / tau).softmax(-1)
    return one_hot_argmax(perturbed.detach()) + (y - y.detach())


def softmax_gradient(y: Float[Tensor, "*batch N"], v: Float[Tensor, "*batch N"]) -> Float[Tensor, "*batch N"]:
    """(diag(y) - y y^T) v: the gradient of softmax(x) . v with respect to x, where y = softmax(x)."""
    weighted = y * v
    return weighted.addcmul_(y, weighted.sum(-1, keepdim=True), value=-1)


def straight_through(logits: Tensor, tau: Tensor, noise: Tensor, q: ActionValue) -> Estimate:
    """The critic's own gradient at the hard sample, through `straight_through_gumbel_softmax`, in closed form.

    z = one_hot(argmax(logits + g)),  y = softmax((logits + g) / tau)
    gradient = (diag(y) - y y^T) / tau  dQ/da (s, z)                                     Jang et al. 2017, sec. 2.2
    """
    perturbed = logits + noise[0]
    value, q_gradient = q.value_and_gradient(one_hot_argmax(perturbed))
    return Estimate(value, softmax_gradient((perturbed / tau).softmax(-1), q_gradient).div_(tau))


def exact(logits: Tensor, tau: Tensor, noise: Tensor, q: ActionValue) -> Estimate:
    """E_{a ~ pi} Q(s, a) = Q(s, pi_1 ... pi_K), exact for a critic linear in each factor; no bias, no variance.

    With K = 1 this is the sum over actions of discrete SAC (Christodoulou 2019, eq. 12). Differs from it: a min over
    twin critics is taken after the expectation, where it stays a bound for K > 1 too.
    """
    pi = logits.softmax(-1)
    value, q_gradient = q.value_and_gradient(pi)
    return Estimate(value, softmax_gradient(pi, q_gradient))


def score_function(logits: Tensor, tau: Tensor, noise: Tensor, q: ActionValue) -> Estimate:
    """REINFORCE with the critic as return: two samples, each the other's baseline.

        gradient = 1/2 (Q(s, a) - Q(s, a')) (a - a'),  a and a' one-hot         Kool et al. 2019, eq. 8, two samples

    Unbiased for any critic; needs no gradient of Q. The value is Q at the first sample.
    """
    first, second = (hard_sample(logits, g) for g in noise)
    value = q.value(first)
    weight = 0.5 * (value - q.value(second))
    return Estimate(value, weight[..., None, None] * (first - second))


@dataclass(frozen=True)
class Estimator:
    """How it estimates, how many Gumbel draws it takes, and whether it needs a critic linear in each factor."""

    estimate: Callable[[Tensor, Tensor, Tensor, ActionValue], Estimate]
    num_samples: int
    needs_linear_critic: bool = False


ESTIMATORS = {
    "straight_through_gumbel_softmax": Estimator(straight_through, num_samples=1),
    "exact": Estimator(exact, num_samples=0, needs_linear_critic=True),
    "score_function": Estimator(score_function, num_samples=2),
}
