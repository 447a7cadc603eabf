"""Critics and estimators on HalfCheetah-v5 in 3 bins, 100,000 steps: 6 factors, 729 joint actions.

    python benchmarks/half_cheetah.py --set compile=true  # the runs of factored.py, five seeds: hours on one core
    python benchmarks/half_cheetah.py --runs multilinear/exact reinforce
    python benchmarks/half_cheetah.py --ppo ../peers      # Stable-Baselines3's PPO too, from its venv

All seeds of a run are one process. A run that is done is not repeated: after Ctrl-C the same command resumes. Table and
numbers go to benchmarks/results/half_cheetah*, beside those of earlier commands.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path[0] = str(HERE.parent)  # not this folder: its profile.py would hide the library's

import numpy as np

from agent.analysis import plan
from agent.analysis.run_folder import load_run
from agent.analysis.statistics import iqm, stratified_bootstrap
from agent.config import Config
from agent.exit_codes import exit_code
from agent.training.trainer import train
from benchmarks.factored import RUNS, settings_of
from benchmarks.peer_runs import agent_on_task
from benchmarks.rows import Row, add_rows, commands, learning_settings

CONFIG = HERE.parent / "configs" / "half_cheetah_bins.yaml"
BUDGET = ["total_env_steps=100000", "replay_capacity=100000", "return_threshold=2500"]
EVALUATION = ["evaluation.episodes=3", "evaluation.every_env_steps=10000", "evaluation.final_episodes=20"]
HEAD = """# HalfCheetah-v5 in 3 bins

Greedy return after 100,000 steps, over 20 episodes a seed: IQM over seeds [95 % bootstrap interval].
Made by `benchmarks/half_cheetah.py`, read in `docs/factored.md`. Commands with `train.py` are from when the config had
100,000 steps: add `total_env_steps=100000 replay_capacity=100000`.
"""


def main() -> None:
    args = parse()
    sys.exit(exit_code("half_cheetah.py", lambda: measure(args), "the same command resumes"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="*", default=RUNS, metavar="RUN", help="critic/estimator, or reinforce")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="settings of all runs")
    parser.add_argument("--ppo", type=Path, metavar="VENV", help="virtual environment of against_peers.py")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of table and numbers")
    return parser.parse_args()


def measure(args: argparse.Namespace) -> None:
    configs = {run: config_of(run, args) for run in args.runs}
    plan.train_missing(list(configs.values()), train, print)
    rows = [row(run, args.set, final_returns(config)) for run, config in configs.items()]
    if args.ppo:
        rows.append(row("Stable-Baselines3 PPO", args.set, ppo(config_of("reinforce", args), args.ppo)))
    write(rows, args.out)


def config_of(run: str, args: argparse.Namespace) -> Config:
    """In a folder that the settings alone decide."""
    settings = ["wandb.mode=disabled", *BUDGET, *EVALUATION, *settings_of(run), *args.set]
    return plan.plan(str(CONFIG), {}, args.seeds, settings)[0]


def final_returns(config: Config) -> np.ndarray:
    (entry,) = load_run(Path(str(config.run_dir)))
    return entry.final_returns


def ppo(config: Config, venv: Path) -> np.ndarray:
    """The same from Stable-Baselines3, seed by seed in its own virtual environment."""
    runs = agent_on_task(venv, "stable_baselines3", "PPO", config, bins=config.env.action_bins)
    return np.array([run["final"] for run in runs])


def row(run: str, settings: list[str], returns: np.ndarray) -> Row:
    return {"run": run, "settings": learning_settings(settings), "returns": [float(x) for x in returns]}


def write(rows: list[Row], out: Path) -> None:
    """Adds the rows to those of earlier commands, in place of rows of the same run and settings."""
    rows = add_rows(out / "half_cheetah.json", rows, ("run", "settings"))
    rows.sort(key=lambda row: -iqm(np.array(row["returns"])))
    lines = ["| critic/estimator | settings | return | seed by seed |", "|---|---|---|---|"]
    for r in rows:
        returns = np.array(r["returns"])
        interval = stratified_bootstrap(returns)
        cell = f"{iqm(returns):.0f} [{interval.low:.0f}, {interval.high:.0f}]"
        lines.append(f"| {r['run']} | {r['settings']} | {cell} | {' '.join(f'{x:.0f}' for x in sorted(returns))} |")
    (out / "half_cheetah.md").write_text("\n".join([HEAD, *lines, "", *commands(rows)]) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
