"""Exact models of Gymnasium's tabular environments: what the best policy earns, and what a given one does."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import gymnasium as gym
import numpy as np

DISCOUNTS = (0.98, 0.99, 0.995, 0.998, 0.999)
CARDS = dict.fromkeys(range(1, 10), 1 / 13) | {10: 4 / 13}  # an ace is 1; drawn with replacement


@dataclass(frozen=True)
class Model:
    """S states, A actions. What is missing of a transition's probabilities to 1 ends the episode."""

    obs: Any  # of the states, as a batch of what the environment gives
    masks: list[Any] | None  # of legal actions, as in info["action_mask"]
    start: np.ndarray  # [S]
    transition: np.ndarray  # [S, A, S]
    reward: np.ndarray  # [S, A], expected
    horizon: int  # steps until the time limit

    def backed_up(self, choose: Callable[[np.ndarray], np.ndarray]) -> float:
        """Return from the start over the horizon, undiscounted, where `choose` takes a state's value from Q [S, A]."""
        value = np.zeros(len(self.start))
        for _ in range(self.horizon):
            value = choose(self.reward + self.transition @ value)
        return float(self.start @ value)

    def optimum(self) -> float:
        """Of the best policy that value iteration finds at one of the discounts; none sees how much time is left."""
        return max(self.value_of(self.greedy(gamma)) for gamma in DISCOUNTS)

    def greedy(self, gamma: float) -> np.ndarray:
        """The best actions [S] of the discounted task without a time limit."""
        value, change = np.zeros(len(self.start)), np.inf
        while change > 1e-9:
            before, value = value, (self.reward + gamma * self.transition @ value).max(-1)
            change = np.abs(value - before).max()
        return (self.reward + gamma * self.transition @ value).argmax(-1)

    def value_of(self, action: np.ndarray) -> float:
        """Of the policy that takes action[s] in state s."""
        return self.backed_up(lambda q: q[np.arange(len(q)), action])

    def random(self) -> float:
        """Of uniformly random legal actions."""
        legal = np.ones_like(self.reward) if self.masks is None else np.array(self.masks, float)
        return self.backed_up(lambda q: (q * legal).sum(-1) / legal.sum(-1))


def toy_text_model(env_id: str, max_episode_steps: int) -> Model:
    """Of an environment that has its probabilities as `P`."""
    env: Any = gym.make(env_id).unwrapped
    num_states, num_actions = env.observation_space.n, env.action_space.n
    transition, reward = np.zeros((num_states, num_actions, num_states)), np.zeros((num_states, num_actions))
    for s, a in product(range(num_states), range(num_actions)):
        for probability, successor, gain, terminated in env.P[s][a]:
            reward[s, a] += probability * gain
            transition[s, a, successor] += probability * (not terminated)
    masks = [env.action_mask(s) for s in range(num_states)] if hasattr(env, "action_mask") else None
    start = np.array(env.initial_state_distrib)
    return Model(np.arange(num_states), masks, start, transition, reward, max_episode_steps)


@cache  # takes seconds
def blackjack_model() -> Model:
    """Blackjack-v1 with its default sab=True: the rules of Sutton and Barto 2018, example 5.1.

    A natural and a 21 of three cards look alike to the player, but are two states.
    """
    hands = [(total, ace, False) for total in range(4, 22) for ace in (0, 1)] + [(21, 1, True)]
    states = [(hand, dealer) for hand in hands for dealer in range(1, 11)]
    index = {state: i for i, state in enumerate(states)}
    transition, reward, start = (
        np.zeros((len(states), 2, len(states))),
        np.zeros((len(states), 2)),
        np.zeros(len(states)),
    )
    for (total, ace, natural), dealer in states:
        s = index[(total, ace, natural), dealer]
        for dealers, is_natural, probability in dealer_ends(dealer):
            wins = natural and not is_natural
            reward[s, 0] += probability * (1.0 if wins else np.sign(total - dealers))
        for card, probability in CARDS.items():
            after, after_ace = add_card(total, ace, card)
            if after > 21:
                reward[s, 1] -= probability
            else:
                transition[s, 1, index[(after, after_ace, False), dealer]] += probability
    for (first, p), (second, q), (dealer, r) in product(CARDS.items(), repeat=3):
        total, ace = add_card(*add_card(0, 0, first), second)
        start[index[(total, ace, total == 21), dealer]] += p * q * r
    obs = tuple(np.array([(total, dealer, ace) for (total, ace, _), dealer in states]).T)
    return Model(obs, None, start, transition, reward, horizon=22)


def add_card(total: int, ace: int, card: int) -> tuple[int, int]:
    """Sum and usable ace with one card more; an ace counts 11 where that does not bust."""
    low = total - 10 * ace + card
    has_ace = ace or card == 1
    return (low + 10, 1) if has_ace and low + 10 <= 21 else (low, 0)


def dealer_ends(showing: int) -> list[tuple[int, bool, float]]:
    """Where the dealer may end who draws to 17: the sum (0: bust), whether it is a natural, the probability."""
    ends = []

    def play(total: int, ace: int, cards: int, probability: float) -> None:
        if total > 21:
            ends.append((0, False, probability))
        elif total >= 17 and cards > 1:
            ends.append((total, total == 21 and cards == 2, probability))
        else:
            for card, p in CARDS.items():
                play(*add_card(total, ace, card), cards + 1, probability * p)

    play(*add_card(0, 0, showing), 1, 1.0)
    return ends
