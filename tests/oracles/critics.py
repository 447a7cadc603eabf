"""Critics with their derivatives by hand: Q(s, a) at one-hot and at relaxed actions, and its gradients.

Critic c of member p is row c * P + p of the network.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from agent.action_space import ActionSpace
from agent.config_sections import CriticConfig
from oracles import losses
from oracles.networks import PopulationMLP


class Evaluation(NamedTuple):
    """Q(s, a) of every critic, and what its gradients need."""

    q: Float[Tensor, "C P B"]
    action: Float[Tensor, "P B K N"]
    saved: list[Tensor]


class MultilinearCritic:
    """Linear in each factor given the others, so that Q(s, pi_1 ... pi_K) is exactly E_{a ~ pi} Q(s, a).

        Q(s, a) = mean_k f_k(s) . a_k + 1/K sum_{k<l} a_k' U_k(s) S U_l(s)' a_l,   S = diag(+1, -1, +1, ...)

    f_k(s) [N] and U_k(s) [N, rank] come from one network. Rank 0 leaves the interactions out: for K = 1 the usual head
    of one value per action, for K > 1 additive (DecQN: Seyde et al. 2023, eq. 3). The pairs cost O(K rank) by the
    identity of factorisation machines (Rendle 2010, lemma 3.1); S lets them be of either sign.
    """

    is_multilinear = True

    def __init__(self, mlp: PopulationMLP, actions: ActionSpace, num_critics: int, rank: int) -> None:
        """`mlp`: from observations to K N (1 + rank) numbers."""
        self.mlp, self.actions, self.num_critics, self.rank = mlp, actions, num_critics, rank
        self.num_values = actions.num_factors * actions.width
        self.sign = 1.0 - 2.0 * (torch.arange(rank, device=mlp.flat.device) % 2)

    def encode(self, obs: Float[Tensor, "P B D"]) -> list[Tensor]:
        """All that Q(s, .) needs to know of s: a forward pass that ends in f and U."""
        return self.mlp.forward(obs.repeat(self.num_critics, 1, 1))

    def evaluate(self, encoded: list[Tensor], action: Float[Tensor, "P B K N"]) -> Evaluation:
        """Q at a one-hot or relaxed action."""
        heads = encoded[-1].unflatten(0, (self.num_critics, -1))
        num_factors = self.actions.num_factors
        q = (heads[..., : self.num_values] * action.flatten(-2)).sum(-1) / num_factors
        if not self.rank:
            return Evaluation(q, action, encoded)
        z = (self._embeddings(encoded, action) * action.unsqueeze(-1)).sum(-2)  # [C, P, B, K, rank]
        others = (z.sum(-2, keepdim=True) - z) * self.sign
        return Evaluation(q + (z * others).sum((-2, -1)) / (2 * num_factors), action, [*encoded, others])

    def action_gradient(self, evaluation: Evaluation) -> Float[Tensor, "C P B K N"]:
        """dQ/da_k = (f_k + U_k S sum_{l != k} U_l' a_l) / K."""
        encoded, others = self._split(evaluation)
        heads = encoded[-1].unflatten(0, (self.num_critics, -1))[..., : self.num_values]
        gradient = heads.unflatten(-1, evaluation.action.shape[2:])
        if others is not None:
            gradient = gradient + (self._embeddings(encoded, evaluation.action) * others.unsqueeze(-2)).sum(-1)
        return gradient / self.actions.num_factors

    def parameter_gradient(self, evaluation: Evaluation, gradient: Float[Tensor, "C P B"]) -> Float[Tensor, "CP F"]:
        """From a gradient with respect to Q."""
        encoded, others = self._split(evaluation)
        heads = (gradient / self.actions.num_factors).unsqueeze(-1) * evaluation.action.flatten(-2)
        if others is not None:
            weighted = heads.unflatten(-1, evaluation.action.shape[2:]).unsqueeze(-1) * others.unsqueeze(-2)
            heads = torch.cat([heads, weighted.flatten(-3)], -1)
        return self.mlp.parameter_gradient(encoded, heads.flatten(0, 1))

    def counterfactuals(self, encoded: list[Tensor], action: Float[Tensor, "P B K N"]) -> Float[Tensor, "C P B K N"]:
        """Q(s, a) had factor k taken choice n: Q(s, a) + dQ/da_kn - dQ/da_k . a_k."""
        evaluation = self.evaluate(encoded, action)
        gradient = self.action_gradient(evaluation)
        return evaluation.q[..., None, None] + gradient - (gradient * action).sum(-1, keepdim=True)

    def _embeddings(self, encoded: list[Tensor], action: Tensor) -> Float[Tensor, "C P B K N R"]:
        shape = (*action.shape[2:], self.rank)
        return encoded[-1].unflatten(0, (self.num_critics, -1))[..., self.num_values :].unflatten(-1, shape)

    def _split(self, evaluation: Evaluation) -> tuple[list[Tensor], Tensor | None]:
        saved = evaluation.saved
        return (saved[:-1], saved[-1]) if self.rank else (saved, None)


class JointCritic:
    """Q(s, a) = MLP([s, a_1 ... a_K]): sees every interaction between factors, not linear in the action."""

    is_multilinear = False

    def __init__(self, mlp: PopulationMLP, actions: ActionSpace, num_critics: int) -> None:
        """`mlp`: from observation and action together to one number."""
        self.mlp, self.actions, self.num_critics = mlp, actions, num_critics

    def encode(self, obs: Float[Tensor, "P B D"]) -> list[Tensor]:
        return [obs]

    def evaluate(self, encoded: list[Tensor], action: Float[Tensor, "P B K N"]) -> Evaluation:
        """Q at a one-hot or relaxed action."""
        rows = torch.cat([encoded[0], action.flatten(-2)], -1).repeat(self.num_critics, 1, 1)
        saved = self.mlp.forward(rows)
        return Evaluation(saved[-1].view(self.num_critics, *action.shape[:2]), action, saved)

    def action_gradient(self, evaluation: Evaluation) -> Float[Tensor, "C P B K N"]:
        """dQ/da: back through the network to its input."""
        ones = torch.ones_like(evaluation.saved[-1])
        size = math.prod(evaluation.action.shape[2:])
        gradient = self.mlp.input_gradient(evaluation.saved, ones)[..., -size:]
        return gradient.unflatten(0, (self.num_critics, -1)).unflatten(-1, evaluation.action.shape[2:])

    def parameter_gradient(self, evaluation: Evaluation, gradient: Float[Tensor, "C P B"]) -> Float[Tensor, "CP F"]:
        """From a gradient with respect to Q."""
        return self.mlp.parameter_gradient(evaluation.saved, gradient.flatten(0, 1).unsqueeze(-1))

    def counterfactuals(self, encoded: list[Tensor], action: Float[Tensor, "P B K N"]) -> Float[Tensor, "C P B K N"]:
        """Q(s, a) had factor k taken choice n: sum_k n_k evaluations, a factor's as one batch; 0 where none exists."""
        num_choices = action.shape[-1]
        columns = []
        for k, count in enumerate(self.actions.num_choices):
            replaced = action.repeat(1, count, 1, 1).unflatten(1, (count, -1))
            replaced[..., k, :] = torch.eye(num_choices, device=action.device)[:count, None]
            q = self.evaluate([encoded[0].repeat(1, count, 1)], replaced.flatten(1, 2)).q
            columns.append(F.pad(q.unflatten(-1, (count, -1)).transpose(-1, -2), (0, num_choices - count)))
        return torch.stack(columns, -2)


Critics = MultilinearCritic | JointCritic


def make_critics(
    config: CriticConfig,
    obs_size: int,
    actions: ActionSpace,
    hidden_sizes: Sequence[int],
    num_rows: int,
    num_critics: int,
) -> Critics:
    """Critics of the structure that a config names."""
    num_values = actions.num_factors * actions.width

    def mlp(num_in: int, num_out: int) -> PopulationMLP:
        return PopulationMLP([num_in, *hidden_sizes, num_out], num_rows, layer_norm=config.layer_norm)

    if config.structure == "joint":
        return JointCritic(mlp(obs_size + num_values, 1), actions, num_critics)
    rank = config.rank if config.structure == "multilinear" and actions.num_factors > 1 else 0
    return MultilinearCritic(mlp(obs_size, num_values * (1 + rank)), actions, num_critics, rank)


class ReducedQ(NamedTuple):
    """The critics at a batch of observations as one Q(s, .): what an estimator sees of them."""

    critics: Critics
    encoded: list[Tensor]
    reduce: str

    def value(self, action: Float[Tensor, "P B K N"]) -> Float[Tensor, "P B"]:
        return losses.reduce_critics(self.critics.evaluate(self.encoded, action).q, self.reduce)

    def value_and_gradient(
        self, action: Float[Tensor, "P B K N"]
    ) -> tuple[Float[Tensor, "P B"], Float[Tensor, "P B K N"]]:
        evaluation = self.critics.evaluate(self.encoded, action)
        gradient = losses.reduce_gradient(evaluation.q, self.critics.action_gradient(evaluation), self.reduce)
        return losses.reduce_critics(evaluation.q, self.reduce), gradient

    def counterfactuals(self, action: Float[Tensor, "P B K N"]) -> Float[Tensor, "P B K N"]:
        return losses.reduce_critics(self.critics.counterfactuals(self.encoded, action), self.reduce)
