"""Factors, their padding and their entropy."""

import math

import pytest
import torch
from gymnasium import spaces

from agent.action_space import ActionSpace
from envs import FactoredActions


@pytest.mark.parametrize(
    ("space", "bins", "max_entropy"),
    [
        (spaces.Discrete(5), None, math.log(5)),
        (spaces.MultiDiscrete([2, 3, 4]), None, math.log(24)),
        (spaces.MultiDiscrete([[2, 3], [4, 5]]), None, math.log(120)),
        (spaces.MultiBinary(6), None, 6 * math.log(2)),
        (spaces.Box(-1, 1, (6,)), 3, 6 * math.log(3)),
    ],
)
def test_largest_entropy_is_the_log_of_the_number_of_joint_actions(
    space: spaces.Space, bins: int | None, max_entropy: float
) -> None:
    assert ActionSpace(FactoredActions(space, bins).num_choices).max_entropy() == pytest.approx(max_entropy)


def test_mask_tells_real_choices_from_padding() -> None:
    actions = ActionSpace((3, 1, 2))
    assert actions.mask.tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    assert actions.one_hot(torch.tensor([[2, 0, 1]])).tolist() == [[[0, 0, 1], [1, 0, 0], [0, 1, 0]]]


def test_logits_are_left_alone_where_there_is_no_padding() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert ActionSpace((4, 4, 4)).mask_logits(logits) is logits
