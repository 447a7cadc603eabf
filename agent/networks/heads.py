"""What stands on a network's features: the actor's logits, and critics Q(s, a) at one-hot and at relaxed actions.

Axes: C critic · P member · B batch row · K factor · N choices. Critic c of member p is row c P + p of the population.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from agent import losses
from agent.action_space import ActionSpace
from agent.config import Config
from agent.config_sections import CriticConfig
from agent.networks.modules import (
    BUILT_IN,
    MLP,
    NetworkSpec,
    build_network,
    network_spec,
    num_features,
    require_contract,
    stages,
)
from agent.networks.population import Parameters, Population
from agent.networks.shared_encoder import SharedEncoder
from agent.seeding import member_seeds
from agent.state import State
from envs.spaces import ObsPart

NUM_CRITICS = 2


class Actor:
    """Logits of each member's policy; choices that do not exist, or that a mask bars, are impossible.

    Where the network has an encoder, the actor owns it and reads its features; critics may read them too.
    """

    def __init__(
        self,
        network: NetworkSpec,
        parts: Sequence[ObsPart],
        actions: ActionSpace,
        seeds: list[int],
        device: torch.device | str = "cpu",
    ) -> None:
        self.actions, self.device = actions, device
        if network.name not in BUILT_IN:
            require_contract(network, parts)
        make_encoder, head, parts = stages(network, parts)
        self.num_inputs = sum(part.size for part in parts)
        self.state_size = 0 if network.memory is None else network.memory.size
        self.encoder: SharedEncoder | None = None
        if make_encoder is not None:
            self.encoder = SharedEncoder(make_encoder, self.state_size, seeds, device)

        def make() -> nn.Module:
            # A small last layer starts the policy near uniform (Andrychowicz et al. 2021, sec. 3.2).
            return with_head(build_network(head, parts), actions.num_factors * actions.width, gain=0.01)

        self.network = Population(make, seeds, device)

    def __call__(
        self,
        features: Float[Tensor, "P B F"],
        mask: Bool[Tensor, "P B K N"] | None = None,
        parameters: Parameters | None = None,
    ) -> Float[Tensor, "P B K N"]:
        """Logits at the encoder's features; without an encoder, at observations."""
        if features.shape[-1] != self.num_inputs:
            raise ValueError(
                f"the actor takes {self.num_inputs} features of its encoder, got {features.shape[-1]} numbers: call "
                "actor.step(obs, state), or actor.encoder first"
            )
        logits = self.network(features, parameters).unflatten(-1, self.actions.shape)
        return self.actions.mask_logits(logits, mask)

    def step(
        self,
        obs: Float[Tensor, "P E D"],
        state: Float[Tensor, "P E H"],
        mask: Bool[Tensor, "P E K N"] | None = None,
    ) -> tuple[Float[Tensor, "P E K N"], Float[Tensor, "P E H"]]:
        """Logits at the next observation of each environment, and the state after it; `state`: before it."""
        features, state = (obs, state) if self.encoder is None else self.encoder.step(obs, state)
        return self(features, mask), state

    def initial_state(self, num_members: int, num_envs: int) -> Float[Tensor, "P E H"]:
        """At the start of an episode; of no numbers without a memory."""
        return torch.zeros((num_members, num_envs, self.state_size), device=self.device)

    def populations(self) -> dict[str, Population]:
        """All that it consists of, by name."""
        encoder = {} if self.encoder is None else {"encoder": self.encoder.network}
        return {"actor": self.network, **encoder}

    def lerp_(self, other: "Actor", rate: float) -> None:
        """Polyak averaging of all parameters."""
        for own, theirs in zip(self.populations().values(), other.populations().values(), strict=True):
            own.lerp_(theirs, rate)

    def state(self) -> State:
        """The flat parameters of each."""
        return {part: population.flat for part, population in self.populations().items()}

    def tensors(self) -> dict[str, Tensor]:
        """All weights by name; live."""
        return {
            f"{part}.{name}": tensor
            for part, population in self.populations().items()
            for name, tensor in population.tensors().items()
        }


@runtime_checkable
class Critics(Protocol):
    """The critics of all members, of one structure. `parameters`: others than their own, to differentiate by."""

    network: Population
    is_multilinear: bool

    def encode(self, obs: Float[Tensor, "P B D"], parameters: Parameters | None = None) -> Tensor:
        """All that Q(s, .) needs to know of s, [C, P, B, ...]."""

    def evaluate(
        self, encoded: Tensor, action: Float[Tensor, "P B K N"], parameters: Parameters | None = None
    ) -> Float[Tensor, "C P B"]:
        """Q(s, a) of every critic at a one-hot or relaxed action."""

    def counterfactuals(self, encoded: Tensor, action: Float[Tensor, "P B K N"]) -> Float[Tensor, "C P B K N"]:
        """Q(s, a) had factor k taken choice n, the others as they are in a one-hot action."""


class MultilinearCritics:
    """Linear in each factor given the others, so that Q(s, pi_1 ... pi_K) is exactly E_{a ~ pi} Q(s, a).

        Q(s, a) = mean_k f_k(s) . a_k + 1/K sum_{k<l} a_k' U_k(s) S U_l(s)' a_l,   S = diag(+1, -1, +1, ...)

    f_k(s) [N] and U_k(s) [N, rank] are a linear head on the features. Rank 0 leaves the interactions out: for K = 1 the
    usual head of one value per action, for K > 1 additive (DecQN: Seyde et al. 2023, eq. 3). The pairs cost O(K rank)
    by the identity of factorization machines (Rendle 2010, lemma 3.1); S lets them be of either sign.
    """

    is_multilinear = True

    def __init__(
        self,
        make_features: Callable[[], nn.Module],
        actions: ActionSpace,
        rank: int,
        seeds: list[int],
        device: torch.device | str = "cpu",
    ) -> None:
        self.actions, self.rank = actions, rank
        self.num_values = actions.num_factors * actions.width
        num_out = self.num_values * (1 + rank)
        self.network = Population(lambda: with_head(make_features(), num_out), seeds, device)
        self.sign = 1.0 - 2.0 * (torch.arange(rank, device=device) % 2)

    def encode(self, obs: Float[Tensor, "P B D"], parameters: Parameters | None = None) -> Float[Tensor, "C P B H"]:
        return per_critic(self.network(for_each_critic(obs), parameters))

    def evaluate(
        self, encoded: Float[Tensor, "C P B H"], action: Float[Tensor, "P B K N"], parameters: Parameters | None = None
    ) -> Float[Tensor, "C P B"]:
        f, u = self._split(encoded)
        q = (f * action).flatten(-2).sum(-1)
        if u is not None:
            z, others = self._interaction(u, action)
            q = q + (z * others).sum((-2, -1)) / 2  # each pair stands there twice
        return q / self.actions.num_factors

    def counterfactuals(
        self, encoded: Float[Tensor, "C P B H"], action: Float[Tensor, "P B K N"]
    ) -> Float[Tensor, "C P B K N"]:
        """Q(s, a) + c_kn - c_k . a_k, where c_kn = (f_kn + U_kn S sum_{l != k} U_l' a_l) / K is what choice n adds."""
        f, u = self._split(encoded)
        if u is not None:
            _, others = self._interaction(u, action)
            f = f + (u * others.unsqueeze(-2)).sum(-1)
        added = f / self.actions.num_factors
        return self.evaluate(encoded, action)[..., None, None] + added - (added * action).sum(-1, keepdim=True)

    def _split(
        self, encoded: Float[Tensor, "C P B H"]
    ) -> tuple[Float[Tensor, "C P B K N"], Float[Tensor, "C P B K N R"] | None]:
        shape = (self.actions.num_factors, self.actions.width)
        f = encoded[..., : self.num_values].unflatten(-1, shape)
        return f, encoded[..., self.num_values :].unflatten(-1, (*shape, self.rank)) if self.rank else None

    def _interaction(
        self, u: Float[Tensor, "C P B K N R"], action: Float[Tensor, "P B K N"]
    ) -> tuple[Float[Tensor, "C P B K R"], Float[Tensor, "C P B K R"]]:
        """z_k = U_k' a_k, and S sum_{l != k} z_l."""
        z = (u * action.unsqueeze(-1)).sum(-2)
        return z, (z.sum(-2, keepdim=True) - z) * self.sign


class JointCritics:
    """Q(s, a) = MLP([features(s), a_1 ... a_K]): sees every interaction between factors, not linear in the action."""

    is_multilinear = False

    def __init__(
        self,
        make_features: Callable[[], nn.Module],
        make_mlp: Callable[[int], MLP],
        actions: ActionSpace,
        seeds: list[int],
        device: torch.device | str = "cpu",
    ) -> None:
        """`make_mlp`: from the number of features and of the action's entries together."""
        self.actions = actions

        def make() -> nn.Module:
            features = make_features()
            size = num_features(features) + actions.num_factors * actions.width
            return nn.ModuleDict({"features": features, "joint": with_head(make_mlp(size), 1)})

        self.network = Population(make, seeds, device)

    def encode(self, obs: Float[Tensor, "P B D"], parameters: Parameters | None = None) -> Float[Tensor, "C P B H"]:
        return per_critic(self.network(for_each_critic(obs), parameters, part="features"))

    def evaluate(
        self, encoded: Float[Tensor, "C P B H"], action: Float[Tensor, "P B K N"], parameters: Parameters | None = None
    ) -> Float[Tensor, "C P B"]:
        rows = torch.cat([encoded, action.flatten(-2).expand(len(encoded), -1, -1, -1)], -1)
        return per_critic(self.network(rows.flatten(0, 1), parameters, part="joint")).squeeze(-1)

    def counterfactuals(
        self, encoded: Float[Tensor, "C P B H"], action: Float[Tensor, "P B K N"]
    ) -> Float[Tensor, "C P B K N"]:
        """sum_k n_k evaluations, a factor's as one batch; 0 where no such choice exists."""
        width = action.shape[-1]
        columns = []
        for k, count in enumerate(self.actions.num_choices):
            replaced = action.repeat(1, count, 1, 1).unflatten(1, (count, -1))
            replaced[..., k, :] = torch.eye(width, device=action.device)[:count, None]
            q = self.evaluate(encoded.repeat(1, 1, count, 1), replaced.flatten(1, 2))
            columns.append(F.pad(q.unflatten(-1, (count, -1)).transpose(-1, -2), (0, width - count)))
        return torch.stack(columns, -2)


class CriticsAt(NamedTuple):
    """The critics at a batch of observations as one Q(s, .): what an estimator sees of them."""

    critics: Critics
    encoded: Tensor
    reduce: str

    def __call__(self, action: Float[Tensor, "P B K N"]) -> Float[Tensor, "P B"]:
        return losses.reduce_critics(self.critics.evaluate(self.encoded, action), self.reduce)

    def counterfactuals(self, action: Float[Tensor, "P B K N"]) -> Float[Tensor, "P B K N"]:
        return losses.reduce_critics(self.critics.counterfactuals(self.encoded, action), self.reduce)


def with_head(features: nn.Module, num_out: int, gain: float = 1.0) -> nn.Module:
    """A linear layer on the features, its initial weights times `gain`."""
    head = nn.Linear(num_features(features), num_out)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(gain)
    return nn.Sequential(OrderedDict(features=features, head=head))


def for_each_critic(x: Float[Tensor, " P *rest"]) -> Float[Tensor, " CP *rest"]:
    return x.repeat(NUM_CRITICS, *[1] * (x.ndim - 1))


def per_critic(x: Float[Tensor, " CP *rest"]) -> Float[Tensor, " C P *rest"]:
    return x.unflatten(0, (NUM_CRITICS, -1))


def make_actor(
    config: Config, parts: Sequence[ObsPart], actions: ActionSpace, device: torch.device | str = "cpu"
) -> Actor:
    """The policies of all members."""
    seeds = member_seeds([member.seed for member in config.members()], "parameters", 0)
    return Actor(network_spec(config, parts, config.actor.layer_norm), parts, actions, seeds, device)


def make_critics(
    config: Config,
    parts: Sequence[ObsPart],
    actions: ActionSpace,
    device: torch.device | str = "cpu",
    members: Sequence[int] | None = None,
) -> Critics:
    """Critics of the structure that a config names.  `members`: their seeds; None: those of the config."""
    if members is None:
        members = [member.seed for member in config.members()]
    seeds = [seed for critic in range(NUM_CRITICS) for seed in member_seeds(members, "parameters", 1 + critic)]
    settings = config.critic
    _, network, parts = stages(network_spec(config, parts, settings.layer_norm), parts)

    def make_features() -> nn.Module:
        if settings.structure == "joint" and network.name in BUILT_IN:  # the layers come after the action has joined
            return MLP(sum(part.size for part in parts), [])
        return build_network(network, parts)

    if settings.structure == "joint":

        def make_mlp(size: int) -> MLP:
            return MLP(size, config.hidden_sizes, settings.layer_norm)

        return JointCritics(make_features, make_mlp, actions, seeds, device)
    rank = settings.rank if settings.structure == "multilinear" and actions.num_factors > 1 else 0
    return MultilinearCritics(make_features, actions, rank, seeds, device)


def reduction(config: CriticConfig, critics: Critics) -> str:
    """How the critics become one value: min or mean."""
    if config.reduce != "auto":
        return config.reduce
    return "mean" if critics.is_multilinear else "min"
