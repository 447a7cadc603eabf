"""Running mean and deviation of the observations, per member."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agent.state import State
from envs.spaces import FlatObservations


class ObservationNormalizer:
    """(obs - mean) / std with statistics of all observations so far, merged batch by batch.

    Parallel variance: Chan et al. 1983, eq. 2.1. Where the space alone says how to bring numbers to [0, 1], as for the
    pixels of an image, mean and std are fixed to that: 0 and 1 for one-hot and binary entries. Where `enabled` is False
    all other numbers pass unchanged.
    """

    LIMIT = 10.0  # standard deviations
    SMALLEST_STD = 1e-4

    def __init__(
        self,
        num_members: int,
        offset: Float[Tensor, " D"],
        scale: Float[Tensor, " D"],
        *,
        enabled: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        """`offset`, `scale`: known of an entry from the space; a scale of 0: nothing is known."""
        is_known = scale > 0
        self.is_running = (~is_known & enabled).to(device)
        self.any_running, self.enabled = bool(self.is_running.any()), enabled
        self.is_identity = not self.any_running and bool((~is_known | ((scale == 1) & (offset == 0))).all())
        self.mean = offset.to(device).repeat(num_members, 1)
        self.var = torch.where(is_known, scale, 1.0).square().to(device).repeat(num_members, 1)
        self.count = torch.zeros((num_members, 1), device=device)

    def update_(self, obs: Float[Tensor, "P E D"], valid: Bool[Tensor, "P E"]) -> None:
        """Takes in the valid rows."""
        if not self.any_running:
            return
        weight = valid.unsqueeze(-1).to(obs.dtype)
        added = weight.sum(1)
        total = self.count + added
        mean = (obs * weight).sum(1) / added.clamp(min=1)
        squares = ((obs - mean.unsqueeze(1)).square() * weight).sum(1)
        delta = mean - self.mean
        share = added / total.clamp(min=1)
        # The first count observations have variance var; before any there is none to merge.
        merged = (self.var * self.count + squares + delta.square() * self.count * share) / total.clamp(min=1)
        self.var.copy_(torch.where(self.is_running, merged, self.var))
        self.mean.add_(delta * share * self.is_running)
        self.count.copy_(total)

    def state(self) -> State:
        """All that changes."""
        return {"mean": self.mean, "var": self.var, "count": self.count}

    def __call__(self, obs: Float[Tensor, "P B D"]) -> Float[Tensor, "P B D"]:
        if self.is_identity:
            return obs
        mean, std = self.mean.unsqueeze(1), self.var.sqrt().clamp(min=self.SMALLEST_STD).unsqueeze(1)
        scaled = (obs - mean).div_(std)
        return scaled.clamp_(-self.LIMIT, self.LIMIT) if self.enabled else scaled


def make_normalizer(
    num_members: int, observations: FlatObservations, *, enabled: bool = True, device: torch.device | str = "cpu"
) -> ObservationNormalizer:
    """For the observations of a space."""
    offset, scale = torch.from_numpy(observations.offset), torch.from_numpy(observations.scale)
    return ObservationNormalizer(num_members, offset, scale, enabled=enabled, device=device)
