"""The documentation site: `make docs` builds it from docs/, benchmarks/results/ and the code.

Reference pages are generated into docs/reference/ from the code, the tutorial from its notebook.
"""

import ast
import base64
import contextlib
import importlib
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from agent.cli.gumbel import COMMANDS  # noqa: E402  (the path comes first)
from agent.config import about, is_per_member, settings  # noqa: E402
from agent.config_loader import REQUIRED, allowed_values, default_of  # noqa: E402
from agent.metrics import FINAL, METRICS  # noqa: E402

project = "gumbel-actor-critic"
author = "the gumbel-actor-critic authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["docs/**", "benchmarks/results/*.md", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = [
    "docs/tutorial.ipynb",
    "benchmarks/results/against_peers.md",
    "benchmarks/results/learning_speed.md",
]
html_theme = "furo"
html_title = project
html_show_copyright = False
html_extra_path = ["reference/index.html"]  # leads to docs/index.html
html_theme_options = {"top_of_page_buttons": []}
myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"

REFERENCE = ROOT / "docs" / "reference"
CODE = re.compile(r"<!-- code: (\S+) (\w+) -->")
PUBLIC = {
    "Training": ["agent.train", "agent.Run", "agent.Callback"],
    "Policies": ["agent.Policy", "agent.PolicyError", "agent.evaluate"],
    "Configs": ["agent.Config", "agent.load_config"],
    "Comparing": ["agent.compare"],
}
METHODS = {
    "agent.Policy": "load, act, predict, initial_state, make_env, to_module, select",
    "agent.Config": "members, to_yaml",
}


def settings_page() -> str:
    """Each setting as a term with its default and its meaning, a title for each section."""
    lines = [
        "# Settings",
        "",
        "Every setting of a config, with its default. On the command line it is `key=value`, in a file a section for",
        "each dot. Settings with a star may differ between members, see `sweep`.",
        "",
    ]
    section = ""
    for key, field in settings():
        if (own := key.rpartition(".")[0]) != section and own:
            lines += [f"## {own}", ""]
        elif own != section:
            lines += ["## General, continued", ""]
        section = own
        default = "required" if key == REQUIRED else f"= `{default_of(field)}`"
        readers = ", ".join(about(key).get("read_by", ()))
        notes = [allowed_values(field).strip(), f"Read by {readers}." if readers else ""]
        meaning = sentence(str(field.description))
        star = " ★" if is_per_member(field) else ""
        lines += [f"`{key}` {default}{star}", f": {' '.join(filter(None, [meaning, *notes]))}".replace("<", "\\<"), ""]
    return "\n".join(lines)


def metrics_page() -> str:
    """Each metric as a term with its formula, unit and meaning."""
    lines = [
        "# Metrics",
        "",
        "Every metric that a run logs, one value per member. The x-axis is `env_steps`: environment steps of one",
        "member, summed over its environments. Metrics of an update are means since the last log line.",
        "",
    ]
    for name, metric in (METRICS | FINAL).items():
        unit = "" if metric.unit == "1" else f", in {metric.unit}"
        lines += [
            f"`{name}`{unit}",
            f": `{metric.formula}`",
            "",
            f"  {sentence(metric.meaning)}",
            "",
        ]
    return "\n".join(lines)


def sentence(text: str) -> str:
    """A description as a sentence; names of settings keep their case."""
    first = text.split()[0]
    return f"{text if set('._=') & set(first) else text[0].upper() + text[1:]}."


def commands_page() -> str:
    parts = ["# Commands", ""]
    for name, what in COMMANDS.items():
        text = help_of(name)
        parts += [f"## gumbel {name}", "", f"{what[0].upper()}{what[1:]}.", "", "```text", text, "```", ""]
    return "\n".join(parts)


def help_of(name: str) -> str:
    """What the command prints for --help, but the list of settings, which has a page."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        importlib.import_module(f"agent.cli.{name}").main(["--help"])
    return text.getvalue().partition("\nsettings (key")[0].rstrip()


def python_page() -> str:
    parts = ["# Python", "", "What `from agent import …` offers.", ""]
    for title, names in PUBLIC.items():
        parts += [f"## {title}", ""]
        for name in names:
            is_class = isinstance(getattr(importlib.import_module("agent"), name.rpartition(".")[2]), type)
            parts += ["```{eval-rst}", f".. {'autoclass' if is_class else 'autofunction'}:: {name}"]
            if is_class and name != "agent.PolicyError":
                parts.append(f"   :members: {METHODS.get(name, '')}".rstrip())
            parts += ["```", ""]
    return "\n".join(parts)


def tutorial_page() -> str:
    """The notebook as a page: text, code, and what the code printed or drew when it was last run."""
    parts: list[str] = []
    for cell in json.loads((ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"\]\((?!http)", "](../", source))
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [shown(output, f"tutorial_{len(parts)}.png") for output in cell["outputs"]]
    return "\n\n".join(parts)


def shown(output: dict[str, Any], figure: str) -> str:
    """What a cell printed, or the figure that it drew, which is written to a file of this name."""
    data = output.get("data", {})
    if "image/png" in data:
        (REFERENCE / figure).write_bytes(base64.b64decode(data["image/png"]))
        return f"![Figure]({figure})"
    text = "".join(output.get("text") or data.get("text/plain", []))
    return f"```text\n{text.rstrip()}\n```"


def source_of(path: str, name: str) -> str:
    """A function or class of a file, as it stands there."""
    text = (ROOT / path).read_text(encoding="utf-8")
    node = next(n for n in ast.parse(text).body if getattr(n, "name", None) == name)
    return f"```python\n{ast.get_source_segment(text, node)}\n```"


def with_code(app: Any, docname: str, source: list[str]) -> None:
    """Puts the code where a page names it."""
    source[0] = CODE.sub(lambda found: source_of(found[1], found[2]), source[0])


def with_examples(app: Any, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Marks the indented examples of a docstring as code."""
    for i in range(len(lines) - 2, 0, -1):
        before, between, after = lines[i - 1 : i + 2]
        if before and not before.startswith(" ") and not between and after.startswith("    "):
            if before.endswith(":"):
                lines[i - 1] += ":"
            else:
                lines[i:i] = ["", "::"]


def write_reference() -> None:
    REFERENCE.mkdir(exist_ok=True)
    pages = {
        "settings": settings_page(),
        "metrics": metrics_page(),
        "commands": commands_page(),
        "python": python_page(),
        "tutorial": tutorial_page(),
    }
    for name, text in pages.items():
        path = REFERENCE / f"{name}.md"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    (REFERENCE / "index.html").write_text(
        '<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html"><title>Documentation</title>\n',
        encoding="utf-8",
    )


def setup(app: Any) -> None:
    write_reference()
    app.connect("source-read", with_code)
    app.connect("autodoc-process-docstring", with_examples, priority=400)  # before napoleon
