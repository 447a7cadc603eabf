"""Trains agents: gumbel train [CONFIG] [key=value ...] [--resume RUN|auto] [--print-config]"""

import argparse
import sys
from pathlib import Path

from agent.analysis.exchanges import draw_exchanges
from agent.cli.arguments import make_parser
from agent.commands import in_short
from agent.config_loader import help_text, load_config, parse_override, require_once, unknown_option
from agent.exit_codes import exit_code, replace_what_cannot_be_shown
from agent.ranks import Ranks, joined
from agent.training.resume import config_of_run, is_finished
from agent.training.trainer import train
from envs.errors import UserError

EXAMPLES = """examples:
  gumbel train cartpole                            four members, as the config says
  gumbel train cartpole seeds=10 tau.start=2       other settings on the command line
  gumbel train cartpole algorithm=reinforce        the baseline on the same task
  gumbel train env.id=Acrobot-v1 total_env_steps=30000   a task without a config, with the defaults
  gumbel train cartpole 'sweep={tau.start: [2.0, 1.0, 0.5]}' seeds=5   15 members in one process
  gumbel train cartpole --print-config             every setting as it would be used
  gumbel train --resume runs/x                     resumes a run as if it had never stopped
  gumbel train --resume runs/x total_env_steps=200000   and makes a finished one longer
  gumbel train cartpole run_dir=runs/x --resume auto    starts, or resumes what is in run_dir
  torchrun --nproc-per-node=4 train.py cartpole seeds=16    four processes, four members each
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = make_parser(
        "train",
        "Trains a population of agents on a Gymnasium environment with discrete actions.",
        f"{EXAMPLES}\n{help_text()}",
    )
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG", help="a YAML file, or the name of one of the library's configs"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config as YAML and stop")
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="resume the run in this folder; auto: in run_dir, or start where it is empty",
    )
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        raise unknown_option(unknown[0], arguments, parser.format_usage())
    return options


def run(options: argparse.Namespace, ranks: Ranks) -> None:
    ranks.require_alike("options", {"resume": options.resume})
    file, overrides = options.config, options.overrides
    if file is not None and "=" in file:
        file, overrides = None, [file, *overrides]
    require_once([(text, *parse_override(text)) for text in overrides])
    if options.resume not in (None, "auto"):
        if file is not None:
            raise UserError(f"--resume {options.resume}: resumes with the run's own config; leave out {file}")
        config = config_of_run(Path(options.resume), overrides)
    else:
        config = load_config(file, overrides)
    if options.print_config:
        print(config.to_yaml() if ranks.is_first else "", end="")
        return
    if options.resume == "auto" and config.run_dir is None:
        raise UserError("--resume auto: needs run_dir=FOLDER, where the run is or will be")
    if options.resume is not None and ranks.from_first(lambda: is_finished(config)):
        if ranks.is_first:
            print(f"{config.run_dir} has come to its end; a larger total_env_steps makes it longer")
        return
    trained = train(config, resume=options.resume is not None, ranks=ranks)
    if config.pbt.every_env_steps is not None and ranks.is_first:
        figure = trained.folder / "figures" / "exchanges.png"
        draw_exchanges(trained.rows(), figure)
        print(f"how the members have exchanged weights and settings: {figure}")


def main(arguments: list[str]) -> int:
    replace_what_cannot_be_shown(sys.stdout)

    def run_as_one_rank() -> None:
        with joined() as ranks:
            run(parse(arguments), ranks)

    return exit_code(in_short("train"), run_as_one_rank)
