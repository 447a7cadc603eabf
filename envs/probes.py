"""Tiny environments whose values are known: a learner that fails one of them fails for one cause.

`envs` registers them as `Probe/<Name>-v0`. γ is the discount of the learner.
"""

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.masks import ACTION_MASK_KEY

Obs = np.ndarray
TIME_LIMIT = 10


class Probe(gymnasium.Env[Obs, np.int64]):
    """An episode of `num_steps` steps whose observation is one number."""

    num_steps: ClassVar[int] = 1
    num_actions: ClassVar[int] = 1

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Discrete(self.num_actions)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        self.value = self.first_value()
        return self.obs(), self.info()

    def step(self, action: np.int64) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        reward = self.reward(int(action))
        self.steps += 1
        self.value = self.next_value()
        return self.obs(), reward, self.steps == self.num_steps, False, self.info()

    def obs(self) -> Obs:
        return np.array([self.value], dtype=np.float32)

    def first_value(self) -> float:
        return 0.0

    def next_value(self) -> float:
        return self.value

    def reward(self, action: int) -> float:
        return 1.0

    def info(self) -> dict[str, Any]:
        return {}


class ConstantReward(Probe):
    """One action, one step, reward 1. V = 1. Fails where the critic cannot fit a constant."""


class RewardFromObs(Probe):
    """One action, one step, the observation is -1 or 1 at random and is the reward. V(s) = s.

    Fails where the critic does not look at the observation.
    """

    def first_value(self) -> float:
        return float(self.np_random.choice((-1.0, 1.0)))

    def reward(self, action: int) -> float:
        return self.value


class DelayedReward(Probe):
    """One action, two steps, observations 0 then 1, reward 0 then 1. V(0) = γ, V(1) = 1.

    Fails where the discount is lost on the way, or the value of the successor.
    """

    num_steps = 2

    def next_value(self) -> float:
        return 1.0

    def reward(self, action: int) -> float:
        return self.value


class Choice(Probe):
    """Two actions, one step, reward -1 for action 0 and 1 for action 1. Q = (-1, 1); the best return is 1.

    Fails where the actor does not follow the critic.
    """

    num_actions = 2

    def reward(self, action: int) -> float:
        return 2.0 * action - 1.0


class ChoiceFromObs(RewardFromObs):
    """Two actions, one step, the observation is -1 or 1 at random: action 0 is right at -1, action 1 at 1.

    Reward 1 for the right one and -1 for the other. Q(s, 0) = -s, Q(s, 1) = s; the best return is 1.
    Fails where the policy does not look at the observation.
    """

    num_actions = 2

    def reward(self, action: int) -> float:
        return self.value * (2.0 * action - 1.0)


class RememberedChoice(ChoiceFromObs):
    """As ChoiceFromObs, but the observation is 0 at the second and third step, and the action at the third counts.

    The best return is 1 with a memory, and 0 without one. Fails where the memory does not reach back to the first step,
    or where one episode's memory reaches into the next.
    """

    num_steps = 3

    def first_value(self) -> float:
        self.cue = super().first_value()
        return self.cue

    def next_value(self) -> float:
        return 0.0

    def reward(self, action: int) -> float:
        return self.cue * (2.0 * action - 1.0) if self.steps == self.num_steps - 1 else 0.0


class TimeLimit(Probe):
    """One action, reward 1 for ever, cut by a time limit that the observation does not show. V = 1 / (1 - γ).

    Fails where a time limit counts as the end of the task: V is then at most the number of steps, TIME_LIMIT.
    """

    num_steps = -1


class BarredChoice(DelayedReward):
    """Three actions, two steps, observations 0 then 1. The second step pays -1, 0 and 1, and bars the last half of the
    time, which only the action mask tells. Q(0, .) = γ/2 for all, Q(1, .) = (-1, 0, 1); the mean of the best returns
    is 1/2.

    Fails where a barred choice is taken, which is an error, or counts in the value of the successor: Q(0, .) = γ then.
    """

    num_actions = 3

    def first_value(self) -> float:
        self.bars = bool(self.np_random.random() < 0.5)
        return 0.0

    def reward(self, action: int) -> float:
        if not self.info()[ACTION_MASK_KEY][action]:
            raise RuntimeError(f"action {action} is barred")
        return self.value * (action - 1.0)

    def info(self) -> dict[str, Any]:
        return {ACTION_MASK_KEY: np.array([1, 1, not (self.bars and self.value)], dtype=np.int8)}


PROBES: dict[str, type[Probe]] = {
    f"Probe/{probe.__name__}-v0": probe
    for probe in (
        ConstantReward,
        RewardFromObs,
        DelayedReward,
        Choice,
        ChoiceFromObs,
        RememberedChoice,
        TimeLimit,
        BarredChoice,
    )
}


def register_probes() -> None:
    """Registers every probe with Gymnasium; a second call changes nothing."""
    for env_id, probe in PROBES.items():
        if env_id not in gymnasium.registry:
            max_episode_steps = TIME_LIMIT if probe is TimeLimit else None
            gymnasium.register(env_id, f"{__name__}:{probe.__name__}", max_episode_steps=max_episode_steps)
