"""The results table: every task with its config and with the defaults, beside REINFORCE and peers at the same budget.

    python benchmarks/suite.py                                   # every task: many hours on one core
    python benchmarks/suite.py --tasks cartpole acrobot
    python benchmarks/suite.py --tasks lunar_lander --seeds 5 --algorithms defaults
    python benchmarks/suite.py --tasks cartpole --peers ../peers sb3_dqn sb3_ppo   # those too, from that environment
    python benchmarks/suite.py --tasks ant_bins --algorithms --peers ../peers sbx_sac   # alone
    python benchmarks/suite.py --tasks                           # none: tables and figure from suite.json
    torchrun --nproc-per-node=2 benchmarks/suite.py              # two rows at a time

Seeds count from 2000 on. Settings are chosen on seeds below 1000. All seeds of a run are one process, and a run that is
done is not repeated: after Ctrl-C the same command resumes. Runs lie in runs/, as those of compare.py. Rows go to
benchmarks/results/suite.json beside those of earlier commands; all of them together make README's table, those of
docs/results.md, and suite.png.
"""

import argparse
import functools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path[0] = str(HERE.parent)  # not this folder: its profile.py would hide the library's

import numpy as np
import torch
from gymnasium.spaces import Discrete
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
from agent.config_loader import load_config, yaml_scalar
from agent.exit_codes import exit_code
from agent.policy import Policy
from agent.ranks import Ranks, joined
from agent.tables import number
from agent.training.trainer import train
from benchmarks.peer_runs import agent_on_task, check_venv
from benchmarks.rows import Row, add_rows, commands, into_page, read_rows
from benchmarks.tabular import Model, blackjack_model, toy_text_model
from envs import UserError
from envs.factory import make_single
from envs.tensor.chain_bandit import ChainBandit

CONFIGS = HERE.parent / "configs"
FIRST_SEED = 2000
OURS, DEFAULTS, BASELINE = "gumbel_actor_critic", "defaults", "reinforce"
LEGEND = {
    OURS: "tuned",
    DEFAULTS: "defaults",
    BASELINE: "REINFORCE",
    "sb3_dqn": "DQN",
    "sb3_ppo": "PPO",
    "sbx_sac": "SAC",
}
PEERS = {  # library, agent
    "sb3_dqn": ("stable_baselines3", "DQN"),
    "sb3_ppo": ("stable_baselines3", "PPO"),
    "sbx_sac": ("sbx", "SAC"),
    "sb3_sac": ("stable_baselines3", "SAC"),
}
SACS = ("sb3_sac", "sbx_sac")  # which take continuous actions
MARKS = "<!-- results: written by benchmarks/suite.py -->", "<!-- end of results -->"


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

    def random(self) -> float:
        return self.bandit.random_value()


@dataclass(frozen=True)
class Task:
    """A row of the table: configs/<name>.yaml, and what it should reach."""

    goal: float | None = None  # of the IQM over seeds; none: SAC's on the same environment
    worst_goal: float = -math.inf  # a seed that ends below has failed
    random: float | None = None  # return of uniformly random actions; none: of the model
    seeds: int = 10
    model: Callable[[], Model | BanditModel] | None = None  # where returns can be worked out instead of sampled

    def random_return(self) -> float | None:
        return self.model().random() if self.model else self.random


def toy_text(env_id: str) -> Callable[[], Model]:
    return lambda: toy_text_model(env_id, max_episode_steps=200)


def bandit(name: str) -> Callable[[], BanditModel]:
    return lambda: BanditModel(str(CONFIGS / f"{name}.yaml"))


TASKS = {
    "cartpole": Task(475, 475, random=22.2),
    "acrobot": Task(-72, -100, random=-497.4),
    "mountain_car": Task(-98, -115, random=-200.0),
    "lunar_lander": Task(275, 250, random=-184.4),
    "taxi": Task(7.85, 7.0, model=toy_text("Taxi-v4")),
    "cliff_walking": Task(-13.13, -17.0, model=toy_text("CliffWalking-v1")),
    "frozen_lake": Task(0.8847, 0.8, model=toy_text("FrozenLake8x8-v1")),
    "blackjack": Task(-0.0435, -0.05, model=blackjack_model),
    "bipedal_walker_bins": Task(300, 250, random=-123.5, seeds=5),
    "half_cheetah_bins": Task(seeds=5),
    "walker2d_bins": Task(seeds=5),
    "ant_bins": Task(seeds=5),
    "chain_bandit": Task(4.2, 4.0, model=bandit("chain_bandit")),
    "chain_bandit_1e8": Task(4.914, 4.5, model=bandit("chain_bandit_1e8")),
    "k_cartpole": Task(475, 100, random=13.0),
}


def main() -> None:
    args = parse()

    def measure_as_one_rank() -> None:
        with joined() as ranks:
            measure(args, ranks)

    sys.exit(exit_code("suite.py", measure_as_one_rank, "the same command resumes"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tasks", nargs="*", default=list(TASKS), choices=list(TASKS), metavar="TASK", help="of the table"
    )
    parser.add_argument(
        "--algorithms",
        nargs="*",
        default=[OURS, DEFAULTS, BASELINE],
        choices=[OURS, DEFAULTS, BASELINE],
        metavar="NAME",
        help=f"{OURS} and {BASELINE} with the task's config, {DEFAULTS}: without it",
    )
    parser.add_argument("--peers", nargs="+", metavar=("VENV", "PEER"), help=f"PEERs too: {', '.join(PEERS)}")
    parser.add_argument("--seeds", type=int, metavar="N", help="of each run; default: the table's")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="settings of all runs")
    parser.add_argument(
        "--root", type=Path, default=HERE.parent, help="folder of README.md, docs/results.md and benchmarks/results/"
    )
    return parser.parse_args()


def measure(args: argparse.Namespace, ranks: Ranks) -> None:
    """Each row is the work of one rank."""
    peers = check_peers(*args.peers) if args.peers else []
    path = args.root / "benchmarks" / "results" / "suite.json"
    wanted = [(task, made_by) for made_by in (*args.algorithms, *peers) for task in args.tasks]
    configs = [config_of(task, made_by if made_by in args.algorithms else OURS, args) for task, made_by in wanted]
    for index in ranks.take(len(wanted)):
        (task, made_by), config = wanted[index], configs[index]
        if made_by in args.algorithms:
            plan.train_missing([config], functools.partial(train, progress=ranks.size == 1), print)
            found = row(task, made_by, config)
        elif takes(made_by, config):
            found = peer_row(task, config, Path(args.peers[0]), made_by)
        else:
            print(f"{made_by} is left out on {task}: it does not take these actions")
            continue
        add_rows(path, [found], ("task", "algorithm"))
    if not ranks.is_first:
        return
    rows = read_rows(path)
    into_page(args.root / "README.md", MARKS, short_table(rows))
    into_page(args.root / "docs" / "results.md", MARKS, details(rows))
    draw(rows, path.with_suffix(".png"))
    print(short_table(rows))


def config_of(task: str, algorithm: str, args: argparse.Namespace) -> Config:
    file, seeds = str(CONFIGS / f"{task}.yaml"), args.seeds or TASKS[task].seeds
    settings = [f"seed={FIRST_SEED}", f"seeds={seeds}", "wandb.mode=disabled", *args.set]
    if algorithm != DEFAULTS:
        return plan.plan(file, {}, None, [f"algorithm={algorithm}", *settings])[0]
    config = load_config(None, [*task_alone(load_config(file, [])), *settings])
    return config.model_copy(update={"run_dir": str(plan.run_folder(f"{task}_defaults", config))})


def task_alone(config: Config) -> list[str]:
    """The settings that say what is to be learned, none that says how."""
    env = config.env
    settings = {"env.id": env.id, "env.kwargs": env.kwargs, "env.action_bins": env.action_bins}
    settings["total_env_steps"] = config.total_env_steps
    return [f"{key}={yaml_scalar(value)}" for key, value in settings.items() if value]


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
        "first_seed": config.seed,
        "returns": returns.tolist(),
        "curve_env_steps": curves[0].env_steps.tolist(),
        "curve_returns": [curve.returns.tolist() for curve in curves],
        "wall_seconds": round(entry.wall_seconds),
    }


def check_peers(venv: str, *names: str) -> tuple[str, ...]:
    """Before anything is trained."""
    check_venv(Path(venv))
    for name in names:
        if name not in PEERS:
            raise UserError(f"--peers: no peer '{name}'{nearest(name, PEERS)}; choose from {', '.join(PEERS)}")
    if not names:
        raise UserError(f"--peers {venv}: no peer is named; choose from {', '.join(PEERS)}")
    return names


def takes(peer: str, config: Config) -> bool:
    """Whether the peer has actions of this kind: SAC a Box, DQN one Discrete, PPO any."""
    if peer in SACS:
        return config.env.action_bins is not None
    return peer != "sb3_dqn" or isinstance(make_single(config.env.id, kwargs=config.env.kwargs).action_space, Discrete)


def peer_row(task: str, config: Config, venv: Path, peer: str) -> Row:
    """Of as many seeds and steps as the config has."""
    env, model = config.env, TASKS[task].model
    states = None if model is None else states_of(exact := model())
    bins = None if peer in SACS else env.action_bins
    runs = agent_on_task(venv, *PEERS[peer], config, bins=bins, states=states)
    env_steps, curves = np.array([run["curve"] for run in runs]).transpose(2, 0, 1)
    returns = [run["final"] if states is None else exact.value_of(np.array(run["actions"])) for run in runs]
    return {
        "task": task,
        "algorithm": peer,
        "library": runs[0]["version"],
        "env_id": env.id,
        "env_steps": config.total_env_steps,
        "first_seed": config.seed,
        "returns": returns,
        "curve_env_steps": env_steps[0].tolist(),
        "curve_returns": curves.tolist(),
        "wall_seconds": round(sum(run["seconds"] for run in runs)),
    }


def states_of(model: Model | BanditModel) -> list[Any]:
    """Its observations, one after the other."""
    if isinstance(model.obs, tuple):
        return np.stack(model.obs, 1).tolist()
    return list(model.obs.tolist())


def exact_returns(model: Model | BanditModel, run: Path) -> np.ndarray:
    """Expected return of each member's most probable actions."""
    policy = Policy.load(run, member="all")
    masks = None if policy.info.action_mask_key is None else model.masks
    members = [policy.select([i]) for i in range(policy.num_members)]
    return np.array([model.value_of(member.act(model.obs, action_mask=masks)) for member in members])


def short_table(rows: Sequence[Row]) -> str:
    """Markdown, a row a task: IQM, worst seed, and how many failed."""
    made_by = (OURS, DEFAULTS, "sb3_dqn", "sb3_ppo", BASELINE)
    lines = ["| task | steps | tuned | defaults | DQN | PPO | REINFORCE |", "|---|---|---|---|---|---|---|"]
    for name, task, of in by_task(rows):
        cells = [in_short(of[key], task) if key in of else "" for key in made_by]
        ours = next(iter(of.values()))
        lines.append(f"| [{ours['env_id']}](configs/{name}.yaml) | {ours['env_steps']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def in_short(row: Row, task: Task) -> str:
    returns = np.array(row["returns"])
    failed = int((returns < task.worst_goal).sum())
    return f"{number(float(iqm(returns)))} ({number(returns.min())}{f', {failed} failed' if failed else ''})"


def long_table(rows: Sequence[Row]) -> str:
    """Markdown: the same with intervals, goals and scores."""
    lines = [
        "| task | tuned | goal (worst) | defaults | score | DQN | PPO | REINFORCE | P(better) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, task, of in by_task(rows):
        best = f" (optimum {number(task.model().optimum())})" if task.model else ""
        ours = next(iter(of.values()))
        cells = [
            f"[{ours['env_id']}](../configs/{name}.yaml)" + best,
            of_seeds(of.get(OURS), task),
            verdict(task, of),
            of_seeds(of.get(DEFAULTS), task),
            score(of, task),
            *(of_seeds(of.get(peer), task) for peer in ("sb3_dqn", "sb3_ppo", BASELINE)),
            better(of),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def by_task(rows: Sequence[Row]) -> Iterator[tuple[str, Task, dict[str, Row]]]:
    """Each task that was run, and its rows by what made them."""
    for name, task in TASKS.items():
        of = {row["algorithm"]: row for row in rows if row["task"] == name}
        if of:
            yield name, task, of


def of_seeds(row: Row | None, task: Task) -> str:
    """IQM and interval, the worst seed, how many failed."""
    if row is None:
        return ""
    returns = np.array(row["returns"])
    failed = f", {(returns < task.worst_goal).sum()}/{len(returns)} failed" if math.isfinite(task.worst_goal) else ""
    return f"{with_interval(returns)}, worst {number(returns.min())}{failed}"


def verdict(task: Task, of: Mapping[str, Row]) -> str:
    """The goals, and whether the config meets them."""
    if task.goal is None:
        return beside_sac(of.get(OURS), next((of[peer] for peer in SACS if peer in of), None))
    worst = f" ({number(task.worst_goal)})" if math.isfinite(task.worst_goal) else ""
    if OURS not in of:
        return f"{number(task.goal)}{worst}"
    returns = np.array(of[OURS]["returns"])
    is_met = iqm(returns) >= task.goal and returns.min() >= task.worst_goal
    return f"{number(task.goal)}{worst}, {'met' if is_met else 'missed'}"


def score(of: Mapping[str, Row], task: Task) -> str:
    """Of the defaults' IQM, and of their worst seed: 0 for random actions, 1 for the tuned config's IQM."""
    random = task.random_return()
    if random is None or not {OURS, DEFAULTS} <= of.keys():
        return ""
    tuned, returns = float(iqm(np.array(of[OURS]["returns"]))), np.array(of[DEFAULTS]["returns"])
    typical, worst = ((value - random) / (tuned - random) for value in (float(iqm(returns)), returns.min()))
    return f"{typical:.2f}, worst {worst:.2f}"


def beside_sac(ours: Row | None, sac: Row | None) -> str:
    """SAC's return, and ours after as many steps."""
    if ours is None or sac is None:
        return "SAC's, not run"
    theirs, seeds = float(iqm(np.array(sac["returns"]))), len(sac["returns"])
    returns, when, then = ours["returns"], "", ""
    if sac["env_steps"] != ours["env_steps"]:
        at = max(0, int(np.searchsorted(ours["curve_env_steps"], sac["env_steps"], side="right")) - 1)
        returns = [curve[at] for curve in ours["curve_returns"]]
        when, then = f" after {ours['curve_env_steps'][at]:,} steps", f" after {sac['env_steps']:,}"
    here = float(iqm(np.array(returns)))
    by = f"SAC's {number(theirs)} ({seeds} seed{'s' * (seeds > 1)})"
    return f"{'met' if here >= theirs else 'missed'}: {number(here)}{when} against {by}{then}"


def with_interval(returns: np.ndarray) -> str:
    interval = stratified_bootstrap(returns)
    return f"{number(float(iqm(returns)))} [{number(interval.low)}, {number(interval.high)}]"


def better(of: Mapping[str, Row]) -> str:
    """How likely a seed of the config ends above one of the baseline's."""
    if not {OURS, BASELINE} <= of.keys():
        return ""
    returns, theirs = np.array(of[OURS]["returns"]), np.array(of[BASELINE]["returns"])
    interval = bootstrap_probability_of_improvement(returns, theirs)
    return f"{probability_of_improvement(returns, theirs):.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def details(rows: Sequence[Row]) -> str:
    """For docs/results.md: the long table, every seed, and what made it."""
    seeds = ["| task | made by | seeds | return of each | seconds |", "|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: list(TASKS).index(row["task"])):
        made_by = f"{row['algorithm']} ({row['library']})" if "library" in row else row["algorithm"]
        returns = " ".join(map(number, row["returns"]))
        first, last = row["first_seed"], row["first_seed"] + len(row["returns"]) - 1
        seeds.append(f"| {row['env_id']} | {made_by} | {first} to {last} | {returns} | {row['wall_seconds']} |")
    return "\n".join([long_table(rows), "", "## Every seed", "", *seeds, "", *commands(rows)])


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
        ours: list[Any] = []
        for i, algorithm in enumerate((OURS, DEFAULTS, BASELINE, *PEERS)):
            for row in (row for row in rows if (row["task"], row["algorithm"]) == (name, algorithm)):
                curve = Curve(np.array(row["curve_env_steps"]), np.array(row["curve_returns"]))
                figures.draw_curve(axes, LEGEND.get(algorithm, algorithm), curve, figures.style(i), band_alpha=0.25)
                if algorithm in (OURS, DEFAULTS):
                    ours.append(iqm(curve.returns, axis=0))
                axes.set_title(row["env_id"], loc="left", fontsize=10, color=figures.INK)
        if (goal := TASKS[name].goal) is not None:
            axes.axhline(goal, color=figures.FAINT, linewidth=0.9, linestyle=":", zorder=1)
        heights = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines])
        low, high = np.percentile(np.concatenate(ours), 5), heights.max()  # without a first bad evaluation
        room = 0.1 * (high - low)
        axes.set_ylim(max(heights.min(), low - 13 * room) - room, high + room)  # far below ours is cut off
        axes.xaxis.set_major_formatter(lambda steps, _: figures.short(steps))
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("environment steps of a member (dotted: the goal)", fontsize=9, color=figures.INK)
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
