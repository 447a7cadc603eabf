"""Harvest is the game that its docstring describes, checked against a second writing of it in plain Python."""

import math
from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from envs import RandomStreams, TensorEnv
from envs.tensor.harvest import COLOURS, PIXELS, Harvest, HarvestState, _free_cell

STEPS = {0: (0, 0), 1: (-1, 0), 2: (1, 0), 3: (0, -1), 4: (0, 1)}
Cell = tuple[int, int]


def walk(start: Cell, step: Cell) -> Cell:
    target = start[0] + step[0], start[1] + step[1]
    return (min(9, max(0, target[0])), min(9, max(0, target[1])))


def towards(hunter: Cell, player: Cell) -> Cell:
    down, right = player[0] - hunter[0], player[1] - hunter[1]
    if abs(down) >= abs(right):
        return (1 if down > 0 else -1, 0)
    return (0, 1 if right > 0 else -1)


def play(
    player: Cell, fruits: list[Cell], hunters: list[Cell], action: int, uniform: np.ndarray
) -> tuple[Cell, list[Cell], list[Cell], float, bool]:
    """One step by the docstring's rules; `uniform` has the numbers drawn for the fruit and for each hunter."""
    player = walk(player, STEPS[action])
    moved = []
    for hunter, u in zip(hunters, uniform[1:], strict=True):
        if hunter != player:
            hunter = walk(hunter, towards(hunter, player) if u < 0.5 else STEPS[1 + int((u - 0.5) * 8)])
        moved.append(hunter)
    caught, reward = player in moved, 0.0
    if player in fruits:
        taken = {player, *fruits, *moved}
        free = [(row, column) for row in range(10) for column in range(10) if (row, column) not in taken]
        fruits = [free[int(uniform[0] * len(free))] if fruit == player else fruit for fruit in fruits]
        reward += 1
    return player, fruits, moved, reward - caught, caught


def cells(positions: Tensor) -> list[Cell]:
    return [(int(row), int(column)) for row, column in positions.tolist()]


def cells_of(numbers: Tensor) -> list[Cell]:
    return [divmod(int(number), 10) for number in numbers.tolist()]


def state_of(player: Cell, fruits: list[Cell], hunters: list[Cell]) -> HarvestState:
    return HarvestState(
        torch.tensor([player]), torch.tensor([[10 * row + column for row, column in fruits]]), torch.tensor([hunters])
    )


CORNERS: list[Cell] = [(0, 0), (9, 9)]
FRUITS: list[Cell] = [(0, 5), (1, 5), (8, 8), (5, 1)]


def one_step(state: HarvestState, action: int, count: int = 1) -> tuple[HarvestState, Tensor, Tensor]:
    """The same step `count` times over, with different random numbers."""
    env, rng = Harvest(count), RandomStreams(range(count))
    many = HarvestState(*(x.expand(count, *x.shape[1:]) for x in state))
    actions = torch.full((count,), action)
    successor = env.transition(many, actions, rng)
    return successor, env.reward(many, actions, successor, rng), env.terminal(successor, rng)


@pytest.mark.slow
def test_steps_are_those_of_the_plain_python_game() -> None:
    num_envs, env = 40, TensorEnv(Harvest(40), max_episode_steps=200)
    functional, rng = env.env, env.streams
    env.reset([0])
    actions = torch.randint(5, (400, num_envs, 1), generator=Generator().manual_seed(0))
    seen: dict[float, int] = {}
    for action in actions:
        before = HarvestState(*(x.clone() for x in env.env_state))
        uniform = deepcopy(rng).uniform(3).numpy()
        successor = functional.transition(before, action[:, 0], deepcopy(rng))
        step = env.step(action)
        for i in range(num_envs):
            expected = play(
                cells(before.player[i : i + 1])[0],
                cells_of(before.fruits[i]),
                cells(before.hunters[i]),
                int(action[i]),
                uniform[i],
            )
            player, fruits = cells(successor.player[i : i + 1])[0], cells_of(successor.fruits[i])
            assert (player, fruits, cells(successor.hunters[i])) == expected[:3]
            assert (step.reward[i], step.terminated[i]) == expected[3:]
            seen[expected[3]] = seen.get(expected[3], 0) + 1
    assert set(seen) == {-1, 0, 1}
    assert min(seen.values()) > 50


def test_observation_shows_player_fruit_and_hunters_in_planes_of_their_own() -> None:
    state = state_of((3, 4), FRUITS, [(3, 4), (9, 9)])
    bits = Harvest().observation(state, RandomStreams([0]))[0]
    assert bits.dtype == torch.int8 and Harvest().observation_space.contains(bits.numpy())
    assert [cells(plane.nonzero()) for plane in bits] == [[(3, 4)], sorted(FRUITS), [(3, 4), (9, 9)]]


def test_episodes_begin_as_described() -> None:
    count = 40_000
    state = Harvest(count).initial(RandomStreams(range(count)))
    assert (state.hunters == torch.tensor(CORNERS)).all()
    starts = torch.bincount(state.player[:, 0] * 10 + state.player[:, 1], minlength=100).double() / count
    assert starts.nonzero().flatten().tolist() == [44, 45, 54, 55]
    assert (starts[starts > 0] - 1 / 4).abs().max() < 5 * math.sqrt(3 / 16 / count)
    for quadrant, (top, left) in enumerate([(0, 0), (0, 5), (5, 0), (5, 5)]):
        share = torch.bincount(state.fruits[:, quadrant], minlength=100).double() / count
        inside = {(row, column) for row in range(top, top + 5) for column in range(left, left + 5)}
        barred = {(0, 0), (0, 9), (9, 0), (9, 9), (4, 4), (4, 5), (5, 4), (5, 5)}
        assert set(cells_of(share.nonzero().flatten())) == inside - barred
        p = 1 / 23
        assert (share[share > 0] - p).abs().max() < 5 * math.sqrt(p * (1 - p) / count)


def test_walls_stop_the_player() -> None:
    for action, corner in ((1, (0, 9)), (4, (0, 9)), (2, (9, 0)), (3, (9, 0))):
        successor, _, _ = one_step(state_of(corner, FRUITS, CORNERS), action)
        assert cells(successor.player) == [corner]


def test_fruit_pays_one_and_grows_again_on_any_free_cell_alike() -> None:
    count = 50_000
    state = state_of((0, 4), FRUITS, [(5, 5), (9, 9)])
    successor, reward, caught = one_step(state, 4, count)
    assert (reward == 1).all() and not caught.any()
    assert (successor.fruits[:, 1:] == state.fruits[:, 1:]).all()
    share = torch.bincount(successor.fruits[:, 0], minlength=100).double() / count
    assert share[[5, 15, 88, 51]].sum() == 0  # the player's cell and those of other fruit
    assert not (successor.fruits[:, :1] == successor.hunters[..., 0] * 10 + successor.hunters[..., 1]).any()
    apart = [c for c in range(100) if c not in (5, 15, 88, 51, 44, 45, 54, 55, 56, 65, 98, 89, 99)]
    p = 1 / (100 - 4 - 2)
    assert (share[apart] - p).abs().max() < 5 * math.sqrt(p * (1 - p) / count)


def test_free_cells_are_never_taken_whatever_the_random_number() -> None:
    taken = torch.tensor([[0, 1, 50, 50, 99, 98, 7]])
    uniform = torch.linspace(0, 1, 2000)[:-1].unsqueeze(1)
    cell = _free_cell(taken.expand(len(uniform), -1), uniform)
    assert set(cell.flatten().tolist()) == set(range(100)) - set(taken.flatten().tolist())
    largest = _free_cell(taken, torch.tensor([[1 - 2**-24]]))  # the largest of float32
    assert largest.item() == 97


def test_hunters_come_nearer_half_of_the_time_and_wander_otherwise() -> None:
    count = 50_000
    successor, _, _ = one_step(state_of((5, 9), FRUITS, [(5, 5), (2, 6)]), 0, count)
    for hunter, start, chase in ((0, (5, 5), (5, 6)), (1, (2, 6), (3, 6))):  # the second as far down as across
        number = successor.hunters[:, hunter, 0] * 10 + successor.hunters[:, hunter, 1]
        share = torch.bincount(number, minlength=100).double() / count
        for step in list(STEPS.values())[1:]:
            target = walk(start, step)
            p = 5 / 8 if target == chase else 1 / 8
            assert abs(share[10 * target[0] + target[1]] - p) < 5 * math.sqrt(p * (1 - p) / count)


def test_walking_into_a_hunter_ends_the_episode_and_the_hunter_waits() -> None:
    successor, reward, caught = one_step(state_of((5, 5), FRUITS, [(5, 6), (0, 0)]), 4, 200)
    assert caught.all() and (reward == -1).all()
    assert (successor.hunters[:, 0] == torch.tensor((5, 6))).all()


def test_eaten_and_caught_at_once_is_worth_nothing() -> None:
    _, reward, caught = one_step(state_of((0, 4), FRUITS, [(0, 5), (9, 9)]), 4)
    assert caught.all() and (reward == 0).all()


def test_frame_shows_the_state() -> None:
    env: Any = gymnasium.make("Tensor/Harvest-v0", render_mode="rgb_array")
    env.reset(seed=3)
    frame, state = env.render(), env.unwrapped.state
    assert frame.shape == (10 * PIXELS, 10 * PIXELS, 3)
    for colour, shown in zip(COLOURS, (cells(state.player), cells_of(state.fruits[0]), CORNERS), strict=True):
        for row, column in shown:
            assert tuple(frame[row * PIXELS + PIXELS // 2, column * PIXELS + PIXELS // 2]) == colour
    env.close()


def test_seed_decides_the_single_environment() -> None:
    env: Any = gymnasium.make("Tensor/Harvest-v0")

    def episode(seed: int) -> list[Any]:
        obs, _ = env.reset(seed=seed)
        seen = [obs]
        for action in np.random.default_rng(0).integers(5, size=100):
            obs, reward, terminated, truncated, _ = env.step(action)
            seen += [obs, reward]
            if terminated or truncated:
                break
        return seen

    first, again, other = episode(1), episode(1), episode(2)
    assert len(first) == len(again) and all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
