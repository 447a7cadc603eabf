"""The encoder that actor and critics share: convolutions, and what remembers the observations before.

Axes: P member · E environment · B sequence · T step · D numbers of an observation · F features · H state.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from agent.networks.population import Parameters, Population


class SharedEncoder:
    """Features of all members' observations. With a memory they hold its state behind the observation's own features.

    A state of no numbers stands for no memory, so that both are used alike.
    """

    def __init__(
        self, make: Callable[[], nn.Module], state_size: int, seeds: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        """`make`: a ModuleDict of `features`, [B, D] to [B, F], and where there is a state `memory` (recurrent.py)."""
        self.network, self.state_size = Population(make, seeds, device), state_size

    def __call__(self, obs: Float[Tensor, "P B D"], parameters: Parameters | None = None) -> Float[Tensor, "P B F"]:
        """Features of single observations, for an encoder without memory."""
        return self.network(obs, parameters, part="features")

    def step(
        self, obs: Float[Tensor, "P E D"], state: Float[Tensor, "P E H"]
    ) -> tuple[Float[Tensor, "P E F"], Float[Tensor, "P E H"]]:
        """Features of the next observation of each environment, and the state after it."""
        if not self.state_size:
            return self(obs), state
        no_start = torch.zeros((*obs.shape[:2], 1), dtype=torch.bool, device=obs.device)
        features = self.unroll(obs.unsqueeze(2), state, no_start).squeeze(2)
        return features, features[..., -self.state_size :]

    def unroll(
        self,
        obs: Float[Tensor, "P B T D"],
        state: Float[Tensor, "P B H"],
        starts: Bool[Tensor, "P B T"],
        parameters: Parameters | None = None,
    ) -> Float[Tensor, "P B T F"]:
        """Features of sequences, from the state before their first step; where `starts` holds an episode begins."""
        own = self(obs.flatten(1, 2), parameters).unflatten(1, obs.shape[1:3])
        states = self.network((own, state, starts), parameters, part="memory")
        return torch.cat([own, states], -1)
