"""Observations that stack frames: found by looking at what an environment returns, and checked at every step.

Axes: E environment · D numbers of an observation · F frames, the oldest first.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Int64
from torch import Tensor

from envs.random_streams import RandomStreams

if TYPE_CHECKING:
    from envs.vector_environment import VectorEnvironment

MAX_FRAMES = 64
PROBE_STEPS = 64
MIN_CHANGES = 4  # steps that must have changed something in the stack: frames that never change prove nothing


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


def find_frame_stack(env: "VectorEnvironment", seeds: Sequence[int]) -> FrameStack | None:
    """How the environments' observations stack frames, from some steps with random actions; None where they do not.

    Args:
        seeds: of the members. The environments are somewhere in an episode afterwards: reset them.
    """
    left = [(stack, 0) for stack in candidates(env.observations.space)]
    if not left or env.is_tensor_program:
        return None
    obs, streams = env.reset(seeds).cpu().numpy().copy(), RandomStreams(seeds)
    for _ in range(PROBE_STEPS):
        step = env.step(random_actions(env, streams).to(env.device))
        next_obs, valid = step.next_obs.cpu().numpy(), step.valid.cpu().numpy()
        left = [
            (stack, num_changes + bool((stack.frames(next_obs)[:, 0] != stack.frames(next_obs)[:, -1]).any()))
            for stack, num_changes in left
            if stack.repeats(obs, next_obs)[valid].all()
        ]
        obs = step.obs.cpu().numpy().copy()
    return next((stack for stack, num_changes in left if num_changes >= MIN_CHANGES), None)


def random_actions(env: "VectorEnvironment", streams: RandomStreams) -> Int64[Tensor, "E K"]:
    """Uniform over the legal choices of each factor."""
    counts = torch.tensor(env.actions.num_choices)
    legal = (torch.arange(int(counts.max())) < counts.unsqueeze(-1)).expand(env.num_envs, -1, -1)
    if env.masks is not None:
        legal = env.masks.obs.cpu()
    uniform = streams.uniform(env.num_envs // env.num_members, *legal.shape[1:]).flatten(0, 1)
    return torch.where(legal, uniform, -1.0).argmax(-1)
