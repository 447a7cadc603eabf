"""Scripted environments with action masks written down beforehand; an action that they bar is an error.

Observations, rewards and endings are those of `scripted_env`; actions are MultiDiscrete([3, 2]).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from scripted_env import SCRIPTS, Script, ScriptedEnv, ScriptedVectorEnv

ACTION_SPACE = spaces.MultiDiscrete([3, 2])
ALL = [[True, True, True], [True, True, False]]  # padded


def factor_masks(episode: float, step: float) -> tuple[np.ndarray, np.ndarray]:
    """The masks of both factors: no two observations near each other have the same."""
    bits = [1 + (3 * int(episode) + 5 * int(step)) % 7, 1 + (int(episode) + int(step)) % 3]
    return tuple(np.array([number >> i & 1 for i in range(n)], np.int8) for number, n in zip(bits, (3, 2), strict=True))


def padded_mask(episode: float, step: float) -> list[list[bool]]:
    first, second = (mask.astype(bool).tolist() for mask in factor_masks(episode, step))
    return [first, [*second, False]]


class MaskedEnv(ScriptedEnv):
    """Gives its mask as a tuple of arrays, or flat. The mask of a terminal state is all 0.

    With `reuse` it writes every observation and mask into the same arrays.
    """

    def __init__(self, script: Script = SCRIPTS[0], form: str = "tuple", reuse: bool = False) -> None:
        super().__init__(script, reuse_obs=reuse)
        self.action_space, self.form, self.reuse = ACTION_SPACE, form, reuse
        self.masks = (np.zeros(3, np.int8), np.zeros(2, np.int8))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, _ = super().reset(seed=seed, options=options)
        return obs, self.info(terminal=False)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        legal = factor_masks(self.episode, self.num_steps)
        if not all(mask[choice] for mask, choice in zip(legal, action, strict=True)):
            raise RuntimeError(f"{action} is barred by {legal}")
        obs, reward, terminated, truncated, _ = super().step(action)
        return obs, reward, terminated, truncated, self.info(terminal=terminated)

    def info(self, terminal: bool) -> dict[str, Any]:
        if not self.reuse:
            self.masks = (np.zeros(3, np.int8), np.zeros(2, np.int8))
        for kept, mask in zip(self.masks, factor_masks(self.episode, self.num_steps), strict=True):
            kept[:] = 0 if terminal else mask
        return {"action_mask": self.masks if self.form == "tuple" else np.concatenate(self.masks)}


class MaskedVectorEnv(ScriptedVectorEnv):
    """Gives flat masks by the letter of Gymnasium's interface and no further, in arrays that it overwrites."""

    def __init__(self, scripts: Sequence[Script], autoreset_mode: Any) -> None:
        super().__init__(scripts, autoreset_mode)
        self.single_action_space, self.action_space = ACTION_SPACE, batch_space(ACTION_SPACE, self.num_envs)
        self.masks, self.final_masks = np.zeros((2, self.num_envs, 5), np.int8)

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        obs, _ = super().reset(**kwargs)
        return obs, {"action_mask": self.write(self.masks, obs)}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        *values, info = super().step(actions)
        info["action_mask"] = self.write(self.masks, self.obs)
        if self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP:
            info["final_info"] = {"action_mask": self.write(self.final_masks, self.final_obs)}
        return *values, info

    def write(self, masks: np.ndarray, obs: np.ndarray) -> np.ndarray:
        for index, (episode, step) in enumerate(obs):
            masks[index] = np.concatenate(factor_masks(episode, step))
        return masks
