"""A member of a population learns as it would alone."""

import pytest
import torch
from test_gumbel_actor_critic import COMBINATIONS
from torch import Generator

from agent.action_space import ActionSpace
from agent.config import Config
from agent.config_loader import load_config
from agent.gumbel_actor_critic import GumbelActorCritic
from agent.normalizer import ObservationNormalizer
from agent.reinforce import Reinforce
from agent.replay import Batch
from envs import Step

OBS_SIZE, NUM_CHOICES = 3, (3, 2)
SAMPLED_BY_ALL = ("straight_through_gumbel_softmax", "score_function", "local_expectation")  # on every critic
SWEEP = "sweep={tau.start: [2.0, 0.3], gamma: [0.9], learning_rate: [0.01, 0.001], target_entropy.end: [0.2]}"
ALONE_SETTINGS = [  # of the eight members: settings in the order of the sweep, two seeds each
    [f"tau.start={tau}", "gamma=0.9", f"learning_rate={rate}", "target_entropy.end=0.2", f"seed={seed}"]
    for tau in (2.0, 0.3)
    for rate in (0.01, 0.001)
    for seed in (5, 6)
]


def config_of(*overrides: str) -> Config:
    return load_config(None, ["env.id=Test-v0", "hidden_sizes=[16, 8]", "env.num_envs=2", "batch_size=6", *overrides])


def normalizer(num_members: int) -> ObservationNormalizer:
    return ObservationNormalizer(num_members, torch.zeros(OBS_SIZE, dtype=torch.bool), enabled=False)


def make_agent(*overrides: str) -> GumbelActorCritic:
    config = config_of(*overrides)
    return GumbelActorCritic(config, OBS_SIZE, ActionSpace(NUM_CHOICES), normalizer(len(config.members())))


def member_of(batch: Batch, i: int) -> Batch:
    return Batch(*(x[i : i + 1] for x in batch))


@pytest.mark.parametrize(
    ("structure", "estimator"), [c for c in COMBINATIONS if c[0] == "multilinear" or c[1] in SAMPLED_BY_ALL]
)
def test_trained_together_is_trained_apart(structure: str, estimator: str) -> None:
    settings = [f"critic.structure={structure}", f"estimator.name={estimator}", "max_grad_norm=0.5"]
    together = make_agent(SWEEP, "seed=5", "seeds=2", *settings)
    apart = [make_agent(*own, *settings) for own in ALONE_SETTINGS]
    generator = Generator().manual_seed(0)
    num_members, size = together.num_members, 6
    assert num_members == len(apart) == 8
    for update in range(8):
        shape = (num_members, size)
        obs, next_obs = (torch.randn(*shape, OBS_SIZE, generator=generator) for _ in range(2))
        action = torch.stack([torch.randint(n, shape, generator=generator) for n in NUM_CHOICES], -1)
        batch = Batch(obs, action, torch.randn(shape, generator=generator), torch.full(shape, 0.9), next_obs)
        noise = together.noise_of(together.draw_update())
        progress = torch.tensor(update / 10)
        together.update(batch, progress, noise)
        for i, alone in enumerate(apart):
            alone.update(member_of(batch, i), progress, noise[:, i : i + 1])
    for i, alone in enumerate(apart):
        for network in ("actor", "evaluated_actor"):
            ours, theirs = (getattr(agent, network).mlp.flat.detach() for agent in (together, alone))
            torch.testing.assert_close(ours[i : i + 1], theirs, rtol=1e-3, atol=1e-5)
        for network in ("critics", "target_critics"):
            ours, theirs = (getattr(agent, network).mlp.flat.detach() for agent in (together, alone))
            torch.testing.assert_close(ours[[i, num_members + i]], theirs, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(together.log_alpha[i : i + 1], alone.log_alpha)
    assert together.actor.mlp.flat.detach().std(0).min() > 0  # and the members do differ


def test_reinforce_trained_together_is_trained_apart() -> None:
    def make(*overrides: str) -> Reinforce:
        config = config_of("algorithm=reinforce", "reinforce.max_episode_steps=30", *overrides)
        return Reinforce(config, OBS_SIZE, ActionSpace(NUM_CHOICES), normalizer(len(config.members())))

    together = make("seed=5", "sweep={reinforce.learning_rate: [0.01, 0.001], gamma: [0.9]}")
    apart = [make("seed=5", f"reinforce.learning_rate={rate}", "gamma=0.9") for rate in (0.01, 0.001)]
    generator = Generator().manual_seed(0)
    for number in range(40):
        shape = (2, 2)
        obs, next_obs = (torch.randn(*shape, OBS_SIZE, generator=generator) for _ in range(2))
        action = torch.stack([torch.randint(n, shape, generator=generator) for n in NUM_CHOICES], -1)
        terminated, truncated = (torch.rand(shape, generator=generator) < 0.15 for _ in range(2))
        reward = torch.randn(shape, generator=generator)
        step = Step(next_obs, reward, terminated, truncated, next_obs, torch.ones(shape, dtype=torch.bool))
        together.observe(obs, action, step)
        for i, alone in enumerate(apart):
            alone.observe(obs[i : i + 1], action[i : i + 1], Step(*(x[i : i + 1] for x in step)))
        if number % 10 == 9:
            for learner in (together, *apart):
                learner.update(torch.tensor(number / 40))
    for i, alone in enumerate(apart):
        for ours, theirs in ((together.actor.mlp, alone.actor.mlp), (together.baseline, alone.baseline)):
            torch.testing.assert_close(ours.flat[i : i + 1].detach(), theirs.flat.detach(), rtol=1e-3, atol=1e-5)
    assert not torch.equal(apart[0].actor.mlp.flat, apart[1].actor.mlp.flat)
