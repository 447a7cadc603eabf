"""What settings are made of: their types beyond pydantic's, what is known of them, and the messages about them."""

import difflib
import importlib
import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema

from envs.errors import UserError

Value = int | float | list[int | float]  # of a setting that `sweep` may vary: a number, or a pair of them
OWN_CLASS = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")  # module:Class

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
    """What "module:Class" names. Imports the module; ConfigError where it does not exist."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{setting}: got '{name}', which cannot be imported: {error}") from None


def nearest(key: str, known: Sequence[str]) -> str:
    """'; did you mean …?' for a typo, also where only the last part of a dotted key was given."""
    by_last_part = {k.rsplit(".", 1)[-1]: k for k in reversed(known)}
    for candidates in (known, list(by_last_part)):
        if found := difflib.get_close_matches(key if candidates is known else key.rsplit(".", 1)[-1], candidates, n=1):
            return f"; did you mean '{by_last_part.get(found[0], found[0])}'?"
    return ""
