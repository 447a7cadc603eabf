"""Results as rows in a JSON file: those of new commands beside those of old ones, each with where it comes from."""

import json
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import gymnasium
import torch
from filelock import FileLock

from agent.config import changes_learning

Row = dict[str, Any]


def add_rows(path: Path, rows: Sequence[Row], key: Sequence[str]) -> list[Row]:
    """Writes the rows to the file, in place of earlier ones that agree in `key`; returns all that it holds then.

    Several processes may add to a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.stem}.lock")):
        return add_rows_alone(path, rows, key)


def add_rows_alone(path: Path, rows: Sequence[Row], key: Sequence[str]) -> list[Row]:
    held = read_rows(path)
    origin = {
        "date": f"{date.today()}",
        "command": shlex.join(["python", *sys.argv]),
        "versions": versions(),
    }
    by_key = {tuple(row[name] for name in key): row for row in [*held, *(row | origin for row in rows)]}
    path.write_text(json.dumps({"rows": list(by_key.values())}, indent=1))
    return list(by_key.values())


def learning_settings(settings: Sequence[str]) -> str:
    """Of key=value, those that change what is learned."""
    return " ".join(text for text in settings if changes_learning(text.partition("=")[0]))


def versions() -> str:
    return f"torch {torch.__version__}, gymnasium {gymnasium.__version__}, Python {sys.version.split()[0]}"


def read_rows(path: Path) -> list[Row]:
    return json.loads(path.read_text())["rows"] if path.exists() else []


def commands(rows: Sequence[Row]) -> list[str]:
    """What made the rows, as lines of Markdown."""
    made = dict.fromkeys(f"# {row['date']}, {row['versions']}\n{row['command']}" for row in rows)
    return ["```sh", *made, "```"]


def into_page(path: Path, marks: tuple[str, str], text: str) -> None:
    """Replaces what stands between the marks of a page."""
    before, _, rest = path.read_text().partition(marks[0])
    _, _, after = rest.partition(marks[1])
    path.write_text(f"{before}{marks[0]}\n{text}\n{marks[1]}{after}")
