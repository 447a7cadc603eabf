"""How far an estimator's gradient is from the truth: bias and variance measured at given states.

The gradients are those of Q with respect to the logits; norms run over all states, factors and choices of a member.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from agent.estimators import ActionValue, Estimator, Noise
from envs.random_streams import RandomStreams


class Moments(NamedTuple):
    """Mean of a number of draws of an estimator, and the variance of one of them, summed over B, K and N."""

    mean: Float[Tensor, "P B K N"]
    variance: Float[Tensor, " P"]
    num_draws: int

    @property
    def variance_of_mean(self) -> Float[Tensor, " P"]:
        return self.variance / self.num_draws

    @property
    def squared_norm(self) -> Float[Tensor, " P"]:
        """Of the expected gradient: what the draws' noise adds to the norm of their mean is taken off."""
        return (self.mean.square().sum((1, 2, 3)) - self.variance_of_mean).clamp(min=0)


class GradientQuality(NamedTuple):
    """Of one draw, relative to the norm of the true gradient; 0 / 0 where there is no gradient is NaN."""

    relative_bias: Float[Tensor, " P"]
    relative_variance: Float[Tensor, " P"]
    cosine: Float[Tensor, " P"]  # of the expected gradient to the true one

    def relative_mse(self, batch_size: int) -> Float[Tensor, " P"]:
        """Mean squared error of the mean of so many independent draws: averaging leaves the bias."""
        return self.relative_bias.square() + self.relative_variance / batch_size


def estimated_gradient(
    estimator: Estimator,
    q: ActionValue,
    logits: Float[Tensor, "P B K N"],
    tau: Float[Tensor, " P"],
    noise: Noise,
) -> Float[Tensor, "P B K N"]:
    """One draw of the estimator: the gradient of its surrogate with respect to the logits."""
    logits = logits.detach().requires_grad_()
    with torch.enable_grad():
        surrogate = estimator.surrogate(logits, tau.view(-1, 1, 1, 1), noise, q)
    return torch.autograd.grad(surrogate.sum(), logits)[0]


def moments(
    estimator: Estimator,
    q: ActionValue,
    logits: Float[Tensor, "P RB K N"],
    tau: Float[Tensor, " P"],
    repeats: int,
    rounds: int,
    streams: RandomStreams,
) -> Moments:
    """Mean and variance over R * `rounds` draws at each of B states.

    Args:
        q, logits: of B states, all of them R = `repeats` times in a row along the axis of the batch.
        streams: a row a member.
    """
    rounds = rounds if estimator.is_random else 1
    total = torch.zeros_like(logits.unflatten(1, (repeats, -1))[:, 0])
    total_square = torch.zeros_like(total)
    for _ in range(rounds):
        noise = estimator.noise(streams.uniform(estimator.num_samples, *logits.shape[1:]))
        gradient = estimated_gradient(estimator, q, logits, tau, noise).unflatten(1, (repeats, -1))
        total += gradient.sum(1)
        total_square += gradient.square().sum(1)
    num_draws = repeats * rounds
    mean = total / num_draws
    spread = (total_square / num_draws - mean.square()).clamp(min=0).sum((1, 2, 3))
    variance = (
        spread * num_draws / max(1, num_draws - 1) if estimator.is_random else torch.zeros_like(spread)
    )  # else rounding
    return Moments(mean, variance, num_draws)


def quality(of: Moments, truth: Moments) -> GradientQuality:
    """Bias and variance of one estimator, given those of an unbiased one.

    |E g - truth|^2 is estimated without bias: the noise of both means is taken off the squared distance between them.
    """
    distance = (of.mean - truth.mean).square().sum((1, 2, 3))
    squared_bias = (distance - of.variance_of_mean - truth.variance_of_mean).clamp(min=0)
    norm = truth.squared_norm.sqrt()
    inner = (of.mean * truth.mean).sum((1, 2, 3))
    cosine = (inner / (of.squared_norm.sqrt() * norm)).clamp(-1, 1)
    return GradientQuality(squared_bias.sqrt() / norm, of.variance / norm.square(), cosine)
