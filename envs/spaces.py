"""Gymnasium spaces as flat numbers: observations as vectors, actions as K categoricals.

Axes: E environment · K action factor · D observation.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from jaxtyping import Float32, Int64

from envs.errors import UserError
from envs.space_json import space_from_json, space_to_json

__all__ = ["FactoredActions", "FlatObservations", "space_from_json", "space_to_json"]

Discrete = spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
Path = tuple[Any, ...]  # the keys and indices that lead to an elementary space


class _Numbers:
    """Encodes Box and MultiBinary: each entry as it is."""

    def __init__(self, space: spaces.Box | spaces.MultiBinary) -> None:
        self.ndim = len(space.shape)
        self.size = int(np.prod(space.shape))
        self.binary = isinstance(space, spaces.MultiBinary)
        self.is_bytes = self.binary or space.dtype == np.uint8

    def encode(self, obs: Any) -> Float32[np.ndarray, "E D"]:
        return np.array(obs, dtype=np.float32, order="C").reshape(len(obs), self.size)


class _OneHot:
    """Encodes Discrete and MultiDiscrete: one column for each value of each entry."""

    binary = is_bytes = True

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete) -> None:
        counts = _counts(space)
        self.ndim = len(space.shape or ())
        self.space, self.num_entries, self.size = space, len(counts), int(counts.sum())
        self.entry = np.repeat(np.arange(len(counts)), counts)  # which entry a column looks at
        self.value = np.concatenate([start + np.arange(n) for start, n in zip(_starts(space), counts, strict=True)])

    def encode(self, obs: Any) -> Float32[np.ndarray, "E D"]:
        entries = np.asarray(obs).reshape(len(obs), self.num_entries)
        columns = entries[:, self.entry] == self.value
        if np.count_nonzero(columns) != entries.size:
            raise UserError(f"an observation outside of its space {self.space}: {entries.tolist()}")
        return columns.astype(np.float32, order="C")


class FlatObservations:
    """Turns the observations of any supported space into float32 vectors, in the order of Gymnasium's `flatten`.

    size: D, the length of a vector. binary: bool [D], True for one-hot and binary entries, which are never normalised.
    are_bytes: whether every entry is a whole number from 0 to 255.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self._leaves = tuple(_leaves(space, ()))
        self.size = sum(encoder.size for _, encoder in self._leaves)
        if self.size == 0:
            raise UserError(f"observation space {space}, which is empty")
        self.are_bytes = all(encoder.is_bytes for _, encoder in self._leaves)
        self.binary = np.concatenate([np.full(encoder.size, encoder.binary) for _, encoder in self._leaves])

    def is_batch(self, obs: Any) -> bool:
        """Whether `obs` holds several observations along a new first axis rather than one."""
        path, encoder = self._leaves[0]
        return np.ndim(_at(obs, path)) > encoder.ndim

    def flatten(self, batched_obs: Any) -> Float32[np.ndarray, "E D"]:
        """Flattens a batch as a vector environment returns it. The result is a copy: it never aliases its argument."""
        return _concatenate([encoder.encode(_at(batched_obs, path)) for path, encoder in self._leaves])

    def flatten_each(self, observations: Sequence[Any]) -> Float32[np.ndarray, "E D"]:
        """Flattens observations of single environments into one batch."""
        return _concatenate(
            [encoder.encode(np.array([_at(obs, path) for obs in observations])) for path, encoder in self._leaves]
        )

    def flatten_one(self, obs: Any) -> Float32[np.ndarray, " D"]:
        """Flattens the observation of one environment."""
        return self.flatten_each([obs])[0]


class FactoredActions:
    """Any discrete action space as K categoricals.

    Discrete has one factor; MultiDiscrete and MultiBinary one for each entry; Box one for each entry, cut into `bins`
    equidistant values that include both ends of the entry's range. num_choices: choices of each factor, length K.
    """

    num_choices: tuple[int, ...]

    def __init__(self, space: Space, bins: int | None = None) -> None:
        if not isinstance(space, spaces.Box | Discrete):
            raise UserError(
                f"action space {space}, which is not supported: "
                "use Discrete, MultiDiscrete, MultiBinary, or Box with env.action_bins"
            )
        self.space = space
        self._shape, self._dtype = space.shape or (), space.dtype
        self._levels: np.ndarray | None = None  # of a Box: the values [K, bins] that its factors choose from
        if isinstance(space, spaces.Box):
            self._levels = _levels(space, bins)
            self._factor = np.arange(len(self._levels))
            self.num_choices = self._levels.shape[1:] * len(self._levels)
        elif bins is not None:
            raise UserError(f"action space {space}: it is discrete already, leave env.action_bins unset")
        else:
            self._start = _starts(space)
            self.num_choices = tuple(_counts(space).tolist())

    def decode(self, factors: Int64[np.ndarray, "*batch K"]) -> np.ndarray:
        """Returns the environment's actions, batched as `factors`, in the dtype and shape of the space."""
        values = factors + self._start if self._levels is None else self._levels[self._factor, factors]
        return values.astype(self._dtype, copy=False).reshape(factors.shape[:-1] + self._shape)


def _leaves(space: Space, path: Path) -> Iterator[tuple[Path, _Numbers | _OneHot]]:
    match space:
        case spaces.Box() | spaces.MultiBinary():
            yield path, _Numbers(space)
        case spaces.Discrete() | spaces.MultiDiscrete():
            yield path, _OneHot(space)
        case spaces.Dict() | spaces.Tuple():
            parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
            for key, part in parts:
                yield from _leaves(part, (*path, key))
        case _:
            raise UserError(
                f"observation space {space}, which is not supported: use Box, Discrete, MultiDiscrete, MultiBinary, "
                "Dict or Tuple"
            )


def _at(obs: Any, path: Path) -> Any:
    for key in path:
        obs = obs[key]
    return obs


def _concatenate(columns: list[np.ndarray]) -> np.ndarray:
    return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)


def _counts(space: Discrete) -> np.ndarray:
    """The number of values of each entry of a discrete space."""
    if isinstance(space, spaces.MultiBinary):
        return np.full(int(np.prod(space.shape)), 2)
    return np.ravel(space.n if isinstance(space, spaces.Discrete) else space.nvec).astype(np.int64)


def _starts(space: Discrete) -> np.ndarray:
    """The smallest value of each entry of a discrete space."""
    return np.ravel(getattr(space, "start", 0)).astype(np.int64)


def _levels(space: spaces.Box, bins: int | None) -> np.ndarray:
    """The values [K, bins] that the factors of a Box choose from."""
    if bins is None:
        raise UserError(
            f"action space {space}: set env.action_bins (for example env.action_bins=3) to cut it into bins, "
            "or use one of Discrete, MultiDiscrete, MultiBinary."
        )
    if bins < 2:
        raise UserError(f"action space {space}: env.action_bins must be at least 2, the ends of the range; got {bins}")
    low, high = space.low.ravel().astype(np.float64), space.high.ravel().astype(np.float64)
    with np.errstate(over="ignore"):
        finite = np.isfinite(high - low).all()
    if not (space.is_bounded() and finite):
        raise UserError(f"action space {space}: only a bounded Box can be cut into bins; rescale its actions first")
    levels = np.linspace(low, high, bins, axis=1)
    if space.dtype.kind == "f":
        return levels.astype(space.dtype)
    if (high - low + 1 < bins).any():
        raise UserError(f"action space {space}: env.action_bins={bins} is more than the integers in its range")
    return levels.round().astype(space.dtype)
