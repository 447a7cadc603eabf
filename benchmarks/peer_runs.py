"""Runs a script of peers/ in the peers' own virtual environment, once."""

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from envs import UserError

HERE = Path(__file__).parent


def check_venv(venv: Path) -> None:
    """UserError where there is none."""
    if not (venv / "bin" / "python").exists():
        raise UserError(f"{venv}: no virtual environment there; against_peers.py --venv {venv} --install makes one")


def from_peer(venv: Path, script: str, arguments: list[str]) -> dict[str, Any]:
    """What the script prints as JSON; kept under runs/, so that it is measured once."""
    digest = hashlib.sha256(" ".join(arguments).encode()).hexdigest()[:8]
    path = Path("runs") / f"{Path(script).stem}-{digest}.json"
    if not path.exists():
        check_venv(venv)
        command = [str(venv / "bin" / "python"), str(HERE / "peers" / script), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
        if found.returncode:
            raise UserError(f"{venv}: {script} failed, see above; against_peers.py --install makes the environment")
        path.parent.mkdir(exist_ok=True)
        path.write_text(found.stdout)
    return json.loads(path.read_text())
