"""What a run adds up between two log lines."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agent.state import State
from envs import Step


class EpisodeStatistics:
    """Returns and lengths of training episodes that ended since the last read, before any scaling of rewards."""

    def __init__(self, num_members: int, num_envs: int, device: torch.device) -> None:
        self.running = torch.zeros((2, num_members, num_envs), device=device)  # return and length so far
        self.ended = torch.zeros((2, num_members), device=device)
        self.num_ended = torch.zeros(num_members, device=device)

    def update_(self, step: Step) -> None:
        self.running.add_(torch.stack([step.reward, torch.ones_like(step.reward)]) * step.valid)
        done: Bool[Tensor, "P E"] = (step.terminated | step.truncated) & step.valid
        self.ended.add_((self.running * done).sum(-1))
        self.num_ended.add_(done.sum(-1))
        self.running.mul_(~done)

    def state(self) -> State:
        """All that changes."""
        return {"running": self.running.transpose(0, 1), "ended": self.ended.T, "num_ended": self.num_ended}

    def read_(self) -> dict[str, np.ndarray]:
        """Means per member, NaN where no episode ended; starts over."""
        means = (self.ended / self.num_ended).cpu().numpy()
        self.ended.zero_()
        self.num_ended.zero_()
        return {"train/episode_return": means[0], "train/episode_length": means[1]}


class MetricMeans:
    """Means of metrics over the updates that had them, kept on the device until they are read."""

    def __init__(self, names: Sequence[str], num_members: int, device: torch.device) -> None:
        self.names = tuple(names)
        self.total = torch.zeros((len(self.names), num_members), device=device)
        self.count = torch.zeros_like(self.total)

    def add_(self, metrics: dict[str, Float[Tensor, " P"]]) -> None:
        """Takes in those of one update; NaN where a member has none."""
        values = torch.stack([metrics[name] for name in self.names])
        missing = values.isnan()
        self.total.add_(values.masked_fill_(missing, 0.0))
        self.count.add_(~missing)

    def state(self) -> State:
        """All that changes."""
        return {"total": self.total.T, "count": self.count.T}

    def read_(self) -> dict[str, np.ndarray]:
        """The means, NaN where there are none; starts over."""
        means = (self.total / self.count).cpu().numpy()
        self.total.zero_()
        self.count.zero_()
        return dict(zip(self.names, means, strict=True))


class Milestones:
    """Evenly spaced counts of environment steps, the last of them the end of the run."""

    def __init__(self, every: int | None, total: int, parts: int) -> None:
        self.every = every or max(1, total // parts)
        self.total, self.next = total, self.every

    def is_due(self, env_steps: int) -> bool:
        """Whether one is reached and not yet passed with `advance`; at the end of the run always."""
        return env_steps >= self.next or env_steps >= self.total

    def advance(self, env_steps: int) -> None:
        """The next one is after so many steps."""
        self.next = (env_steps // self.every + 1) * self.every

    def resume(self, env_steps: int, saved: int) -> None:
        """As after so many steps: from where the next one was, if it lies on this grid."""
        self.next = saved if saved and saved % self.every == 0 else -(-env_steps // self.every) * self.every
