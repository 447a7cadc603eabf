"""Starts the ranks of a run as processes of their own, and waits for them.

As a script it trains configs in turn: python tests/rank_processes.py CONFIG.yaml ...
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).parents[1]
TRAIN = [str(ROOT / "train.py")]


class Ended(NamedTuple):
    """What each rank has answered and printed."""

    codes: list[int]
    out: list[str]
    err: list[str]

    @property
    def said(self) -> str:
        """To the user, by all of them."""
        return "".join(self.err)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(
    num_ranks: int,
    arguments: Sequence[Sequence[str]],
    port: int | None = None,
    env: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> list[subprocess.Popen[str]]:
    """`arguments`: of Python, for each rank or the same for all."""
    shared = {
        **os.environ, "WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1",
        "MASTER_PORT": str(port or free_port()), "PYTHONPATH": str(ROOT), **(env or {}),
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, *arguments[rank % len(arguments)]],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_ranks)
    ]


def wait(processes: Sequence[subprocess.Popen[str]], seconds: float = 120) -> Ended:
    """Kills those that have not ended by then, and fails."""
    ends = time.monotonic() + seconds
    try:
        texts = [process.communicate(timeout=max(0.1, ends - time.monotonic())) for process in processes]
    except BaseException:
        for process in processes:
            for of_torchrun in psutil.Process(process.pid).children():
                of_torchrun.kill()
            process.kill()
            process.communicate()
        raise
    return Ended([process.returncode for process in processes], [out for out, _ in texts], [err for _, err in texts])


def run(num_ranks: int, *arguments: str) -> Ended:
    return wait(start(num_ranks, [arguments]))


if __name__ == "__main__":
    from agent.config_loader import load_config
    from agent.ranks import joined
    from agent.training.trainer import train

    with joined():
        for config in sys.argv[1:]:
            train(load_config(config, []), progress=False)
