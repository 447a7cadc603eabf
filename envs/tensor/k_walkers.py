"""KWalkers: several walkers on a grid who must all come home, with nothing to tell them how near they are."""

from functools import partial
from typing import Any

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from envs.random_streams import RandomStreams
from envs.tensor.functional import FunctionalEnv, check_counts
from envs.tensor.functional_gymnasium import FunctionalSingleEnv, FunctionalVectorEnv

MOVES = ((0, 0), (-1, 0), (0, 1), (1, 0), (0, -1))  # stay, up, right, down, left


class KWalkers(FunctionalEnv[Tensor]):
    """K = `num_walkers` on a grid of `size` x `size` cells, each moved by one factor: 5^K joint actions.

    State: row, from the top, and column of each walker. Observation: the same, MultiDiscrete. Actions: 0 stay, 1 up,
    2 right, 3 down, 4 left. Who would leave the grid stays where it is, and who is home stays there for good; several
    may be in one cell. Home is one cell for all, (size // 2, size // 2); each starts in any other cell, uniformly and
    independently. Reward -1 each step; terminates when all are home. Registered with a time limit of 200 steps.

    From a start, the largest return is minus the largest Manhattan distance between a walker and home.
    """

    def __init__(
        self, num_envs: int = 1, device: str | torch.device = "cpu", num_walkers: int = 4, size: int = 7
    ) -> None:
        super().__init__(num_envs, device)
        check_counts(num_walkers=(num_walkers, 1), size=(size, 2))
        self.num_walkers, self.size = num_walkers, size
        self.observation_space = spaces.MultiDiscrete([size] * (2 * num_walkers))
        self.action_space = spaces.MultiDiscrete([len(MOVES)] * num_walkers)
        self._moves = torch.tensor(MOVES, device=self.device)
        self._home = torch.tensor([size // 2] * 2, device=self.device)
        cells = torch.cartesian_prod(*[torch.arange(size, device=self.device)] * 2)
        self._starts = cells[self._distance(cells) > 0]
        self._reward = torch.full((num_envs,), -1.0, device=self.device)

    def optimum(self) -> float:
        """The largest expected return, over the starts.

        With F(d) the share of the starting cells within a distance d from home, and K independent walkers,

            E[max distance] = sum_{d >= 0} P(max distance > d) = sum_{d >= 0} (1 - F(d)^K)
        """
        share = self._distance(self._starts).bincount().double() / len(self._starts)
        return -(1 - share.cumsum(0) ** self.num_walkers).sum().item()

    def optimum_from(self, state: Int64[Tensor, "*batch K 2"]) -> Float32[Tensor, "*batch"]:
        """The largest return from each state."""
        return -self._distance(state).amax(-1).to(torch.float32)

    def initial(self, rng: RandomStreams, params: Any = None) -> Int64[Tensor, "E K 2"]:
        return self._starts[rng.integers(len(self._starts), self.num_walkers)]

    def transition(
        self, state: Int64[Tensor, "E K 2"], action: Int64[Tensor, "E K"], rng: RandomStreams, params: Any = None
    ) -> Int64[Tensor, "E K 2"]:
        away = (state != self._home).any(-1, keepdim=True)
        return (state + self._moves[action] * away).clamp(0, self.size - 1)

    def observation(
        self, state: Int64[Tensor, "E K 2"], rng: RandomStreams, params: Any = None
    ) -> Int64[Tensor, "E D"]:
        return state.flatten(1)

    def reward(
        self,
        state: Int64[Tensor, "E K 2"],
        action: Int64[Tensor, "E K"],
        next_state: Int64[Tensor, "E K 2"],
        rng: RandomStreams,
        params: Any = None,
    ) -> Float32[Tensor, " E"]:
        return self._reward

    def terminal(self, state: Int64[Tensor, "E K 2"], rng: RandomStreams, params: Any = None) -> Bool[Tensor, " E"]:
        return (state == self._home).flatten(1).all(1)

    def _distance(self, position: Int64[Tensor, "*batch 2"]) -> Int64[Tensor, "*batch"]:
        return (position - self._home).abs().sum(-1)


class KWalkersVectorEnv(FunctionalVectorEnv):
    def __init__(
        self, num_envs: int = 1, max_episode_steps: int | None = None, num_walkers: int = 4, size: int = 7
    ) -> None:
        super().__init__(partial(KWalkers, num_walkers=num_walkers, size=size), num_envs, max_episode_steps)


class KWalkersEnv(FunctionalSingleEnv):
    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, num_walkers: int = 4, size: int = 7) -> None:
        super().__init__(KWalkers(num_walkers=num_walkers, size=size))
