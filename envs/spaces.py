"""Gymnasium spaces as flat numbers: observations as vectors, actions as K categoricals.

Axes: E environment · K action factor · D observation.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import Space, spaces
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor

from envs.errors import UserError
from envs.space_json import space_from_json, space_to_json
from envs.values import without_ones

__all__ = ["FactoredActions", "FlatObservations", "ObsPart", "space_from_json", "space_to_json"]

Discrete = spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
Path = tuple[Any, ...]  # the keys and indices that lead to an elementary space
Leaf = spaces.Box | Discrete  # what has numbers


class ObsPart(NamedTuple):
    """A part of an observation, as it lies in the vector."""

    name: str  # of the keys that lead to it, "" where the observation is one part
    shape: tuple[int, ...]  # of its numbers
    is_image: bool = False  # whether its numbers are pixels of a picture, or cells of a grid

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class _Numbers:
    """Encodes Box and MultiBinary: each entry as it is."""

    def __init__(self, space: spaces.Box | spaces.MultiBinary) -> None:
        self.space, self.shape, self.ndim = space, space.shape, len(space.shape)
        self.size = int(np.prod(space.shape))
        self.binary = isinstance(space, spaces.MultiBinary) or space.dtype == bool
        self.is_bytes = self.binary or space.dtype == np.uint8
        self.is_image = _is_image(space)
        self.low, self.high = 0.0, 1.0
        if isinstance(space, spaces.Box) and not self.binary and self.size:
            self.low, self.high = float(space.low.min()), float(space.high.max())

    def encode(self, obs: Any) -> Float32[np.ndarray, "E D"]:
        array = np.array(obs, dtype=np.float32, order="C")
        if array.shape[1:] != self.shape and without_ones(array.shape[1:]) != without_ones(self.shape):
            raise ValueError(f"observations of shape {array.shape[1:]}, expected {self.shape}")
        if self.binary and (wrong := (array != 0) & (array != 1)).any():
            raise UserError(f"an observation outside of its space {self.space}: a value of {array[wrong][0]:g}")
        if self.is_image and self.space.dtype != np.uint8 and not (self.low <= array.min() <= array.max() <= self.high):
            raise UserError(
                f"an image with values from {array.min():g} to {array.max():g}, outside of its space {self.space}"
            )
        return array.reshape(len(array), self.size)

    def encode_tensor(self, obs: Tensor) -> Float[Tensor, "E D"]:
        return obs.float().flatten(1)


class _OneHot:
    """Encodes Discrete and MultiDiscrete: one column for each value of each entry.

    A MultiDiscrete of three axes is a grid of codes: those of a cell are side by side, and become its channels.
    """

    binary = is_bytes = True
    low, high = 0.0, 1.0

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete) -> None:
        counts = _counts(space)
        shape = space.shape or ()
        self.ndim = len(shape)
        self.space, self.num_entries, self.size = space, len(counts), int(counts.sum())
        self.entry = np.repeat(np.arange(len(counts)), counts)  # which entry a column looks at
        self.value = np.concatenate([start + np.arange(n) for start, n in zip(_starts(space), counts, strict=True)])
        cells = counts.reshape(-1, shape[-1]) if self.ndim == 3 else np.zeros((0, 1))
        self.is_image = len(cells) > 0 and min(shape[:2]) >= 3 and bool((cells == cells[0]).all())
        self.shape = (*shape[:2], int(cells[0].sum())) if self.is_image else (self.size,)

    def encode(self, obs: Any) -> Float32[np.ndarray, "E D"]:
        entries = np.asarray(obs).reshape(len(obs), self.num_entries)
        columns = entries[:, self.entry] == self.value
        if np.count_nonzero(columns) != entries.size:
            raise UserError(f"an observation outside of its space {self.space}: {entries.tolist()}")
        return columns.astype(np.float32, order="C")

    def encode_tensor(self, obs: Tensor) -> Float[Tensor, "E D"]:
        entry, value = torch.from_numpy(self.entry).to(obs.device), torch.from_numpy(self.value).to(obs.device)
        return (obs.reshape(obs.shape[0], self.num_entries)[:, entry] == value).float()


class FlatObservations:
    """Turns the observations of any supported space into float32 vectors, in the order of Gymnasium's `flatten`.

    Parts of a Dict or a Tuple that are not numeric, such as Text, are left out, and so is an action mask in a Dict.
    Observations may have these parts or not.

    space: of what is encoded. left_out: names of the parts that are not numeric.
    size: D, the length of a vector. parts: what lies in it, one after the other.
    offset, scale: float32 [D], which bring numbers to [0, 1] where the space alone says how: (obs - offset) / scale.
    They are 0 and 1 for one-hot and binary entries, and the range of an image; a scale of 0: of another entry.
    are_bytes: whether every entry is a whole number from 0 to 255.
    """

    def __init__(self, space: Space, action_mask_key: str | None = None) -> None:
        self.space = encodable(without_mask(space, action_mask_key))
        self.left_out = left_out(space)
        self._leaves = tuple((path, _encoder(leaf)) for path, leaf in _leaves(self.space))
        self.size = sum(encoder.size for _, encoder in self._leaves)
        if self.size == 0:
            raise UserError(f"observation space {space}, which is empty")
        self.are_bytes = all(encoder.is_bytes for _, encoder in self._leaves)
        self.parts = tuple(
            ObsPart(".".join(map(str, path)), encoder.shape if encoder.is_image else (encoder.size,), encoder.is_image)
            for path, encoder in self._leaves
        )
        bounds = [(e.low, e.high - e.low) if e.binary or e.is_image else (0.0, 0.0) for _, e in self._leaves]
        sizes = [encoder.size for _, encoder in self._leaves]
        self.offset, self.scale = np.repeat(np.array(bounds, np.float32), sizes, axis=0).T.copy()

    def is_batch(self, obs: Any) -> bool:
        """Whether `obs` holds several observations along a new first axis rather than one."""
        path, encoder = self._leaves[0]
        return np.ndim(_at(obs, path)) > encoder.ndim

    def flatten(self, batched_obs: Any) -> Float32[np.ndarray, "E D"]:
        """Flattens a batch as a vector environment returns it. The result is a copy: it never aliases its argument."""
        return _concatenate([encoder.encode(_at(batched_obs, path)) for path, encoder in self._leaves])

    def flatten_tensors(self, obs: Any) -> Float[Tensor, "E D"]:
        """The same of tensors, in the structure of the space, by operations of torch alone; nothing is checked."""
        return torch.cat([encoder.encode_tensor(_at(obs, path)) for path, encoder in self._leaves], 1)

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
    equidistant values that include both ends of the entry's range; Tuple and Dict those of their parts, one part after
    the other.

    num_choices: choices of each factor, length K. parts: those of a Tuple or a Dict, by index or key; of others none.
    """

    num_choices: tuple[int, ...]

    def __init__(self, space: Space, bins: int | None = None) -> None:
        if bins is not None and _is_discrete(space):
            raise UserError(f"action space {space}: it is discrete already, leave env.action_bins unset")
        self.space = space
        self.parts: dict[Any, FactoredActions] = {}
        match space:
            case spaces.Dict() | spaces.Tuple():
                for key, part in _parts(space):
                    try:
                        self.parts[key] = FactoredActions(part, None if _is_discrete(part) else bins)
                    except UserError as error:
                        raise UserError(f"in part {key!r} of its actions the {error}") from None
                self.num_choices = tuple(n for part in self.parts.values() for n in part.num_choices)
                ends = itertools.accumulate(len(part.num_choices) for part in self.parts.values())
                self._columns = list(itertools.starmap(slice, itertools.pairwise([0, *ends])))  # of each part
            case spaces.Box():
                self._levels = _levels(space, bins)  # the values [K, bins] that the factors choose from
                self._factor = np.arange(len(self._levels))
                self.num_choices = self._levels.shape[1:] * len(self._levels)
            case spaces.Discrete() | spaces.MultiDiscrete() | spaces.MultiBinary():
                self._start = _starts(space)
                self.num_choices = tuple(_counts(space).tolist())
            case _:
                raise UserError(
                    f"action space {space}, which is not supported: use Discrete, MultiDiscrete, MultiBinary, "
                    "Box with env.action_bins, or a Tuple or Dict of these"
                )
        if not self.num_choices:
            raise UserError(f"action space {space}, which is empty")

    def decode(self, factors: Int64[np.ndarray, "*batch K"]) -> Any:
        """Returns the environment's actions, batched as `factors`, in the dtype and shape of the space.

        Of a Tuple or Dict: a tuple or dict of its parts' actions, as Gymnasium's vector environments take them.
        """
        if self.parts:
            columns = zip(self.parts.items(), self._columns, strict=True)
            decoded = {key: part.decode(factors[..., own]) for (key, part), own in columns}
            return decoded if isinstance(self.space, spaces.Dict) else tuple(decoded.values())
        if isinstance(self.space, spaces.Box):
            values = self._levels[self._factor, factors]
        else:
            values = factors + self._start
        return values.astype(self.space.dtype, copy=False).reshape(factors.shape[:-1] + (self.space.shape or ()))

    def decode_tensors(self, factors: Int[Tensor, "E K"]) -> Any:
        """The same by operations of torch alone."""
        if self.parts:
            columns = zip(self.parts.items(), self._columns, strict=True)
            decoded = {key: part.decode_tensors(factors[..., own]) for (key, part), own in columns}
            return decoded if isinstance(self.space, spaces.Dict) else tuple(decoded.values())
        if isinstance(self.space, spaces.Box):
            levels = torch.from_numpy(self._levels).to(factors.device)
            values = levels[torch.from_numpy(self._factor).to(factors.device), factors]
        else:
            start = torch.from_numpy(self._start).to(factors.device)
            dtype = torch.from_numpy(np.zeros(0, self.space.dtype)).dtype
            values = (factors + start).to(dtype)
        return values.unflatten(1, self.space.shape) if self.space.shape else values.squeeze(1)

    def decode_each(self, factors: Int64[np.ndarray, "E K"]) -> list[Any]:
        """Returns the actions one by one, each as a single environment takes it."""
        decoded = self.decode(factors)
        return [_index(decoded, i) for i in range(len(factors))]


def encodable(space: Space) -> Space:
    """The space of an observation without its parts that are not numeric, such as Text. UserError: nothing remains.

    A Dict loses their keys; a Tuple has empty Tuples in their place.
    """
    encoded = _encodable(space)
    if encoded is None:
        raise UserError(
            f"observation space {space}, which is not supported: use Box, Discrete, MultiDiscrete, MultiBinary, "
            "Dict or Tuple, or a wrapper that turns observations into one of these (env.wrappers)"
        )
    return encoded


def left_out(space: Space) -> tuple[str, ...]:
    """Names and kinds of the parts of an observation that are not numeric."""
    parts = [(".".join(map(str, path)), leaf) for path, leaf in _leaves(space) if not isinstance(leaf, Leaf)]
    return tuple(f"'{name}' ({type(leaf).__name__})" for name, leaf in parts)


def has_mask(space: Space, action_mask_key: str | None) -> bool:
    """Whether observations come with the mask of the legal actions: in PettingZoo's convention, a key of a Dict."""
    return isinstance(space, spaces.Dict) and action_mask_key in space.spaces


def without_mask(space: Space, action_mask_key: str | None) -> Space:
    """The space of an observation without the mask of the legal actions."""
    if not has_mask(space, action_mask_key):
        return space
    parts = {key: part for key, part in _parts(space) if key != action_mask_key}
    if not parts:
        raise UserError(
            f"observation space {space}, which has nothing to observe besides the mask of legal actions; "
            "env.action_mask_key=null makes an observation of the mask"
        )
    return spaces.Dict(parts, sort_keys=False)


def are_same(space: Space, other: Space) -> bool:
    """Whether two spaces are equal and flatten in the same order; Gymnasium's == ignores the order of a Dict's keys."""
    return space == other and [path for path, _ in _leaves(space)] == [path for path, _ in _leaves(other)]


def _encodable(space: Space) -> Space | None:
    match space:
        case spaces.Dict():
            parts = {key: own for key, part in _parts(space) if (own := _encodable(part)) is not None}
            return spaces.Dict(parts, sort_keys=False) if parts else None
        case spaces.Tuple():
            encoded = [_encodable(part) for part in space.spaces]
            if all(part is None for part in encoded):
                return None
            return spaces.Tuple([spaces.Tuple([]) if part is None else part for part in encoded])
    return space if isinstance(space, Leaf) else None


def _parts(space: Space) -> list[tuple[Any, Space]]:
    """The parts of a Dict or a Tuple by key or index; of another space none."""
    match space:
        case spaces.Dict(spaces=parts):
            return list(parts.items())
        case spaces.Tuple(spaces=parts):
            return list(enumerate(parts))
    return []


def _leaves(space: Space, path: Path = ()) -> Iterator[tuple[Path, Space]]:
    """The elementary spaces of a space, and the keys and indices that lead to each."""
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        yield path, space
    for key, part in _parts(space):
        yield from _leaves(part, (*path, key))


def _is_discrete(space: Space) -> bool:
    return all(isinstance(leaf, Discrete) for _, leaf in _leaves(space))


def _encoder(space: Space) -> _Numbers | _OneHot:
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        return _Numbers(space)
    assert isinstance(space, spaces.Discrete | spaces.MultiDiscrete), f"{space} is not encodable"
    return _OneHot(space)


def _is_image(space: spaces.Box | spaces.MultiBinary) -> bool:
    """Whether the numbers of a space are a picture: bounded, with two axes of three or more places.

    Three axes: those and the channels. Two: uint8 or bool, one channel. Four: uint8 or bool frames with channels.
    """
    if isinstance(space, spaces.MultiBinary):
        return len(space.shape) == 3 and min(sorted(space.shape)[1:]) >= 3
    rank = len(space.shape)
    allowed = {2: (np.uint8, np.bool_), 4: (np.uint8, np.bool_)}.get(rank, (space.dtype.type,))
    if rank not in (2, 3, 4) or space.dtype.type not in allowed or not space.is_bounded():
        return False
    if space.low.min() == space.high.max():
        return False
    return sorted(space.shape)[-2] >= 3 and (rank > 2 or min(space.shape) >= 3)


def _index(batched: Any, i: int) -> Any:
    """Entry i of a batch, of every part of a dict or a tuple."""
    match batched:
        case dict():
            return {key: _index(part, i) for key, part in batched.items()}
        case tuple():
            return tuple(_index(part, i) for part in batched)
    return batched[i]


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
            "or use Discrete, MultiDiscrete, MultiBinary, or a Tuple or Dict of these"
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
