"""Ranks that share the data of each member (parallel.data=true): what their updates put together.

Axes: P member · E environment of a member, on this rank · B batch · R row of a buffer.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

from agent import losses
from agent.ranks import lost_ranks_told


class DataRanks:
    """Every rank has all members, with a part of their environments, replay and batch. By default one rank has all."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def pooled(
        self, gradients: Sequence[Float[Tensor, "_ _"]], num_members: int, weight: Float[Tensor, "P B"] | None = None
    ) -> list[Float[Tensor, "_ _"]]:
        """The gradients of the members' mean losses over the batches of all ranks, from those over each rank's own.

        One sum over ranks, of one buffer. Rows r, r + P, r + 2P ... of a gradient belong to the same member.

        Args:
            weight: of the rows of the batch; None: all count.
        """
        if self.size == 1:
            return list(gradients)
        device = gradients[0].device
        count = torch.ones(num_members, device=device) if weight is None else weight.sum(-1)
        rows = [gradient.unflatten(0, (-1, num_members)) for gradient in gradients]
        flat = torch.cat([*((x * count.unsqueeze(-1)).flatten() for x in rows), count])
        self.add_up_(flat)
        *sums, total = flat.split([*(x.numel() for x in rows), num_members])
        total = total.clamp(min=1e-9).unsqueeze(-1)
        return [(sum_.view_as(x) / total).flatten(0, 1) for sum_, x in zip(sums, rows, strict=True)]

    def mean(self, x: Float[Tensor, "P B"], weight: Float[Tensor, "P B"]) -> Float[Tensor, " P"]:
        """Over the rows that count, of all ranks."""
        if self.size == 1:
            return losses.mean(x, weight)
        sums = torch.stack([(x * weight).sum(-1), weight.sum(-1)])
        self.add_up_(sums)
        return sums[0] / sums[1].clamp(min=1)

    def total(self, x: Tensor) -> Tensor:
        """The sum over ranks."""
        return x if self.size == 1 else self.add_up_(x.clone())

    def gathered(self, x: Shaped[Tensor, " P E *rest"]) -> Shaped[Tensor, " P RE *rest"]:
        """The rows of all environments, those of rank 0 first."""
        if self.size == 1:
            return x
        own = x.contiguous().view(torch.uint8) if x.dtype == torch.bool else x.contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)]
        with lost_ranks_told():
            dist.all_gather(parts, own)
        return torch.cat([part.view(x.dtype) for part in parts], 1)

    def add_up_(self, x: Tensor) -> Tensor:
        """Puts the sum over ranks in its place."""
        if self.size > 1:
            with lost_ranks_told():
                dist.all_reduce(x)
        return x


UNDIVIDED = DataRanks()
