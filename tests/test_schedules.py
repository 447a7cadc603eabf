"""Schedules by hand."""

import pytest
import torch

from agent.config_loader import load_config
from agent.schedules import Schedules, scheduled

START, END = torch.tensor([4.0, 1.0]), torch.tensor([1.0, 1.0])


@pytest.mark.parametrize(
    ("schedule", "progress", "value"),
    [
        ("constant", 0.0, 4.0), ("constant", 1.0, 4.0),
        ("linear", 0.0, 4.0), ("linear", 0.25, 2.5), ("linear", 0.5, 1.0), ("linear", 1.0, 1.0),
        ("exponential", 0.0, 4.0), ("exponential", 0.25, 2.0), ("exponential", 0.5, 1.0), ("exponential", 0.9, 1.0),
        ("cosine", 0.0, 4.0), ("cosine", 0.25, 2.5), ("cosine", 0.5, 1.0), ("cosine", 0.7, 1.0),
        ("cosine", 0.125, 1 + 3 * (1 + 0.5**0.5) / 2),
    ],
)  # fmt: skip
def test_value_by_hand_when_it_moves_over_half_the_run(schedule: str, progress: float, value: float) -> None:
    result = scheduled(schedule, START, END, torch.tensor(progress), fraction=0.5)
    torch.testing.assert_close(result, torch.tensor([value, 1.0]))


def test_unknown_schedule_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown schedule 'step'"):
        scheduled("step", START, END, torch.tensor(0.0), 1.0)


def test_every_schedule_is_read_at_every_thousandth() -> None:
    settings = ["learning_rate=4", "learning_rate_end=0.25", "tau.schedule=constant", "tau.start=1"]
    entropy = ["target_entropy.schedule=linear", "target_entropy.start=0.8", "target_entropy.fraction=0.5"]
    schedules = Schedules(load_config(None, ["env.id=Test-v0", "seeds=2", *settings, *entropy]))
    for progress in (0.0, 0.25, 0.999, 1.0):
        learning_rate, tau, target_entropy = schedules(torch.tensor(progress))
        torch.testing.assert_close(learning_rate, torch.full((2,), 4.0 - 3.0 * progress))
        assert torch.equal(tau, torch.ones(2))
        torch.testing.assert_close(target_entropy, torch.full((2,), 0.8 - 0.7 * min(1.0, 2 * progress)))
    assert torch.equal(schedules(torch.tensor(0.2504)).learning_rate, schedules(torch.tensor(0.25)).learning_rate)
    for beyond, end in zip(schedules(torch.tensor(1.02)), schedules(torch.tensor(1.0)), strict=True):
        assert torch.equal(beyond, end)  # environments that do not divide the run
