"""The results table: every task with its config, the actor-critic beside REINFORCE at the same budget.

    python benchmarks/suite.py                                   # every task: hours on one core
    python benchmarks/suite.py --tasks cartpole acrobot
    python benchmarks/suite.py --tasks lunar_lander --seeds 5 --algorithms gumbel_actor_critic
    python benchmarks/suite.py --tasks ant_bins --sac ../peers stable_baselines3   # SAC too, from that environment
    python benchmarks/suite.py --tasks ant_bins --algorithms --sac ../peers sbx --set total_env_steps=100000   # alone
    python benchmarks/suite.py --tasks                           # none: tables and figure from suite.json

All seeds of a run are one process, and a run that is done is not repeated: after Ctrl-C the same command resumes. Runs
lie in runs/, as those of compare.py. Rows go to benchmarks/results/suite.json beside those of earlier commands; all of
them together make suite.md, suite.png and README's table.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path[0] = str(HERE.parent)  # not this folder: its profile.py would hide the library's

import numpy as np
import torch
from matplotlib.figure import Figure

from agent.analysis import figures, plan
from agent.analysis.run_folder import load_run
from agent.analysis.statistics import (
    Curve,
    bootstrap_probability_of_improvement,
    iqm,
    probability_of_improvement,
    stratified_bootstrap,
)
from agent.config import Config
from agent.config_fields import nearest
from agent.config_loader import load_config
from agent.exit_codes import exit_code
from agent.policy import Policy
from agent.tables import number
from agent.training.trainer import train
from benchmarks.peer_runs import check_venv, from_peer
from benchmarks.rows import Row, add_rows, commands, into_page, read_rows
from benchmarks.tabular import Model, blackjack_model, toy_text_model
from envs import UserError
from envs.tensor.chain_bandit import ChainBandit

CONFIGS = HERE.parent / "configs"
OURS, BASELINE, SAC = "gumbel_actor_critic", "reinforce", "sac"
SAC_LIBRARIES = ("stable_baselines3", "sbx")
MARKS = "<!-- results: written by benchmarks/suite.py -->", "<!-- end of results -->"


HOW_MEASURED = """Greedy return at the end of training, over 100 episodes a seed; worked out exactly where an optimum is
given. IQM over seeds [95 % bootstrap interval]; P(better): how likely a seed of the actor-critic ends above one of
REINFORCE at the same budget. SAC takes continuous actions on the same environments, with its library's defaults; where
it ran for fewer steps, ours is that of the last evaluation until then. Curves: `suite.png`. Wall times include
evaluations, and waiting for whatever else the machine did. Each row is `python train.py configs/<task>.yaml seeds=N
compile=true`."""


class BanditModel:
    """ChainBandit as a Model is: its observations, what actions at all of them earn, and the most that they can."""

    def __init__(self, config: str) -> None:
        self.bandit = ChainBandit(1, **load_config(config, []).env.kwargs)
        self.obs, self.masks = np.arange(self.bandit.num_contexts), None

    def value_of(self, action: np.ndarray) -> float:
        contexts = torch.from_numpy(self.obs)
        return self.bandit.reward(contexts, torch.from_numpy(action), contexts, None).mean().item()

    def optimum(self) -> float:
        return self.bandit.optimum()


@dataclass(frozen=True)
class Task:
    """A row of the table: configs/<name>.yaml, and what it should reach."""

    goal: float | None = None  # of the IQM over seeds; none: SAC's on the same environment
    worst_goal: float = -math.inf  # of the worst seed
    seeds: int = 10
    model: Callable[[], Model | BanditModel] | None = None  # where returns can be worked out instead of sampled


def toy_text(env_id: str) -> Callable[[], Model]:
    return lambda: toy_text_model(env_id, max_episode_steps=200)


TASKS = {
    "cartpole": Task(475, 475),
    "acrobot": Task(-75, -100),
    "mountain_car": Task(-101, -115),
    "lunar_lander": Task(270, 230),
    "taxi": Task(7.85, model=toy_text("Taxi-v4")),
    "cliff_walking": Task(-13.13, model=toy_text("CliffWalking-v1")),
    "frozen_lake": Task(0.8847, model=toy_text("FrozenLake8x8-v1")),
    "blackjack": Task(-0.0435, model=blackjack_model),
    "bipedal_walker_bins": Task(300, seeds=5),
    "half_cheetah_bins": Task(seeds=5),
    "walker2d_bins": Task(seeds=5),
    "ant_bins": Task(seeds=5),
    "chain_bandit_1e8": Task(4.914, model=lambda: BanditModel(str(CONFIGS / "chain_bandit_1e8.yaml"))),
}


def main() -> None:
    args = parse()
    sys.exit(exit_code("suite.py", lambda: measure(args), "the same command resumes"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tasks", nargs="*", default=list(TASKS), choices=list(TASKS), metavar="TASK", help="of the table"
    )
    parser.add_argument("--algorithms", nargs="*", default=[OURS, BASELINE], choices=[OURS, BASELINE], metavar="NAME")
    parser.add_argument("--sac", nargs=2, metavar=("VENV", "LIBRARY"), help="SAC too: stable_baselines3 or sbx")
    parser.add_argument("--seeds", type=int, metavar="N", help="of each run; default: the table's")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="settings of all runs")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of table, figure and numbers")
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md", help="whose table is rewritten")
    return parser.parse_args()


def measure(args: argparse.Namespace) -> None:
    if args.sac:
        check_sac(args.sac[1], Path(args.sac[0]), args.tasks)
    configs = {
        (task, algorithm): config_of(task, algorithm, args) for task in args.tasks for algorithm in args.algorithms
    }
    plan.train_missing(list(configs.values()), train, print)
    new = [row(task, algorithm, config) for (task, algorithm), config in configs.items()]
    rows = add_rows(args.out / "suite.json", new, ("task", "algorithm")) if new else read_rows(args.out / "suite.json")
    for task in args.tasks if args.sac else ():
        new = [sac_row(task, config_of(task, OURS, args), Path(args.sac[0]), args.sac[1])]
        rows = add_rows(args.out / "suite.json", new, ("task", "algorithm"))
    table = results_table(rows)
    (args.out / "suite.md").write_text(details(table, rows))
    into_page(args.readme, MARKS, table)
    draw(rows, args.out / "suite.png")
    print(table)


def config_of(task: str, algorithm: str, args: argparse.Namespace) -> Config:
    settings = [f"algorithm={algorithm}", "wandb.mode=disabled", *args.set]
    return plan.plan(str(CONFIGS / f"{task}.yaml"), {}, args.seeds or TASKS[task].seeds, settings)[0]


def row(task: str, algorithm: str, config: Config) -> Row:
    (entry,) = load_run(Path(str(config.run_dir)))
    curves = entry.curves()
    model = TASKS[task].model
    returns = entry.final_returns if model is None else exact_returns(model(), Path(str(config.run_dir)))
    return {
        "task": task,
        "algorithm": algorithm,
        "env_id": entry.env_id,
        "env_steps": entry.env_steps,
        "returns": returns.tolist(),
        "curve_env_steps": curves[0].env_steps.tolist(),
        "curve_returns": [curve.returns.tolist() for curve in curves],
        "wall_seconds": round(entry.wall_seconds),
    }


def check_sac(library: str, venv: Path, tasks: Sequence[str]) -> None:
    """Before anything is trained."""
    check_venv(venv)
    if library not in SAC_LIBRARIES:
        raise UserError(f"--sac: no library '{library}'{nearest(library, SAC_LIBRARIES)}; {' or '.join(SAC_LIBRARIES)}")
    with_bins = [task for task in TASKS if load_config(str(CONFIGS / f"{task}.yaml"), []).env.action_bins]
    if without := [task for task in tasks if task not in with_bins]:
        raise UserError(f"--sac: {', '.join(without)}: no continuous actions; give --tasks of {', '.join(with_bins)}")


def sac_row(task: str, config: Config, venv: Path, library: str) -> Row:
    """Of as many seeds and steps as the config has."""
    env_id, evaluation = config.env.id, config.evaluation
    numbers = [str(n) for n in (config.total_env_steps, evaluation.episodes, evaluation.final_episodes)]
    seeds = [str(config.seed + i) for i in range(config.seeds)]
    runs = [from_peer(venv, "sac_on_box.py", [library, env_id, seed, *numbers]) for seed in seeds]
    env_steps, returns = np.array([run["curve"] for run in runs]).transpose(2, 0, 1)
    return {
        "task": task,
        "algorithm": SAC,
        "library": runs[0]["version"],
        "env_id": env_id,
        "env_steps": config.total_env_steps,
        "returns": [run["final"] for run in runs],
        "curve_env_steps": env_steps[0].tolist(),
        "curve_returns": returns.tolist(),
        "wall_seconds": round(sum(run["seconds"] for run in runs)),
    }


def exact_returns(model: Model | BanditModel, run: Path) -> np.ndarray:
    """Expected return of each member's most probable actions."""
    policy = Policy.load(run, member="all")
    masks = None if policy.info.action_mask_key is None else model.masks
    members = [policy.select([i]) for i in range(policy.num_members)]
    return np.array([model.value_of(member.act(model.obs, action_mask=masks)) for member in members])


def results_table(rows: Sequence[Row]) -> str:
    """Markdown: a row per task, the baseline in it where it was run."""
    lines = [
        "| environment | steps a seed | seeds | actor-critic | worst seed | goal (worst) | REINFORCE | P(better) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, task in TASKS.items():
        of = {row["algorithm"]: row for row in rows if row["task"] == name}
        if OURS not in of:
            continue
        returns = np.array(of[OURS]["returns"])
        best = f" (optimum {number(task.model().optimum())})" if task.model else ""
        cells = [
            f"[{of[OURS]['env_id']}](configs/{name}.yaml)",
            f"{of[OURS]['env_steps']:,}",
            str(len(returns)),
            with_interval(returns) + best,
            number(returns.min()),
            beside_sac(of[OURS], of.get(SAC)) if task.goal is None else verdict(task.goal, task.worst_goal, returns),
            *against(returns, of.get(BASELINE)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(goal: float, worst_goal: float, returns: np.ndarray) -> str:
    """The goals, and whether they are met."""
    worst = f" ({number(worst_goal)})" if math.isfinite(worst_goal) else ""
    is_met = iqm(returns) >= goal and returns.min() >= worst_goal
    return f"{number(goal)}{worst}, {'met' if is_met else 'missed'}"


def beside_sac(ours: Row, sac: Row | None) -> str:
    """SAC's return, and ours after as many steps."""
    if sac is None:
        return "SAC's, not run"
    theirs, seeds = float(iqm(np.array(sac["returns"]))), len(sac["returns"])
    returns, text = ours["returns"], f"SAC's {number(theirs)} ({seeds} seed{'s' * (seeds > 1)})"
    if sac["env_steps"] != ours["env_steps"]:
        at = max(0, int(np.searchsorted(ours["curve_env_steps"], sac["env_steps"], side="right")) - 1)
        returns = [curve[at] for curve in ours["curve_returns"]]
        here = number(float(iqm(np.array(returns))))
        text += f" at {sac['env_steps']:,}, here {here} at {ours['curve_env_steps'][at]:,}"
    return f"{text}, {'met' if iqm(np.array(returns)) >= theirs else 'missed'}"


def with_interval(returns: np.ndarray) -> str:
    interval = stratified_bootstrap(returns)
    return f"{number(float(iqm(returns)))} [{number(interval.low)}, {number(interval.high)}]"


def against(returns: np.ndarray, baseline: Row | None) -> tuple[str, str]:
    """The baseline's return, and how likely a seed of ours ends above one of its."""
    if baseline is None:
        return "not run", ""
    theirs = np.array(baseline["returns"])
    interval = bootstrap_probability_of_improvement(returns, theirs)
    probability = probability_of_improvement(returns, theirs)
    return with_interval(theirs), f"{probability:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def details(table: str, rows: Sequence[Row]) -> str:
    """suite.md: the table, every seed, and what made it."""
    seeds = ["| environment | algorithm | seed by seed | wall time |", "|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: list(TASKS).index(row["task"])):
        made_by = f"{row['algorithm']} ({row['library']})" if "library" in row else row["algorithm"]
        returns = " ".join(map(number, row["returns"]))
        seeds.append(f"| {row['env_id']} | {made_by} | {returns} | {row['wall_seconds']} s |")
    text = [
        f"# Results\n\n{HOW_MEASURED}\n",
        table.replace("](configs", "](../../configs"),
        "",
        *seeds,
        "",
        *commands(rows),
    ]
    return "\n".join(text) + "\n"


def draw(rows: Sequence[Row], path: Path) -> None:
    """All tasks in one figure: greedy return of the evaluations during training."""
    names = [name for name in TASKS if any(row["task"] == name for row in rows)]
    columns = 2 if len(names) <= 4 else 3
    height = math.ceil(len(names) / columns)
    figure = Figure(figsize=(3.4 * columns, 2.4 * height + 0.4), dpi=160, layout="constrained")
    grid = figure.subplots(height, columns, squeeze=False)
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    for name, axes in zip(names, grid.flat, strict=False):
        for i, algorithm in enumerate((OURS, BASELINE, SAC)):
            for row in (row for row in rows if (row["task"], row["algorithm"]) == (name, algorithm)):
                curve = Curve(np.array(row["curve_env_steps"]), np.array(row["curve_returns"]))
                figures.draw_curve(axes, algorithm, curve, figures.style(i), band_alpha=0.25)
                axes.set_title(row["env_id"], loc="left", fontsize=10, color=figures.INK)
        if (goal := TASKS[name].goal) is not None:
            axes.axhline(goal, color=figures.FAINT, linewidth=0.9, linestyle=":", zorder=1)
        heights = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines])
        margin = 0.1 * np.ptp(heights)
        axes.set_ylim(heights.min() - margin, heights.max() + margin)  # of the lines: a band may be far wider
        axes.xaxis.set_major_formatter(lambda steps, _: f"{steps / 1000:g}k")
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("environment steps per member (dotted: the goal)", fontsize=9, color=figures.INK)
    figure.supylabel("greedy return (IQM of seeds, 95 % interval)", fontsize=9, color=figures.INK)
    labelled = {
        label.split("  ")[0]: handle
        for axes in grid.flat
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(labelled.values(), labelled.keys(), loc="outside upper left", ncols=3, frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
