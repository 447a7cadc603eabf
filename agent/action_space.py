"""Any discrete space as K categorical factors, padded to the widest of N choices and masked."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agent import losses

IMPOSSIBLE = -1e30  # logit of a padding choice: probability exactly 0, and 0 * log 0 stays 0 where -inf gives NaN


class ActionSpace:
    """K factors of n_k choices each: Discrete(n) is K = 1; MultiDiscrete, MultiBinary, binned Box, Tuple and Dict have
    K > 1."""

    def __init__(self, num_choices: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.num_choices = tuple(num_choices)
        self.num_factors = len(self.num_choices)
        self.width = max(self.num_choices)
        self.is_ragged = min(self.num_choices) < self.width
        self.choice = torch.arange(self.width, device=device)
        self.mask: Bool[Tensor, "K N"] = self.choice < torch.tensor(self.num_choices, device=device).unsqueeze(-1)
        self.shape = (self.num_factors, self.width)

    def mask_logits(
        self, logits: Float[Tensor, "*batch K N"], mask: Bool[Tensor, "*batch K N"] | None = None
    ) -> Float[Tensor, "*batch K N"]:
        """Makes padding choices impossible, and with `mask` illegal ones, where it is False as it is at padding."""
        if mask is not None:
            return logits.masked_fill(~mask, IMPOSSIBLE)
        return logits.masked_fill(~self.mask, IMPOSSIBLE) if self.is_ragged else logits

    def max_entropy(
        self, mask: Bool[Tensor, "P B K N"] | None = None, weight: Float[Tensor, "P B"] | None = None
    ) -> Float[Tensor, " P"] | float:
        """sum_k log n_k [nats], the largest entropy that a policy can have; with a mask n_k counts its legal choices,
        and the sum is the mean over the rows that count."""
        if mask is None:
            return sum(math.log(n) for n in self.num_choices)
        return losses.mean(mask.sum(-1).log().sum(-1), weight)

    def one_hot(self, action: Int[Tensor, "*batch K"]) -> Float[Tensor, "*batch K N"]:
        return (action.unsqueeze(-1) == self.choice).float()
