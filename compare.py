"""Compares algorithms, settings or finished runs: python compare.py CONFIG|RUN ... [--algorithms A B] [--seeds N]"""

import argparse
import shlex
import sys
from pathlib import Path

from rich.console import Console

from agent.analysis import comparison
from agent.analysis.tables import pairs_table, summary_table
from agent.config_loader import load_config
from agent.exit_codes import exit_code
from agent.training.loop import ALGORITHMS
from agent.training.trainer import train
from envs import UserError

HOW_TO = """examples:
  Is the actor-critic better than REINFORCE here? Train ten seeds of each, then compare:
    python compare.py configs/cartpole.yaml --algorithms gumbel_actor_critic reinforce --seeds 10

  Which temperature? A sweep trains all of them in one process; its settings are told apart:
    python compare.py configs/cartpole.yaml --seeds 5 'sweep={tau.start: [2.0, 1.0, 0.5]}'

  Runs that you have already:
    python compare.py runs/first runs/second

What is trained already is not trained again, so after Ctrl-C the same command goes on with the runs still missing.
Everything lands in comparisons/<name>/: results.json, results.csv and learning_curves.png.
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="compare.py",
        description="Compares algorithms, settings or finished runs, with 95 % intervals over seeds.",
        epilog=HOW_TO,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", nargs="+", metavar="CONFIG|RUN|key=value", help="a config file and settings, or runs")
    parser.add_argument("--algorithms", nargs="+", choices=list(ALGORITHMS), help="default: the config's own")
    parser.add_argument("--seeds", type=int, help="members of each; default: the config's own")
    parser.add_argument("--name", help="of the folder under comparisons/; default: the config's or first run's name")
    return parser.parse_intermixed_args(arguments)


def run(options: argparse.Namespace, command: str, console: Console) -> None:
    overrides = [text for text in options.inputs if "=" in text]
    paths = [text for text in options.inputs if "=" not in text]
    if not paths:
        raise UserError("name a config file or run folders to compare; see compare.py --help")
    if Path(paths[0]).is_dir():
        if options.algorithms or options.seeds or overrides:
            raise UserError("--algorithms, --seeds and key=value go with a config file; finished runs are as they are")
        runs = [Path(path) for path in paths]
    elif len(paths) > 1:
        raise UserError(f"expected one config file or several run folders, got {' '.join(paths)}")
    else:
        algorithms = options.algorithms or [load_config(paths[0], overrides).algorithm]
        configs = comparison.plan(paths[0], algorithms, options.seeds, overrides)
        comparison.train_missing(configs, train, lambda text: console.print(text, highlight=False))
        runs = [Path(str(config.run_dir)) for config in configs]
    result = comparison.compare_runs(runs)
    folder = Path("comparisons") / (options.name or comparison.name_of(paths[0]))
    comparison.write(result, folder, command)
    console.print(summary_table(result), pairs_table(result), sep="\n")
    saved = f"command: {command}\nsaved in {folder}: results.json, results.csv, learning_curves.png"
    console.print(saved, highlight=False, soft_wrap=True)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    command = f"python compare.py {shlex.join(arguments)}"
    go_on = "stopped; the same command goes on with the runs still missing"
    return exit_code("compare.py", lambda: run(options, command, Console()), go_on)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
