"""What the scripts answer to the shell: 0 done, 2 the user's mistake, 130 stopped by the user; else Python's own 1."""

import sys
from collections.abc import Callable

from envs.errors import UserError


def exit_code(script: str, action: Callable[[], object], when_stopped: str = "stopped") -> int:
    """Runs a script's work; a user's mistake is told in one message, without a traceback."""
    try:
        action()
    except UserError as error:
        print(f"{script}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{script}: {when_stopped}", file=sys.stderr)
        return 130
    return 0
