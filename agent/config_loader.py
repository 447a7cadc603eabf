"""Reads a config: defaults < YAML file < `dotted.key=value`; every fault at once, with its place."""

import difflib
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from agent.config import Config, ConfigError, is_per_member, nearest, settings

MISSING = object()


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Resolves defaults < file < overrides. Raises ConfigError with every fault at once."""
    values = {} if path is None else read_yaml(Path(path))
    from_command_line = dict(parse_override(override) for override in overrides)
    for key, value in from_command_line.items():
        put(values, key, value)
    config = validate(values, lambda key: source(key, path, from_command_line))
    for member in config.members()[:: config.seeds]:  # a swept value must be valid where it will stand
        swept = config.model_dump(exclude={"sweep"})
        for key, number in member.settings.items():
            put(swept, key, number)
        validate(swept, lambda _: f"{source('sweep', path, from_command_line)}: sweep")
    return config


def validate(values: dict[str, Any], locate: Callable[[str], str]) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        faults = [describe(fault, locate) for fault in error.errors()]
        raise ConfigError("\n".join(faults)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file; ConfigError where there is none."""
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean '{path.parent / near[0]}'?" if near else ""
        raise ConfigError(f"{path}: no such config file{hint}")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if values is None:
        raise ConfigError(f"{path}: the file is empty; it needs at least env.id, for example\nenv:\n  id: CartPole-v1")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected settings as 'key: value' lines, got {type(values).__name__}")
    return values


class Yaml12FloatLoader(yaml.SafeLoader):
    """Reads 1e-3 as a number: YAML 1.1 asks for a dot and a sign and gives a string instead."""


Yaml12FloatLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text; yaml.YAMLError where it is none. Nothing is constructed but plain values."""
    try:
        return yaml.load(text, Loader=Yaml12FloatLoader)  # noqa: S506 (a SafeLoader)
    except (ValueError, RecursionError) as error:  # 2024-13-45 looks like a date; lists can be too deep
        raise yaml.YAMLError(str(error)) from None


def parse_override(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigError(f"command line: '{text}' is not of the form key=value")
    try:
        return key, parse_yaml(value)
    except yaml.YAMLError:
        raise ConfigError(f"command line: {key}: cannot read the value '{value}'") from None


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


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings by their dotted keys, the defaults where one is missing; unknown keys are passed over."""
    found = {}
    for key, field in settings():
        value: Any = values
        for part in key.split("."):
            value = value.get(part, MISSING) if isinstance(value, Mapping) else MISSING
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        found[key] = default if value is MISSING else value
    return found


def describe(fault: Any, locate: Callable[[str], str]) -> str:
    """One line: where, what was given, what is allowed."""
    key = ".".join(str(part) for part in fault["loc"] if not isinstance(part, int))
    where = locate(key)
    match fault["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key '{key}'{nearest(key, [k for k, _ in settings()])}"
        case "missing":
            return f"{where}: '{key}' is required" + (
                "; for example env.id=CartPole-v1" if key.startswith("env") else ""
            )
        case "model_type":
            inner = [k for k, _ in settings() if k.startswith(f"{key}.")]
            return f"{where}: '{key}' is a section, not a value; it holds {', '.join(inner)}"
        case "value_error":
            return f"{where}: {fault['ctx']['error']}"
    allowed = fault["msg"].removeprefix("Input should be ")
    hint = ""
    if fault["type"] == "literal_error" and isinstance(fault["input"], str):
        hint = nearest(fault["input"], re.findall(r"'([^']*)'", allowed))
    return f"{where}: {key}: got {fault['input']!r}, must be {allowed}{hint}"


def source(key: str, path: str | Path | None, from_command_line: Mapping[str, Any]) -> str:
    if path is None or any(
        key == k or key.startswith(f"{k}.") or k.startswith(f"{key}.") for k in from_command_line if key
    ):
        return "command line"
    return str(path)


def help_text() -> str:
    """Every setting with its default, meaning and what is allowed, as lines for --help."""
    lines = ["settings (key = default: meaning; * may differ between members, see sweep):"]
    for key, field in settings():
        default = "required" if field.is_required() else yaml_scalar(field.get_default(call_default_factory=True))
        mark = "*" if is_per_member(field) else " "
        lines.append(f" {mark} {key} = {default}")
        lines += textwrap.wrap(
            f"{field.description}{allowed_values(field)}", 100, initial_indent=8 * " ", subsequent_indent=8 * " "
        )
    return "\n".join(lines)


def yaml_scalar(value: Any) -> str:
    return "null" if value is None else yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


def allowed_values(field: FieldInfo) -> str:
    """' [one of …]' or ' [> 0, <= 1]', from the schema."""
    if get_origin(field.annotation) is Literal:
        return f" [{' | '.join(get_args(field.annotation))}]"
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    limits = [f"{sign} {getattr(m, name)}" for m in field.metadata for name, sign in signs.items() if hasattr(m, name)]
    return f" [{', '.join(limits)}]" if limits else ""
