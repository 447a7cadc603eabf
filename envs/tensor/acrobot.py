"""Acrobot as tensors, step for step Gymnasium's."""

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from envs.random_streams import RandomStreams
from envs.tensor.functional import FunctionalEnv
from envs.tensor.functional_gymnasium import FunctionalVectorEnv

GRAVITY, SECONDS = 9.8, 0.2
MAX_SPEED_1, MAX_SPEED_2 = 4 * math.pi, 9 * math.pi
INITIAL_RANGE = 0.1


class Acrobot(FunctionalEnv[Tensor]):
    """Two links, the joint between them driven with torque -1, 0 or 1 (actions 0, 1, 2).  Sutton 1996.

    State: angle of the first link (0: straight down), angle of the second relative to it, both angular velocities; at
    first each uniform in [-0.1, 0.1). Observation: cosine and sine of either angle, then the velocities. Terminates
    where the free end is one link's length above the fixed one. Reward -1 each step, 0 for the one that terminates.
    """

    def __init__(
        self, num_envs: int = 1, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(num_envs, device, dtype)
        high = np.array([1, 1, 1, 1, MAX_SPEED_1, MAX_SPEED_2], dtype=np.float32)
        self.observation_space, self.action_space = spaces.Box(-high, high, dtype=np.float32), spaces.Discrete(3)
        self._torque = self.constant([-1.0, 0.0, 1.0])
        self._half, self._one, self._two = (self.constant(value) for value in (0.5, 1.0, 2.0))
        self._inertia_1, self._inertia_2 = self.constant(3.5), self.constant(1.25)
        self._gravity_1, self._gravity_2 = self.constant(1.5 * GRAVITY), self.constant(0.5 * GRAVITY)
        self._half_step, self._step = self.constant(SECONDS / 2), self.constant(SECONDS)
        self._turn = self.constant(2 * math.pi)

    def initial(self, rng: RandomStreams, params: Any = None) -> Float[Tensor, "E 4"]:
        """Laid out by columns, here and in `transition`, so that each variable lies in one piece."""
        columns = torch.empty(4, self.num_envs, device=self.device, dtype=self.dtype)
        return columns.copy_(rng.uniform(4).T.mul(2 * INITIAL_RANGE).sub(INITIAL_RANGE)).T

    def transition(
        self, state: Float[Tensor, "E 4"], action: Int64[Tensor, " E"], rng: RandomStreams, params: Any = None
    ) -> Float[Tensor, "E 4"]:
        """One step of the classical Runge-Kutta method; then angles are wrapped to [-pi, pi] and velocities clipped."""
        torque, y = self._torque.index_select(0, action), state.T
        k1 = self._derivative(y, torque)
        k2 = self._derivative(torch.addcmul(y, self._half_step, k1), torque)
        k3 = self._derivative(torch.addcmul(y, self._half_step, k2), torque)
        k4 = self._derivative(torch.addcmul(y, self._step, k3), torque)
        y = y.add(k1 + self._two * (k2 + k3) + k4, alpha=SECONDS / 6)
        angles = y[:2] - self._turn * (y[:2] / self._turn).round()
        speeds = y[2].clamp(-MAX_SPEED_1, MAX_SPEED_1), y[3].clamp(-MAX_SPEED_2, MAX_SPEED_2)
        return torch.stack((*angles.unbind(), *speeds)).T

    def observation(self, state: Float[Tensor, "E 4"], rng: RandomStreams, params: Any = None) -> Float[Tensor, "E 6"]:
        cos, sin = state.cos(), state.sin()
        return torch.stack((cos[:, 0], sin[:, 0], cos[:, 1], sin[:, 1], state[:, 2], state[:, 3]), dim=1)

    def reward(
        self,
        state: Float[Tensor, "E 4"],
        action: Int64[Tensor, " E"],
        next_state: Float[Tensor, "E 4"],
        rng: RandomStreams,
        params: Any = None,
    ) -> Float32[Tensor, " E"]:
        return self.terminal(next_state, rng).to(torch.float32) - 1.0

    def terminal(self, state: Float[Tensor, "E 4"], rng: RandomStreams, params: Any = None) -> Bool[Tensor, " E"]:
        theta_1, theta_2, _, _ = state.unbind(1)
        return -theta_1.cos() - (theta_2 + theta_1).cos() > self._one

    def _derivative(self, y: Float[Tensor, "4 E"], torque: Float[Tensor, " E"]) -> Float[Tensor, "4 E"]:
        """The equations of the book (Sutton and Barto 2018, sec. 11.3 of the first edition), for links of mass, length
        and moment of inertia 1, with their centres of mass in the middle:

        d1   = 3.5 + cos(t2)            d2 = 1.25 + cos(t2) / 2
        phi2 = g / 2 sin(t1 + t2)       phi1 = -sin(t2) / 2 t2' (t2' + 2 t1') + 3 g / 2 sin(t1) + phi2
        t2"  = (torque + d2 / d1 phi1 - sin(t2) / 2 t1'^2 - phi2) / (1.25 - d2^2 / d1)
        t1"  = -(d2 t2" + phi1) / d1
        """
        t1, t2, v1, v2 = y.unbind()
        half_sin, cos = self._half * t2.sin(), t2.cos()
        d1, d2 = self._inertia_1 + cos, torch.addcmul(self._inertia_2, self._half, cos)
        phi2 = self._gravity_2 * (t1 + t2).sin()
        phi1 = torch.addcmul(phi2, self._gravity_1, t1.sin()) - half_sin * v2 * torch.addcmul(v2, self._two, v1)
        ratio = d2 / d1
        acc2 = (torque + ratio * phi1 - half_sin * v1.square() - phi2) / (self._inertia_2 - ratio * d2)
        acc1 = -torch.addcmul(phi1, d2, acc2) / d1
        return torch.stack((v1, v2, acc1, acc2))


class AcrobotVectorEnv(FunctionalVectorEnv):
    def __init__(self, num_envs: int = 1, max_episode_steps: int | None = None) -> None:
        super().__init__(Acrobot, num_envs, max_episode_steps)
