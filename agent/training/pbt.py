"""A population that tunes itself: population-based training (Jaderberg et al. 2017).

At intervals the members with the lowest returns take over what the best have learned, and their settings, perturbed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from agent.config import Config
from agent.config_fields import ConfigError, nearest
from agent.ranks import Ranks, shares
from agent.seeding import derived_seed
from agent.state import State

PERTURBED: dict[str, Callable[[Tensor, float], Tensor]] = {  # a setting times a factor, within its range
    "learning_rate": lambda x, factor: x * factor,
    "tau": lambda x, factor: (x * factor).clamp(0.05, 5.0),
    "target_entropy": lambda x, factor: (x * factor).clamp(max=1.0),
    "noise_persistence": lambda x, factor: (1 - (1 - x) / factor).clamp(0.0, 0.99),  # of the time that noise is held
    "entropy_coefficient": lambda x, factor: x * factor,
}


class Move(NamedTuple):
    """A member that takes over another's weights and settings, these times a factor each."""

    child: int
    parent: int
    factors: dict[str, float]


def plan(returns: Sequence[float], settings: Sequence[str], config: Config, env_steps: int) -> list[Move]:
    """Truncation selection (Jaderberg et al. 2017, section 4.1.1): a share of the lowest copies a share of the highest.

    What is drawn follows from the config's seed and the step alone. A return that is not finite is the lowest.
    """
    number = min(len(returns) // 2, max(1, round(config.pbt.fraction * len(returns))))
    order = np.argsort(np.nan_to_num(np.array(returns), nan=-np.inf), kind="stable")
    drawn = np.random.default_rng(derived_seed(config.seed, env_steps))
    moves = []
    for child in order[:number]:
        parent = drawn.choice(order[len(order) - number :])
        factors = {key: float(drawn.choice(config.pbt.factors)) for key in settings}
        if returns[parent] > returns[child] or not np.isfinite(returns[child]):
            moves.append(Move(int(child), int(parent), factors))
    return moves


class SelfTuning:
    """The part of population-based training that moves tensors: in place, so that programs and graphs read them."""

    def __init__(self, config: Config, ranks: Ranks, learned: State, tunable: Mapping[str, Tensor]) -> None:
        """
        Args:
            ranks: among which the members are dealt.
            learned: of the members of this rank what a child takes over.
            tunable: their settings, members along the first axis.
        """
        self.config, self.ranks, self.learned = config, ranks, learned
        known = list(tunable)
        for key in config.pbt.settings or []:
            if key not in known:
                raise ConfigError(
                    f"pbt.settings: got '{key}', but {config.algorithm} can change {', '.join(known) or 'none'} in a "
                    f"run{nearest(key, known)}"
                )
        self.tunable = {key: tunable[key] for key in config.pbt.settings or known}
        self.dealt = shares(config.population_size, ranks.size)
        self.num_members = len(self.dealt[ranks.rank])
        self.factors = torch.ones(self.num_members, len(self.tunable), dtype=torch.float64)  # since the run began

    def state(self) -> State:
        return {"factors": self.factors, **self.tunable}

    @torch.no_grad()
    def take_(self, moves: Sequence[Move]) -> None:
        """Every child becomes its parent, with its settings perturbed."""
        tensors = {**self.learned, **self.state()}
        of_member = [{name: x.unflatten(0, (self.num_members, -1))[i] for name, x in tensors.items() if x.ndim}
                     for i in range(self.num_members)]  # fmt: skip
        for child, parent, factors in moves:
            from_rank, to_rank = self.rank_of(parent), self.rank_of(child)
            first = self.dealt[self.ranks.rank].start
            rows = of_member[parent - first] if from_rank == self.ranks.rank else None
            given = self.ranks.pass_on(rows, from_rank, to_rank, like=of_member[0])
            if to_rank != self.ranks.rank:
                continue
            own = of_member[child - first]
            for name, row in given.items():
                own[name].copy_(row)
            for i, (key, factor) in enumerate(factors.items()):
                own[key].copy_(PERTURBED[key](own[key], factor))
                own["factors"][..., i] *= factor

    def rank_of(self, member: int) -> int:
        return next(rank for rank, own in enumerate(self.dealt) if member in own)

    def rows(self, moves: Sequence[Move]) -> list[dict[str, float]]:
        """The metrics of this rank's members: whose weights each has, and by what its settings have been multiplied."""
        parents = {move.child: move.parent for move in moves}
        return [
            {"pbt/parent": float(parents.get(member, member))}
            | {f"pbt/{key}": float(self.factors[i, k]) for k, key in enumerate(self.tunable)}
            for i, member in enumerate(self.dealt[self.ranks.rank])
        ]
