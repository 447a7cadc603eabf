"""python -m agent: the command `gumbel` where the shell does not find it."""

import sys

from agent.cli.gumbel import main

if __name__ == "__main__":
    sys.argv[0] = "gumbel"
    sys.exit(main())
