"""CartPole as tensors, step for step Gymnasium's."""

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from envs.random_streams import RandomStreams
from envs.tensor.functional import FunctionalEnv
from envs.tensor.functional_gymnasium import FunctionalVectorEnv

POLE_MASS, TOTAL_MASS, HALF_LENGTH = 0.1, 1.1, 0.5
GRAVITY, FORCE, SECONDS = 9.8, 10.0, 0.02
MAX_POSITION, MAX_ANGLE = 2.4, math.radians(12)
INITIAL_RANGE = 0.05


class CartPole(FunctionalEnv[Tensor]):
    """A pole on a cart, pushed left (action 0) or right (1) so that it stays upright.  Barto, Sutton, Anderson 1983.

    State and observation: position, velocity, angle, angular velocity; at first each uniform in [-0.05, 0.05). One
    Euler step of 0.02 s. Terminates where |position| > 2.4 or |angle| > 12 degrees. Reward 1 each step; with
    `sutton_barto_reward` 0, and -1 where it terminates.
    """

    def __init__(
        self,
        num_envs: int = 1,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        sutton_barto_reward: bool = False,
    ) -> None:
        super().__init__(num_envs, device, dtype)
        high = np.array([2 * MAX_POSITION, np.inf, 2 * MAX_ANGLE, np.inf], dtype=np.float32)
        self.observation_space, self.action_space = spaces.Box(-high, high, dtype=np.float32), spaces.Discrete(2)
        self.sutton_barto_reward = sutton_barto_reward
        self._force = self.constant([-FORCE / TOTAL_MASS, FORCE / TOTAL_MASS])
        coupling = POLE_MASS * HALF_LENGTH / TOTAL_MASS
        self._coupling, self._minus_coupling = self.constant(coupling), self.constant(-coupling)
        self._reward = torch.ones(num_envs, device=device)
        self._gravity, self._inertia = self.constant(GRAVITY), self.constant(HALF_LENGTH * 4 / 3)
        self._max_position, self._max_angle = self.constant(MAX_POSITION), self.constant(MAX_ANGLE)

    def initial(self, rng: RandomStreams, params: Any = None) -> Float[Tensor, "E 4"]:
        return self.initial_from(rng.uniform(4))

    def initial_from(self, uniform: Float64[Tensor, "E 4"]) -> Float[Tensor, "E 4"]:
        """The initial states that numbers from [0, 1) stand for.

        Laid out by columns, here and in `transition`, so that each variable lies in one piece.
        """
        columns = torch.empty(4, self.num_envs, device=self.device, dtype=self.dtype)
        return columns.copy_(uniform.T.mul(2 * INITIAL_RANGE).sub(INITIAL_RANGE)).T

    def transition(
        self, state: Float[Tensor, "E 4"], action: Int64[Tensor, " E"], rng: RandomStreams, params: Any = None
    ) -> Float[Tensor, "E 4"]:
        """One Euler step, with c = m l / M and f the force over M:

        push   = f + c sin(theta) theta'^2
        theta" = (g sin(theta) - cos(theta) push) / (4 l / 3 - c cos(theta)^2)
        x"     = push - c cos(theta) theta"
        """
        _, x_dot, theta, theta_dot = state.unbind(1)
        sin, cos = theta.sin(), theta.cos()
        negative = self._minus_coupling * cos
        push = torch.addcmul(self._force.index_select(0, action), self._coupling * sin, theta_dot.square())
        theta_acc = (self._gravity * sin - cos * push) / torch.addcmul(self._inertia, negative, cos)
        x_acc = torch.addcmul(push, negative, theta_acc)
        return state.add(torch.stack((x_dot, x_acc, theta_dot, theta_acc)).T, alpha=SECONDS)

    def observation(self, state: Float[Tensor, "E 4"], rng: RandomStreams, params: Any = None) -> Float[Tensor, "E 4"]:
        return state.contiguous()

    def reward(
        self,
        state: Float[Tensor, "E 4"],
        action: Int64[Tensor, " E"],
        next_state: Float[Tensor, "E 4"],
        rng: RandomStreams,
        params: Any = None,
    ) -> Float32[Tensor, " E"]:
        if self.sutton_barto_reward:
            return -self.terminal(next_state, rng).to(torch.float32)
        return self._reward

    def terminal(self, state: Float[Tensor, "E 4"], rng: RandomStreams, params: Any = None) -> Bool[Tensor, " E"]:
        x, _, theta, _ = state.unbind(1)
        return (x.abs() > self._max_position) | (theta.abs() > self._max_angle)


class CartPoleVectorEnv(FunctionalVectorEnv):
    def __init__(
        self, num_envs: int = 1, max_episode_steps: int | None = None, sutton_barto_reward: bool = False
    ) -> None:
        super().__init__(partial(CartPole, sutton_barto_reward=sutton_barto_reward), num_envs, max_episode_steps)
