"""Persistent noise: every step follows the policy, steps agree in time."""

import pytest
import torch
from torch import Generator

from agent.exploration import PersistentGumbelNoise, ladder


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.95])
def test_actions_follow_the_policy_at_every_step(rho: float, generator: Generator) -> None:
    """Five standard errors per choice: false alarm < 2e-6 per rho."""
    logits, num_envs = torch.tensor([1.0, 0.0, -1.0]), 50_000
    noise = PersistentGumbelNoise((1, num_envs, 1, 3), torch.tensor([[rho]]), generator)
    pi = logits.softmax(-1)
    for _ in range(5):
        frequency = (logits + noise.next(noise.draw())).argmax(-1).flatten().bincount(minlength=3) / num_envs
        assert ((frequency - pi).abs() < 5 * (pi * (1 - pi) / num_envs).sqrt()).all()


def test_noise_is_kept_with_probability_rho_per_member(generator: Generator) -> None:
    """Five standard errors: false alarm < 2e-6."""
    rho = torch.tensor([0.0, 0.5, 0.9])
    noise = PersistentGumbelNoise((3, 20_000, 2, 2), rho.unsqueeze(-1), generator)
    before, after = noise.next(noise.draw()), noise.next(noise.draw())
    kept = (before == after).all(-1).all(-1).float().mean(-1)
    assert ((kept - rho).abs() <= 5 * (rho * (1 - rho) / 20_000).sqrt()).all()


def test_a_vector_is_kept_or_drawn_as_a_whole(generator: Generator) -> None:
    noise = PersistentGumbelNoise((1, 5000, 2, 3), torch.tensor([[0.5]]), generator)
    same = (noise.next(noise.draw()) == noise.next(noise.draw())).flatten(2)
    assert (same.all(-1) == same.any(-1)).all()


def test_rho_climbs_over_the_environments_of_a_member() -> None:
    """Holding times of 2, 4, 8, 16 and of 4, 6.35, 10.08, 16: geometric series."""
    rho = ladder([0.5, 0.75], 0.9375, num_envs=4)
    times = 1 / (1 - rho)
    torch.testing.assert_close(times[0], torch.tensor([2.0, 4.0, 8.0, 16.0]))
    torch.testing.assert_close(times[1], 4 * 4 ** torch.tensor([0, 1 / 3, 2 / 3, 1]))


def test_noise_is_kept_with_the_rho_of_its_environment(generator: Generator) -> None:
    """Over 4,000 steps; five standard errors: false alarm < 5e-6."""
    rho = ladder([0.5, 0.9], 0.9, num_envs=3)
    noise = PersistentGumbelNoise((2, 3, 1, 2), rho, generator)
    steps = torch.stack([noise.next(noise.draw()) for _ in range(4001)])
    kept = (steps[1:] == steps[:-1]).all(-1).all(-1).float().mean(0)
    assert ((kept - rho).abs() <= 5 * (rho * (1 - rho) / 4000).sqrt()).all()


def test_without_a_highest_rho_all_environments_have_the_same() -> None:
    assert ladder([0.0, 0.7], None, num_envs=4).expand(2, 4).tolist() == [[0.0] * 4, [pytest.approx(0.7)] * 4]
