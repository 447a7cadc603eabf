"""Reads a config: defaults < YAML file < `dotted.key=value`; every fault at once, with its place."""

import difflib
import logging
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from agent import yaml12
from agent.commands import own_configs
from agent.config import Config, is_per_member, settings
from agent.config_faults import GONE, InvalidConfig, missing_space, why_gone, yaml_scalar
from agent.config_fields import ConfigError, closest, put

MISSING = object()
REQUIRED = "env.id"  # in files and on command lines; in Python train(config, env=MyEnv) does without
SECOND_OF_A_PAIR = {"noise_persistence_max": "noise_persistence", "n_step_end": "n_step"}  # keys of old: of today
FIRST_OF_OLD = {"noise_persistence": 0.5, "n_step": 3}  # their defaults when those keys were
GONE_DEFAULTS = {"frame_stack": 1}  # which every config.yaml of old holds

logger = logging.getLogger(__name__)
told: set[str] = set()  # files whose keys of old have been named


def load_config(path: str | Path | None, overrides: Sequence[str] = (), *, of_run: bool = False) -> Config:
    """Resolves defaults < file < overrides. Raises ConfigError with every fault at once.

    `of_run`: the file is read as a run's own; what it says of settings that are gone does not matter.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values, renamed = with_new_keys(read_yaml(find_config(path)))
        gone = [key for key in GONE if of_run or values.get(key) == GONE_DEFAULTS[key]]
        values = {key: value for key, value in values.items() if key not in gone}
        tell_once(str(path), renamed)
    from_command_line = dict(parse_override(override) for override in overrides)
    for key, value in from_command_line.items():
        put(values, key, value)
    values, renamed = with_new_keys(values)
    tell_once("command line", renamed)
    return validate(values, lambda key: source(key, path, from_command_line))


def with_new_keys(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings with what stands under a key of old put where it belongs now; and each such key with what it became."""
    found, renamed = dict(values), {}
    for old, new in SECOND_OF_A_PAIR.items():
        if old not in found:
            continue
        last = found.pop(old)
        found[new] = with_second(found.get(new, FIRST_OF_OLD[new]), last)
        sweep = found.get("sweep")
        if isinstance(sweep, dict) and isinstance(sweep.get(new), list):
            found["sweep"] = sweep | {new: [with_second(value, last) for value in sweep[new]]}
        renamed[old] = f"{new}: {yaml_scalar(found[new])}"
    return found, renamed


def with_second(value: Any, last: Any) -> Any:
    """A pair from a value and what a key of old says of its second number; None: it is as the first."""
    first = value[0] if isinstance(value, list) and value else value
    return first if last in (None, first) else [first, last]


def member_with_new_keys(settings: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """What a member has of its own, where `values`, its run's config, may hold keys of old."""
    last = {new: values[old] for old, new in SECOND_OF_A_PAIR.items() if old in values}
    return {key: with_second(value, last[key]) if key in last else value for key, value in settings.items()}


def tell_once(where: str, renamed: Mapping[str, str], once_per: str | None = None) -> None:
    """Names the keys of today, unless that was done before: for this place, or for all of a kind of places."""
    if not renamed or (once_per or where) in told:
        return
    told.add(once_per or where)
    listed = "; ".join(f"{old} is part of {new.partition(':')[0]} now, write {new}" for old, new in renamed.items())
    logger.warning("%s: %s", where, listed)


def require_today(key: str, where: str) -> None:
    """UserError for a key of old, where it cannot be read as it was."""
    if (new := SECOND_OF_A_PAIR.get(key)) is not None:
        raise ConfigError(f"{where}: {key} is the second number of {new} now; write {new}=[first, second]")
    if key in GONE:
        raise ConfigError(f"{where}: {why_gone(key)}")


def validate(values: dict[str, Any], locate: Callable[[str], str]) -> Config:
    env, faults = values.get("env", {}), []
    if isinstance(env, Mapping) and "id" not in env:
        faults.append(f"{locate(REQUIRED)}: '{REQUIRED}' is required; for example {REQUIRED}=CartPole-v1")
    try:
        config = Config(**values)
    except InvalidConfig as error:
        raise ConfigError("\n".join([*faults, error.located(locate)])) from None
    if faults:
        raise ConfigError(faults[0])
    return config


def find_config(name: str | Path) -> Path:
    """The file of this path, or the library's own config of this name, as cartpole."""
    path = Path(name)
    own = own_configs() / f"{name}.yaml"
    return own if len(path.parts) == 1 and not path.is_file() and own.is_file() else path


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file; ConfigError where there is none."""
    if not path.is_file():
        here = {p.name: str(p) for p in path.parent.glob("*.yaml")}
        own = {p.name: p.stem for p in own_configs().glob("*.yaml")}
        near = difflib.get_close_matches(path.name, here, n=1) or difflib.get_close_matches(
            path.with_suffix(".yaml").name, own, n=1
        )
        hint = f"; did you mean '{(own | here)[near[0]]}'?" if near else ""
        raise ConfigError(f"{path}: no such config file{hint}")
    try:
        values = yaml12.load(path.read_text(encoding="utf-8"))
    except yaml12.Fault as fault:
        raise ConfigError(f"{path}: {fault}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if values is None:
        raise ConfigError(f"{path}: the file is empty; it needs at least env.id, for example\nenv:\n  id: CartPole-v1")
    if not isinstance(values, dict):
        hint = missing_space(values)
        raise ConfigError(f"{path}: expected settings as 'key: value' lines, got {type(values).__name__}{hint}")
    return values


def parse_override(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigError(f"command line: '{text}' is not of the form key=value")
    try:
        return key, yaml12.load(value)
    except yaml12.Fault as fault:
        what = str(fault).removeprefix("line 1: ").removesuffix(", in line 1")
        raise ConfigError(f"command line: {key}: {what}") from None
    except yaml.YAMLError:
        raise ConfigError(f"command line: {key}: cannot read the value '{value}'") from None


def require_once(given: Sequence[tuple[str, str, Any]]) -> None:
    """ConfigError where one argument of a command line takes back what another says.

    Args:
        given: arguments as they were typed, each with its key and its value, in their order.
    """
    for i, (later, key, _) in enumerate(given):
        for earlier, its_key, value in given[:i]:
            for leaf in leaves(its_key, value):
                if f"{leaf}.".startswith(f"{key}.") or key.startswith(f"{leaf}."):
                    raise ConfigError(f"command line: {leaf} is given twice, by '{earlier}' and by '{later}'")


def leaves(key: str, value: Any) -> list[str]:
    """The dotted keys of all that a value holds."""
    if isinstance(value, dict):
        return [leaf for name, inner in value.items() for leaf in leaves(f"{key}.{name}", inner)]
    return [key]


def unknown_option(option: str, arguments: Sequence[str], usage: str) -> ConfigError:
    """The error for an option that a script lacks: what it would be as a setting, or the option that is meant.

    Args:
        arguments: all of the command line.
        usage: what the script says of itself, with all options that it has.
    """
    name, separator, value = option.lstrip("-").partition("=")
    following = arguments[arguments.index(option) + 1 :]
    if not separator:
        value = following[0] if following and "=" not in following[0] and not following[0].startswith("--") else "VALUE"
    name, known = name.replace("-", "_"), [key for key, _ in settings()]
    meant = difflib.get_close_matches(option.partition("=")[0], re.findall(r"--[\w-]+", usage), n=1, cutoff=0.8)
    if name not in known and meant:
        return ConfigError(f"{option}: no such option; did you mean {meant[0]}?")
    key = name if name in known else closest(name, known)
    example = f"for example {key}={value}" if key else "see --help"
    return ConfigError(f"{option}: no such option; settings are written key=value, {example}")


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings by their dotted keys, with defaults where one is missing. Unknown keys are left out."""
    values, _ = with_new_keys(values)
    found: dict[str, Any] = {}
    for key, field in settings():
        value: Any = values
        for part in key.split("."):
            value = value.get(part, MISSING) if isinstance(value, Mapping) else MISSING
        default = field.get_default(call_default_factory=True, validated_data=found)
        found[key] = default if value is MISSING else value
    return found


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
        default = "required" if key == REQUIRED else default_of(field)
        mark = "*" if is_per_member(field) else " "
        lines.append(f" {mark} {key} = {default}")
        lines += textwrap.wrap(
            f"{field.description}{allowed_values(field)}", 100, initial_indent=8 * " ", subsequent_indent=8 * " "
        )
    return "\n".join(lines)


def default_of(field: FieldInfo) -> str:
    if field.default_factory_takes_validated_data:
        return "from other settings"
    return yaml_scalar(field.get_default(call_default_factory=True))


def as_text(value: Any) -> str:
    """The value of a setting for people, as it can be typed: 0.5, [0.5, 0.95], exact."""
    return f"{value:g}" if isinstance(value, float) else yaml_scalar(value)


def allowed_values(field: FieldInfo) -> str:
    """' [one of …]' or ' [> 0, <= 1]', from the schema."""
    if get_origin(field.annotation) is Literal:
        return f" [{' | '.join(get_args(field.annotation))}]"
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    found = [(sign, getattr(m, name, None)) for m in field.metadata for name, sign in signs.items()]
    limits = [f"{sign} {limit}" for sign, limit in found if limit is not None]
    return f" [{', '.join(limits)}]" if limits else ""
