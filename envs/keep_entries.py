"""A wrapper that hides part of an observation."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.errors import UserError


class KeepEntries(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Leaves these entries of a vector alone, as the positions of CartPole-v1 without its velocities: [0, 2]."""

    def __init__(self, env: gymnasium.Env[Any, Any], entries: Sequence[int]) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise UserError(f"KeepEntries: needs a Box of one axis, got {space}")
        wrong = [entry for entry in entries if not 0 <= entry < space.shape[0]]
        if wrong or not entries:
            raise UserError(f"KeepEntries: got entries {list(entries)}, must be among 0 to {space.shape[0] - 1}")
        self.entries = list(entries)
        self.observation_space = spaces.Box(
            space.low[self.entries],
            space.high[self.entries],
            dtype=space.dtype.type,
        )

    def observation(self, observation: Any) -> np.ndarray:
        return np.asarray(observation)[self.entries]
