"""Running mean and deviation of the observations, per member."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agent.state import State


class ObservationNormalizer:
    """(obs - mean) / std with statistics of all observations so far, merged batch by batch.

    Parallel variance: Chan et al. 1983, eq. 2.1. One-hot and binary entries keep mean 0 and variance 1, and so pass
    unchanged, as all of them do where `enabled` is False.
    """

    LIMIT = 10.0  # standard deviations

    def __init__(
        self, num_members: int, binary: Bool[Tensor, " D"], *, enabled: bool = True, device: torch.device | str = "cpu"
    ) -> None:
        self.scaled = ~binary.to(device) & enabled
        self.is_identity = not bool(self.scaled.any())
        shape = (num_members, binary.shape[0])
        self.mean = torch.zeros(shape, device=device)
        self.var = torch.ones(shape, device=device)
        self.count = torch.zeros((num_members, 1), device=device)

    def update_(self, obs: Float[Tensor, "P E D"], valid: Bool[Tensor, "P E"]) -> None:
        """Takes in the valid rows."""
        if self.is_identity:
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
        self.var.copy_(torch.where(self.scaled, merged, self.var))
        self.mean.add_(delta * share * self.scaled)
        self.count.copy_(total)

    def state(self) -> State:
        """All that changes."""
        return {"mean": self.mean, "var": self.var, "count": self.count}

    def __call__(self, obs: Float[Tensor, "P B D"]) -> Float[Tensor, "P B D"]:
        if self.is_identity:
            return obs
        mean, std = self.mean.unsqueeze(1), self.var.sqrt().clamp(min=1e-4).unsqueeze(1)
        return (obs - mean).div_(std).clamp_(-self.LIMIT, self.LIMIT)
