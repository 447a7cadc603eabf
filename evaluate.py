"""Evaluates saved policies: python evaluate.py RUN [--member i|best|all] [--episodes N] [--json] [--video DIR]"""

import sys

from agent.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
