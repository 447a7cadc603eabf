"""Measured bias and variance against those known in closed form, and what an adaptive tau makes of them."""

import math

import pytest
import torch
from test_estimators import AnyQ, enumerated_gradient, linear_q, made, multilinear_q
from test_gumbel_actor_critic import make_agent
from torch import Generator, Tensor

from agent.algorithms.gumbel_actor_critic import GumbelActorCritic
from agent.config_fields import ConfigError
from agent.diagnostics.gradient_quality import GradientQuality, Moments, moments, quality
from agent.diagnostics.inspection import cost_in_updates
from agent.estimators import Estimator
from envs import Step
from envs.random_streams import RandomStreams


@pytest.fixture
def streams() -> RandomStreams:
    return RandomStreams([0])


LOGITS = torch.tensor([[[2.0, 0.0, -1.0], [0.5, 0.5, -3.0]], [[0.0, 0.0, 0.3], [1.0, -1.0, 0.0]]])  # B = 2 states


def measured(estimator: Estimator, q: AnyQ, streams: RandomStreams, tau: float = 1.0, rounds: int = 10) -> Moments:
    logits = LOGITS.repeat(2000, 1, 1).unsqueeze(0)
    return moments(estimator, q, logits, torch.tensor([tau]), 2000, rounds, streams)


def test_exact_has_no_variance_and_is_its_own_truth(streams: RandomStreams) -> None:
    truth = measured(made("exact"), AnyQ(multilinear_q), streams)
    assert truth.variance.item() == 0
    for state in range(2):
        expected = enumerated_gradient(LOGITS[state], AnyQ(multilinear_q))
        torch.testing.assert_close(truth.mean[0, state], expected, rtol=1e-4, atol=1e-6)
    own = quality(truth, truth)
    assert own.relative_bias.item() < 1e-3 and abs(own.cosine.item() - 1) < 1e-5


def test_an_unbiased_estimator_measures_as_such(streams: RandomStreams) -> None:
    """20,000 draws of the score function with a relative standard deviation near 2: without the correction for its
    noise the bias would measure 0.015; the error of the corrected one is below 0.01 all but once in 10^6."""
    q = AnyQ(multilinear_q)
    truth = measured(made("exact"), q, streams)
    score = quality(measured(made("score_function", num_samples=2), q, streams), truth)
    assert score.relative_bias.item() < 0.01 and abs(score.cosine.item() - 1) < 1e-3
    assert score.relative_variance.item() > 1


def test_variance_is_that_of_two_point_distribution(streams: RandomStreams) -> None:
    """One factor of two equal choices, one action drawn, baseline 0: the gradient is +-(1/4, -1/4) for Q = (1, 0) or
    nothing: with Q(s, pi) = 1/2 as baseline each draw is (1/2)(1/2, -1/2) exactly, without variance."""
    q = linear_q(torch.tensor([[1.0, 0.0]]))
    logits = torch.zeros(1, 1000, 1, 2)
    found = moments(made("score_function", baseline="value", num_samples=1), q, logits, torch.ones(1), 1000, 1, streams)
    torch.testing.assert_close(found.mean, torch.tensor([[[[0.25, -0.25]]]]))
    assert found.variance.item() < 1e-9
    shifted = linear_q(torch.tensor([[1.0, 0.0]]))
    shifted.q = lambda action: action[..., 0, 0] + (action.amax((-2, -1)) > 0.9) * 1.0  # +1 at corners alone
    found = moments(
        made("score_function", baseline="value", num_samples=1), shifted, logits, torch.ones(1), 1000, 1, streams
    )
    # draws are (3/2)(1/2, -1/2) and (1/2)(-1/2, 1/2): mean (1/4, -1/4), variance 2 * (1/2)^2 = 1/2
    assert found.variance.item() == pytest.approx(0.5, abs=0.02)


def test_relative_error_of_a_batch_keeps_the_bias() -> None:
    of = GradientQuality(torch.tensor([0.3]), torch.tensor([4.0]), torch.ones(1))
    assert of.relative_mse(1).item() == pytest.approx(4.09) and of.relative_mse(400).item() == pytest.approx(0.1)


def test_bias_falls_and_variance_grows_as_tau_falls(streams: RandomStreams) -> None:
    q = AnyQ(multilinear_q)
    truth = measured(made("exact"), q, streams)
    straight_through = made("straight_through_gumbel_softmax")
    found = [quality(measured(straight_through, q, streams, tau), truth) for tau in (2.0, 0.7, 0.2)]
    biases, variances = ([float(getattr(x, name)) for x in found] for name in ("relative_bias", "relative_variance"))
    assert biases[0] > biases[1] > biases[2] and variances[0] < variances[1] < variances[2]


def filled_agent(*overrides: str, num_choices: tuple[int, ...] = (3,)) -> GumbelActorCritic:
    """With a hundred random steps in the replay and a policy that is not uniform."""
    agent = make_agent("replay_capacity=200", "hidden_sizes=[32]", *overrides, num_choices=num_choices)
    generator = Generator().manual_seed(0)
    agent.actor.network.flat.mul_(30)
    shape = (agent.num_members, 1)
    no = torch.zeros(shape, dtype=torch.bool)
    for _ in range(100):
        obs, next_obs = torch.randn(2, *shape, 4, generator=generator)
        action = torch.stack([torch.randint(n, shape, generator=generator) for n in num_choices], -1)
        agent.store(obs, action, Step(next_obs, torch.zeros(shape), no, no, next_obs, ~no))
    return agent


def inspect(agent: GumbelActorCritic, times: int = 1) -> dict[str, Tensor]:
    streams, found = RandomStreams([1] * agent.num_members), {}
    for _ in range(times):
        found = agent.inspect_gradients(torch.tensor(0.5), streams)
    return found


@pytest.mark.parametrize("structure", ["per_action", "multilinear", "joint"])
def test_inspection_finds_the_local_expectation_unbiased(structure: str) -> None:
    agent = filled_agent("estimator.name=local_expectation", f"critic.structure={structure}", num_choices=(3, 2))
    found = inspect(agent)
    assert found["gradient/cosine_to_exact"].item() > 0.97 and found["gradient/relative_bias"].item() < 0.25


def test_inspection_leaves_everything_else_alone() -> None:
    agent = filled_agent()
    before, state = agent.actor.network.flat.clone(), torch.get_rng_state()
    tau, own = agent.schedules.table.clone(), agent.streams.counter.clone()
    inspect(agent)
    assert torch.equal(agent.actor.network.flat, before) and torch.equal(agent.schedules.table, tau)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(agent.streams.counter, own)


def test_adaptive_tau_falls_for_large_batches_and_rises_for_small_ones() -> None:
    """A large batch has little variance to fear, so that bias decides."""
    tau = {}
    for batch_size in (1, 4096):
        agent = filled_agent("tau.schedule=adaptive", f"batch_size={batch_size}")
        inspect(agent, times=8)
        tau[batch_size] = agent.schedules(torch.tensor(0.7)).tau.item()
    assert tau[4096] < 0.5 * tau[1]


SIZES = [
    ((2,), []),
    ((2,), ["batch_size=1"]),
    ((10_000,), []),
    ((10_000,), ["tau.schedule=adaptive"]),
    ((6,) * 8, ["critic.structure=joint"]),
    ((6,) * 8, ["critic.reduce=min", "seeds=3"]),
    ((3, 2), ["estimator.name=gumbel_rao", "estimator.num_samples=50"]),
]


@pytest.mark.parametrize(("num_choices", "settings"), SIZES)
def test_inspections_take_a_hundredth_of_the_run_at_most(num_choices: tuple[int, ...], settings: list[str]) -> None:
    agent = make_agent("batch_size=128", *settings, num_choices=num_choices)  # 49,000 updates
    cost = agent.num_inspections * cost_in_updates(agent, agent.num_inspected_states)
    assert 0.005 * 49_000 * (agent.num_inspections < 50) < cost <= 0.01 * 49_000


def test_an_adaptive_tau_keeps_its_inspections_and_looks_at_fewer_states(caplog: pytest.LogCaptureFixture) -> None:
    plan = {}
    for total in (50_000, 12_000, 1_100):
        agent = make_agent("tau.schedule=adaptive", "batch_size=128", f"total_env_steps={total}")
        plan[total] = (agent.num_inspections, agent.num_inspected_states)
    assert plan[50_000] == (50, 64) and plan[1_100] == (50, 8)
    assert plan[12_000][0] == 50 and 8 < plan[12_000][1] < 64
    assert [record.getMessage()[:33] for record in caplog.records] == ["tau.schedule=adaptive costs about"]


def test_inspection_looks_at_as_many_states_as_planned() -> None:
    draws = {}
    for num_states in (64, 8):
        agent = filled_agent()
        agent.num_inspected_states = num_states
        streams = RandomStreams([1])
        agent.inspect_gradients(torch.tensor(0.5), streams)
        draws[num_states] = int(streams.counter)
    assert draws[64] == 8 * draws[8]


@pytest.mark.slow
def test_adaptive_tau_is_within_a_step_of_the_best_of_a_grid() -> None:
    agent = filled_agent("tau.schedule=adaptive", "batch_size=128")
    inspect(agent, times=10)
    chosen = agent.schedules(torch.tensor(0.7)).tau.item()
    errors = {}
    for tau in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2):
        other = filled_agent(f"tau.start={tau}", "tau.schedule=constant")
        found = inspect(other)
        errors[tau] = (found["gradient/relative_bias"] ** 2 + found["gradient/relative_variance"] / 128).item()
    best = min(errors, key=lambda tau: errors[tau])
    assert abs(math.log2(chosen / best)) <= 1.5


def test_members_choose_a_tau_of_their_own() -> None:
    agent = filled_agent("tau.schedule=adaptive", "sweep={tau.start: [5.0, 0.05]}")
    inspect(agent)
    high, low = agent.schedules(torch.tensor(0.7)).tau.tolist()
    assert high < 5.0 and low > 0.05


def test_an_estimator_without_tau_cannot_adapt_it() -> None:
    with pytest.raises(ConfigError, match="tau.schedule: got 'adaptive', but estimator.name=exact uses no tau"):
        make_agent("tau.schedule=adaptive", "estimator.name=exact")
