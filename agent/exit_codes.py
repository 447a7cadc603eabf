"""What the scripts answer to the shell: 0 done, 2 the user's mistake, 130 (SIGINT) or 143 (SIGTERM) stopped; else 1.

1 is also the answer where another process of the run was lost.
"""

import io
import sys
from collections.abc import Callable
from typing import Any

from envs.errors import UserError


class Stopped(Exception):
    """A run that was asked to stop and has; the text says what is saved and how to resume it."""

    def __init__(self, signum: int, text: str = "stopped") -> None:
        super().__init__(text)
        self.signum = signum


class RankLost(Exception):
    """Another process of the run has ended or cannot be reached; the text says so, and how to resume."""


def replace_what_cannot_be_shown(stream: Any) -> None:
    """Has a stream whose encoding lacks a character write "?" in its place, instead of an exception."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")


def exit_code(script: str, action: Callable[[], object], then: str = "") -> int:
    """Runs a script's work; a user's mistake is told in one message, without a traceback."""
    try:
        action()
    except UserError as error:
        print(f"{script}: error: {error}", file=sys.stderr)
        return 2
    except RankLost as lost:
        print(f"{script}: {lost}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"{script}: {'; '.join(filter(None, [str(stopped), then]))}", file=sys.stderr)
        return 128 + stopped.signum
    except KeyboardInterrupt:
        print(f"{script}: {'; '.join(filter(None, ['stopped', then]))}", file=sys.stderr)
        return 130
    return 0
