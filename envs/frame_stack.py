"""Observations that stack frames, and whether they keep to it.

Axes: E environment · D numbers of an observation · F frames, the oldest first · R numbers of a frame.
"""

import math
from typing import NamedTuple

import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

MAX_FRAMES = 64


class FrameStack(NamedTuple):
    """How a flat observation holds its last frames: F parts of each of so many blocks of its numbers.

    One block: along the first axis. A block for each pixel: along the last. One frame: it is kept whole.
    """

    num_frames: int = 1
    num_blocks: int = 1

    def frames(self, obs: Shaped[Tensor, "*batch D"]) -> Shaped[Tensor, "*batch F R"]:
        """The frames of flat observations, the oldest first."""
        return obs.unflatten(-1, (self.num_blocks, self.num_frames, -1)).transpose(-3, -2).flatten(-2)

    def observations(self, frames: Shaped[Tensor, "*batch F R"]) -> Shaped[Tensor, "*batch D"]:
        """Flat observations of these frames."""
        return frames.unflatten(-1, (self.num_blocks, -1)).transpose(-3, -2).flatten(-3)

    def repeats(self, obs: Float[np.ndarray, "E D"], next_obs: Float[np.ndarray, "E D"]) -> Bool[np.ndarray, " E"]:
        """Whether all frames of next_obs but its newest are frames of obs."""
        return (self.blocks(obs)[:, :, 1:] == self.blocks(next_obs)[:, :, :-1]).all((1, 2, 3))

    def is_moving(self, obs: Float[np.ndarray, "E D"]) -> Bool[np.ndarray, " E"]:
        """Whether the oldest frame differs from the newest."""
        blocks = self.blocks(obs)
        return (blocks[:, :, 0] != blocks[:, :, -1]).any((1, 2))

    def blocks(self, obs: Float[np.ndarray, "E D"]) -> Float[np.ndarray, "E blocks F part"]:
        return obs.reshape(len(obs), self.num_blocks, self.num_frames, -1)


def candidates(space: spaces.Space) -> list[FrameStack]:
    """The ways in which observations of a space could stack frames, those of the most frames first.

    A frame may take several places along the axis, as colours do.
    """
    if not isinstance(space, spaces.Box) or len(space.shape) < 2:
        return []
    lengths = {1: space.shape[0], math.prod(space.shape[:-1]): space.shape[-1]}  # of the axis, by number of blocks
    found = [
        FrameStack(num_frames, num_blocks)
        for num_blocks, length in lengths.items()
        for num_frames in range(2, min(length, MAX_FRAMES) + 1)
        if length % num_frames == 0
    ]
    return sorted(found, key=lambda stack: -stack.num_frames)
