"""Compares algorithms, settings or finished runs: python compare.py CONFIG|RUN ... [--filter ...] [--algorithms ...]"""

import sys

from agent.cli.compare import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
