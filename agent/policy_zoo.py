"""The trained policies that come with the library: zoo/NAME, each with its result, seed and command."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.commands import PROJECT

ZOO = "zoo"
RESULT = "result.json"


@dataclass(frozen=True)
class ZooEntry:
    """One policy of the zoo. `result` is its result.json."""

    name: str
    folder: Path
    result: dict[str, Any]


def own_zoo() -> Path:
    """The folder of the library's own policies."""
    packaged = Path(__file__).parent / ZOO  # in a wheel; pyproject.toml puts it there
    return packaged if packaged.is_dir() else PROJECT / ZOO


def in_zoo(path: Path) -> Path | None:
    """The library's own policy that `zoo/NAME` means, wherever the current folder is."""
    if len(path.parts) == 2 and path.parts[0] == ZOO and (folder := own_zoo() / path.name).is_dir():
        return folder
    return None


def zoo_entries() -> list[ZooEntry]:
    """Every policy of the zoo, by name."""
    return [
        ZooEntry(file.parent.name, file.parent, json.loads(file.read_text(encoding="utf-8")))
        for file in sorted(own_zoo().glob(f"*/{RESULT}"))
    ]
