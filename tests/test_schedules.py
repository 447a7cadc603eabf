"""Schedules by hand."""

import pytest
import torch

from agent.schedules import ScheduleTable, scheduled

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


def test_table_holds_every_schedule_at_every_thousandth() -> None:
    table = ScheduleTable([("linear", START, END, 1.0), ("constant", END, START, 1.0)])
    for progress in (0.0, 0.25, 0.999, 1.0):
        values = table(torch.tensor(progress))
        torch.testing.assert_close(values[0], torch.tensor([4.0 - 3.0 * progress, 1.0]))
        assert torch.equal(values[1], END)
    assert torch.equal(table(torch.tensor(0.2504))[0], table(torch.tensor(0.25))[0])
    assert torch.equal(table(torch.tensor(1.02)), table(torch.tensor(1.0)))  # environments that do not divide the run
