"""FrozenLake as tensors, with the transition table of Gymnasium's own."""

from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from envs.random_streams import RandomStreams
from envs.tensor.functional import FunctionalEnv
from envs.tensor.functional_gymnasium import FunctionalVectorEnv

NUM_ACTIONS, NUM_OUTCOMES = 4, 3


class FrozenLake(FunctionalEnv[Tensor]):
    """A walk over a frozen lake from S to G, where only a `success_rate` of the steps goes where it is meant to.

    State and observation: the tile, row by row. Actions: left, down, right, up. Where the ice `is_slippery`, the other
    steps go at right angles to the action, to either side alike. Terminates on G and on a hole, H. Rewards for
    reaching G, a hole, or any other tile: `reward_schedule`. `desc` draws a lake of its own instead of `map_name`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        device: str | torch.device = "cpu",
        desc: list[str] | None = None,
        map_name: str = "4x4",
        is_slippery: bool = True,
        success_rate: float = 1 / 3,
        reward_schedule: tuple[int, int, int] = (1, 0, 0),
    ) -> None:
        super().__init__(num_envs, device)
        lake = FrozenLakeEnv(None, desc, map_name, is_slippery, success_rate, reward_schedule)
        num_tiles = lake.nrow * lake.ncol
        self.observation_space, self.action_space = spaces.Discrete(num_tiles), spaces.Discrete(NUM_ACTIONS)
        shape = num_tiles * NUM_ACTIONS, NUM_OUTCOMES
        probability, next_tile = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.int64)
        for tile, actions in lake.P.items():
            for action, outcomes in actions.items():
                for i, (p, successor, _, _) in enumerate(outcomes):
                    row = tile * NUM_ACTIONS + action
                    probability[row, i], next_tile[row, i] = p, successor
        self._first, self._second, _ = probability.cumsum(1).T.contiguous().to(self.device)
        self._next_tile = next_tile.flatten().to(self.device)
        tiles: np.ndarray = np.ravel(lake.desc)
        self._ends = torch.from_numpy((tiles == b"G") | (tiles == b"H")).to(self.device)
        goal, hole, frozen = reward_schedule
        self._reward = self.constant([{b"G": goal, b"H": hole}.get(tile, frozen) for tile in tiles.tolist()])
        self._starts = torch.from_numpy(np.flatnonzero(tiles == b"S")).to(self.device)

    def initial(self, rng: RandomStreams, params: Any = None) -> Int64[Tensor, " E"]:
        """Any of the tiles S."""
        return self._starts[rng.integers(len(self._starts))]

    def transition(
        self, state: Int64[Tensor, " E"], action: Int64[Tensor, " E"], rng: RandomStreams, params: Any = None
    ) -> Int64[Tensor, " E"]:
        row = state * NUM_ACTIONS + action
        uniform = rng.uniform()
        outcome = (uniform >= self._first[row]).to(torch.int64) + (uniform >= self._second[row])
        return self._next_tile[row * NUM_OUTCOMES + outcome]

    def observation(self, state: Int64[Tensor, " E"], rng: RandomStreams, params: Any = None) -> Int64[Tensor, " E"]:
        return state

    def reward(
        self,
        state: Int64[Tensor, " E"],
        action: Int64[Tensor, " E"],
        next_state: Int64[Tensor, " E"],
        rng: RandomStreams,
        params: Any = None,
    ) -> Float32[Tensor, " E"]:
        return self._reward[next_state].masked_fill(self._ends[state], 0.0)

    def terminal(self, state: Int64[Tensor, " E"], rng: RandomStreams, params: Any = None) -> Bool[Tensor, " E"]:
        return self._ends[state]


class FrozenLakeVectorEnv(FunctionalVectorEnv):
    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        desc: list[str] | None = None,
        map_name: str = "4x4",
        is_slippery: bool = True,
        success_rate: float = 1 / 3,
        reward_schedule: tuple[int, int, int] = (1, 0, 0),
    ) -> None:
        make_functional = partial(
            FrozenLake,
            desc=desc,
            map_name=map_name,
            is_slippery=is_slippery,
            success_rate=success_rate,
            reward_schedule=reward_schedule,
        )
        super().__init__(make_functional, num_envs, max_episode_steps)
