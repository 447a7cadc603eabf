"""Trains agents: python train.py [CONFIG] [key=value ...] [--print-config]"""

import argparse
import sys

from agent.config_loader import help_text, load_config
from agent.exit_codes import exit_code
from agent.training.trainer import train

EXAMPLES = """examples:
  python train.py configs/cartpole.yaml                        four members, as the file says
  python train.py configs/cartpole.yaml seeds=10 tau.start=2   other settings on the command line
  python train.py configs/cartpole.yaml algorithm=reinforce    the baseline on the same task
  python train.py env.id=Acrobot-v1 'sweep={tau.start: [2.0, 1.0, 0.5]}' seeds=5   15 members in one process
  python train.py configs/cartpole.yaml --print-config         every setting as it would be used
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Trains a population of agents on a Gymnasium environment with discrete actions.",
        epilog=f"{EXAMPLES}\n{help_text()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="a YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config as YAML and stop")
    return parser.parse_intermixed_args(arguments)


def run(options: argparse.Namespace) -> None:
    file, overrides = options.config, options.overrides
    if file is not None and "=" in file:
        file, overrides = None, [file, *overrides]
    config = load_config(file, overrides)
    if options.print_config:
        print(config.to_yaml(), end="")
    else:
        train(config)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    return exit_code("train.py", lambda: run(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
