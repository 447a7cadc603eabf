"""Persistent Gumbel noise: exploration that is correlated in time while every action still follows the policy."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Generator, Tensor

from agent.estimators import gumbel_of


class PersistentGumbelNoise:
    """Each environment keeps its Gumbel vector for the next step with probability rho, else draws a fresh one.

    argmax(logits + g) is distributed as softmax(logits) whatever the history of g, as long as g is Gumbel; holding it
    makes a run of steps agree on a direction, and adapts as the logits change, which repeating the action would not.
    """

    def __init__(
        self, shape: tuple[int, int, int, int], rho: Float[Tensor, "P _"], generator: Generator | None = None
    ) -> None:
        self.rho = rho.view(*rho.shape, 1, 1)
        self.generator = generator
        self.shape = shape
        self.noise: Float[Tensor, "P E K N"] = self.fresh(self.draw())

    def draw(self) -> Float64[Tensor, "P E U"]:
        """The randomness of one step: of the fresh vectors, and of who keeps theirs."""
        num_members, num_envs, num_factors, width = self.shape
        shape = (num_members, num_envs, num_factors * width + 1)
        return torch.rand(shape, dtype=torch.float64, generator=self.generator, device=self.rho.device)

    def fresh(self, draw: Float64[Tensor, "P E U"]) -> Float[Tensor, "P E K N"]:
        return gumbel_of(draw[..., :-1]).view(self.shape)

    def next(self, draw: Float64[Tensor, "P E U"]) -> Float[Tensor, "P E K N"]:
        """The noise of the next step."""
        keeps = draw[..., -1:].unsqueeze(-1) < self.rho
        noise = torch.where(keeps, self.noise, self.fresh(draw))
        self.noise.copy_(noise)
        return noise


def ladder(lowest: Sequence[float], highest: float | None, num_envs: int) -> Float[Tensor, "P _"]:
    """Each member's rho, from its lowest in its first environment to `highest` in the last; None: the lowest in all.

    The mean times for which noise is held, 1 / (1 - rho), are a geometric series, as the epsilons of Ape-X are (Horgan
    et al. 2018).
    """
    first = torch.tensor(lowest).unsqueeze(-1)
    if highest is None:
        return first
    part = torch.linspace(0, 1, num_envs)
    return 1 - (1 - first) ** (1 - part) * (1 - highest) ** part
