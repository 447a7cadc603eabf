"""Evaluates saved policies: gumbel evaluate RUN [--member i|best|all] [--episodes N] [--json] [--video DIR]"""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from agent.analysis import figures
from agent.analysis.gradients import gradient_report, load_critics, visited_states
from agent.analysis.report import finite
from agent.analysis.run_folder import GRADIENTS_FIGURE
from agent.analysis.tables import gradients_table
from agent.cli.arguments import add_policy_arguments, load_policy, make_parser
from agent.commands import in_short
from agent.config_fields import put
from agent.config_loader import load_config, parse_override, require_once
from agent.config_sections import MAX_EPISODE_STEPS, MAX_SEED
from agent.evaluation import MODES, EpisodeProgress, evaluate, make_env, num_parallel_envs
from agent.exit_codes import exit_code, replace_what_cannot_be_shown
from agent.policy import Policy
from agent.tables import results_table
from agent.video import record
from envs import UserError

EXAMPLES = """examples:
  gumbel evaluate runs/x                          the best member, greedy and sampled, 100 episodes each
  gumbel evaluate runs/x --member all --json      every member's returns as one JSON object
  gumbel evaluate runs/x --weights best           the weights of the best evaluation instead of the last
  gumbel evaluate runs/x --video videos           an MP4 of one greedy episode
  gumbel evaluate runs/x --gradients              bias and variance of every gradient estimator on this policy
  gumbel evaluate runs/x --env my_package:My-v1   imports my_package, which registers the environment
  gumbel evaluate runs/x env.kwargs.level=2       other values for settings of the environment it was trained in
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = make_parser(
        "evaluate",
        "Evaluates saved policies in new environments. Loading a policy runs no code; modules that it names are "
        "imported only with --network, --env or --trust.",
        EXAMPLES,
    )
    add_policy_arguments(parser, "number, best (default) or all")
    parser.add_argument(
        "settings", nargs="*", metavar="env.key=value", help="settings of the environment that replace the policy's"
    )
    parser.add_argument("--episodes", default=100, type=positive, help="episodes of each mode (default: 100)")
    parser.add_argument(
        "--max-episode-steps",
        default=MAX_EPISODE_STEPS,
        type=positive,
        metavar="N",
        help=f"cut longer episodes there; they count with their return so far (default: {MAX_EPISODE_STEPS})",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--greedy", action="store_true", help="the most probable action only")
    mode.add_argument("--sampled", action="store_true", help="drawn actions only")
    mode.add_argument("--both", action="store_true", help="greedy and sampled (default)")
    parser.add_argument("--seed", default=0, type=seed, help="of environments and draws (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object with every return, nothing else")
    parser.add_argument("--video", metavar="DIR", type=Path, help="write an MP4 of one episode of each member here")
    parser.add_argument(
        "--gradients", action="store_true", help="measure every gradient estimator against the exact gradient instead"
    )
    parser.add_argument(
        "--env", metavar="ID", help="another environment with the same spaces; module:Id imports module"
    )
    options = parser.parse_intermixed_args(arguments)
    if options.gradients and (options.weights == "best" or options.greedy or options.sampled or options.video):
        parser.error("--gradients measures the last weights' gradients, on actions drawn; leave the other options out")
    return options


def changes_of(options: argparse.Namespace, policy: Policy) -> dict[str, Any]:
    """Settings of the environment that are not to be the policy's."""
    values: dict[str, Any] = {"env": policy.info.env.model_dump()}
    changed = set()
    given = [(text, *parse_override(text)) for text in options.settings]
    require_once([*given, *([] if options.env is None else [(f"--env {options.env}", "env.id", options.env)])])
    for _, key, value in given:
        if not key.startswith("env."):
            raise UserError(
                f"command line: '{key}': an evaluation changes settings of the environment alone, env.key=value"
            )
        put(values, key, value)
        changed.add(key.split(".")[1])
    changes = {name: values["env"][name] for name in changed}
    return changes if options.env is None else changes | {"id": options.env}


def report_returns(options: argparse.Namespace) -> None:
    """A table, or JSON, of the returns of each member; then videos where they are asked for."""
    policy = load_policy(options)
    changes = changes_of(options, policy)
    env_id = changes.get("id", policy.info.env.id)
    modes = ("greedy",) if options.greedy else ("sampled",) if options.sampled else MODES
    limit = options.max_episode_steps
    with contextlib.redirect_stdout(sys.stderr):  # what environments print
        members = evaluate(
            policy,
            episodes=options.episodes,
            max_episode_steps=limit,
            seed=options.seed,
            modes=modes,
            env=changes,
            before_step=EpisodeProgress(print),
        )
    console, env_steps = Console(), policy.info.members[0].env_steps
    if options.json:
        result = {"env_id": env_id, "env_steps": env_steps, "max_episode_steps": limit, "members": members}
        print(json.dumps(result), flush=True)
    else:
        console.print(f"{env_id}: return per episode")
        console.print(results_table(members))
    for i in range(policy.num_members if options.video else 0):
        member = policy.select([i])
        with (
            contextlib.redirect_stdout(sys.stderr),
            contextlib.closing(make_env(member, 1, changes=changes, render_mode="rgb_array")) as env,
        ):
            video = record(member, env, options.video, options.seed, sampled=modes[0] == "sampled", max_steps=limit)
        if not options.json:
            cut = f" (cut after {limit} steps)" if video.was_cut else ""
            console.print(f"video: {video.path}{cut}", soft_wrap=True)


def report_gradients(options: argparse.Namespace) -> None:
    """A table, or JSON, of every estimator at every temperature, and figures/gradients.png in the run folder."""
    run = Path(options.run)
    policy = load_policy(options)
    if not (run / "config.yaml").is_file():
        raise UserError(
            f"{run}: --gradients needs the folder of a run, which has the critics too; this is a policy alone"
        )
    config = load_config(run / "config.yaml", of_run=True)
    torch.set_num_threads(config.num_threads)
    critics, encoder = load_critics(run, config, policy)
    changes = changes_of(options, policy)
    env_id = changes.get("id", policy.info.env.id)
    num_envs = num_parallel_envs(options.episodes)
    with contextlib.redirect_stdout(sys.stderr), contextlib.closing(make_env(policy, num_envs, changes=changes)) as env:
        states = visited_states(policy, encoder, env, options.seed)
    rows = gradient_report(policy, critics, config, states, options.seed)
    if options.json:
        print(json.dumps(finite({"env_id": env_id, "batch_size": config.batch_size, "rows": rows}), allow_nan=False))
    else:
        print(f"{env_id}: gradients of Q for the policy's logits, at states that it visits")
        Console().print(gradients_table(rows, config.batch_size))
    figure = run / GRADIENTS_FIGURE
    try:
        figure.parent.mkdir(exist_ok=True)
        figures.gradient_quality(rows, figure, config.batch_size, f"{env_id}: error of a gradient estimate")
    except OSError as error:
        raise UserError(f"{figure}: cannot be written: {error}") from None
    if not options.json:
        print(f"figure: {figure}")


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def seed(text: str) -> int:
    if not 0 <= int(text) <= MAX_SEED:
        raise argparse.ArgumentTypeError(f"must be between 0 and {MAX_SEED}, got {text}")
    return int(text)


def main(arguments: list[str]) -> int:
    replace_what_cannot_be_shown(sys.stdout)
    options = parse(arguments)
    return exit_code(in_short("evaluate"), lambda: (report_gradients if options.gradients else report_returns)(options))
