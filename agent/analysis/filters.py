"""Finds finished runs by their settings: terms like env.id=CartPole-v1 on each run's config.yaml."""

import operator
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.analysis.run_folder import Entry, Settings, load_run, read_config, swept_settings
from agent.config import settings
from agent.config_faults import yaml_scalar
from agent.config_fields import nearest
from agent.config_loader import parse_override, require_today
from envs.errors import UserError

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
TERM = re.compile(r"([^=!<>\s]+)\s*(!=|>=|<=|=|>|<)(.*)", re.DOTALL)
FREE_FORM = ("env.kwargs", "network.kwargs", "algorithm_kwargs")  # settings whose own keys can be asked for


@dataclass(frozen=True)
class Term:
    """One condition on a setting."""

    key: str
    comparison: str
    value: Any

    def holds(self, config: Settings) -> bool:
        value = self.value_in(config)
        if self.comparison in ("=", "!="):
            return OPERATORS[self.comparison](value, self.value)
        return is_number(value) and OPERATORS[self.comparison](value, self.value)

    def value_in(self, config: Settings) -> Any:
        """The value of the setting; None where a free-form one lacks the key."""
        if self.key in config:
            return config[self.key]
        setting = free_form_of(self.key)
        inner = config[setting] if setting else None
        return inner.get(self.key.removeprefix(f"{setting}.")) if isinstance(inner, dict) else None


def free_form_of(key: str) -> str | None:
    """The setting whose own key this is, if it is one's."""
    return next((setting for setting in FREE_FORM if key.startswith(f"{setting}.")), None)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def parse_term(text: str) -> Term:
    """A term of --filter; UserError for one that cannot be read, or names no setting."""
    match = TERM.fullmatch(text)
    if not match:
        raise UserError(
            f"--filter: '{text}' is not of the form key=value (or !=, >=, <=, >, <); for example env.id=CartPole-v1"
        )
    key, comparison, value = match[1], match[2], parse_override(f"{match[1]}={match[3]}")[1]
    require_today(key, f"--filter: {text}")
    known = [k for k, _ in settings()]
    if key not in known and free_form_of(key) is None:
        raise UserError(f"--filter: unknown key '{key}'{nearest(key, known)}")
    if comparison not in ("=", "!=") and not is_number(value):
        raise UserError(f"--filter: {text}: {comparison} compares numbers, got '{match[3]}'")
    return Term(key, comparison, value)


def find(terms: Sequence[Term], folder: Path) -> tuple[list[Entry], list[str]]:
    """Entries of the finished runs in a folder that meet all terms, and why other matching runs are left out.

    A sweep's settings are matched one by one. UserError, with the existing values, where nothing matches.
    """
    entries, left_out, seen = [], [], []
    for path in sorted(folder.glob("*/config.yaml")):
        try:
            combinations = swept_settings(read_config(path.parent))
            seen += combinations
            if any(matches(terms, config) for config in combinations):
                entries += [entry for entry in load_run(path.parent) if matches(terms, entry.config)]
        except UserError as error:
            left_out.append(str(error))
    if not entries:
        raise UserError("\n".join([nothing_matches(terms, seen, folder), *(f"left out: {why}" for why in left_out)]))
    return entries, left_out


def matches(terms: Sequence[Term], config: Settings) -> bool:
    return all(term.holds(config) for term in terms)


def nothing_matches(terms: Sequence[Term], seen: Sequence[Settings], folder: Path) -> str:
    """The existing values of each setting asked for."""
    if not seen:
        return f"--filter: no runs in {folder}{'/' if folder.is_dir() else ', which does not exist'}"
    lines = [f"--filter: no finished run in {folder}/ matches all of it; existing values:"]
    for term in terms:
        count = Counter(yaml_scalar(term.value_in(config)) for config in seen)
        listed = ", ".join(f"{value} ({number})" for value, number in count.most_common(10))
        hint = "" if yaml_scalar(term.value) in count else nearest(yaml_scalar(term.value), list(count))
        lines.append(f"  {term.key}: {listed}{hint}")
    return "\n".join(lines)


def name_of(terms: Sequence[str]) -> str:
    """What to call a comparison of filtered runs: its terms, as far as a folder may be called that."""
    return re.sub(r"[^\w.=-]+", "-", "-".join(terms)).strip("-.")
