"""MountainCar as tensors, step for step Gymnasium's."""

from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from envs.random_streams import RandomStreams
from envs.tensor.functional import FunctionalEnv
from envs.tensor.functional_gymnasium import FunctionalVectorEnv

MIN_POSITION, MAX_POSITION, MAX_SPEED, GOAL_POSITION = -1.2, 0.6, 0.07, 0.5
FORCE, GRAVITY = 0.001, 0.0025
INITIAL_RANGE = (-0.6, -0.4)


class MountainCar(FunctionalEnv[Tensor]):
    """A car in a valley, too weak to drive straight up: left (action 0), coast (1) or right (2).  Moore 1990.

    State and observation: position, at first uniform in [-0.6, -0.4), and velocity, at first 0. Reward -1 each step.
    Terminates at position 0.5 and beyond, if the velocity is `goal_velocity` at least.
    """

    def __init__(
        self,
        num_envs: int = 1,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        goal_velocity: float = 0,
    ) -> None:
        super().__init__(num_envs, device, dtype)
        low, high = np.array([[MIN_POSITION, -MAX_SPEED], [MAX_POSITION, MAX_SPEED]], dtype=np.float32)
        self.observation_space, self.action_space = spaces.Box(low, high, dtype=np.float32), spaces.Discrete(3)
        self._reward = torch.full((num_envs,), -1.0, device=device)
        self._push = self.constant([-FORCE, 0.0, FORCE])
        self._frequency, self._gravity, self._zero = self.constant(3.0), self.constant(GRAVITY), self.constant(0.0)
        self._min_position, self._goal_position = self.constant(MIN_POSITION), self.constant(GOAL_POSITION)
        self._goal_velocity = self.constant(goal_velocity)

    def initial(self, rng: RandomStreams, params: Any = None) -> Float[Tensor, "E 2"]:
        low, high = INITIAL_RANGE
        position = rng.uniform().mul(high - low).add(low).to(self.dtype)
        return torch.stack((position, torch.zeros_like(position)), dim=1)

    def transition(
        self, state: Float[Tensor, "E 2"], action: Int64[Tensor, " E"], rng: RandomStreams, params: Any = None
    ) -> Float[Tensor, "E 2"]:
        """v += push - 0.0025 cos(3 x), then x += v, both clipped; v = 0 where it points into the left wall."""
        position, velocity = state.unbind(1)
        slope = (self._frequency * position).cos() * self._gravity
        velocity = (velocity + (self._push.index_select(0, action) - slope)).clamp(-MAX_SPEED, MAX_SPEED)
        position = (position + velocity).clamp(MIN_POSITION, MAX_POSITION)
        at_wall = (position <= self._min_position) & (velocity < self._zero)
        return torch.stack((position, velocity.masked_fill(at_wall, 0.0)), dim=1)

    def observation(self, state: Float[Tensor, "E 2"], rng: RandomStreams, params: Any = None) -> Float[Tensor, "E 2"]:
        return state

    def reward(
        self,
        state: Float[Tensor, "E 2"],
        action: Int64[Tensor, " E"],
        next_state: Float[Tensor, "E 2"],
        rng: RandomStreams,
        params: Any = None,
    ) -> Float32[Tensor, " E"]:
        return self._reward

    def terminal(self, state: Float[Tensor, "E 2"], rng: RandomStreams, params: Any = None) -> Bool[Tensor, " E"]:
        position, velocity = state.unbind(1)
        return (position >= self._goal_position) & (velocity >= self._goal_velocity)


class MountainCarVectorEnv(FunctionalVectorEnv):
    def __init__(self, num_envs: int = 1, max_episode_steps: int | None = None, goal_velocity: float = 0) -> None:
        super().__init__(partial(MountainCar, goal_velocity=goal_velocity), num_envs, max_episode_steps)
