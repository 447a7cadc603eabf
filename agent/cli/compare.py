"""Compares algorithms, settings or finished runs: gumbel compare CONFIG|RUN ... [--filter ...] [--algorithms ...]"""

import argparse
import difflib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from agent.analysis import filters, plan, report
from agent.analysis.comparison import compare_entries
from agent.analysis.entries import arrange, load_runs
from agent.analysis.run_folder import Entry, require_one_env
from agent.analysis.tables import pairs_table, summary_table
from agent.cli.arguments import make_parser
from agent.commands import as_called, in_short
from agent.config import Config
from agent.config_faults import yaml_scalar
from agent.config_loader import find_config, parse_override, require_once, unknown_option
from agent.exit_codes import exit_code, replace_what_cannot_be_shown
from agent.ranks import Ranks, joined
from agent.training.trainer import train
from agent.training.wandb_mirror import log_comparison
from agent.versions import versions
from envs import UserError

HOW_TO = """what to compare
  Is the actor-critic better than REINFORCE here? Train ten seeds of each, then compare:
    gumbel compare cartpole --algorithms gumbel_actor_critic reinforce --seeds 10

  Which estimator, at which batch size? Axes multiply; here four runs of five seeds:
    gumbel compare cartpole --estimators exact score_function --vary batch_size=64,128 --seeds 5

  Several configs of one environment, with settings for all of them:
    gumbel compare small.yaml large.yaml total_env_steps=20000

  Runs that you have already, by folder or by their settings (all terms must hold; = != >= <= > <):
    gumbel compare runs/first runs/second
    gumbel compare --filter env.id=CartPole-v1 algorithm=reinforce 'total_env_steps>=20000'
  Folders, filters and configs may stand together, say to compare a new config with old runs.

  Which temperature? Either of
    gumbel compare cartpole --seeds 5 --vary tau.start=2.0,1.0,0.5
    gumbel compare cartpole --seeds 5 'sweep={tau.start: [2.0, 1.0, 0.5]}'
  --vary takes any setting and trains one run per combination: one more value later trains one more run. A sweep takes
  per-member settings (* in gumbel train --help) and trains them in one process: faster, but one more value trains
  all of them again.

what counts
  Each seed is one replication. Runs with the same settings and other seeds are pooled; settings swept inside a run are
  split apart. A setting that an algorithm does not read is not varied for it. A difference is marked (*) only where
  its 95 % interval excludes zero: against the best in the table of results, else against the entry named. With fewer
  than 5 seeds nothing is tested: there are no marks and there is no verdict.

what happens
  What is trained already is not trained again, so after Ctrl-C the same command trains the runs still missing.
  Everything lands in comparisons/<name>/, over what an earlier comparison of that name left: report.html (one page,
  to pass on as it is), its figures as PNG and SVG, results.csv, results.json (every seed). Tables and
  figures also go to W&B, as wandb.mode of the first entry says; if that is auto, WANDB_MODE=disabled keeps them here.
  Under torchrun --nproc-per-node=4 compare.py ... four of the runs are trained at a time, each by one process.
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = make_parser(
        "compare",
        "Compares algorithms, settings or finished runs, with 95 % intervals over seeds.",
        HOW_TO,
    )
    parser.add_argument("inputs", nargs="*", metavar="CONFIG|RUN|key=value", help="config files and settings, or runs")
    parser.add_argument("--filter", nargs="+", default=[], metavar="key=value", help="finished runs under runs/")
    parser.add_argument("--algorithms", nargs="+", default=[], metavar="NAME", help="default: the config's own")
    parser.add_argument("--estimators", nargs="+", default=[], metavar="NAME", help="values of estimator.name")
    parser.add_argument("--vary", action="append", default=[], metavar="key=v1,v2", help="any setting; repeatable")
    parser.add_argument("--seeds", type=int, metavar="N", help="members of each; default: the config's own")
    parser.add_argument("--name", help="of the folder under comparisons/; default: the first input's name")
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        raise unknown_option(unknown[0], arguments, parser.format_usage())
    return options


def run(options: argparse.Namespace, command: str, console: Console, ranks: Ranks) -> None:
    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    found, left_out = find(options.filter)
    folders, configs = gather(options)
    to_train = {str(config.run_dir): config.env.id for config in configs}
    there = load_runs({folder: name for folder, name in folders.items() if str(folder) not in to_train})
    require_one_env({e.runs[0].folder: e.env_id for e in [*there, *found]} | to_train)
    for reason in left_out if ranks.is_first else []:
        say(f"left out: {reason}")
    named = [text for text in options.inputs if "=" not in text]
    name = options.name or (plan.name_of(named[0]) if named else filters.name_of(options.filter))
    folder = Path("comparisons") / name
    report.make_folder(folder)  # now: training may take hours
    plan.train_missing(configs, train, say, ranks)
    if not ranks.is_first:
        return
    comparison = compare_entries(arrange([*load_runs(folders), *found]))
    try:
        figures = report.write(comparison, folder, command, versions(torch.device("cpu")))
    finally:  # what cannot be written is shown nevertheless
        console.print(summary_table(comparison), pairs_table(comparison), sep="\n")
    say(f"command: {command}\nsaved in {folder}: report.html, {len(figures)} figures, results.json, results.csv")
    log_comparison(folder, comparison.entries[0].config, report.tables(comparison), [f.path for f in figures])


def find(terms: Sequence[str]) -> tuple[list[Entry], list[str]]:
    """Entries of the runs that meet the terms of --filter, and why other matching runs are left out."""
    return filters.find([filters.parse_term(text) for text in terms], Path("runs")) if terms else ([], [])


def gather(options: argparse.Namespace) -> tuple[dict[Path, str], list[Config]]:
    """Run folders to compare, in the order of the inputs, each with a name; and the configs of those to train."""
    overrides = [text for text in options.inputs if "=" in text]
    axes = plan.axes_of(options.algorithms, options.estimators, options.vary)
    require_no_conflict(overrides, axes, options.seeds)
    folders: dict[Path, str] = {}
    configs: list[Config] = []
    for text in (text for text in options.inputs if "=" not in text):
        if (path := Path(text)).is_dir():
            folders[path] = plan.name_of(str(path))
            continue
        path = find_config(text)
        require_file(path)
        for config in plan.plan(str(path), axes, options.seeds, overrides):
            folders[Path(str(config.run_dir))] = plan.name_of(str(path))
            configs.append(config)
    if not folders and not options.filter:
        how = f"see {in_short('compare')} --help"
        raise UserError(f"name config files or run folders to compare, or --filter them; {how}")
    if not configs and (axes or options.seeds is not None or overrides):
        raise UserError(
            "--algorithms, --estimators, --vary, --seeds and key=value go with a config file; "
            "finished runs are as they are"
        )
    return folders, configs


def require_no_conflict(overrides: Sequence[str], axes: plan.Axes, seeds: int | None) -> None:
    """UserError where the command line says a setting twice, or one that is not its to say."""
    given = [(text, *parse_override(text)) for text in overrides]
    varied = [(f"{key}={','.join(map(yaml_scalar, values))}", key, None) for key, values in axes.items()]
    require_once([*given, *varied, *([] if seeds is None else [(f"--seeds {seeds}", "seeds", seeds)])])
    if any(key == "run_dir" for _, key, _ in given):
        raise UserError("run_dir: a comparison puts each run into a folder that its settings decide; leave run_dir out")


def require_file(path: Path) -> None:
    if not path.is_file():
        names = [p.name for p in path.parent.glob("*") if p.suffix == ".yaml" or p.is_dir()]
        near = difflib.get_close_matches(path.name, names, n=1)
        hint = f"; did you mean '{path.parent / near[0]}'?" if near else ""
        raise UserError(f"{path}: no such config file or run folder{hint}")


def main(arguments: list[str]) -> int:
    replace_what_cannot_be_shown(sys.stdout)
    command = as_called(f"gumbel compare {shlex.join(arguments)}")
    then = "the same command trains the runs still missing"

    def run_as_one_rank() -> None:
        with joined() as ranks:
            run(parse(arguments), command, Console(), ranks)

    return exit_code(in_short("compare"), run_as_one_rank, then)
