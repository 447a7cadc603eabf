"""Persistent Gumbel noise: exploration that is correlated in time while every action still follows the policy."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agent.action_space import ActionSpace
from agent.estimators import gumbel
from envs.random_streams import RandomStreams


class PersistentGumbelNoise:
    """Each environment keeps its Gumbel vector for an episode's next step with probability rho, else draws another.

    argmax(logits + g) is distributed as softmax(logits) whatever the history of g, as long as g is Gumbel; holding it
    makes a run of steps agree on a direction, and adapts as the logits change, which repeating the action would not.
    """

    def __init__(
        self, actions: ActionSpace, rho: Float[Tensor, " P #E"], num_envs: int, streams: RandomStreams
    ) -> None:
        self.shape, self.rho, self.streams = (num_envs, *actions.shape), rho.view(*rho.shape, 1, 1), streams
        self.noise: Float[Tensor, "P E K N"] = gumbel(streams.uniform(*self.shape))

    def next_(self) -> Float[Tensor, "P E K N"]:
        """The noise of the next step."""
        num_envs, num_factors, width = self.shape
        uniform = self.streams.uniform(num_envs, num_factors * width + 1)
        keeps = uniform[..., -1:].unsqueeze(-1) < self.rho
        noise = torch.where(keeps, self.noise, gumbel(uniform[..., :-1]).unflatten(-1, (num_factors, width)))
        self.noise.copy_(noise)
        return noise

    def renew_(self, ended: Bool[Tensor, "P E"]) -> None:
        """Draws other noise where an episode ended: the next one owes nothing to it."""
        self.noise.copy_(torch.where(ended[..., None, None], gumbel(self.streams.uniform(*self.shape)), self.noise))


def ladder(rho: Float[Tensor, "P 2"], num_envs: int) -> Float[Tensor, "P E"]:
    """The rho of each environment of a member, from its first value in the first to its second in the last.

    The mean times for which noise is held, 1 / (1 - rho), are a geometric series, as the epsilons of Ape-X are (Horgan
    et al. 2018).
    """
    first, last = rho.split(1, -1)
    part = torch.linspace(0, 1, num_envs, device=rho.device)
    return 1 - (1 - first) ** (1 - part) * (1 - last) ** part
