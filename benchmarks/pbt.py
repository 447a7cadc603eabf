"""A population that tunes itself from poor settings, against a random search of as many members and steps.

    python benchmarks/pbt.py --tasks cartpole acrobot --seeds 5
    python benchmarks/pbt.py --tasks                     # none: the table from pbt.json

All have eight members that begin with the poor settings. `pbt`: every twentieth of the run the two lowest take over
from the two highest, their settings times 0.5 or 2. `search`: each member's settings are multiplied once, by factors
drawn log-uniformly from 1/16 to 16, and it goes on alone. `poor`: nothing changes. Seeds count from 4000 on, eight for
each repetition. Compared are the best member at the end of a run, which both are used to find, and the mean of all.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path[0] = str(HERE.parent)  # not this folder: its profile.py would hide the library's

import numpy as np

import agent.training.trainer as trainer
from agent.bootstrap import iqm, stratified_bootstrap
from agent.config import Config
from agent.config_loader import load_config
from agent.exit_codes import exit_code
from agent.seeding import derived_seed
from agent.tables import number
from agent.training.pbt import Move, plan
from benchmarks.rows import Row, add_rows, commands, read_rows

FIRST_SEED, MEMBERS, FACTORS = 4000, 8, "[0.5,2.0]"
POOR = ["learning_rate=0.0001", "tau.start=4", "tau.end=4", "target_entropy.start=0.9", "target_entropy.end=0.9"]
TASKS = {"cartpole": 10_000, "acrobot": 15_000}
ARMS = ("pbt", "search", "poor")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS), metavar="TASK")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, metavar="ARM")
    parser.add_argument("--seeds", type=int, default=5, help="repetitions of each")
    args = parser.parse_args()
    sys.exit(exit_code("pbt.py", lambda: measure(args), "the same command resumes"))


def measure(args: argparse.Namespace) -> None:
    path = HERE / "results" / "pbt.json"
    for task in args.tasks:
        for repetition in range(args.seeds):
            for arm in args.arms:
                found = best_of(task, arm, repetition)
                add_rows(path, [found], ("task", "arm", "repetition"))
                print(f"{task} {arm} {repetition}: {found['best']:.1f}", flush=True)
    print(table(read_rows(path)))


def best_of(task: str, arm: str, repetition: int) -> Row:
    """Of a run's members: the greedy return over 100 episodes of the one that its last evaluation prefers."""
    config = config_of(task, arm, repetition)
    trainer.plan = multiplied_once if arm == "search" else plan
    run = trainer.train(config, resume=True, progress=False)
    members = run.result["members"]
    last = {row["member"]: row["eval/return_greedy"] for row in run.rows() if "eval/return_greedy" in row}
    best = max(last, key=lambda member: last[member])
    return {"task": task, "arm": arm, "repetition": repetition, "first_seed": config.seed,
            "best": members[best]["greedy"]["mean"], "all": [m["greedy"]["mean"] for m in members],
            "env_steps": config.total_env_steps}  # fmt: skip


def config_of(task: str, arm: str, repetition: int) -> Config:
    steps = TASKS[task]
    settings = [f"seed={FIRST_SEED + MEMBERS * repetition}", f"seeds={MEMBERS}", f"total_env_steps={steps}",
                "compile=true", "device=cpu", "wandb.mode=disabled",
                f"run_dir=runs/pbt-{task}-{arm}-{repetition}"]  # fmt: skip
    if arm != "poor":
        settings += [f"pbt.every_env_steps={steps // 20}", f"pbt.factors={FACTORS}"]
    return load_config(str(HERE.parent / "configs" / f"{task}.yaml"), [*POOR, *settings])


def multiplied_once(returns: Sequence[float], settings: Sequence[str], config: Config, env_steps: int) -> list[Move]:
    """In place of `plan`: at the first exchange every member's settings are drawn, and then it is left alone."""
    if env_steps >= config.learning_starts + config.total_env_steps // 20:
        return []
    drawn = np.random.default_rng(derived_seed(config.seed))
    factors = np.exp(drawn.uniform(-math.log(16), math.log(16), (len(returns), len(settings))))
    return [Move(i, i, dict(zip(settings, map(float, own), strict=True))) for i, own in enumerate(factors)]


def table(rows: Sequence[Row]) -> str:
    """Markdown: of the best member and of the mean of all, the IQM over repetitions, its 95 % interval, the lowest."""
    lines = ["| task | steps | | pbt | random search | poor settings alone |", "|---|---|---|---|---|---|"]
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        for name, value in (("best", lambda row: row["best"]), ("mean", lambda row: np.mean(row["all"]))):
            cells = [in_short([value(row) for row in of_task if row["arm"] == arm]) for arm in ARMS]
            lines.append(f"| {task} | {of_task[0]['env_steps']:,} | {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *commands(rows)])


def in_short(returns: Sequence[float]) -> str:
    if not returns:
        return ""
    found = np.array(returns)
    low, high = stratified_bootstrap(found)
    return f"{number(float(iqm(found)))} [{number(low)}, {number(high)}], lowest {number(found.min())}"


if __name__ == "__main__":
    main()
