"""Stopping in good order: SIGINT and SIGTERM set a flag that the loops of a run read."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType

from agent.exit_codes import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECONDS_OF_ONE_STOP = 5.0  # in which a rank may get it twice: from a terminal or supervisor, and from torchrun


class StopSignals:
    """While entered, the first signal is remembered for `check`; a second one ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.received_at = 0.0

    def __enter__(self) -> "StopSignals":
        self.previous = {}
        if threading.current_thread() is threading.main_thread():  # nobody else may set handlers
            self.previous = {signum: signal.signal(signum, self.remember) for signum in SIGNALS}
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for signum, handler in self.previous.items():
            signal.signal(signum, handler)

    def remember(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if "LOCAL_RANK" in os.environ and time.monotonic() - self.received_at < SECONDS_OF_ONE_STOP:
                return
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self.received, self.received_at = signum, time.monotonic()

    def check(self) -> None:
        """Raises Stopped where a signal has come."""
        if self.received is not None:
            raise Stopped(self.received)
