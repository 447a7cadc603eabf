"""Values, targets, losses: one equation a function. Losses keep the population axis: means over B, never over P."""

from jaxtyping import Float
from torch import Tensor


def entropy(logits: Float[Tensor, "P B K N"]) -> Float[Tensor, "P B"]:
    """H(pi(.|s)) = -sum_k sum_a pi_k(a) log pi_k(a), in nats: the exact entropy of the categorical policy.

    Never a log-density of the relaxed sample, which diverges at a one-hot.
    """
    log_pi = logits.log_softmax(-1)
    return -(log_pi.exp() * log_pi).sum((-2, -1))


def reduce_critics(q: Float[Tensor, "C P B"], how: str) -> Float[Tensor, "P B"]:
    """One value from C critics: their min (Fujimoto et al. 2018, eq. 10) or mean (Zhou et al. 2022)."""
    return q.amin(0) if how == "min" else q.mean(0)


def td_target(
    reward: Float[Tensor, "P B"], discount: Float[Tensor, "P B"], next_value: Float[Tensor, "P B"]
) -> Float[Tensor, "P B"]:
    """z = sum_{i<m} gamma^i r_i + gamma^m (1 - terminated) V(s_m), with the first two factors in `discount`."""
    return reward + discount * next_value


def critic_loss(q_a: Float[Tensor, "C P B"], target: Float[Tensor, "P B"]) -> Float[Tensor, " P"]:
    """mean_B sum_C (Q_c(s, a) - z)^2."""
    return (q_a - target).square().sum(0).mean(-1)


def actor_loss(
    objective: Float[Tensor, "P B"], policy_entropy: Float[Tensor, "P B"], alpha: Float[Tensor, " P"]
) -> Float[Tensor, " P"]:
    """-mean_B (Q(s, a) + alpha H(pi(.|s)))."""
    return -(objective.mean(-1) + alpha * policy_entropy.mean(-1))


def log_alpha_gradient(
    policy_entropy: Float[Tensor, "P B"], target_entropy: Float[Tensor, " P"]
) -> Float[Tensor, " P"]:
    """d/d log_alpha of log_alpha (H - H_target): alpha falls while the entropy is above its target.

    Differs from Haarnoja et al. 2018, eq. 18: log_alpha in place of alpha as the factor, as their own code has it.
    """
    return policy_entropy.mean(-1) - target_entropy
