"""The processes of "async" environments: they outlive the signals that ask a run to stop, and only those."""

import atexit
import contextlib
import signal
from collections.abc import Iterable
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from gymnasium.vector import AsyncVectorEnv
from gymnasium.vector.async_vector_env import _async_worker


def surviving_worker(*args: Any) -> None:
    """Gymnasium's worker. A terminal or a supervisor may signal every process of a run, which then saves its state."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _live_on)  # a function: programs that the environment starts must not inherit it
    with contextlib.suppress(BrokenPipeError):  # the run is gone
        _async_worker(*args)


def abandon(vector_env: AsyncVectorEnv) -> None:
    """Ends environments that do not answer. Gymnasium would wait for their answers first."""
    kill(vector_env.processes)
    for process, pipe in zip(vector_env.processes, vector_env.parent_pipes, strict=True):
        process.join()
        pipe.close()
    vector_env.closed = True


def kill(processes: Iterable[BaseProcess]) -> None:
    """Ends them, whatever they are at."""
    for process in processes:
        process.kill()


def kill_at_exit(processes: Iterable[BaseProcess]) -> None:
    """Those that nobody has closed: multiprocessing would send them SIGTERM, and wait for ever."""
    atexit.register(kill, processes)


def _live_on(signum: int, frame: FrameType | None) -> None:
    pass
