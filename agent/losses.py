"""Values, targets and losses: one equation a function, differentiated where they are used.

Losses keep the population axis: means over B, never over P. `weight` is 0 for rows that do not count.
"""

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor


def entropy(logits: Float[Tensor, "*batch K N"]) -> Float[Tensor, "*batch"]:
    """H(pi(.|s)) = -sum_k sum_a pi_k(a) log pi_k(a), in nats: the exact entropy of the categorical policy.

    Never a log-density of the relaxed sample, which diverges at a one-hot.
    """
    log_pi = logits.log_softmax(-1)
    return -(log_pi.exp() * log_pi).sum((-2, -1))


def reduce_critics(q: Float[Tensor, "C ..."], how: str) -> Float[Tensor, "..."]:
    """One value from C critics: their min (Fujimoto et al. 2018, eq. 10) or mean (Zhou et al. 2022)."""
    return q.amin(0) if how == "min" else q.mean(0)


def steps_counted(
    length: Int[Tensor, "P B"],
    start: Float[Tensor, " P"],
    end: Float[Tensor, " P"],
    progress: Float[Tensor, ""],
    uniform: Float64[Tensor, "P B"],
) -> Int[Tensor, "P B"]:
    """How many steps of each window a target sums: n, which moves from start to end, or all where there are fewer.

    n = floor(start + progress (end - start) + u): between whole numbers both neighbours are drawn, and the mean is
    exact. A long n carries rewards back fast, but blames an action for the exploratory ones after it.
    Differs from Schwarzer et al. 2023 (BBF): n moves linearly over the run, not exponentially after each reset.
    """
    n = start + progress.clamp(max=1.0) * (end - start)
    return torch.minimum(length, (n.unsqueeze(-1) + uniform).long())


def mean(x: Float[Tensor, "P B"], weight: Float[Tensor, "P B"] | None = None) -> Float[Tensor, " P"]:
    """Over the rows that count; without weights over all."""
    return x.mean(-1) if weight is None else (x * weight).sum(-1) / weight.sum(-1).clamp(min=1)


def td_target(
    reward: Float[Tensor, "P B"], discount: Float[Tensor, "P B"], next_value: Float[Tensor, "P B"]
) -> Float[Tensor, "P B"]:
    """z = sum_{i<n} gamma^i r_i + gamma^m (1 - terminated) V(s_m), with the first two factors in `discount`."""
    return reward + discount * next_value


def critic_loss(
    q_a: Float[Tensor, "C P B"], target: Float[Tensor, "P B"], weight: Float[Tensor, "P B"] | None = None
) -> Float[Tensor, " P"]:
    """mean_B sum_C (Q_c(s, a) - z)^2."""
    return mean((q_a - target).square().sum(0), weight)


def actor_loss(
    q: Float[Tensor, "P B"],
    policy_entropy: Float[Tensor, "P B"],
    alpha: Float[Tensor, " P"],
    weight: Float[Tensor, "P B"] | None = None,
) -> Float[Tensor, " P"]:
    """-mean_B (Q(s, a) + alpha H(pi(.|s)))."""
    return -mean(q + alpha.unsqueeze(-1) * policy_entropy, weight)


def alpha_loss(
    log_alpha: Float[Tensor, " P"],
    policy_entropy: Float[Tensor, "P B"],
    target_entropy: Float[Tensor, " P"],
    weight: Float[Tensor, "P B"] | None = None,
) -> Float[Tensor, " P"]:
    """log_alpha (mean_B H - H_target): alpha falls while the entropy is above its target.

    Differs from Haarnoja et al. 2018, eq. 18: log_alpha in place of alpha as the factor, as their own code has it.
    """
    return log_alpha * (mean(policy_entropy, weight) - target_entropy)
