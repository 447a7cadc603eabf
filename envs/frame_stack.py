"""Observations that stack frames, and whether they keep to it.

Axes: E environment · D numbers of an observation · F frames, the oldest first.
"""

from typing import NamedTuple

import numpy as np
from gymnasium import spaces
from jaxtyping import Float

MAX_FRAMES = 64


class FrameStack(NamedTuple):
    """A Box observation that holds the last frames along its first or its last axis."""

    num_frames: int
    frame_major: tuple[int, ...]  # for each number of the frames one after the other, its place in the observation

    def frames(self, obs: Float[np.ndarray, "E D"]) -> Float[np.ndarray, "E F R"]:
        """The frames of flat observations, the oldest first."""
        return obs[:, self.frame_major].reshape(len(obs), self.num_frames, -1)

    def repeats(self, obs: Float[np.ndarray, "E D"], next_obs: Float[np.ndarray, "E D"]) -> np.ndarray:
        """Whether all frames of next_obs but its newest are frames of obs, [E]."""
        return (self.frames(obs)[:, 1:] == self.frames(next_obs)[:, :-1]).all((1, 2))


def candidates(space: spaces.Space) -> list[FrameStack]:
    """The ways in which observations of a space could stack frames."""
    if not isinstance(space, spaces.Box) or len(space.shape) < 2:
        return []
    places, found = np.arange(np.prod(space.shape)).reshape(space.shape), []
    for axis in (0, -1):
        if 2 <= space.shape[axis] <= MAX_FRAMES:
            order = np.moveaxis(places, axis, 0).ravel()
            found.append(FrameStack(space.shape[axis], tuple(order.tolist())))
    return found
