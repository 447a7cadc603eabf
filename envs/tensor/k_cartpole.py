"""KCartPole: several carts with a pole, balanced by one agent."""

from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from envs.random_streams import RandomStreams
from envs.tensor.cartpole import CartPole
from envs.tensor.functional import FunctionalEnv, check_counts
from envs.tensor.functional_gymnasium import FunctionalSingleEnv, FunctionalVectorEnv

TIME_LIMIT = 500


class KCartPole(FunctionalEnv[Tensor]):
    """K = `num_poles` of CartPole side by side, each pushed left (0) or right (1): 2^K joint actions.

    State: that of each pole. Observation: the K states one after the other, 4 K numbers. Terminates as soon as one of
    them would, so the worst of them decides; reward 1 each step. With one pole it is CartPole. Registered with a time
    limit of 500 steps.
    """

    def __init__(
        self,
        num_envs: int = 1,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        num_poles: int = 4,
    ) -> None:
        super().__init__(num_envs, device, dtype)
        check_counts(num_poles=(num_poles, 1))
        self.num_poles = num_poles
        self._poles = CartPole(num_envs * num_poles, device, dtype)
        assert isinstance(self._poles.observation_space, spaces.Box)
        high = np.tile(self._poles.observation_space.high, num_poles)
        self.observation_space = spaces.Box(-high, high, dtype=np.float32)
        self.action_space = spaces.MultiDiscrete([2] * num_poles)
        self._reward = torch.ones(num_envs, device=device)

    def optimum(self, max_episode_steps: int = TIME_LIMIT) -> float:
        """The largest return: no pole falls before the time limit."""
        return float(max_episode_steps)

    def initial(self, rng: RandomStreams, params: Any = None) -> Float[Tensor, "E K 4"]:
        return self._apart(self._poles.initial_from(rng.uniform(self.num_poles, 4).flatten(0, 1)))

    def transition(
        self, state: Float[Tensor, "E K 4"], action: Int64[Tensor, "E K"], rng: RandomStreams, params: Any = None
    ) -> Float[Tensor, "E K 4"]:
        return self._apart(self._poles.transition(state.flatten(0, 1), action.flatten(), rng))

    def observation(
        self, state: Float[Tensor, "E K 4"], rng: RandomStreams, params: Any = None
    ) -> Float[Tensor, "E D"]:
        return state.flatten(1).contiguous()

    def reward(
        self,
        state: Float[Tensor, "E K 4"],
        action: Int64[Tensor, "E K"],
        next_state: Float[Tensor, "E K 4"],
        rng: RandomStreams,
        params: Any = None,
    ) -> Float32[Tensor, " E"]:
        return self._reward

    def terminal(self, state: Float[Tensor, "E K 4"], rng: RandomStreams, params: Any = None) -> Bool[Tensor, " E"]:
        return self._apart(self._poles.terminal(state.flatten(0, 1), rng)).any(1)

    def _apart(self, of_poles: Tensor) -> Tensor:
        return of_poles.unflatten(0, (self.num_envs, self.num_poles))


class KCartPoleVectorEnv(FunctionalVectorEnv):
    def __init__(self, num_envs: int = 1, max_episode_steps: int | None = None, num_poles: int = 4) -> None:
        super().__init__(partial(KCartPole, num_poles=num_poles), num_envs, max_episode_steps)


class KCartPoleEnv(FunctionalSingleEnv):
    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, num_poles: int = 4) -> None:
        super().__init__(KCartPole(num_poles=num_poles))
