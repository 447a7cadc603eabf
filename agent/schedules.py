"""Annealing: pure functions of progress through the run, per member."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from agent.config import Config
from agent.state import State

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


class Scheduled(NamedTuple):
    """What moves during a run, at one time."""

    learning_rate: Float[Tensor, " P"]
    tau: Float[Tensor, " P"]
    target_entropy: Float[Tensor, " P"]  # as a fraction of the largest possible


class Schedules:
    """The schedules of a config, worked out beforehand at every thousandth of the run: reading them is one lookup."""

    def __init__(self, config: Config, device: torch.device | str = "cpu") -> None:
        def per_member(key: str) -> Float[Tensor, " P"]:
            return torch.tensor(config.per_member(key), dtype=torch.float32, device=device)

        rate, tau, entropy, total = (
            per_member("learning_rate"),
            config.tau,
            config.target_entropy,
            config.total_env_steps,
        )
        self.is_adaptive = tau.schedule == "adaptive"  # then held until the next inspection of gradients
        held = "constant" if self.is_adaptive else tau.schedule
        schedules = {
            "learning_rate": ("linear", rate, rate * config.learning_rate_end, 1.0),
            "tau": (held, per_member("tau.start"), per_member("tau.end"), tau.part_of_run(total)),
            "target_entropy": (
                entropy.schedule,
                per_member("target_entropy.start"),
                per_member("target_entropy.end"),
                entropy.part_of_run(total),
            ),
        }
        progress = torch.arange(NUM_KNOTS + 1, device=device) / NUM_KNOTS
        rows = []
        for name in Scheduled._fields:
            how, start, end, fraction = schedules[name]
            rows.append(scheduled(how, start, end, progress, fraction))
        self.table: Float[Tensor, "T S P"] = torch.stack(rows, 1)

    def __call__(self, progress: Float[Tensor, ""]) -> Scheduled:
        """The values at the last thousandth that `progress` has reached."""
        knot = (progress * NUM_KNOTS).long().clamp(max=NUM_KNOTS)  # the last step may lead beyond the end
        return Scheduled(*self.table.index_select(0, knot.view(1)).squeeze(0).unbind())

    def hold_tau_(self, tau: Float[Tensor, " P"]) -> None:
        """Makes tau this constant from here on."""
        self.table[:, Scheduled._fields.index("tau")] = tau

    def rows(self) -> dict[str, Float[Tensor, "P T"]]:
        """Each schedule, live."""
        return {name: self.table[:, i].T for i, name in enumerate(Scheduled._fields)}

    def state(self) -> State:
        """All that changes."""
        return {"tau": self.table[:, Scheduled._fields.index("tau")].T} if self.is_adaptive else {}
