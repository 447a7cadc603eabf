"""Commands to print for the user, which work as printed: from a checkout its scripts, once installed `gumbel`."""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]  # of a checkout; of an installed library the folder it lies in
GUMBEL = "gumbel"


def command(name: str, *arguments: object) -> str:
    """A command line that runs one of the library's commands, as train, from the current folder."""
    return shlex.join([*program(name), *map(str, arguments)])


def program(name: str) -> list[str]:
    """Its words. -P: a folder `envs` or `agent` of the user's does not hide the library's."""
    if is_script(name):
        return [python(), str(from_here(PROJECT / f"{name}.py"))]
    return [GUMBEL, name] if is_on_path(GUMBEL) else [python(), "-Pm", "agent", name]


def in_short(name: str) -> str:
    """The command as messages name it: train.py or gumbel train."""
    return f"{name}.py" if is_script(name) else f"{GUMBEL} {name}"


def as_called(text: str) -> str:
    """A text with `gumbel train …` as the user calls it: in a checkout, python train.py …"""

    def called(match: re.Match[str]) -> str:
        return f"python {match[1]}.py" if is_script(match[1]) else match[0]

    return re.sub(rf"{GUMBEL} (\w+)", called, text)


def is_script(name: str) -> bool:
    """Whether the command is a script of a checkout, and the user has not called `gumbel` instead."""
    in_checkout = (PROJECT / "pyproject.toml").is_file() and (PROJECT / f"{name}.py").is_file()
    return in_checkout and Path(sys.argv[0]).stem != GUMBEL


def own_configs() -> Path:
    """The folder of the library's own configs."""
    packaged = Path(__file__).parent / "configs"  # in a wheel; pyproject.toml puts it there
    return packaged if packaged.is_dir() else PROJECT / "configs"


def python() -> str:
    """This Python, by name where the name leads to it."""
    return "python" if is_on_path("python") or not sys.executable else str(from_here(Path(sys.executable)))


def is_on_path(name: str) -> bool:
    """Whether the shell finds the program that lies beside this Python."""
    found = shutil.which(name)
    beside = Path(sys.executable) if name == "python" else Path(sys.executable).parent / name
    return found is not None and os.path.abspath(found) == os.path.abspath(beside)


def from_here(path: Path) -> Path:
    """Relative to the current folder, where it lies inside."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
