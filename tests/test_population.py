"""A member of a population learns as it would alone."""

import json
from pathlib import Path

import pytest
import torch
from test_gumbel_actor_critic import COMBINATIONS, make_task, random_batch
from torch import Generator

import agent
from agent.algorithms.gumbel_actor_critic import GumbelActorCritic, UpdateNoise
from agent.algorithms.reinforce import Reinforce
from agent.config import Config
from agent.config_loader import load_config
from agent.estimators import Noise
from agent.replay import Batch
from agent.training.loop import TrainingLoop
from agent.training.setup import make_env
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


def make_agent(*overrides: str) -> GumbelActorCritic:
    config = config_of(*overrides)
    return GumbelActorCritic(config, make_task(config, NUM_CHOICES, OBS_SIZE))


def member_of(batch: Batch, i: int) -> Batch:
    return Batch(*(x[i : i + 1] for x in batch))


def noise_of(noise: UpdateNoise, i: int) -> UpdateNoise:
    target = None if noise.target is None else noise.target[i : i + 1]
    return UpdateNoise(target, Noise(noise.estimator.sample[i : i + 1], noise.estimator.further[:, i : i + 1]))


@pytest.mark.slow
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
        batch = random_batch(together, generator, size, OBS_SIZE)
        noise, progress = together.noise_(), torch.tensor(update / 10)
        together.learn(batch, None, noise, progress)
        for i, alone in enumerate(apart):
            alone.learn(member_of(batch, i), None, noise_of(noise, i), progress)
    for i, alone in enumerate(apart):
        for network in ("actor", "evaluated_actor"):
            ours, theirs = (getattr(agent, network).network.flat for agent in (together, alone))
            torch.testing.assert_close(ours[i : i + 1], theirs, rtol=1e-3, atol=1e-5)
        for network in ("critics", "target_critics"):
            ours, theirs = (getattr(agent, network).network.flat for agent in (together, alone))
            torch.testing.assert_close(ours[[i, num_members + i]], theirs, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(together.log_alpha[i : i + 1], alone.log_alpha)
    assert together.actor.network.flat.std(0).min() > 0  # and the members do differ


def test_reinforce_trained_together_is_trained_apart() -> None:
    def make(*overrides: str) -> Reinforce:
        config = config_of("algorithm=reinforce", "reinforce.max_episode_steps=30", *overrides)
        return Reinforce(config, make_task(config, NUM_CHOICES, OBS_SIZE))

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
        together.store(obs, action, step)
        for i, alone in enumerate(apart):
            alone.store(obs[i : i + 1], action[i : i + 1], Step(*(x[i : i + 1] for x in step)))
        if number % 10 == 9:
            for learner in (together, *apart):
                learner.update(torch.tensor(number / 40))
    for i, alone in enumerate(apart):
        for ours, theirs in ((together.actor.network, alone.actor.network), (together.baseline, alone.baseline)):
            torch.testing.assert_close(ours.flat[i : i + 1], theirs.flat, rtol=1e-3, atol=1e-5)
    assert not torch.equal(apart[0].actor.network.flat, apart[1].actor.network.flat)


def trained_loop(env_id: str, *overrides: str) -> TrainingLoop:
    """After 200 updates, with ends of episodes on the way."""
    settings = ["hidden_sizes=[16]", "batch_size=16", "learning_starts=40", "env.num_envs=2", "total_env_steps=240"]
    config = load_config(None, [f"env.id={env_id}", *settings, *overrides])
    loop = TrainingLoop(config, make_env(config, 2, torch.device("cpu")), torch.device("cpu"))
    for env_steps in range(0, 240, 2):
        loop.run_iteration(env_steps)
    loop.conclude(240)
    loop.env.close()
    return loop


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        ["CartPole-v1"],
        ["CartPole-v1", "network.memory=gru", "sequence_length=8"],
        ["Tensor/CartPole-v1"],
        ["Tensor/Harvest-v0"],
        ["CartPole-v1", "algorithm=reinforce"],
        ["CartPole-v1", "algorithm=reinforce", "network.memory=mingru", "sequence_length=8"],
    ],
    ids=" ".join,
)
def test_a_member_alone_is_the_member_of_any_population(kind: list[str]) -> None:
    """Its seed is 47: alone, the second of three, the last of twenty."""
    small = ["reinforce.rollout_steps=40", "reinforce.max_episode_steps=60"]
    alone, of_three, of_twenty = (
        trained_loop(*kind, *small, *members)
        for members in (["seed=47"], ["seed=46", "seeds=3"], ["seed=28", "seeds=20"])
    )
    assert torch.equal(of_three.action[1:2], alone.action)
    for loop, member in ((of_three, 1), (of_twenty, 19)):
        torch.testing.assert_close(loop.learner.actor.network.flat[member], alone.learner.actor.network.flat[0])
        torch.testing.assert_close(loop.obs[member], alone.obs[0])
        torch.testing.assert_close(loop.episodes.running[:, member], alone.episodes.running[:, 0])
    assert not torch.equal(of_three.learner.actor.network.flat[0], of_three.learner.actor.network.flat[1])


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Tensor/CartPole-v1"])
def test_what_is_logged_of_a_member_does_not_depend_on_the_others(env_id: str, tmp_path: Path) -> None:
    """Training, evaluation and inspection of gradients; environments are reset at two checkpoints."""
    settings = [f"env.id={env_id}", "total_env_steps=300", "learning_starts=100", "batch_size=16", "hidden_sizes=[8]"]
    settings += ["tau.schedule=adaptive", "checkpoint.every_env_steps=100", "wandb.mode=disabled"]
    settings += ["evaluation.episodes=3", "evaluation.final_episodes=4"]
    rows, results = [], []
    for name, members in (("alone", ["seed=7"]), ("together", ["seed=5", "seeds=3"])):
        run = tmp_path / name
        agent.train(load_config(None, [*settings, *members, f"run_dir={run}"]))
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        last = max(line["member"] for line in lines)
        rows.append([line for line in lines if line["member"] == last])
        results.append(json.loads((run / "result.json").read_text(encoding="utf-8"))["members"][last])
    for alone, together in zip(*rows, strict=True):
        names = [name for name in alone if not name.startswith("time/") and name != "member"]
        assert {name: together[name] for name in names} == pytest.approx(
            {n: alone[n] for n in names}, rel=1e-3, abs=1e-3
        )
    assert {name for row in rows[0] for name in row} >= {"eval/return_sampled", "gradient/relative_bias"}
    for mode in ("greedy", "sampled"):
        assert results[0][mode]["returns"] == results[1][mode]["returns"]
