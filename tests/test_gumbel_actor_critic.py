"""The update: what moves what, what the target is made of, and values that are known beforehand."""

from typing import get_args

import numpy as np
import pytest
import torch
from loops import make_loop, run
from torch import Generator, Tensor

import envs
from agent.action_space import ActionSpace
from agent.algorithms.base import Task
from agent.algorithms.gumbel_actor_critic import GumbelActorCritic
from agent.config import Config
from agent.config_loader import load_config
from agent.config_sections import CriticConfig, EstimatorConfig
from agent.diagnostics.gradient_quality import estimated_gradient
from agent.networks.heads import CriticsAt
from agent.normalizer import ObservationNormalizer
from agent.replay import Batch
from agent.training.loop import TrainingLoop
from envs import Masks
from envs.spaces import ObsPart

PROGRESS = torch.tensor(0.25)
COMBINATIONS = [  # of critic and estimator: all but the one that is refused
    (structure, estimator)
    for structure in get_args(CriticConfig.model_fields["structure"].annotation)
    for estimator in get_args(EstimatorConfig.model_fields["name"].annotation)
    if (structure, estimator) != ("joint", "exact")
]


def make_agent(
    *overrides: str, num_choices: tuple[int, ...] = (3,), obs_size: int = 4, has_masks: bool = False
) -> GumbelActorCritic:
    config = load_config(None, ["env.id=Test-v0", "hidden_sizes=[16]", "batch_size=8", *overrides])
    return GumbelActorCritic(config, make_task(config, num_choices, obs_size, has_masks))


def make_task(config: Config, num_choices: tuple[int, ...] = (3,), obs_size: int = 4, has_masks: bool = False) -> Task:
    normalizer = ObservationNormalizer(len(config.members()), *torch.zeros(2, obs_size), enabled=False)
    return Task(
        (ObsPart("", (obs_size,)),), torch.float32, ActionSpace(num_choices), has_masks, normalizer, torch.device("cpu")
    )


def random_batch(agent: GumbelActorCritic, generator: Generator, size: int = 8, obs_size: int = 4) -> Batch:
    shape = (agent.num_members, size)
    action = [torch.randint(n, shape, generator=generator) for n in agent.actions.num_choices]
    obs, next_obs = (torch.randn(*shape, obs_size, generator=generator) for _ in range(2))
    reward, discount = torch.randn(shape, generator=generator), torch.full(shape, 0.9)
    return Batch(obs, torch.stack(action, -1), reward, discount, next_obs)


def random_masks(agent: GumbelActorCritic, generator: Generator, size: int = 8) -> Masks:
    """Of both observations of a batch; the first choice is always legal."""
    shape = (2, agent.num_members, size, *agent.actions.shape)
    masks = (torch.rand(shape, generator=generator) < 0.6) & agent.actions.mask
    masks[..., 0] = True
    return Masks(*masks)


def parameters(agent: GumbelActorCritic) -> dict[str, Tensor]:
    names = ("actor", "critics", "target_critics", "evaluated_actor")
    return {name: getattr(agent, name).network.flat.clone() for name in names} | {"alpha": agent.log_alpha.clone()}


def update(agent: GumbelActorCritic, batch: Batch) -> dict[str, Tensor]:
    """One update with noise of a fixed seed."""
    agent.streams.seed_([0] * agent.num_members)
    return agent.learn(batch, None, agent.noise_(), PROGRESS)


def td_targets(agent: GumbelActorCritic, batch: Batch) -> Tensor:
    return update(agent, batch)["critic/td_target"]


@pytest.mark.parametrize(("structure", "estimator"), COMBINATIONS)
@pytest.mark.parametrize("num_choices", [(3,), (3, 2)])
def test_every_combination_moves_every_network(
    structure: str, estimator: str, num_choices: tuple[int, ...], generator: Generator
) -> None:
    overrides = [f"critic.structure={structure}", f"estimator.name={estimator}", "actor.layer_norm=true"]
    agent = make_agent(*overrides, num_choices=num_choices)
    before = parameters(agent)
    metrics = update(agent, random_batch(agent, generator))
    for name, value in parameters(agent).items():
        assert value.isfinite().all() and not torch.equal(value, before[name]), name
    assert all(value.shape == (1,) and value.isfinite().all() for value in metrics.values())


@pytest.mark.parametrize("structure", ["per_action", "joint"])
def test_target_comes_from_the_target_critics(structure: str, generator: Generator) -> None:
    targets = {}
    for disturbed in ("none", "critics", "target_critics"):
        agent = make_agent(f"critic.structure={structure}")
        batch = random_batch(agent, Generator().manual_seed(5))
        if disturbed != "none":
            with torch.no_grad():
                getattr(agent, disturbed).network.flat.add_(0.3)
        targets[disturbed] = td_targets(agent, batch)
    assert torch.equal(targets["none"], targets["critics"])
    assert not torch.equal(targets["none"], targets["target_critics"])


def test_target_of_a_joint_critic_takes_a_hard_action_of_the_current_policy(generator: Generator) -> None:
    agent = make_agent("critic.structure=joint", num_choices=(3, 2))
    with torch.no_grad():
        agent.actor.network.flat.mul_(50)
    batch, noise = random_batch(agent, generator), agent.noise_()
    action = agent.actions.one_hot((agent.actor(batch.next_obs) + noise.target).argmax(-1))
    q = agent.target_critics.evaluate(agent.target_critics.encode(batch.next_obs), action).amin(0)
    value = agent.next_value(batch.next_obs, None, torch.ones(1), noise.target)
    torch.testing.assert_close(value, q)


def test_target_of_a_linear_critic_is_the_expectation_over_the_policy(generator: Generator) -> None:
    agent = make_agent()
    with torch.no_grad():
        agent.actor.network.flat.mul_(50)
    batch = random_batch(agent, generator)
    pi = agent.actor(batch.next_obs).softmax(-1)[:, :, 0]
    heads = agent.target_critics.encode(batch.next_obs).mean(0)
    value = agent.next_value(batch.next_obs, None, torch.ones(1), agent.noise_().target)
    torch.testing.assert_close(value, (pi * heads).sum(-1))


@pytest.mark.parametrize("structure", ["per_action", "multilinear", "joint"])
def test_every_factor_gets_a_gradient_at_once(structure: str, generator: Generator) -> None:
    agent = make_agent(f"critic.structure={structure}", num_choices=(3, 2, 4))
    batch, noise = random_batch(agent, generator), agent.noise_()
    q = CriticsAt(agent.critics, agent.critics.encode(batch.obs), "mean")
    gradient = estimated_gradient(agent.estimator, q, agent.actor(batch.obs), torch.ones(1), noise.estimator)
    assert (gradient.abs().sum((0, 1, 3)) > 0).all()


def test_no_bootstrap_where_the_discount_is_zero(generator: Generator) -> None:
    agent = make_agent()
    batch = random_batch(agent, generator)._replace(discount=torch.zeros(1, 8))
    torch.testing.assert_close(td_targets(agent, batch), batch.reward.mean(-1))


def test_entropy_enters_the_target_only_when_asked(generator: Generator) -> None:
    plain, soft = make_agent(), make_agent("critic.entropy_in_target=true")
    batch = random_batch(plain, generator)
    entropy = np.log(3)  # a fresh policy is uniform within a hundredth
    difference = td_targets(soft, batch) - td_targets(plain, batch)
    torch.testing.assert_close(difference, torch.tensor([0.9 * 1.0 * entropy]).float(), rtol=1e-2, atol=0)


@pytest.mark.parametrize(("target", "sign"), [(0.0, -1), (0.99999, 1)])
def test_alpha_moves_the_entropy_towards_its_target(target: float, sign: int, generator: Generator) -> None:
    agent = make_agent("target_entropy.schedule=constant", f"target_entropy.start={target}")
    with torch.no_grad():  # a policy that is neither uniform nor certain
        agent.actor.network.flat.mul_(100)
    before = agent.log_alpha.clone()
    update(agent, random_batch(agent, generator))
    assert (agent.log_alpha - before).sign().item() == sign


def test_alpha_stays_within_its_limits(generator: Generator) -> None:
    agent = make_agent("alpha.learning_rate=10", "alpha.min=0.5", "target_entropy.start=0", "target_entropy.end=0")
    update(agent, random_batch(agent, generator))
    assert agent.log_alpha.exp().item() == pytest.approx(0.5)


def test_tau_anneals_and_does_not_change_the_drawn_actions() -> None:
    agent = make_agent("tau.schedule=linear", "tau.start=2", "tau.end=1", "tau.fraction=1", "env.num_envs=1")
    assert agent.schedules(torch.tensor(0.5)).tau.item() == 1.5
    obs = torch.randn(1, 1, 4)
    other = make_agent("tau.start=0.01", "env.num_envs=1")
    actions = [[a.act(obs).item() for _ in range(20)] for a in (agent, other)]
    assert actions[0] == actions[1]


def test_a_schedule_may_be_given_in_environment_steps() -> None:
    """500 of 2000 steps are a quarter of the run; 4000 end with half of the way to go."""
    tau = ["tau.schedule=linear", "tau.start=2", "tau.end=1", "total_env_steps=2000"]
    by_fraction, by_steps, beyond = (
        make_agent(*tau, f"tau.{length}") for length in ("fraction=0.25", "env_steps=500", "env_steps=4000")
    )
    for progress in torch.linspace(0, 1, 101):
        assert torch.equal(by_fraction.schedules(progress).tau, by_steps.schedules(progress).tau)
    assert beyond.schedules(torch.ones(())).tau.item() == pytest.approx(1.5)


def test_updates_keep_pace_with_environment_steps(generator: Generator) -> None:
    """Three environments: 42 steps, of which the last 33 belong to iterations that end after the tenth."""
    agent = make_agent("updates_per_step=0.5", "learning_starts=10", "env.num_envs=3")
    due = [agent.updates_due(env_steps) for env_steps in range(0, 43, 3)]
    assert due[:4] == [0, 0, 0, 0] and set(due[4:]) == {1, 2} and sum(due) == 0.5 * 33 // 1
    assert [agent.is_warming_up(env_steps) for env_steps in (0, 9, 10, 12)] == [True, True, False, False]


@pytest.mark.parametrize(("start", "end"), [(3, 1), (1, 3)])
def test_n_step_moves_to_its_end(start: int, end: int) -> None:
    """At either end it learns as with that n throughout; in the middle as with neither."""

    def critics(progress: float, *overrides: str) -> Tensor:
        loop = make_loop("cpu", "env.id=Tensor/CartPole-v1", "hidden_sizes=[8]", "updates_per_step=1e-9", *overrides)
        run(loop)
        loop.learner.update(torch.tensor(progress))
        return loop.learner.critics.network.flat

    moving = [f"n_step=[{start}, {end}]"]
    for progress, n_step in ((0.0, start), (1.0, end)):
        constant = f"n_step={n_step}"
        assert torch.equal(critics(progress, *moving), critics(progress, constant))
        assert not torch.equal(critics(0.5, *moving), critics(0.5, constant))


def test_first_actions_are_uniform_whatever_the_policy() -> None:
    agent = make_agent("env.num_envs=1", "noise_persistence=0", num_choices=(3, 2))
    with torch.no_grad():
        agent.actor.network.flat.add_(
            5.0 * torch.randn(agent.actor.network.flat.shape, generator=Generator().manual_seed(0))
        )
    obs = torch.zeros(1, 1, 4)
    actions = torch.stack([agent.act(obs, uniform=True)[0, 0] for _ in range(3000)])
    for k, n in enumerate((3, 2)):
        frequency = actions[:, k].bincount(minlength=n) / 3000
        assert len(frequency) == n and ((frequency - 1 / n).abs() < 5 * (1 / n / 3000) ** 0.5).all()


def test_each_environment_keeps_its_noise_with_a_rho_of_its_own() -> None:
    """In 1,000 steps 0, 800 and 960 times; five standard errors: false alarm < 1e-5."""
    agent = make_agent("env.num_envs=3", "noise_persistence=[0, 0.96]")
    kept = torch.zeros(3)
    for _ in range(1000):
        before = agent.exploration.noise.clone()
        agent.act(torch.zeros(1, 3, 4))
        kept += (agent.exploration.noise == before)[0, :, 0].all(-1)
    rho = torch.tensor([0, 0.8, 0.96])
    assert ((kept / 1000 - rho).abs() <= 5 * (rho * (1 - rho) / 1000).sqrt()).all()


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_noise_is_not_held_beyond_an_episode(end: str) -> None:
    agent = make_agent("env.num_envs=2", "noise_persistence=0.999")
    obs, no, before = torch.zeros(1, 2, 4), torch.zeros(1, 2, dtype=torch.bool), agent.exploration.noise.clone()
    step = envs.Step(obs, torch.zeros(1, 2), no, no, obs, ~no)
    agent.store(obs, agent.act(obs), step._replace(**{end: torch.tensor([[True, False]])}))
    agent.act(obs)
    assert (agent.exploration.noise == before).flatten(2).all(-1).tolist() == [[False, True]]


def test_ranges_of_rho_can_be_swept() -> None:
    agent = make_agent("env.num_envs=2", "sweep={noise_persistence: [0.25, [0.5, 0.75]]}")
    assert agent.exploration.rho.flatten(1).tolist() == [[0.25, 0.25], [0.5, 0.75]]


def learn_probe(
    name: str, *overrides: str, truncation_ends_the_task: bool = False, steps: int = 600
) -> GumbelActorCritic:
    """Trains on a probe environment; returns the agent."""
    settings = [
        "hidden_sizes=[32]",
        "batch_size=32",
        "learning_starts=50",
        "gamma=0.8",
        "n_step=1",
        "updates_per_step=0.5",
    ]
    config: Config = load_config(None, [f"env.id={name}", "env.num_envs=2", *settings, *overrides])
    env = envs.make(name, 2)
    normalizer = ObservationNormalizer(1, *torch.zeros(2, env.observations.size), enabled=False)
    task = make_task(config, env.actions.num_choices, env.observations.size)._replace(normalizer=normalizer)
    agent = GumbelActorCritic(config, task)
    obs = env.reset([0]).unsqueeze(0)
    for step_number in range(steps):
        env_steps = 2 * step_number
        action = agent.act(obs, uniform=agent.is_warming_up(env_steps))
        step = envs.Step(*(x.unsqueeze(0) for x in env.step(action[0])))
        if truncation_ends_the_task:
            step = step._replace(terminated=step.terminated | step.truncated)
        agent.store(obs, action, step)
        for _ in range(agent.updates_due(env_steps + 2)):
            agent.update(torch.tensor(step_number / steps))
        obs = step.obs.clone()  # the next step overwrites it
    env.close()
    return agent


def q_values(agent: GumbelActorCritic, obs: list[float]) -> Tensor:
    """Mean of the critics at each choice of the one factor, [observations, N]."""
    batch = torch.tensor(obs).view(1, -1, 1)
    encoded = agent.critics.encode(batch)
    choices = torch.eye(agent.actions.width)
    values = [agent.critics.evaluate(encoded, c.expand(1, len(obs), 1, -1)).mean(0)[0] for c in choices]
    return torch.stack(values, -1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "obs", "value"),
    [
        ("Probe/ConstantReward-v0", [0.0], [[1.0]]),
        ("Probe/RewardFromObs-v0", [-1.0, 1.0], [[-1.0], [1.0]]),
        ("Probe/DelayedReward-v0", [0.0, 1.0], [[0.8], [1.0]]),
        ("Probe/Choice-v0", [0.0], [[-1.0, 1.0]]),
        ("Probe/ChoiceFromObs-v0", [-1.0, 1.0], [[1.0, -1.0], [-1.0, 1.0]]),
        ("Probe/TimeLimit-v0", [0.0], [[5.0]]),
    ],
)
def test_probe_has_its_known_value(name: str, obs: list[float], value: list) -> None:
    check_probe(learn_probe(name), obs, value)


@pytest.mark.slow
def test_joint_critic_learns_the_choice_that_depends_on_the_observation() -> None:
    agent = learn_probe("Probe/ChoiceFromObs-v0", "critic.structure=joint")
    check_probe(agent, [-1.0, 1.0], [[1.0, -1.0], [-1.0, 1.0]])


def check_probe(agent: GumbelActorCritic, obs: list[float], value: list) -> None:
    torch.testing.assert_close(q_values(agent, obs), torch.tensor(value), rtol=0.08, atol=0.15)
    if agent.actions.width > 1:
        greedy = agent.evaluated_actor(torch.tensor(obs).view(1, -1, 1)).argmax(-1).flatten().tolist()
        assert greedy == [int(np.argmax(v)) for v in value]


@pytest.mark.slow
def test_a_time_limit_taken_for_the_end_of_the_task_gives_the_wrong_value() -> None:
    """Negative control of the probe: the value then stays below 1 / (1 - gamma) = 5 by more than the tolerance."""
    agent = learn_probe("Probe/TimeLimit-v0", truncation_ends_the_task=True)
    assert q_values(agent, [0.0]).item() < 4.5


def after_a_run(*overrides: str) -> TrainingLoop:
    loop = make_loop("cpu", "env.id=Tensor/CartPole-v1", *overrides)
    run(loop)
    return loop


def test_copies_that_move_all_the_way_are_the_same() -> None:
    learner = after_a_run("policy_average_rate=1", "target_update_rate=1").learner
    assert torch.equal(learner.evaluated_actor.network.flat, learner.actor.network.flat)
    assert torch.equal(learner.target_critics.network.flat, learner.critics.network.flat)
    learner = after_a_run().learner
    assert not torch.equal(learner.evaluated_actor.network.flat, learner.actor.network.flat)
    assert not torch.equal(learner.target_critics.network.flat, learner.critics.network.flat)


@pytest.mark.parametrize(("end", "moves"), [(0.0, False), (0.1, True)])
def test_the_learning_rate_ends_where_it_should(end: float, moves: bool) -> None:
    loop = after_a_run(f"learning_rate_end={end}")
    before = loop.learner.actor.network.flat.clone()
    loop.update()  # all steps are done
    assert torch.equal(loop.learner.actor.network.flat, before) != moves


@pytest.mark.parametrize(("beyond", "bound"), [(-20.0, 0.01), (20.0, 5.0)])
def test_alpha_stays_within_its_bounds(beyond: float, bound: float) -> None:
    loop = after_a_run("alpha.min=0.01", "alpha.max=5")
    loop.learner.log_alpha.fill_(beyond)
    loop.update()
    torch.testing.assert_close(loop.learner.log_alpha.exp(), torch.full((2, 1), bound))


def test_gradients_are_clipped() -> None:
    """To far below Adam's eps, so that nothing moves."""
    first = make_loop("cpu", "env.id=Tensor/CartPole-v1").learner.critics.network.flat.clone()
    moved = [
        (after_a_run(*overrides).learner.critics.network.flat - first).abs().max()
        for overrides in ((), ("max_grad_norm=1e-12",))
    ]
    assert moved[1] < 0.01 * moved[0]
