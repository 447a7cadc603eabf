"""Annealing: pure functions of progress through the run, per member."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

NUM_KNOTS = 1000


def scheduled(
    schedule: str, start: Float[Tensor, " P"], end: Float[Tensor, " P"], progress: Float[Tensor, "..."], fraction: float
) -> Float[Tensor, "... P"]:
    """The value of a schedule at `progress` in [0, 1] of the run; it arrives at `end` once progress is `fraction`.

    x = min(1, progress / fraction)
    constant     start
    linear       start + x (end - start)
    exponential  start (end / start)^x                     Jang et al. 2017, sec. 2.2
    cosine       end + (start - end) (1 + cos(pi x)) / 2   Loshchilov & Hutter 2017, eq. 5
    """
    x = (progress / fraction).clamp(max=1.0).unsqueeze(-1)
    match schedule:
        case "constant":
            return start + 0 * x
        case "linear":
            return start + x * (end - start)
        case "exponential":
            return start * (end / start) ** x
        case "cosine":
            return end + (start - end) * (1 + torch.cos(math.pi * x)) / 2
    raise ValueError(f"unknown schedule {schedule!r}")


class ScheduleTable:
    """Several schedules worked out beforehand at every thousandth of the run: reading all of them is one lookup."""

    def __init__(self, schedules: Sequence[tuple[str, Tensor, Tensor, float]]) -> None:
        """Each as (schedule, start, end, fraction), start and end [P]."""
        progress = torch.arange(NUM_KNOTS + 1, device=schedules[0][1].device) / NUM_KNOTS
        rows = [scheduled(schedule, start, end, progress, fraction) for schedule, start, end, fraction in schedules]
        self.table: Float[Tensor, "T S P"] = torch.stack(rows, 1)

    def __call__(self, progress: Float[Tensor, ""]) -> Float[Tensor, "S P"]:
        """The values at the last thousandth that `progress` has reached."""
        knot = (progress * NUM_KNOTS).long().clamp(max=NUM_KNOTS)  # the last step may lead beyond the end
        return self.table.index_select(0, knot.view(1)).squeeze(0)

    def hold(self, schedule: int, value: Float[Tensor, " P"]) -> None:
        """Makes one of the schedules this constant from here on, in place."""
        self.table[:, schedule] = value
