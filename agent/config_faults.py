"""What is wrong with settings, in words: where it stands, what was given, what is allowed."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError

from agent import yaml12
from agent.config_fields import ConfigError, allowed_in, nearest

GONE = {"frame_stack": "the replay finds stacked frames itself"}  # keys of old without one of today: why


class InvalidConfig(ConfigError):
    """Every fault of a config at once."""

    def __init__(self, error: ValidationError, known: Sequence[str], where: str) -> None:
        """`known`: the dotted keys of all settings. `where` they stand."""
        # A default that follows from other settings is not worked out where one of them is at fault.
        self.faults = [fault for fault in error.errors() if fault["type"] != "default_factory_not_called"]
        self.known = known
        super().__init__(self.located(lambda _: where))

    def located(self, locate: Callable[[str], str]) -> str:
        """One line for each fault; `locate` says where a dotted key stands."""
        return "\n".join(describe(fault, locate, self.known) for fault in self.faults)


def describe(fault: Any, locate: Callable[[str], str], known: Sequence[str]) -> str:
    """One line: where, what was given, what is allowed. `known`: the dotted keys of all settings."""
    key = ".".join(str(part) for part in fault["loc"] if not isinstance(part, int))
    where = locate(key)
    match fault["type"]:
        case "extra_forbidden" if key in known:
            section, _, last = key.rpartition(".")
            return f"{where}: '{key}' stands in a section of its own in a file; write {section}: {{{last}: …}}"
        case "extra_forbidden" if key in GONE:
            return f"{where}: {why_gone(key)}"
        case "extra_forbidden":
            return f"{where}: unknown key '{key}'{nearest(key, known)}"
        case "missing":
            return f"{where}: '{key}' is required"
        case "model_type" if key not in {k.rpartition(".")[0] for k in known}:  # an entry of a list
            return f"{where}: {key}: got {fault['input']!r}; see --help for what it holds"
        case "model_type":
            inner = [k for k in known if k.startswith(f"{key}.")]
            hint = missing_space(fault["input"])
            return f"{where}: '{key}' is a section, not a value; it holds {', '.join(inner)}{hint}"
        case "value_error":  # a validator of one setting leaves its name to us, one of several names them itself
            prefix, error = f"{key}: " if key in known else "", str(fault["ctx"]["error"])
            return f"{where if key else locate(error.partition(':')[0])}: {prefix}{error}"
    allowed, hint = allowed_in(fault), example(key, fault)
    if fault["type"] == "literal_error" and isinstance(fault["input"], str):
        hint = nearest(fault["input"], re.findall(r"'([^']*)'", allowed))
    return f"{where}: {key}: got {fault['input']!r}, must be {allowed}{hint}"


def example(key: str, fault: Any) -> str:
    """How the value would be written, where it is of another kind than the setting."""
    given = yaml_scalar(fault["input"])
    match fault["type"]:
        case "list_type" if isinstance(fault["input"], str):
            return f"; for example {key}=[{given}]"
        case "list_type" if isinstance(fault["input"], int | float):
            return f"; for example {key}=[{given}, {given}]"
        case "dict_type":
            inner = "tau.start: [2.0, 1.0]" if key == "sweep" else "name: value"
            return missing_space(fault["input"]) or f"; for example {key}={{{inner}}}"
        case "string_type" if isinstance(fault["input"], int | float):
            return f"; in quotes it is a text: {key}='\"{given}\"'"
    return ""


def missing_space(value: Any) -> str:
    """'; a space is missing …' where a value was to be a mapping and is a text like max_steps:200."""
    hint = yaml12.missing_space(value) if isinstance(value, str) else ""
    return f"; {hint}" if hint else ""


def why_gone(key: str) -> str:
    return f"{key} was removed: {GONE[key]}; leave it out"


def yaml_scalar(value: Any) -> str:
    """A value as it can be typed, in one line."""
    return yaml12.dump(value, in_one_line=True).removesuffix("\n...\n").strip()
