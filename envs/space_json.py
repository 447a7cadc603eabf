"""Gymnasium spaces as strict JSON and back, for files that somebody else may have written.

Arrays are flat lists in row-major order beside a `shape`. Reading builds the six kinds of space below from plain
numbers: it imports and calls nothing that the file names, and refuses descriptions that would exhaust memory.
"""

import math
from typing import Annotated, Any, Literal

import numpy as np
from gymnasium import Space, spaces
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError

from envs.errors import UserError

MAX_ENTRIES = 10_000_000  # numbers that a described space may flatten to; an Atari frame has 100 800

Integer = Annotated[int, Field(ge=-(2**63), lt=2**64)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Bound = Integer | Finite | Literal["inf", "-inf"]
Shape = Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=32)]
IntegerType = Literal["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
NumberType = IntegerType | Literal["bool", "float16", "float32", "float64"]


class _Description(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Discrete(_Description):
    type: Literal["Discrete"]
    n: PositiveInt
    start: Integer
    dtype: IntegerType

    def size(self) -> int:
        return self.n

    def build(self) -> Space:
        return spaces.Discrete(self.n, start=self.start, dtype=np.dtype(self.dtype))


class _MultiDiscrete(_Description):
    type: Literal["MultiDiscrete"]
    nvec: list[PositiveInt]
    start: list[Integer]
    shape: Shape
    dtype: IntegerType

    def size(self) -> int:
        return sum(self.nvec)

    def build(self) -> Space:
        dtype = np.dtype(self.dtype)
        nvec, start = (np.array(values, dtype).reshape(self.shape) for values in (self.nvec, self.start))
        return spaces.MultiDiscrete(nvec, dtype=dtype, start=start)


class _MultiBinary(_Description):
    type: Literal["MultiBinary"]
    n: PositiveInt | Shape  # Gymnasium keeps 4 and (4,) apart

    def size(self) -> int:
        return self.n if isinstance(self.n, int) else math.prod(self.n)

    def build(self) -> Space:
        return spaces.MultiBinary(self.n)


class _Box(_Description):
    type: Literal["Box"]
    low: Bound | list[Bound]  # one number where all entries agree
    high: Bound | list[Bound]
    shape: Shape
    dtype: NumberType

    def size(self) -> int:
        return math.prod(self.shape)

    def build(self) -> Space:
        low, high = self._bound(self.low), self._bound(self.high)
        if (low > high).any():
            raise ValueError("low is above high")
        return spaces.Box(low, high, dtype=np.dtype(self.dtype))

    def _bound(self, bound: Bound | list[Bound]) -> np.ndarray:
        entries = bound if isinstance(bound, list) else [bound] * self.size()
        return np.array([_number(entry) for entry in entries], dtype=self.dtype).reshape(self.shape)


class _Dict(_Description):
    type: Literal["Dict"]
    spaces: list[
        Annotated[tuple[str, "Described"], Field(strict=False)]
    ]  # pairs: their order is that of the flat vector

    def size(self) -> int:
        return sum(part.size() for _, part in self.spaces)

    def build(self) -> Space:
        parts = {key: part.build() for key, part in self.spaces}
        if len(parts) < len(self.spaces):
            raise ValueError("a key is repeated")
        return spaces.Dict(parts, sort_keys=False)


class _Tuple(_Description):
    type: Literal["Tuple"]
    spaces: list["Described"]

    def size(self) -> int:
        return sum(part.size() for part in self.spaces)

    def build(self) -> Space:
        return spaces.Tuple([part.build() for part in self.spaces])


Described = Annotated[
    _Discrete | _MultiDiscrete | _MultiBinary | _Box | _Dict | _Tuple,
    Field(discriminator="type"),
]
_Dict.model_rebuild()
_Tuple.model_rebuild()
_DESCRIBED: TypeAdapter[Any] = TypeAdapter(Described)


def space_to_json(space: Space) -> dict[str, Any]:
    """Returns a description of the space in strict JSON, infinite bounds as "inf" and "-inf"."""
    match space:
        case spaces.Discrete(n=n, start=start):
            return {"type": "Discrete", "n": int(n), "start": int(start), "dtype": space.dtype.name}
        case spaces.MultiDiscrete():
            values = {"nvec": space.nvec.ravel().tolist(), "start": space.start.ravel().tolist()}
            return {"type": "MultiDiscrete", **values, "shape": list(space.shape), "dtype": space.dtype.name}
        case spaces.MultiBinary(n=n):
            return {"type": "MultiBinary", "n": n if isinstance(n, int) else list(n)}
        case spaces.Box():
            bounds = {"low": _bound_to_json(space.low), "high": _bound_to_json(space.high)}
            return {"type": "Box", **bounds, "shape": list(space.shape), "dtype": space.dtype.name}
        case spaces.Dict(spaces=parts) if all(isinstance(key, str) for key in parts):
            return {"type": "Dict", "spaces": [[key, space_to_json(part)] for key, part in parts.items()]}
        case spaces.Tuple(spaces=parts):
            return {"type": "Tuple", "spaces": [space_to_json(part) for part in parts]}
    raise UserError(
        f"space {space} cannot be saved: use Box, Discrete, MultiDiscrete, MultiBinary, Tuple, or Dict with text keys"
    )


def space_from_json(description: Any) -> Space:
    """Returns the space that `space_to_json` described; anything else is a UserError that says where it is wrong."""
    try:
        described = _DESCRIBED.validate_python(description)
        if described.size() > MAX_ENTRIES:
            raise ValueError(f"it has {described.size()} entries, more than {MAX_ENTRIES}")
        return described.build()
    except ValidationError as error:
        raise UserError(f"not the description of a space: {_first_fault(error)}") from error
    except (ValueError, TypeError, OverflowError, AssertionError, RecursionError) as error:
        raise UserError(f"not the description of a space: {error}") from error


def _bound_to_json(bound: np.ndarray) -> Any:
    plain = bound.astype(np.int8) if bound.dtype == np.bool_ else bound
    entries = [entry if math.isfinite(entry) else str(entry) for entry in plain.ravel().tolist()]
    return entries[0] if len(set(entries)) == 1 else entries


def _number(entry: Any) -> int | float:
    return float(entry) if isinstance(entry, str) else entry


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(step) for step in fault["loc"][-8:])  # the end of it, where it is deeply nested
    return f"{place}: {fault['msg']}" if place else fault["msg"]
