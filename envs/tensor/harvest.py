"""Harvest, a small game on a grid of binary pixels."""

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float32, Float64, Int8, Int64
from torch import Tensor

from envs.random_streams import RandomStreams
from envs.tensor.functional import FunctionalEnv
from envs.tensor.functional_gymnasium import FunctionalSingleEnv, FunctionalVectorEnv

SIZE, NUM_FRUITS, NUM_HUNTERS = 10, 4, 2
NUM_CELLS = SIZE * SIZE
MOVES = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # stay, up, down, left, right
CENTRE = (44, 45, 54, 55)  # the inner cells of the four quadrants
PIXELS = 24  # of a cell's edge, in a frame
COLOURS = ((70, 130, 220), (80, 180, 90), (200, 60, 50))  # player, fruit, hunters
BACKGROUND, SEAM = (245, 240, 230), (225, 218, 205)


class HarvestState(NamedTuple):
    """player: row and column. fruits: cells, 10 * row + column. hunters: row and column of each."""

    player: Int64[Tensor, "E 2"]
    fruits: Int64[Tensor, "E 4"]
    hunters: Int64[Tensor, "E 2 2"]


class Harvest(FunctionalEnv[HarvestState]):
    """A player gathers fruit that grows again while two hunters are after it.

    The grid has 10 x 10 cells, rows from the top. Observation: three planes of bits with the player, the fruit, the
    hunters. Actions: 0 stay, 1 up, 2 down, 3 left, 4 right. Who would leave the grid stays where it is.

    At first the player is in one of the four cells in the middle, the hunters in the corners (0, 0) and (9, 9), and
    one fruit in each quadrant, in any of its 23 cells that are neither in the middle nor a corner of the grid. All
    that is drawn is drawn uniformly. A step, in this order:

    1. The player moves. If it comes to a fruit, it eats it: reward 1.
    2. Each hunter that is not in the player's cell moves by one cell: with probability 1/2 towards the player, along
       the axis on which it is farther away, the vertical one if both are equal; else up, down, left or right at random.
       Hunters pass over fruit and each other.
    3. A fruit that was eaten grows again in a cell that has neither player, fruit nor hunter.
    4. If a hunter is in the player's cell, the player is caught: reward -1, and the episode terminates.

    Eaten and caught in one step is a reward of 0. Registered with a time limit of 200 steps.
    """

    def __init__(self, num_envs: int = 1, device: str | torch.device = "cpu") -> None:
        super().__init__(num_envs, device)
        self.observation_space, self.action_space = spaces.MultiBinary((3, SIZE, SIZE)), spaces.Discrete(len(MOVES))
        self._moves = torch.tensor(MOVES, device=self.device)
        self._centre = torch.tensor(CENTRE, device=self.device)
        self._corners = torch.tensor([[0, 0], [SIZE - 1, SIZE - 1]], device=self.device)
        self._quadrants = torch.tensor(_quadrants(), device=self.device)
        self._quadrant = torch.arange(NUM_FRUITS, device=self.device)
        self._plane = torch.tensor([0] + [1] * NUM_FRUITS + [2] * NUM_HUNTERS, device=self.device) * NUM_CELLS

    def initial(self, rng: RandomStreams, params: Any = None) -> HarvestState:
        start = self._centre[rng.integers(len(CENTRE))]
        fruits = self._quadrants[self._quadrant, rng.integers(self._quadrants.shape[1], NUM_FRUITS)]
        hunters = self._corners.expand(self.num_envs, NUM_HUNTERS, 2).clone()
        return HarvestState(torch.stack((start // SIZE, start % SIZE), dim=1), fruits, hunters)

    def transition(
        self, state: HarvestState, action: Int64[Tensor, " E"], rng: RandomStreams, params: Any = None
    ) -> HarvestState:
        uniform = rng.uniform(1 + NUM_HUNTERS)
        player = (state.player + self._moves[action]).clamp(0, SIZE - 1)
        hunters = self._hunt(state.hunters, player, uniform[:, 1:])
        eaten = state.fruits == _cell(player).unsqueeze(1)
        cells = torch.cat((_cell(player).unsqueeze(1), state.fruits, _cell(hunters)), dim=1)
        fruits = torch.where(eaten, _free_cell(cells, uniform[:, :1]), state.fruits)
        return HarvestState(player, fruits, hunters)

    def observation(self, state: HarvestState, rng: RandomStreams, params: Any = None) -> Int8[Tensor, "E 3 10 10"]:
        return self._bits(state)

    def reward(
        self,
        state: HarvestState,
        action: Int64[Tensor, " E"],
        next_state: HarvestState,
        rng: RandomStreams,
        params: Any = None,
    ) -> Float32[Tensor, " E"]:
        eaten = (state.fruits == _cell(next_state.player).unsqueeze(1)).any(1)
        return eaten.to(torch.float32) - self.terminal(next_state, rng).to(torch.float32)

    def terminal(self, state: HarvestState, rng: RandomStreams, params: Any = None) -> Bool[Tensor, " E"]:
        return (_cell(state.hunters) == _cell(state.player).unsqueeze(1)).any(1)

    def render_image(self, state: HarvestState, render_state: None, params: Any = None) -> tuple[None, np.ndarray]:
        """A frame of the first environment."""
        planes = self._bits(state)[0].numpy(force=True)
        cells = np.full((SIZE, SIZE, 3), BACKGROUND, dtype=np.uint8)
        for plane in (1, 0, 2):  # a hunter hides what it stands on
            cells[planes[plane] == 1] = COLOURS[plane]
        frame = cells.repeat(PIXELS, axis=0).repeat(PIXELS, axis=1)
        frame[::PIXELS], frame[:, ::PIXELS] = SEAM, SEAM
        return None, frame

    def _bits(self, state: HarvestState) -> Int8[Tensor, "E 3 10 10"]:
        cells = torch.cat((_cell(state.player).unsqueeze(1), state.fruits, _cell(state.hunters)), dim=1)
        bits = torch.zeros(self.num_envs, 3 * NUM_CELLS, dtype=torch.int8, device=self.device)
        return bits.scatter_(1, cells + self._plane, 1).view(-1, 3, SIZE, SIZE)

    def _hunt(
        self, hunters: Int64[Tensor, "E 2 2"], player: Int64[Tensor, "E 2"], uniform: Float64[Tensor, "E 2"]
    ) -> Int64[Tensor, "E 2 2"]:
        """Rule 2. A number below 1/2 is a step towards the player, the four eighths above it are the random moves."""
        away = player.unsqueeze(1) - hunters
        rows, columns = away.abs().unbind(-1)
        axis = torch.stack((rows >= columns, rows < columns), dim=-1)
        random = self._moves[((uniform - 0.5) * 8).to(torch.int64).clamp(0, 3) + 1]
        move = torch.where((uniform < 0.5).unsqueeze(-1), away.sign() * axis, random)
        apart = (rows + columns > 0).unsqueeze(-1)
        return (hunters + move * apart).clamp(0, SIZE - 1)


class HarvestVectorEnv(FunctionalVectorEnv):
    def __init__(self, num_envs: int = 1, max_episode_steps: int | None = None) -> None:
        super().__init__(Harvest, num_envs, max_episode_steps)


class HarvestEnv(FunctionalSingleEnv):
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 6}

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(Harvest(), render_mode)


def _cell(position: Int64[Tensor, "*batch 2"]) -> Int64[Tensor, "*batch"]:
    return position[..., 0] * SIZE + position[..., 1]


def _free_cell(taken: Int64[Tensor, "E N"], uniform: Float64[Tensor, "E 1"]) -> Int64[Tensor, "E 1"]:
    """A cell that is not taken, each with the same probability: the k-th free one, where k is drawn."""
    free = torch.ones(len(taken), NUM_CELLS, dtype=torch.bool, device=taken.device).scatter_(1, taken, False)
    number = free.cumsum(1, dtype=torch.int32)  # of the free cell, from 1
    k = (uniform * number[:, -1:]).to(torch.int32)
    return torch.searchsorted(number, k, right=True)


def _quadrants() -> list[list[int]]:
    """The cells of each quadrant in which a fruit may be at first."""
    half, barred = SIZE // 2, {*CENTRE, 0, SIZE - 1, NUM_CELLS - SIZE, NUM_CELLS - 1}
    cells = [(row, column) for row in range(SIZE) for column in range(SIZE) if row * SIZE + column not in barred]
    return [
        [row * SIZE + column for row, column in cells if (row // half, column // half) == quadrant]
        for quadrant in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
