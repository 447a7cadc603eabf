"""ChainBandit: one step, K factors whose choices interact along a chain, and an optimum known at any size."""

import math
from functools import partial
from typing import Any

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Generator, Tensor

from envs.random_streams import RandomStreams
from envs.tensor.functional import FunctionalEnv, check_counts
from envs.tensor.functional_gymnasium import FunctionalSingleEnv, FunctionalVectorEnv


class ChainBandit(FunctionalEnv[Tensor]):
    """A contextual bandit over num_choices ** num_factors joint actions, with interactions between neighbours.

        r(s, a) = [ sum_k U[s, k, a_k] + c sum_{k<K} W[s, k, a_k, a_{k+1}] ] / sqrt(K + c^2 (K - 1))

    U and W are tables of standard normal numbers that `table_seed` alone decides, c is `interaction`. The denominator
    makes the variance of r one, over tables and uniform actions, whatever K and c. At c = 0 each factor is a bandit of
    its own; else a share (1 - 1/N)^2 c^2 (K - 1) / (K + c^2 (K - 1)) of the variance is out of reach of any sum of
    terms of one factor each.

    State: the context s, drawn uniformly. Observation: the same, Discrete; flattened it is a one-hot, from which one
    layer reads any table, as nothing but the tables tells two contexts apart. Action: a_k, MultiDiscrete. Every step
    terminates.

    Axes, beside those of `functional`: S context · N choice.

    Args:
        interaction: c.
        table_seed: of the tables; the environments' own seed decides the contexts that are drawn.
    """

    def __init__(
        self,
        num_envs: int = 1,
        device: str | torch.device = "cpu",
        num_factors: int = 8,
        num_choices: int = 6,
        num_contexts: int = 16,
        interaction: float = 1.0,
        table_seed: int = 0,
    ) -> None:
        super().__init__(num_envs, device)
        check_counts(
            num_factors=(num_factors, 1),
            num_choices=(num_choices, 2),
            num_contexts=(num_contexts, 1),
            table_seed=(table_seed, 0),
        )
        if not (isinstance(interaction, int | float) and math.isfinite(interaction)):
            raise ValueError(f"interaction must be a finite number; got {interaction!r}")
        self.num_contexts = num_contexts
        self.observation_space = spaces.Discrete(num_contexts)
        self.action_space = spaces.MultiDiscrete([num_choices] * num_factors)
        tables, num_links = Generator().manual_seed(table_seed), num_factors - 1  # on the CPU: alike for every device
        scale = (num_factors + interaction**2 * num_links) ** -0.5
        unary = torch.randn(num_contexts, num_factors, num_choices, generator=tables)
        pairwise = torch.randn(num_contexts, num_links, num_choices, num_choices, generator=tables)
        self.unary: Float32[Tensor, "S K N"] = (scale * unary).to(self.device)
        self.pairwise: Float32[Tensor, "S K-1 N N"] = (scale * interaction * pairwise).to(self.device)
        self._factor = torch.arange(num_factors, device=self.device)
        self._link = torch.arange(num_links, device=self.device)

    def optimum(self) -> float:
        """The largest expected reward: the mean of `optimum_per_context`."""
        return self.optimum_per_context().mean().item()

    def random_value(self) -> float:
        """The expected reward of uniform actions: the mean of `random_value_per_context`."""
        return self.random_value_per_context().mean().item()

    def optimum_per_context(self) -> Float64[Tensor, " S"]:
        """The largest reward of each context, in O(K N^2).  Viterbi 1967.

        V_1(j)     = U[s, 1, j]
        V_{k+1}(j) = U[s, k + 1, j] + max_i (V_k(i) + W[s, k, i, j])      the best of a_1 … a_k before a_{k+1} = j
        """
        unary, pairwise = self.unary.double(), self.pairwise.double()
        value = unary[:, 0]
        for k in range(pairwise.shape[1]):
            value = unary[:, k + 1] + (value.unsqueeze(2) + pairwise[:, k]).amax(1)
        return value.amax(1)

    def random_value_per_context(self) -> Float64[Tensor, " S"]:
        """The expected reward of uniform actions in each context: the sum of the means of its tables."""
        return self.unary.double().mean(2).sum(1) + self.pairwise.double().mean((2, 3)).sum(1)

    def initial(self, rng: RandomStreams, params: Any = None) -> Int64[Tensor, " E"]:
        return rng.integers(self.num_contexts)

    def transition(
        self, state: Int64[Tensor, " E"], action: Int64[Tensor, "E K"], rng: RandomStreams, params: Any = None
    ) -> Int64[Tensor, " E"]:
        return state.clone()

    def observation(self, state: Int64[Tensor, " E"], rng: RandomStreams, params: Any = None) -> Int64[Tensor, " E"]:
        return state

    def reward(
        self,
        state: Int64[Tensor, " E"],
        action: Int64[Tensor, "E K"],
        next_state: Int64[Tensor, " E"],
        rng: RandomStreams,
        params: Any = None,
    ) -> Float32[Tensor, " E"]:
        context = state.unsqueeze(1)
        unary = self.unary[context, self._factor, action]
        pairwise = self.pairwise[context, self._link, action[:, :-1], action[:, 1:]]
        return unary.sum(1) + pairwise.sum(1)

    def terminal(self, state: Int64[Tensor, " E"], rng: RandomStreams, params: Any = None) -> Bool[Tensor, " E"]:
        """Asked of the states that a step leads to, all of which are."""
        return torch.ones_like(state, dtype=torch.bool)


class ChainBanditVectorEnv(FunctionalVectorEnv):
    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        num_factors: int = 8,
        num_choices: int = 6,
        num_contexts: int = 16,
        interaction: float = 1.0,
        table_seed: int = 0,
    ) -> None:
        make_functional = partial(
            ChainBandit,
            num_factors=num_factors,
            num_choices=num_choices,
            num_contexts=num_contexts,
            interaction=interaction,
            table_seed=table_seed,
        )
        super().__init__(make_functional, num_envs, max_episode_steps)


class ChainBanditEnv(FunctionalSingleEnv):
    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(
        self,
        num_factors: int = 8,
        num_choices: int = 6,
        num_contexts: int = 16,
        interaction: float = 1.0,
        table_seed: int = 0,
    ) -> None:
        super().__init__(
            ChainBandit(
                num_factors=num_factors,
                num_choices=num_choices,
                num_contexts=num_contexts,
                interaction=interaction,
                table_seed=table_seed,
            )
        )
