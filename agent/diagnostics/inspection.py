"""Looking at an estimator's gradients while training, and moving an adaptive tau by what is seen.

Inspections take about 1 % of a run's time at most. How many there are is decided by sizes alone, never by a clock, so
that a run that is resumed decides as it did: an inspection costs so many updates, and 1 % of the run's updates are
spent on inspections. Where that is less than one, there is none. An adaptive tau is moved by inspections, so it keeps
all of them and looks at fewer states instead, at 8 or more.
"""

import logging
import math
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from agent.config import Config
from agent.config_sections import EstimatorConfig
from agent.data_ranks import DataRanks
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
MOST_INSPECTIONS, LEAST_STATES = 50, 8
SHARE_OF_RUN = 0.01  # of its updates' time, for inspections

# What an update, an inspection, and each estimator and tau of it cost before their first row, in logits that are worked
# on in the same time. On a GPU an inspection is launched operation by operation while an update is replayed as a graph:
# its figures are assumed, not measured.
OVERHEAD = {"cpu": (40_000, 8_000, 12_000), "cuda": (1_000_000, 5_000_000, 7_000_000)}
COST_OF_ROW = 0.7  # of an inspection, where one of an update costs 1

logger = logging.getLogger(__name__)


class Inspections(NamedTuple):
    """How many there are in a run, and at how many states each looks."""

    number: int
    num_states: int


@runtime_checkable
class Inspected(Protocol):
    """What is looked at: an actor, its critics and the states that it visited."""

    num_members: int
    data: DataRanks
    device: torch.device
    config: Config
    actor: Actor
    critics: Critics
    reduce: str
    estimator: Estimator
    schedules: Schedules
    replay: Replay
    normalizer: ObservationNormalizer


def planned(of: Inspected, num_updates: int) -> Inspections:
    """The inspections of a run of so many updates; one warning where they are left out, or take more than 1 %."""
    sizes = of.actor.actions.num_choices
    num_states = NUM_STATES
    if not of.critics.is_multilinear:
        num_states = min(num_states, max(1, JOINT_EVALUATIONS // sum(sizes)))
    budget = SHARE_OF_RUN * num_updates  # in updates
    if not of.schedules.is_adaptive:
        cost = cost_in_updates(of, num_states)
        number = min(MOST_INSPECTIONS, int(budget / cost))
        if not number:
            logger.warning(
                "gradient/* are not measured: that takes as long as %.1f updates, more than 1 %% of this run's %d; "
                "evaluate --gradients measures them afterwards",
                cost,
                num_updates,
            )
        return Inspections(number, num_states)
    affordable = [n for n in range(1, num_states + 1) if cost_in_updates(of, n) * MOST_INSPECTIONS <= budget]
    num_states = min(num_states, max([LEAST_STATES, *affordable]))
    share = MOST_INSPECTIONS * cost_in_updates(of, num_states) / max(1, num_updates)
    if share > SHARE_OF_RUN:
        logger.warning("tau.schedule=adaptive costs about %.0f %% of this run's updates", math.ceil(100 * share))
    return Inspections(MOST_INSPECTIONS, num_states)


def cost_in_updates(of: Inspected, num_states: int) -> float:
    """About how many updates take as long as an inspection, from sizes alone.

    Measured on one core with 128x128, batches of 128 and 64 states (joint critic of 8x6: 42), in ms:

        choices               2    100  1,000  10,000   8x6  8x6 joint  2 joint  2 adaptive  8 members
        update                8.3  9.1     41     314    18         12       11         8.7         28
        inspection            4.6   22    203   3,353    30        333       38          19         12
        their ratio           0.6  2.4    4.9    10.7   1.7         28      3.3         2.2        0.4
        this function         0.5  2.6    8.5    10.8   1.6         29      3.4         2.2        0.5

    A compiled update is up to four times faster, so that inspections can take 4 % of a compiled run.
    """
    config, actions = of.config, of.actor.actions
    hidden, logits = sum(config.hidden_sizes), actions.num_factors * actions.width
    through_critics = 2.0 if of.critics.is_multilinear else hidden / 7  # a row of a joint critic passes its network
    if not of.critics.is_multilinear:
        truth = sum(actions.num_choices) * through_critics
    else:
        truth = logits + through_critics if unbiased_estimator(of.critics, of.reduce).is_random else 0.0
    num_taus = 1 + len(TAU_STEPS) * of.schedules.is_adaptive
    of_row = truth + num_taus * (logits * of.estimator.num_samples + through_critics)
    per_update, per_inspection, per_tau = OVERHEAD[of.device.type]
    num_members = config.population_size  # so that a member's inspections do not depend on where the others are
    num_rows = num_members * num_states * NUM_DRAWS * NUM_ROUNDS
    inspection = per_inspection + per_tau * num_taus + COST_OF_ROW * num_rows * of_row
    of_row_of_update = logits * of.estimator.num_samples + hidden / 3
    return inspection / (per_update + num_members * config.batch_size * of_row_of_update)


def inspect(
    of: Inspected, progress: Float[Tensor, ""], streams: RandomStreams, num_states: int = NUM_STATES
) -> dict[str, Float[Tensor, " P"]]:
    """Measures the estimator at replayed states against an unbiased one; an adaptive tau moves.

    Random numbers come from `streams`, a row a member: inspecting changes nothing but an adaptive tau.
    """
    window = of.replay.sample(*streams.uniform(2, num_states).unbind(1))
    masks = of.replay.masks(window, window.length)
    obs = of.normalizer(of.replay.obs(window.first_row, window.slot))
    features = obs
    if of.actor.encoder is not None:
        features, _ = of.actor.encoder.step(obs, of.replay.states[window.first_row + window.slot])
    logits = of.actor(features, None if masks is None else masks.obs)
    encoded = of.critics.encode(features)

    def draws(estimator: Estimator, tau: Tensor) -> Moments:
        repeats = NUM_DRAWS if estimator.is_random else 1
        q = CriticsAt(of.critics, encoded.repeat(1, 1, repeats, 1), of.reduce)
        return moments(estimator, q, logits.repeat(1, repeats, 1, 1), tau, repeats, NUM_ROUNDS, streams)

    tau = of.schedules(progress).tau
    truth = draws(unbiased_estimator(of.critics, of.reduce), tau)
    begun = streams.counter.clone()  # the same noise at every tau: differences are tau's

    def quality_at(tau: Tensor) -> GradientQuality:
        streams.counter.copy_(begun)
        return quality(draws(of.estimator, tau), truth)

    if of.schedules.is_adaptive:
        candidates = torch.stack([tau * step for step in TAU_STEPS]).clamp(*TAU_RANGE)
        errors = torch.stack([quality_at(x).relative_mse(of.config.batch_size * of.data.size) for x in candidates])
        errors = of.data.total(errors)  # so that ranks that share the members choose the same
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
