"""The probes pay what their docstrings promise."""

import gymnasium
import pytest
import torch
from scripted_env import kept

from envs import PROBES, UserError, make
from envs.probes import TIME_LIMIT, register_probes


def episode(name: str, action: int = 0, seed: int = 0) -> tuple[list[float], list[float], bool]:
    """The observations acted on, the rewards, and whether a time limit was the end."""
    adapter = make(f"Probe/{name}-v0", 1)
    obs, observations, rewards = adapter.reset([seed]), [], []
    for _ in range(100):
        observations.append(obs.item())
        step = adapter.step(torch.tensor([[action]]))
        rewards.append(step.reward.item())
        obs = step.obs
        if step.terminated or step.truncated:
            adapter.close()
            return observations, rewards, step.truncated.item()
    raise AssertionError(f"{name} did not end")


def test_constant_reward_pays_one_once() -> None:
    assert episode("ConstantReward") == ([0], [1], False)


def test_reward_from_obs_pays_the_observation() -> None:
    episodes = [episode("RewardFromObs", seed=seed) for seed in range(8)]
    assert all(observations == rewards and not truncated for observations, rewards, truncated in episodes)
    assert {observations[0] for observations, _, _ in episodes} == {-1, 1}


def test_delayed_reward_pays_in_the_second_step() -> None:
    assert episode("DelayedReward") == ([0, 1], [0, 1], False)


def test_choice_pays_for_action_one() -> None:
    assert episode("Choice", action=0) == ([0], [-1], False)
    assert episode("Choice", action=1) == ([0], [1], False)


def test_choice_from_obs_pays_for_the_action_that_fits() -> None:
    for seed in range(8):
        (obs,), (reward,), _ = episode("ChoiceFromObs", action=0, seed=seed)
        assert reward == -obs
        (obs,), (reward,), _ = episode("ChoiceFromObs", action=1, seed=seed)
        assert reward == obs


def test_remembered_choice_pays_at_the_end_for_what_fits_the_beginning() -> None:
    for seed in range(8):
        (cue, *later), rewards, _ = episode("RememberedChoice", action=1, seed=seed)
        assert later == [0, 0] and rewards == [0, 0, cue]


def test_time_limit_truncates_and_does_not_show_in_the_observation() -> None:
    assert episode("TimeLimit") == ([0] * TIME_LIMIT, [1] * TIME_LIMIT, True)


def test_barred_choice_pays_in_the_second_step_and_bars_the_best_half_of_the_time() -> None:
    adapter = make("Probe/BarredChoice-v0", 400)
    adapter.reset([0])
    assert adapter.masks.obs.all()
    middle = kept(adapter.step(torch.zeros(400, 1, dtype=torch.int64)))
    assert (middle.reward == 0).all() and (middle.obs == 1).all()
    legal = adapter.masks.obs[:, 0].clone()
    assert legal[:, :2].all() and abs(legal[:, 2].float().mean() - 0.5) < 5 * 0.5 / 20  # five standard errors
    last = adapter.step(legal.sum(-1, keepdim=True) - 1)
    assert last.terminated.all() and torch.equal(last.reward, legal[:, 2].float())


def test_barred_choice_is_an_error_where_it_is_barred() -> None:
    adapter = make("Probe/BarredChoice-v0", 20)
    adapter.reset([0])
    adapter.step(torch.zeros(20, 1, dtype=torch.int64))
    with pytest.raises(UserError, match="action 2 is barred"):
        adapter.step(torch.full((20, 1), 2))


def test_registering_the_probes_again_changes_nothing() -> None:
    before = dict(gymnasium.registry)
    register_probes()
    assert gymnasium.registry == before and set(PROBES) <= set(before)
