"""How a gradient passes a discrete sample: pure functions of (logits, tau, noise).

An estimator turns the policy's logits [P, B, K, N] and the value Q(s, .) of a relaxed or one-hot action into an
objective [P, B] whose gradient with respect to the logits estimates that of E_{a ~ pi} Q(s, a). Noise comes in from
outside, [num_samples, P, B, K, N] standard Gumbel, so that the same draw can be repeated.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor
from torch.nn import functional as F

from agent.action_space import IMPOSSIBLE

ActionValue = Callable[[Tensor], Tensor]  # [P, B, K, N] one-hot or relaxed action -> Q(s, action) [P, B]


def gumbel_noise(
    shape: tuple[int, ...], generator: Generator | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Standard Gumbel draws, -log E with E ~ Exp(1); always finite: a draw of 0 or inf is clamped first."""
    exponential = torch.empty(shape, device=device).exponential_(generator=generator)
    limits = torch.finfo(exponential.dtype)
    return exponential.clamp_(limits.tiny, limits.max).log_().neg_()


def hard_sample(logits: Float[Tensor, "*batch K N"], noise: Float[Tensor, "*batch K N"]) -> Float[Tensor, "*batch K N"]:
    """One-hot argmax(logits + noise), distributed as softmax(logits).  Gumbel-max; Maddison et al. 2014."""
    return F.one_hot((logits + noise).argmax(-1), logits.shape[-1]).to(logits.dtype)


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
    z = F.one_hot(perturbed.argmax(-1), logits.shape[-1]).to(y.dtype)
    return z + (y - y.detach())


def straight_through_objective(logits: Tensor, tau: Tensor, noise: Tensor, q: ActionValue) -> Tensor:
    """Q(s, z) with z the straight-through Gumbel-softmax sample: the critic's own gradient reaches the logits."""
    return q(straight_through_gumbel_softmax(logits, tau, noise=noise[0]))


def exact_objective(logits: Tensor, tau: Tensor, noise: Tensor, q: ActionValue) -> Tensor:
    """E_{a ~ pi} Q(s, a) = Q(s, pi_1 ... pi_K), exact for a critic linear in each factor; no bias, no variance.

    With K = 1 this is the sum over actions of discrete SAC (Christodoulou 2019, eq. 12). Differs from it: a min over
    twin critics is taken after the expectation, where it stays a bound for K > 1 too.
    """
    return q(logits.softmax(-1))


def score_function_objective(logits: Tensor, tau: Tensor, noise: Tensor, q: ActionValue) -> Tensor:
    """REINFORCE with the critic as return: two samples, each the other's baseline.

        grad = 1/2 (Q(s, a) - Q(s, a')) (grad log pi(a|s) - grad log pi(a'|s))    Kool et al. 2019, eq. 8, two samples

    Unbiased for any critic; needs no gradient of Q. The returned value is Q at the first sample.
    """
    log_pi = logits.log_softmax(-1)
    first, second = (hard_sample(logits, g).detach() for g in noise)
    q_first, q_second = q(first).detach(), q(second).detach()
    score = ((first - second) * log_pi).sum((-2, -1))
    surrogate = 0.5 * (q_first - q_second) * score
    return q_first + (surrogate - surrogate.detach())


@dataclass(frozen=True)
class Estimator:
    """An objective, how many Gumbel draws it takes, and whether it needs a critic linear in each factor."""

    objective: Callable[[Tensor, Tensor, Tensor, ActionValue], Tensor]
    num_samples: int
    needs_linear_critic: bool = False


ESTIMATORS = {
    "straight_through_gumbel_softmax": Estimator(straight_through_objective, num_samples=1),
    "exact": Estimator(exact_objective, num_samples=0, needs_linear_critic=True),
    "score_function": Estimator(score_function_objective, num_samples=2),
}
