"""Annealing: pure functions of progress through the run, per member."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def scheduled(
    schedule: str, start: Float[Tensor, " P"], end: Float[Tensor, " P"], progress: Float[Tensor, ""], fraction: float
) -> Float[Tensor, " P"]:
    """The value of a schedule at `progress` in [0, 1] of the run; it arrives at `end` once progress is `fraction`.

    x = min(1, progress / fraction)
    constant     start
    linear       start + x (end - start)
    exponential  start (end / start)^x                     Jang et al. 2017, sec. 2.2
    cosine       end + (start - end) (1 + cos(pi x)) / 2   Loshchilov & Hutter 2017, eq. 5
    """
    x = (progress / fraction).clamp(max=1.0)
    match schedule:
        case "constant":
            return start
        case "linear":
            return start + x * (end - start)
        case "exponential":
            return start * (end / start) ** x
        case "cosine":
            return end + (start - end) * (1 + torch.cos(math.pi * x)) / 2
    raise ValueError(f"unknown schedule {schedule!r}")
