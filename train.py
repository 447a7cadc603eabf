"""Trains agents: python train.py [CONFIG] [key=value ...] [--resume RUN|auto] [--print-config]"""

import sys

from agent.cli.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
