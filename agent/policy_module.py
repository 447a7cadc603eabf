"""A policy as one torch module, for torch.export and for programs without this library.

Axes: B batch row · D numbers of an observation · H state of a memory · K action factor · N choices of the widest.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from agent.action_space import ActionSpace
from agent.estimators import gumbel
from agent.networks.heads import with_head
from agent.networks.modules import NetworkSpec, build_network, seeded, stages
from agent.normalizer import ObservationNormalizer
from envs.spaces import FactoredActions, FlatObservations


class PolicyModule(nn.Module):
    """forward(obs) -> action; with a memory forward(obs, state) -> (action, state). All are batches of tensors.

    `obs` has the structure of the observation space: a tensor, or a dict or tuple of tensors. Actions come in that of
    the action space. `mask`, a third argument, holds the legal choices of each factor.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: NetworkSpec,
        observations: FlatObservations,
        actions: FactoredActions,
        weights: Mapping[str, Tensor],
        normalizer: ObservationNormalizer,
        *,
        sampled: bool,
    ) -> None:
        """`weights`: those of `Policy.tensors`, of one member."""
        super().__init__()
        self.observations, self.factored, self.sampled = observations, actions, sampled
        self.actions = ActionSpace(actions.num_choices)
        make_encoder, head, parts = stages(network, observations.parts)
        num_out = self.actions.num_factors * self.actions.width
        self.encoder: Any = None if make_encoder is None else seeded(make_encoder, 0)
        self.actor = seeded(lambda: with_head(build_network(head, parts), num_out), 0)
        for name, module in (("encoder", self.encoder), ("actor", self.actor)):
            if module is not None:
                own = {k.removeprefix(f"{name}."): x for k, x in weights.items() if k.startswith(f"{name}.")}
                module.load_state_dict(own)
        self.has_memory = network.memory is not None
        self.is_identity, self.limit = normalizer.is_identity, normalizer.LIMIT if normalizer.enabled else None
        self.register_buffer("mean", weights["normalizer.mean"].clone())
        self.register_buffer("std", weights["normalizer.var"].sqrt().clamp(min=normalizer.SMALLEST_STD))
        self.requires_grad_(False)

    def forward(
        self, obs: Any, state: Float[Tensor, "B H"] | None = None, mask: Bool[Tensor, "B K N"] | None = None
    ) -> Any:
        features = self.normalized(self.observations.flatten_tensors(obs))
        if self.encoder is not None:
            features = self.encoder["features"](features)
        if self.has_memory:
            if state is None:
                raise ValueError("this policy has a memory: forward(obs, state), a state of zeros at first")
            none = torch.zeros(features.shape[0], 1, dtype=torch.bool, device=features.device)
            state = self.encoder["memory"](features.unsqueeze(1), state, none).squeeze(1)
            features = torch.cat([features, state], -1)
        logits = self.actor(features).unflatten(-1, self.actions.shape)
        logits = self.actions.mask_logits(logits, mask)
        if self.sampled:
            logits = logits + gumbel(torch.rand(logits.shape, dtype=torch.float64, device=logits.device))
        action = self.factored.decode_tensors(logits.argmax(-1))
        return (action, state) if self.has_memory else action

    def normalized(self, obs: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        if self.is_identity:
            return obs
        scaled = (obs - self.mean) / self.std
        return scaled if self.limit is None else scaled.clamp(-self.limit, self.limit)
