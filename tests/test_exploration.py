"""Persistent noise: every step follows the policy, steps agree in time."""

from typing import Any

import pytest
import torch
from loops import make_loop
from torch import Tensor

from agent.action_space import ActionSpace
from agent.algorithms.gumbel_actor_critic import GumbelActorCritic
from agent.exploration import PersistentGumbelNoise, ladder
from envs.random_streams import RandomStreams


def make_noise(rho: torch.Tensor, num_envs: int, num_choices: tuple[int, ...]) -> PersistentGumbelNoise:
    streams = RandomStreams(range(len(rho)))
    return PersistentGumbelNoise(ActionSpace(num_choices), rho, num_envs, streams)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.95])
def test_actions_follow_the_policy_at_every_step(rho: float) -> None:
    """Five standard errors per choice: false alarm < 2e-6 per rho."""
    logits, num_envs = torch.tensor([1.0, 0.0, -1.0]), 50_000
    noise = make_noise(torch.tensor([[rho]]), num_envs, (3,))
    pi = logits.softmax(-1)
    for _ in range(5):
        frequency = (logits + noise.next_()).argmax(-1).flatten().bincount(minlength=3) / num_envs
        assert ((frequency - pi).abs() < 5 * (pi * (1 - pi) / num_envs).sqrt()).all()


def test_noise_is_kept_with_probability_rho_per_member() -> None:
    """Five standard errors: false alarm < 2e-6."""
    rho = torch.tensor([0.0, 0.5, 0.9])
    noise = make_noise(rho.unsqueeze(-1), 20_000, (2, 2))
    before, after = noise.next_(), noise.next_()
    kept = (before == after).all(-1).all(-1).float().mean(-1)
    assert ((kept - rho).abs() <= 5 * (rho * (1 - rho) / 20_000).sqrt()).all()


def test_a_vector_is_kept_or_drawn_as_a_whole() -> None:
    noise = make_noise(torch.tensor([[0.5]]), 5000, (3, 3))
    same = (noise.next_() == noise.next_()).flatten(2)
    assert (same.all(-1) == same.any(-1)).all()


def test_rho_climbs_over_the_environments_of_a_member() -> None:
    """Holding times of 2, 4, 8, 16 and of 4, 6.35, 10.08, 16: geometric series."""
    rho = ladder(torch.tensor([[0.5, 0.9375], [0.75, 0.9375]]), num_envs=4)
    times = 1 / (1 - rho)
    torch.testing.assert_close(times[0], torch.tensor([2.0, 4.0, 8.0, 16.0]))
    torch.testing.assert_close(times[1], 4 * 4 ** torch.tensor([0, 1 / 3, 2 / 3, 1]))


def test_noise_is_kept_with_the_rho_of_its_environment() -> None:
    """Over 4,000 steps; five standard errors: false alarm < 5e-6."""
    rho = ladder(torch.tensor([[0.5, 0.9], [0.9, 0.9]]), num_envs=3)
    noise = make_noise(rho, 3, (2,))
    steps = torch.stack([noise.next_() for _ in range(4001)])
    kept = (steps[1:] == steps[:-1]).all(-1).all(-1).float().mean(0)
    assert ((kept - rho).abs() <= 5 * (rho * (1 - rho) / 4000).sqrt()).all()


def test_a_single_value_is_that_of_all_environments() -> None:
    rho = ladder(torch.tensor([[0.0, 0.0], [0.7, 0.7]]), num_envs=4)
    torch.testing.assert_close(rho, torch.tensor([[0.0] * 4, [0.7] * 4]))


def test_as_many_actions_are_random_as_learning_starts_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first are chosen before the first step, the others after each."""
    uniform: list[bool] = []
    act = GumbelActorCritic.act

    def act_and_note(learner: GumbelActorCritic, *args: Any, **kwargs: Any) -> Tensor:
        uniform.append(kwargs["uniform"])
        return act(learner, *args, **kwargs)

    monkeypatch.setattr(GumbelActorCritic, "act", act_and_note)
    loop = make_loop("cpu", "env.id=CartPole-v1", "learning_starts=20")  # two environments
    for env_steps in range(0, 40, 2):
        loop.run_iteration(env_steps)
    assert uniform == [True] * 10 + [False] * 11
