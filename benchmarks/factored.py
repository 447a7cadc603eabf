"""Critics and estimators on factored bandits with a known optimum: share of the way from random to it.

    python benchmarks/factored.py --set compile=true                # every task, ten seeds: hours on one core
    python benchmarks/factored.py --tasks weak_1e6 --runs multilinear/exact joint/straight_through_gumbel_softmax
    python benchmarks/factored.py --ppo ../peers                    # Stable-Baselines3's PPO too, from its venv

All seeds of a run are one process. A run that is done is not repeated: after Ctrl-C the same command resumes. Runs lie
in runs/, as those of compare.py. The table and the numbers go to benchmarks/results/factored*, beside those of earlier
commands; each task's figure shows the runs of this one.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path[0] = str(HERE.parent)  # not this folder: its profile.py would hide the library's

import numpy as np
import torch

from agent.analysis import plan
from agent.analysis.figures import metric_curves
from agent.analysis.run_folder import load_run
from agent.analysis.statistics import Curve, iqm, stratified_bootstrap
from agent.config import Config
from agent.exit_codes import exit_code
from agent.policy import Policy
from agent.training.trainer import train
from benchmarks.peer_runs import from_peer
from benchmarks.rows import add_rows, commands, learning_settings
from envs import UserError
from envs.tensor.chain_bandit import ChainBandit

CONFIG = HERE.parent / "configs" / "chain_bandit.yaml"
TASKS: dict[str, dict[str, Any]] = {
    "weak_1e6": {"num_factors": 8, "num_choices": 6, "interaction": 0.5},
    "strong_1e6": {"num_factors": 8, "num_choices": 6, "interaction": 2.0},
    "weak_1e8": {"num_factors": 8, "num_choices": 10, "interaction": 0.5},
    "strong_1e8": {"num_factors": 8, "num_choices": 10, "interaction": 2.0},
}
RUNS = [
    "multilinear/exact",
    "multilinear/local_expectation",
    "multilinear/straight_through_gumbel_softmax",
    "multilinear/gumbel_rao",
    "multilinear/score_function",
    "joint/local_expectation",
    "joint/straight_through_gumbel_softmax",
    "joint/gumbel_rao",
    "joint/score_function",
    "per_action/exact",
    "per_action/straight_through_gumbel_softmax",
    "reinforce",
]
EVALUATIONS = 20
HEAD = """# Factored bandits

Share of the way from random to the optimum at the end of training, over all contexts: IQM over seeds [95 % bootstrap
interval]; at 5,000 samples over 300 contexts drawn. Made by `benchmarks/factored.py`, read in `docs/factored.md`.
"""


def main() -> None:
    args = parse()
    sys.exit(exit_code("factored.py", lambda: measure(args), "the same command resumes"))


def measure(args: argparse.Namespace) -> None:
    configs = {(task, run): config_of(task, run, args) for task in args.tasks for run in args.runs}
    plan.train_missing(list(configs.values()), train, print)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for task in args.tasks:
        curves = {run: trained(task, configs[task, run]) for run in args.runs}
        if args.ppo:
            curves["Stable-Baselines3 PPO"] = ppo(task, args)
        rows += [row(task, run, args.set, curve) for run, curve in curves.items()]
        draw(task, curves, args.out / f"factored_{task}.png")
    write(rows, args)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--runs", nargs="+", default=RUNS, metavar="RUN", help="critic/estimator, or reinforce")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20_000, help="samples of each seed, 5,000 or more")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="settings of all runs")
    parser.add_argument("--ppo", type=Path, metavar="VENV", help="virtual environment of against_peers.py")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of table, figures and numbers")
    args = parser.parse_args()
    if args.steps < 5000:
        parser.error(f"--steps {args.steps}: the table shows the share at 5,000")
    return args


def config_of(task: str, run: str, args: argparse.Namespace) -> Config:
    """In a folder that the settings alone decide."""
    settings = [f"env.kwargs={json.dumps(TASKS[task])}", f"total_env_steps={args.steps}", "wandb.mode=disabled"]
    evaluation = ["evaluation.episodes=300", f"evaluation.every_env_steps={args.steps // EVALUATIONS}"]
    return plan.plan(str(CONFIG), {}, args.seeds, [*settings, *evaluation, *settings_of(run), *args.set])[0]


def settings_of(run: str) -> list[str]:
    """Of critic/estimator, or of reinforce.  UserError for an unknown run."""
    critic, _, estimator = run.partition("/")
    if estimator:
        return [f"critic.structure={critic}", f"estimator.name={estimator}"]
    if run != "reinforce":
        raise UserError(f"--runs {run}: expected critic/estimator or reinforce; for example {RUNS[0]}")
    return ["algorithm=reinforce"]


def trained(task: str, config: Config) -> Curve:
    """Shares of each seed: on the way as evaluated at contexts drawn, at the end exactly."""
    folder = Path(str(config.run_dir))
    curves = load_run(folder)[0].curves()
    returns = np.stack([curve.returns for curve in curves])
    returns[:, -1] = final_returns(ChainBandit(1, **TASKS[task]), Policy.load(folder, member="all"))
    return share(task, Curve(curves[0].env_steps, returns))


def final_returns(bandit: ChainBandit, policy: Policy) -> np.ndarray:
    """Mean over contexts of the reward of each member's most probable action."""
    contexts = torch.arange(bandit.num_contexts)
    obs = torch.eye(len(contexts)).expand(policy.num_members, -1, -1)
    action, _ = policy.choose(obs, policy.actor.initial_state(*obs.shape[:2]))
    return torch.stack([bandit.reward(contexts, own, contexts, None).mean() for own in action]).numpy()


def ppo(task: str, args: argparse.Namespace) -> Curve:
    """The same from Stable-Baselines3, seed by seed in its own virtual environment."""
    arguments = [json.dumps(TASKS[task]), str(args.seeds), str(args.steps), str(args.steps // EVALUATIONS)]
    measured = from_peer(args.ppo, "ppo_on_bandit.py", arguments)
    return share(task, Curve(np.array(measured["env_steps"]), np.array(measured["returns"])))


def share(task: str, curve: Curve) -> Curve:
    """0: a random policy, 1: the optimum."""
    bandit = ChainBandit(1, **TASKS[task])
    random = bandit.random_value()
    return Curve(curve.env_steps, (curve.returns - random) / (bandit.optimum() - random))


def row(task: str, run: str, settings: list[str], curve: Curve) -> dict[str, Any]:
    final = curve.returns[:, -1]
    interval = stratified_bootstrap(final)
    return {
        "task": task,
        "run": run,
        "settings": learning_settings(settings),
        "share": float(iqm(final)),
        "low": interval.low,
        "high": interval.high,
        "worst": float(final.min()),
        "share_at_5000": float(iqm(curve.returns[:, np.searchsorted(curve.env_steps, 5000)])),
        "seeds": [float(x) for x in final],
    }


def draw(task: str, curves: dict[str, Curve], path: Path) -> None:
    kwargs = TASKS[task]
    joint = kwargs["num_choices"] ** kwargs["num_factors"]
    title = f"ChainBandit, {joint:,} joint actions, interaction {kwargs['interaction']:g}"
    metric_curves(curves, path, "share of the way from random to optimum\n(IQM of seeds, 95 % interval)", title)


def write(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Adds the rows to those of earlier commands, in place of rows of the same run and settings."""
    rows = add_rows(args.out / "factored.json", rows, ("task", "run", "settings"))
    rows.sort(key=lambda row: (list(TASKS).index(row["task"]), -row["share"]))
    lines = [
        "| task | critic/estimator | settings | share at the end | worst seed | share at 5,000 |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        share = f"{r['share']:.3f} [{r['low']:.3f}, {r['high']:.3f}]"
        cells = [r["task"], r["run"], r["settings"], share, f"{r['worst']:.3f}", f"{r['share_at_5000']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    (args.out / "factored.md").write_text("\n".join([HEAD, *lines, "", *commands(rows)]) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
