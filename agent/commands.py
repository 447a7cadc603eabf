"""Commands to print for the user, which work as printed."""

import os
import shlex
import shutil
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def command(script: str, *arguments: object) -> str:
    """A command line that runs one of the project's scripts from the current folder."""
    return shlex.join([python(), str(from_here(PROJECT / script)), *map(str, arguments)])


def python() -> str:
    """This Python, by name where the name leads to it."""
    found = shutil.which("python")
    is_this = found is not None and os.path.abspath(found) == os.path.abspath(sys.executable)
    return "python" if is_this or not sys.executable else str(from_here(Path(sys.executable)))


def from_here(path: Path) -> Path:
    """Relative to the current folder, where it lies inside."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
