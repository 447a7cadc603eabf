"""Environments in which every observation, reward and ending is written down beforehand.

Episode e, counted from 0 since the environment was made, follows `script[e % len(script)]`. Its observation after t
steps is [e, t]; step t + 1 is rewarded with 100 e + t. Actions change nothing.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from envs.vector_environment import Step

OBSERVATION_SPACE = spaces.Box(0.0, np.inf, (2,), np.float32)
ACTION_SPACE = spaces.Discrete(2)


class Episode(NamedTuple):
    length: int
    terminated: bool
    truncated: bool


class Transition(NamedTuple):
    obs: tuple[float, float]
    reward: float
    terminated: bool
    truncated: bool
    next_obs: tuple[float, float]


Script = Sequence[Episode]
TERMINATED, TRUNCATED, BOTH = (True, False), (False, True), (True, True)
SCRIPTS: tuple[Script, ...] = (
    (Episode(3, *TERMINATED), Episode(1, *TRUNCATED), Episode(1, *TERMINATED), Episode(2, *BOTH)),
    (Episode(1, *TERMINATED), Episode(4, *TRUNCATED)),
    (Episode(3, *TRUNCATED), Episode(2, *TERMINATED)),
)


def kept(step: Step) -> Step:
    """A copy: the next step overwrites what this one gave."""
    return Step(*(values.clone() for values in step))


def scripted_transitions(script: Script) -> Iterator[Transition]:
    """What a learner must see of an environment that follows the script, without end."""
    episode = 0
    while True:
        length, terminated, truncated = script[episode % len(script)]
        for step in range(length):
            last = step + 1 == length
            ending = (terminated and last, truncated and last)
            yield Transition((episode, step), 100 * episode + step, *ending, (episode, step + 1))
        episode += 1


class ScriptedEnv(gymnasium.Env[np.ndarray, np.int64]):
    """Follows one script. With `reuse_obs` it writes every observation into the same array, as many simulators do."""

    def __init__(self, script: Script = SCRIPTS[0], reuse_obs: bool = False) -> None:
        self.observation_space, self.action_space = OBSERVATION_SPACE, ACTION_SPACE
        self.script, self.reuse_obs = script, reuse_obs
        self.episode, self.num_steps = -1, 0
        self._obs = np.zeros(2, dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.num_steps = self.episode + 1, 0
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        length, terminated, truncated = self.script[self.episode % len(self.script)]
        reward = float(100 * self.episode + self.num_steps)
        self.num_steps += 1
        last = self.num_steps == length
        return self._observe(), reward, terminated and last, truncated and last, {}

    def _observe(self) -> np.ndarray:
        self._obs[:] = self.episode, self.num_steps
        return self._obs if self.reuse_obs else self._obs.copy()


class ScriptedVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Follows one script in each environment, by the letter of Gymnasium's interface and no further.

    It overwrites the arrays it returned before, fills filler steps with nonsense, and hands over the last observations
    of SAME_STEP as one batch.
    """

    def __init__(self, scripts: Sequence[Script], autoreset_mode: Any) -> None:
        self.envs = [ScriptedEnv(script, reuse_obs=True) for script in scripts]
        self.num_envs, self.metadata = len(scripts), {"autoreset_mode": autoreset_mode}
        self.single_observation_space, self.single_action_space = OBSERVATION_SPACE, ACTION_SPACE
        self.observation_space = batch_space(OBSERVATION_SPACE, self.num_envs)
        self.action_space = batch_space(ACTION_SPACE, self.num_envs)
        self.obs = np.zeros((self.num_envs, 2), dtype=np.float32)
        self.final_obs = np.zeros((self.num_envs, 2), dtype=np.float32)
        self.reward = np.zeros(self.num_envs)
        self.ended, self.terminated, self.truncated = np.zeros((3, self.num_envs), dtype=np.bool_)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        for index in np.flatnonzero((options or {}).get("reset_mask", np.ones(self.num_envs, dtype=np.bool_))):
            self.obs[index], _ = self.envs[index].reset()
            self.ended[index] = False
        return self.obs, {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        assert self.action_space.contains(actions)
        mode = self.metadata["autoreset_mode"]
        for index, env in enumerate(self.envs):
            if self.ended[index]:
                assert mode is AutoresetMode.NEXT_STEP, "an environment that ended was stepped"
                self.obs[index], _ = env.reset()
                self.reward[index], self.terminated[index], self.truncated[index] = np.nan, True, True
                self.ended[index] = False
                continue
            step = env.step(actions[index])
            self.obs[index], self.reward[index], self.terminated[index], self.truncated[index], _ = step
            self.ended[index] = self.terminated[index] or self.truncated[index]
            if self.ended[index] and mode is AutoresetMode.SAME_STEP:
                self.final_obs[index] = self.obs[index]
                self.obs[index], _ = env.reset()
                self.ended[index] = False
        info = {"final_obs": self.final_obs} if mode is AutoresetMode.SAME_STEP else {}
        return self.obs, self.reward, self.terminated, self.truncated, info
