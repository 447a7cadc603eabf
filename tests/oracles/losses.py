"""Losses and their gradients by hand.

Losses keep the population axis: means over B, never over P.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def entropy(logits: Float[Tensor, "P B K N"]) -> Float[Tensor, "P B"]:
    """H(pi(.|s)) = -sum_k sum_a pi_k(a) log pi_k(a), in nats: the exact entropy of the categorical policy.

    Never a log-density of the relaxed sample, which diverges at a one-hot.
    """
    return entropy_and_gradient(logits)[0]


def entropy_and_gradient(
    logits: Float[Tensor, "P B K N"],
) -> tuple[Float[Tensor, "P B"], Float[Tensor, "P B K N"]]:
    """H(pi(.|s)) and dH/dlogits = -pi_k (log pi_k + H_k)."""
    log_pi = logits.log_softmax(-1)
    pi = log_pi.exp()
    minus_h = (pi * log_pi).sum(-1, keepdim=True)
    return minus_h.sum((-2, -1)).neg_(), pi.mul_(minus_h - log_pi)


def reduce_critics(q: Float[Tensor, "C ..."], how: str) -> Float[Tensor, "..."]:
    """One value from C critics: their min (Fujimoto et al. 2018, eq. 10) or mean (Zhou et al. 2022)."""
    return q.amin(0) if how == "min" else q.mean(0)


def reduce_gradient(
    q: Float[Tensor, "C P B"], gradient: Float[Tensor, "C P B K N"], how: str
) -> Float[Tensor, "P B K N"]:
    """Gradient of `reduce_critics` from the gradients of the critics: that of the smallest, or their mean."""
    if how == "min":
        return gradient.take_along_dim(q.argmin(0, keepdim=True)[..., None, None], 0).squeeze(0)
    return gradient.mean(0)


def td_target(
    reward: Float[Tensor, "P B"], discount: Float[Tensor, "P B"], next_value: Float[Tensor, "P B"]
) -> Float[Tensor, "P B"]:
    """z = sum_{i<m} gamma^i r_i + gamma^m (1 - terminated) V(s_m), with the first two factors in `discount`."""
    return reward + discount * next_value


def critic_loss(q_a: Float[Tensor, "C P B"], target: Float[Tensor, "P B"]) -> Float[Tensor, " P"]:
    """mean_B sum_C (Q_c(s, a) - z)^2."""
    return (q_a - target).square().sum(0).mean(-1)


def critic_loss_gradient(q_a: Float[Tensor, "C P B"], target: Float[Tensor, "P B"]) -> Float[Tensor, "C P B"]:
    """dL/dQ_c = 2 (Q_c(s, a) - z) / B."""
    return (q_a - target).mul_(2 / target.shape[-1])


def actor_loss(
    objective: Float[Tensor, "P B"], policy_entropy: Float[Tensor, "P B"], alpha: Float[Tensor, " P"]
) -> Float[Tensor, " P"]:
    """-mean_B (Q(s, a) + alpha H(pi(.|s)))."""
    return -(objective.mean(-1) + alpha * policy_entropy.mean(-1))


def actor_loss_gradient(
    objective: Float[Tensor, "P B K N"], policy_entropy: Float[Tensor, "P B K N"], alpha: Float[Tensor, " P"]
) -> Float[Tensor, "P B K N"]:
    """dL/dlogits from the gradients of Q(s, a) and of H(pi(.|s)) with respect to the logits."""
    return torch.addcmul(objective, policy_entropy, alpha.view(-1, 1, 1, 1)).mul_(-1 / objective.shape[1])


def log_alpha_gradient(mean_entropy: Float[Tensor, " P"], target_entropy: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """d/d log_alpha of log_alpha (H - H_target): alpha falls while the entropy is above its target.

    Differs from Haarnoja et al. 2018, eq. 18: log_alpha in place of alpha as the factor, as their own code has it.
    """
    return mean_entropy - target_entropy
