"""Runs a script of peers/ in the peers' own virtual environment, once for each of its arguments."""

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from agent.config import Config
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


def agent_on_task(
    venv: Path, library: str, agent: str, config: Config, *, bins: int | None, states: list[Any] | None = None
) -> list[dict[str, Any]]:
    """What peers/agent_on_task.py measures for each seed of the config; its other settings are the library's."""
    task = {
        "library": library,
        "agent": agent,
        "env_id": config.env.id,
        "kwargs": config.env.kwargs,
        "bins": bins,
        "env_steps": config.total_env_steps,
        "episodes": config.evaluation.episodes,
        "final_episodes": config.evaluation.final_episodes,
        "states": states,
    }
    seeds = range(config.seed, config.seed + config.seeds)
    return [from_peer(venv, "agent_on_task.py", [json.dumps(task | {"seed": seed})]) for seed in seeds]
