"""Files written whole or not at all, with the permissions that the umask gives."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which then takes its place. Where that fails, the file there stays as it is."""
    staging = path.with_name(f".writing-{path.name}")
    try:
        staging.touch()
        mode = stat.S_IMODE(staging.stat().st_mode)
        yield staging
        staging.chmod(mode)  # safetensors puts a file of its own there, which only its owner can read
        os.replace(staging, path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
