"""Looking at an estimator's gradients while training, and moving an adaptive tau by what is seen."""

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from agent.config import Config, EstimatorConfig
from agent.diagnostics.gradient_quality import GradientQuality, Moments, moments, quality
from agent.estimators import Estimator, make_estimator
from agent.networks.heads import Actor, Critics, CriticsAt
from agent.normalizer import ObservationNormalizer
from agent.replay import Replay
from agent.schedules import Schedules
from envs.random_streams import RandomStreams

TAU_STEPS = (1.0, 0.5, 0.5**0.5, 2**0.5, 2.0)  # an adaptive tau looks at these multiples of itself
TAU_RANGE = (0.05, 5.0)  # and stays in here
NUM_STATES, NUM_DRAWS, NUM_ROUNDS = 64, 16, 2
JOINT_EVALUATIONS = 2048  # of joint critics, for one draw at all inspected states: fewer states of larger actions


@runtime_checkable
class Inspected(Protocol):
    """What is looked at: an actor, its critics and the states that it visited."""

    config: Config
    actor: Actor
    critics: Critics
    reduce: str
    estimator: Estimator
    schedules: Schedules
    replay: Replay
    normalizer: ObservationNormalizer


def inspect(of: Inspected, progress: Float[Tensor, ""], streams: RandomStreams) -> dict[str, Float[Tensor, " P"]]:
    """Measures the estimator at replayed states against an unbiased one; an adaptive tau moves.

    Random numbers come from `streams`, a row a member: inspecting changes nothing but an adaptive tau.
    """
    num_states = NUM_STATES
    if not of.critics.is_multilinear:
        num_states = min(num_states, max(1, JOINT_EVALUATIONS // sum(of.actor.actions.num_choices)))
    window = of.replay.sample(*streams.uniform(2, num_states).unbind(1))
    masks = of.replay.masks(window, window.length)
    obs = of.normalizer(of.replay.obs(window.first_row, window.slot))
    logits = of.actor(obs, None if masks is None else masks.obs).repeat(1, NUM_DRAWS, 1, 1)
    q = CriticsAt(of.critics, of.critics.encode(obs.repeat(1, NUM_DRAWS, 1)), of.reduce)

    def draws(estimator: Estimator, tau: Tensor) -> Moments:
        return moments(estimator, q, logits, tau, NUM_DRAWS, NUM_ROUNDS, streams)

    tau = of.schedules(progress).tau
    truth = draws(unbiased_estimator(of.critics, of.reduce), tau)
    begun = streams.counter.clone()  # the same noise at every tau: differences are tau's

    def quality_at(tau: Tensor) -> GradientQuality:
        streams.counter.copy_(begun)
        return quality(draws(of.estimator, tau), truth)

    if of.schedules.is_adaptive:
        candidates = torch.stack([tau * step for step in TAU_STEPS]).clamp(*TAU_RANGE)
        errors = torch.stack([quality_at(x).relative_mse(of.config.batch_size) for x in candidates])
        best = errors.nan_to_num(math.inf).argmin(0, keepdim=True)  # without a gradient to compare with, as it was
        tau = candidates.gather(0, best).squeeze(0)
        of.schedules.hold_tau_(tau)
    measured = quality_at(tau)
    return {
        "gradient/relative_bias": measured.relative_bias,
        "gradient/relative_variance": measured.relative_variance,
        "gradient/cosine_to_exact": measured.cosine,
    }


def unbiased_estimator(critics: Critics, reduce: str) -> Estimator:
    """The best there is to measure others against: the exact gradient, or the local expectation.

    The min of twin critics is linear in no factor, even where each of them is.
    """
    is_multilinear = critics.is_multilinear and reduce == "mean"
    return make_estimator(EstimatorConfig(name="exact" if is_multilinear else "local_expectation"))
