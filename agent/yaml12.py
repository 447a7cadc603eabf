"""YAML with the core schema of version 1.2: 010 is ten; yes, 1:30, 1_000 and 2024-01-05 are texts; no key stands twice.

PyYAML reads version 1.1, where 010 is eight, 1:30 is ninety, yes is true, and of equal keys the last one counts.
"""

import re
from typing import Any

import yaml

CORE_SCHEMA = {  # tag: pattern, first characters; YAML 1.2.2, section 10.3.2. Merge keys are kept from 1.1.
    "null": ("null|Null|NULL|~|", ["n", "N", "~", ""]),
    "bool": ("true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": ("[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": ("<<", ["<"]),
}
WITHOUT_SPACE = re.compile(r"\s*(?:- )?([^\W\d][\w.]*):([^\s:/].*)", re.DOTALL)


class Fault(yaml.YAMLError):
    """What YAML would accept in silence, or does not explain: one sentence for the user."""


class Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                where = f"line {line}" if line == lines[key.value] else f"lines {lines[key.value]} and {line}"
                raise Fault(f"the key '{key.value}' is given twice, in {where}")
            lines[key.value] = line
            has_no_value = isinstance(value, yaml.ScalarNode) and value.start_mark.index == value.end_mark.index
            if node.flow_style and key.style is None and has_no_value and (hint := missing_space(key.value)):
                raise Fault(f"line {line}: {hint}")
        return node

    def construct_core_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


class Dumper(yaml.SafeDumper):
    """Quotes a text that either version would read as something else."""


for tag, (pattern, first_characters) in CORE_SCHEMA.items():
    for cls in (Loader, Dumper):
        cls.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"(?:{pattern})\\Z"), first_characters)
Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_core_int)


def load(text: str) -> Any:
    """The value of a YAML text; yaml.YAMLError where it is none. Nothing is constructed but plain values."""
    try:
        return yaml.load(text, Loader=Loader)  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        lines = text.splitlines()
        for mark in filter(None, (error.context_mark, error.problem_mark)):
            if mark.line < len(lines) and (hint := missing_space(lines[mark.line])):
                raise Fault(f"line {mark.line + 1}: {hint}") from None
        raise
    except (ValueError, RecursionError) as error:  # !!timestamp 2024-13-45; lists can be too deep
        raise yaml.YAMLError(str(error)) from None


def dump(value: Any, *, in_one_line: bool = False) -> str:
    """A YAML text that `load` reads as this value."""
    width = float("inf") if in_one_line else None
    return yaml.dump(
        value, Dumper=Dumper, sort_keys=False, allow_unicode=True, default_flow_style=in_one_line, width=width
    )


def missing_space(text: str) -> str:
    """What is wrong with 'max_steps:200'; nothing where a text is not of this form."""
    match = WITHOUT_SPACE.fullmatch(text)
    return f"a space is missing after the colon of '{text.strip()}'; write {match[1]}: {match[2]}" if match else ""
