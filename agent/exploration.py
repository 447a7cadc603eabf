"""Persistent Gumbel noise: exploration that is correlated in time while every action still follows the policy."""

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from agent.estimators import gumbel_noise


class PersistentGumbelNoise:
    """Each environment keeps its Gumbel vector for the next step with probability rho, else draws a fresh one.

    argmax(logits + g) is distributed as softmax(logits) whatever the history of g, as long as g is Gumbel; holding it
    makes a run of steps agree on a direction, and adapts as the logits change, which repeating the action would not.
    """

    def __init__(
        self, shape: tuple[int, int, int, int], rho: Float[Tensor, " P"], generator: Generator | None = None
    ) -> None:
        self.rho = rho.view(-1, 1, 1, 1)
        self.generator = generator
        self.noise: Float[Tensor, "P E K N"] = gumbel_noise(shape, generator, rho.device)

    def next(self) -> Float[Tensor, "P E K N"]:
        fresh = gumbel_noise(tuple(self.noise.shape), self.generator, self.noise.device)
        u = torch.rand(self.noise.shape[:2], generator=self.generator, device=self.noise.device)
        self.noise = torch.where(u[..., None, None] < self.rho, self.noise, fresh)
        return self.noise
