"""Exact models against the environments that they describe."""

import gymnasium as gym
import numpy as np
import pytest

from benchmarks.tabular import Model, blackjack_model, dealer_ends, toy_text_model

LAKE, CLIFF, TAXI = ("FrozenLake8x8-v1", 200), ("CliffWalking-v1", 200), ("Taxi-v4", 200)


@pytest.mark.parametrize("model", [toy_text_model(*LAKE), toy_text_model(*TAXI), blackjack_model()])
def test_probabilities_are_probabilities(model: Model) -> None:
    assert model.start.sum() == pytest.approx(1)
    assert (model.transition >= 0).all() and (model.transition.sum(-1) <= 1 + 1e-9).all()
    assert model.random() < model.optimum()


def test_shortest_way_along_the_cliff_takes_13_steps() -> None:
    model = toy_text_model(*CLIFF)
    assert model.optimum() == pytest.approx(-13)
    up = np.zeros(48, int)
    assert model.value_of(up) == -200


def test_no_policy_beats_one_that_knows_how_much_time_is_left() -> None:
    model = toy_text_model(*LAKE)
    knows = model.backed_up(lambda q: q.max(-1))
    assert 0.97 * knows < model.optimum() < knows
    assert model.value_of(model.greedy(0.9)) < model.optimum()


def test_dealer_busts_as_often_as_the_books_say() -> None:
    """Wizard of Odds, infinite decks, dealer stands on soft 17: a six busts 42.3 %, a ten 21.2 %, before a peek."""
    bust = {card: sum(p for total, _, p in dealer_ends(card) if total == 0) for card in (6, 10)}
    assert bust[6] == pytest.approx(0.4232, abs=5e-4) and bust[10] == pytest.approx(0.2121, abs=5e-4)


def test_blackjack_model_earns_what_the_environment_pays() -> None:
    """10,000 hands of a fixed policy: within five standard errors (false alarm below 1e-6)."""
    model, env = blackjack_model(), gym.make("Blackjack-v1").unwrapped
    expected = model.value_of((model.obs[0] < 17).astype(int))
    returns = []
    obs, _ = env.reset(seed=0)
    while len(returns) < 10_000:
        obs, reward, terminated, _, _ = env.step(int(obs[0] < 17))
        if terminated:
            returns.append(reward)
            obs, _ = env.reset()
    assert abs(np.mean(returns) - expected) < 5 * np.std(returns) / len(returns) ** 0.5
