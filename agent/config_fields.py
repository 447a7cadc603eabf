"""What settings are made of: their types beyond pydantic's, what is known of them, and the messages about them."""

import difflib
from collections.abc import Sequence
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
)
from pydantic_core import CoreSchema, core_schema

from envs.errors import UserError
from envs.importing import import_attribute

Value = int | float | list[int | float]  # of a setting that `sweep` may vary: a number, or a pair of them

# What is known of a setting besides its type, as json_schema_extra of its field or of its section's:
PER_MEMBER: dict[str, Any] = {"per_member": True}  # `sweep` may give each member a value of its own
NOT_LEARNING: dict[str, Any] = {"changes_learning": False}  # which members there are, where they run, what is recorded


def read_by(*algorithms: str) -> dict[str, Any]:
    """A setting that only these algorithms read; `module:Class` stands for an algorithm of the user's own."""
    return {"read_by": algorithms}


class ConfigError(UserError):
    """A setting that the user can fix: the text says where it stands, what was given and what is allowed."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def kinds_are_not_mixed(cls, value: Any, info: Any) -> Any:
        require_kind(value, cls.model_fields[str(info.field_name)].annotation)
        return value


def require_kind(value: Any, annotation: Any) -> None:
    """ValueError for a text or a boolean where a number is asked for, and for a number where a boolean is.

    pydantic alone would read true as 1, '1:30' as a duration, '1_000' as a number and 1 as true. Whole numbers may
    still be written 1e6 or 3.0.
    """
    kinds = kinds_of(annotation)
    if get_origin(annotation) is list and not isinstance(value, list | tuple):
        return  # pydantic says that a list is missing
    if not kinds <= {int, float, bool, NoneType}:
        return  # texts, and all that pydantic reads as they are
    for given in value if isinstance(value, list | tuple) else [value]:
        if isinstance(given, bool):
            fits = bool in kinds
        else:
            fits = not isinstance(given, int | float | str) or (
                not isinstance(given, str) and bool(kinds & {int, float})
            )
        if not fits:
            of = f"got {value!r}," if given is value else f"got {value!r}, where {given!r}"
            allowed = "a valid number" if float in kinds else "a valid integer" if int in kinds else "true or false"
            raise ValueError(f"{of} must be {allowed}")


def kinds_of(annotation: Any) -> set[Any]:
    """The types that a value, or an item of a list of them, may have."""
    if get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    if get_origin(annotation) is Annotated:
        return kinds_of(get_args(annotation)[0])
    inner = get_args(annotation)
    return set().union(*map(kinds_of, inner)) if inner else {annotation}


class Pair:
    """Validates one number or a pair of them; a pair of equal numbers becomes the number."""

    def __init__(self, kind: type, ends: str, *, ge: int | float, lt: int | float | None = None) -> None:
        """`ends`: what the two numbers stand for, for messages; each of them is >= ge and < lt."""
        self.ends, self.ge, self.lt = ends, ge, lt
        number: Any = Annotated[kind, Field(allow_inf_nan=False, ge=ge, lt=lt)]
        self.number: TypeAdapter[Any] = TypeAdapter(number)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.validate)

    def validate(self, value: Any) -> Value:
        is_pair = isinstance(value, list | tuple)
        if is_pair and len(value) != 2:
            raise ValueError(f"got {value!r}, must be one number, or two: [{self.ends}]")
        numbers = []
        for given in value if is_pair else [value]:
            try:
                numbers.append(self.number.validate_python(given))
            except ValidationError as error:
                of = f"got {value!r}, where {given!r}" if is_pair else f"got {value!r},"
                raise ValueError(f"{of} must be {allowed_in(error.errors()[0])}") from None
        return numbers[0] if numbers[0] == numbers[-1] else numbers


def allowed_in(fault: Any) -> str:
    """What pydantic would have accepted, from one of its errors."""
    return str(fault["msg"]).removeprefix("Input should be ")


def require_json(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments, if the files of a run can hold them."""
    if (fault := not_in_json(kwargs)) is not None:
        raise ValueError(f"{fault}, which the files of a run cannot hold; use texts, numbers and lists")
    return kwargs


def not_in_json(value: Any) -> str | None:
    """What of it would not come back from JSON as it was; infinity does, as Python reads it."""
    if isinstance(value, dict):
        keys = [f"the key {key!r} is no text" for key in value if not isinstance(key, str)]
        return next(filter(None, [*keys, *map(not_in_json, value.values())]), None)
    if isinstance(value, list):
        return next(filter(None, map(not_in_json, value)), None)
    return None if isinstance(value, str | int | float | None) else f"{value!r} is a {type(value).__name__}"


Kwargs = Annotated[dict[str, Any], AfterValidator(require_json)]  # of an environment, a network, an algorithm


def imported(setting: str, name: str) -> Any:
    """What "module:Class" or "folder/file.py:Class" names. Imports it; ConfigError where it does not exist."""
    try:
        return import_attribute(name)
    except UserError as error:
        raise ConfigError(f"{setting}: got '{name}', which cannot be imported: {error}") from error


def put(values: dict[str, Any], dotted_key: str, value: Any) -> None:
    """Sets a nested key. A key that reaches into a swept or free-form mapping is taken whole from there on."""
    *parents, last = dotted_key.split(".")
    for parent in parents:
        if not isinstance(values.get(parent), dict):
            values[parent] = {}
        values = values[parent]
        if parent == "sweep":  # its keys contain dots: sweep.tau.start=[1.0, 0.5]
            last = dotted_key.removeprefix("sweep.")
            break
    values[last] = value


ELSEWHERE = {  # what settings are called by other libraries
    "lr": "learning_rate",
    "env": "env.id",
    "env_id": "env.id",
    "buffer_size": "replay_capacity",
    "discount": "gamma",
    "total_timesteps": "total_env_steps",
    "temperature": "tau.start",
}


def nearest(key: str, known: Sequence[str]) -> str:
    """'; did you mean …?' for a typo, also where only the last part of a dotted key was given."""
    found = closest(key, known)
    return "" if found is None else f"; did you mean '{found}'?"


def closest(key: str, known: Sequence[str]) -> str | None:
    """The known key that is meant by a typo, by the last part of it or by another library's word."""
    if (meant := ELSEWHERE.get(key)) in known:
        return meant
    by_last_part = {k.rsplit(".", 1)[-1]: k for k in reversed(known)}
    for candidates in (known, list(by_last_part)):
        if found := difflib.get_close_matches(key if candidates is known else key.rsplit(".", 1)[-1], candidates, n=1):
            return by_last_part.get(found[0], found[0])
    return None
