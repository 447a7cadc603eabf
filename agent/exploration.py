"""Persistent Gumbel noise: exploration that is correlated in time while every action still follows the policy."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from agent.estimators import gumbel_of


class NoiseDraw(NamedTuple):
    """The randomness of one step."""

    exponential: Float[Tensor, "P E K N"]  # becomes the fresh Gumbel vectors
    uniform: Float[Tensor, "P E"]  # decides who keeps theirs


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
        self.noise = torch.empty(shape, device=rho.device)
        self.noise.copy_(gumbel_of(self.draw().exponential))

    def draw(self) -> NoiseDraw:
        exponential = torch.empty_like(self.noise).exponential_(generator=self.generator)
        uniform = torch.rand(self.noise.shape[:2], generator=self.generator, device=self.noise.device)
        return NoiseDraw(exponential, uniform)

    def next(self, draw: NoiseDraw) -> Float[Tensor, "P E K N"]:
        """The noise of the next step."""
        keeps = draw.uniform[..., None, None] < self.rho
        noise = torch.where(keeps, self.noise, gumbel_of(draw.exponential))
        self.noise.copy_(noise)
        return noise
