"""How ranks share a run: each trains some of the members, or all of them on a part of their data."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from agent.config import Config
from agent.config_fields import ConfigError
from agent.data_ranks import UNDIVIDED, DataRanks
from agent.evaluation import MODES, summary
from agent.ranks import ALONE, Ranks
from envs.errors import UserError

Row = dict[str, Any]


@runtime_checkable
class Sharing(Protocol):
    """What a rank does of a run, and how the parts become a whole.

    share: the members that this rank has. config: of its part, to make environments and learner of. num_parts: into
    which the environments of a member are divided. data: the ranks among which they are. ranks_of_members: those among
    which the members are dealt.
    """

    share: range
    config: Config
    num_parts: int
    data: DataRanks
    ranks_of_members: Ranks

    def rows(self, own: Sequence[Row]) -> list[Row]:
        """Of all members, from those of each rank's members."""

    def weights(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same of tensors, with a row or more for each member; at rank 0, on the CPU."""

    def whole(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state of all ranks, for a checkpoint; at rank 0."""

    def part(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's part of what rank 0 has read of a checkpoint."""

    def num_episodes(self, number: int) -> int:
        """How many of a member's episodes this rank evaluates."""

    def evaluated(self, own: Sequence[Row]) -> list[Row]:
        """All members' episodes, from those that each rank has evaluated."""


class ByMembers:
    """Each rank trains some members: nothing that one learns depends on where the others are."""

    num_parts, data = 1, UNDIVIDED

    def __init__(self, config: Config, ranks: Ranks) -> None:
        self.ranks = self.ranks_of_members = ranks
        self.num_members = config.population_size
        self.share = ranks.share(self.num_members)
        self.config = config.with_members(self.share)

    def rows(self, own: Sequence[Row]) -> list[Row]:
        return self.ranks.collect(own)

    def weights(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.ranks.gather(own)

    def whole(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for name, x in state.items():
            if x.ndim and len(x) % len(self.share):
                raise UserError(
                    f"checkpoint: {name} has the shape {list(x.shape)}, but a state's tensors have the members along "
                    f"their first axis, here {len(self.share)}; see agent/algorithms/base.py: state"
                )
        return self.ranks.gather(state)

    def part(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.ranks.scatter(whole, self.num_members)

    def num_episodes(self, number: int) -> int:
        return number

    def evaluated(self, own: Sequence[Row]) -> list[Row]:
        return self.ranks.collect(own)


class ByData:
    """Each rank has a part of every member's environments, replay and batch; parameters are the same on all ranks."""

    def __init__(self, config: Config, ranks: Ranks) -> None:
        self.ranks, self.ranks_of_members, self.num_parts = ranks, ALONE, ranks.size
        self.share = range(config.population_size)
        self.config = part_of_data(config, ranks.rank, ranks.size)
        self.data = DataRanks(ranks.rank, ranks.size)

    def rows(self, own: Sequence[Row]) -> list[Row]:
        return list(own)

    def weights(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(own)

    def whole(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rank 0's tensors under their names; others' under rank1/…, those that are not the same there."""
        of_ranks = self.ranks.gather_each(state)
        whole = dict(state)
        for rank, tensors in enumerate(of_ranks[1:], 1):
            differing = {name: x for name, x in tensors.items() if not same(x, state[name])}
            whole |= {f"rank{rank}/{name}": x for name, x in differing.items()}
        return whole

    def part(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        common = {name: x for name, x in whole.items() if not name.startswith("rank")}
        parts = [
            {name: whole.get(f"rank{rank}/{name}", x) for name, x in common.items()} for rank in range(self.num_parts)
        ]
        return self.ranks.scatter_each(parts)

    def num_episodes(self, number: int) -> int:
        return len(self.ranks.share(number))

    def evaluated(self, own: Sequence[Row]) -> list[Row]:
        of_ranks = [rows for rows in self.ranks.exchange(list(own)) if rows]
        return [joined_episodes(of_member) for of_member in zip(*of_ranks, strict=True)]


def make_sharing(config: Config, ranks: Ranks) -> Sharing:
    """ConfigError where there is too little to share."""
    if config.parallel.data:
        return ByData(config, ranks)
    if ranks.size > config.population_size:
        raise ConfigError(
            f"torchrun has started {ranks.size} ranks, but there are {config.population_size} members (seeds x sweep), "
            "of which each rank trains some; start fewer ranks, train more members, or share the data of each with "
            "parallel.data=true"
        )
    return ByMembers(config, ranks)


def part_of_data(config: Config, rank: int, size: int) -> Config:
    """What one of `size` ranks does of a run: all that counts environments or their steps, divided by them."""
    envs, batch = config.env.num_envs, config.batch_size
    if envs % size:
        raise ConfigError(
            f"env.num_envs: got {envs}, but with parallel.data=true each of {size} ranks has as many environments; use "
            f"a multiple of {size}, for example {-(-envs // size) * size}"
        )
    of_batch = size * (config.sequence_length if config.network.memory != "none" else 1)
    if config.algorithm != "reinforce" and batch % of_batch:
        raise ConfigError(
            f"batch_size: got {batch}, but with parallel.data=true each of {size} ranks has an equal part; use a "
            f"multiple of {of_batch}, for example {-(-batch // of_batch) * of_batch}"
        )
    if size == 1:
        return config

    def steps(of_schedule: Any) -> Any:
        if of_schedule.env_steps is None:
            return of_schedule
        return of_schedule.model_copy(update={"env_steps": of_schedule.env_steps / size})

    settings = config.reinforce
    part = config.model_copy(
        update={
            "env": config.env.model_copy(update={"num_envs": envs // size}),
            "total_env_steps": config.last_env_step // size,
            "batch_size": max(1, batch // size),
            "updates_per_step": config.updates_per_step * size,
            "learning_starts": -(-config.learning_starts // size),
            "replay_capacity": max(2, config.replay_capacity // size),
            "tau": steps(config.tau),
            "target_entropy": steps(config.target_entropy),
            "reinforce": settings.model_copy(update={"rollout_steps": max(1, settings.rollout_steps // size)}),
        }
    )
    return part.with_part_of_data(rank, size)


def joined_episodes(rows: Sequence[Row]) -> Row:
    """A member's episodes, of which each row has some."""
    joined = dict(rows[0])
    for mode in MODES:
        of_mode = [row[mode] for row in rows]
        joined[mode] = summary(
            *(np.concatenate([x[key] for x in of_mode]) for key in ("returns", "lengths", "were_cut"))
        )
    return joined


def same(x: Tensor, other: Tensor) -> bool:
    return x.shape == other.shape and bool((x == other).all())
