"""REINFORCE: returns by hand, every step used once, the gradient of the textbook."""

import pytest
import torch
from test_gumbel_actor_critic import make_task
from torch import Generator, Tensor

import envs
from agent.algorithms.reinforce import Reinforce
from agent.config_loader import load_config
from envs import Step

GAMMA = 0.5


def make_learner(*overrides: str, num_envs: int = 1, obs_size: int = 1, num_choices: int = 2) -> Reinforce:
    settings = ["hidden_sizes=[8]", f"gamma={GAMMA}", f"env.num_envs={num_envs}", "reinforce.max_episode_steps=20"]
    config = load_config(None, ["env.id=Test-v0", "algorithm=reinforce", *settings, *overrides])
    return Reinforce(config, make_task(config, (num_choices,), obs_size))


def feed(learner: Reinforce, rewards: list, terminated: list, truncated: list, valid: list, obs: float = 0.0) -> None:
    """One step of every environment of one member."""
    shape = (1, len(rewards))
    flags = [torch.tensor(x).view(shape) for x in (terminated, truncated, valid)]
    state = torch.full((*shape, 1), obs)
    action = torch.zeros(*shape, 1, dtype=torch.int64)
    learner.store(state, action, Step(state, torch.tensor(rewards).view(shape), flags[0], flags[1], state, flags[2]))


def usable_returns(learner: Reinforce) -> list[float]:
    returns, usable = learner.monte_carlo_returns_()
    return sorted(returns[usable].tolist())


def test_returns_of_whole_episodes_by_hand_each_used_once() -> None:
    learner = make_learner("reinforce.baseline=false")
    feed(learner, [1.0], [False], [False], [True])
    feed(learner, [2.0], [False], [False], [True])
    assert usable_returns(learner) == []  # the episode has not ended
    feed(learner, [4.0], [True], [False], [True])
    feed(learner, [0.0], [False], [False], [False])  # filler between episodes
    feed(learner, [8.0], [False], [False], [True])
    assert usable_returns(learner) == [1 + 1 + 1, 2 + 2, 4]
    feed(learner, [16.0], [True], [False], [True])
    assert usable_returns(learner) == [8 + 8, 16]
    assert usable_returns(learner) == []


def test_without_an_ended_episode_nothing_moves() -> None:
    learner = make_learner()
    feed(learner, [1.0], [True], [False], [True])
    learner.update(torch.tensor(0.0))
    before = learner.actor.network.flat.clone(), learner.baseline.flat.clone()
    feed(learner, [1.0], [False], [False], [True])
    metrics = learner.update(torch.tensor(0.0))
    assert torch.equal(learner.actor.network.flat, before[0]) and torch.equal(learner.baseline.flat, before[1])
    assert all(value.isnan().all() for value in metrics.values())
    feed(learner, [1.0], [True], [False], [True])
    metrics = learner.update(torch.tensor(0.0))
    assert not torch.equal(learner.actor.network.flat, before[0]) and metrics["actor/entropy"] > 0


def test_environments_end_their_episodes_independently() -> None:
    learner = make_learner("reinforce.baseline=false", num_envs=2)
    feed(learner, [1.0, 10.0], [False, True], [False, False], [True, True])
    feed(learner, [1.0, 20.0], [True, False], [False, False], [True, True])
    assert usable_returns(learner) == [1.0, 1.5, 10.0]


def test_ring_wraps_without_losing_recent_episodes() -> None:
    learner = make_learner("reinforce.baseline=false", "reinforce.rollout_steps=4")
    for number in range(100):
        feed(learner, [float(number)], [number % 3 == 2], [False], [True])
        if number % 3 == 2:
            a, b, c = number - 2, number - 1, number
            assert usable_returns(learner) == sorted([a + b / 2 + c / 4, b + c / 2, float(c)])


def test_a_time_limit_adds_the_discounted_baseline_and_the_end_of_the_task_does_not() -> None:
    learner = make_learner()
    with torch.no_grad():
        learner.baseline.flat.zero_()
        learner.baseline.tensors()["head.bias"].fill_(3.0)
    learner.return_scale.fill_(2.0)  # the baseline's output is in units of it
    for terminated, truncated, value in ((False, True, 1 + GAMMA * 6), (True, False, 1.0), (True, True, 1.0)):
        feed(learner, [1.0], [terminated], [truncated], [True])
        assert usable_returns(learner) == [pytest.approx(value)]


def test_policy_gradient_is_that_of_the_textbook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without baseline, normalisation and entropy: minus the mean of (G - mean G) grad log pi."""
    learner = make_learner(
        "reinforce.baseline=false", "reinforce.normalize_returns=false", "reinforce.entropy_coefficient=0"
    )
    with torch.no_grad():
        learner.actor.network.flat.normal_(generator=Generator().manual_seed(1))
    for i, reward in enumerate((1.0, 5.0, -2.0)):
        feed(learner, [reward], [True], [False], [True], obs=float(i))
    returns, obs = torch.tensor([1.0, 5.0, -2.0]), torch.arange(3.0).view(1, 3, 1)
    weights = {name: p.clone().requires_grad_() for name, p in learner.actor.network.parameters.items()}
    log_pi = learner.actor(obs, None, weights).log_softmax(-1)[0, :, 0, 0]
    found = torch.autograd.grad((-(returns - returns.mean()) * log_pi).mean(), list(weights.values()))
    expected = torch.cat([gradient.flatten(1) for gradient in found], 1)
    seen: list[Tensor] = []
    monkeypatch.setattr(learner.actor_optimizer, "step", lambda gradients, _: seen.append(gradients[0]))
    learner.update(torch.tensor(0.0))
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_learns_the_choice_that_depends_on_the_observation() -> None:
    name = "Probe/ChoiceFromObs-v0"
    config = load_config(
        None,
        [f"env.id={name}", "algorithm=reinforce", "hidden_sizes=[16]", "env.num_envs=4", "reinforce.rollout_steps=32"],
    )
    env = envs.make(name, 4)
    learner = Reinforce(config, make_task(config, (2,), 1))
    obs = env.reset([0]).unsqueeze(0)
    for step_number in range(600):
        action = learner.act(obs)
        step = Step(*(x.unsqueeze(0) for x in env.step(action[0])))
        learner.store(obs, action, step)
        if learner.updates_due(4 * (step_number + 1)):
            learner.update(torch.tensor(0.0))
        obs = step.obs.clone()  # the next step overwrites it
    pi = learner.evaluated_actor(torch.tensor([[[-1.0], [1.0]]])).softmax(-1)[0, :, 0]
    assert pi[0, 0] > 0.8 and pi[1, 1] > 0.8
