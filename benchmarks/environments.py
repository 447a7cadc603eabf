"""Public environment packages: what comes of each id after a short run of everything that a user does with it.

    python benchmarks/environments.py                          # every id that can be imported; see docs/environments.md
    python benchmarks/environments.py --only minigrid ALE      # ids with one of these in them
    python benchmarks/environments.py --set seeds=2 n_step=1   # settings of all runs
    python benchmarks/environments.py --only                   # none: the table from environments.json

Installs nothing: `pip install --group envs` does. Each id is measured in a process of its own with limits of time and
memory, so one that crashes or hangs is a row like the others. It is trained twice, once without a stop and once with a
Ctrl-C in the middle; the two must end with the same weights, byte for byte. Then it is evaluated and filmed. What a
process printed, tracebacks included, is kept in runs/environments/<id>/log.txt.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path[0] = str(HERE.parent)  # not this folder: its profile.py would hide the library's

import numpy as np

from agent import Policy, evaluate, load_config, train
from agent.cli import evaluate as evaluate_script
from agent.config import Config
from agent.exit_codes import Stopped, exit_code
from agent.tables import number
from agent.training.callbacks import Callback, EvaluationView
from agent.training.checkpoint import latest, read
from benchmarks.rows import Row, add_rows, commands, into_page, read_rows
from envs import UserError

MARKS = "<!-- environments: written by benchmarks/environments.py -->", "<!-- end of environments -->"
SETTINGS = [
    "total_env_steps=1500", "learning_starts=300", "updates_per_step=0.5", "hidden_sizes=[64, 64]", "batch_size=64",
    "evaluation.every_env_steps=750", "evaluation.episodes=1", "evaluation.final_episodes=1", "compile=false",
    "wandb.mode=disabled", "env.kwargs.max_episode_steps=200",
]  # fmt: skip
EPISODES = 10
MISSING = "not installed"
FIGURES = {"env_steps_per_second": "", "peak_mib": " MiB", "replay_mib": " MiB"}
SECONDS = 600  # of one id
GIB = 12  # of address space of one id, most of it torch's and never touched

ENVIRONMENTS: dict[str, list[str]] = {  # id: the settings that it needs besides SETTINGS
    "CartPole-v1": [],
    "LunarLander-v3": [],
    "CarRacing-v3": ["env.kwargs={continuous: false, max_episode_steps: 50}"],
    "Taxi-v4": [],
    "Pendulum-v1": ["env.action_bins=5"],
    "HalfCheetah-v5": ["env.action_bins=3"],
    "ale_py:ALE/Pong-v5": ["env.preprocessing=atari"],
    "ale_py:ALE/Breakout-v5": ["env.preprocessing=atari"],
    "flappy_bird_gymnasium:FlappyBird-v0": [],
    "gym_anytrading:forex-v0": [],
    "gym_anytrading:stocks-v0": [],
    "gym_trading_env:TradingEnv": [],
    "gymnasium_2048:gymnasium_2048/TwentyFortyEight-v0": [],
    "gymnasium_snake_game:Snake-v1": [],
    "highway_env:highway-fast-v0": [],
    "highway_env:intersection-multi-agent-v0": [],
    "highway_env:parking-v0": ["env.action_bins=3"],
    "lbforaging:Foraging-8x8-2p-1f-v3": ["env.reward_weights=[1, 1]"],
    "minatar.gym:MinAtar/Breakout-v1": [],
    "minatar.gym:MinAtar/SpaceInvaders-v1": [],
    "minigrid:MiniGrid-Empty-5x5-v0": [],
    "minigrid:MiniGrid-DoorKey-5x5-v0": ["env.wrappers=[minigrid.wrappers:ImgObsWrapper]"],
    "minigrid:BabyAI-GoToRedBallGrey-v0": [],
    "minihack:MiniHack-Room-5x5-v0": [],
    "mo_gymnasium:deep-sea-treasure-v0": ["env.reward_weights=[1, 0.1]"],
    "mo_gymnasium:mo-lunar-lander-v3": ["env.reward_weights=[1, 1, 1, 1]"],
    "nasim:Tiny-v0": [],
    "nle:NetHackScore-v0": ["env.kwargs={observation_keys: [blstats, message], max_episode_steps: 200}"],
    "popgym.envs:popgym-AutoencodeEasy-v0": [],
    "popgym.envs:popgym-BattleshipEasy-v0": [],
    "popgym.envs:popgym-RepeatPreviousEasy-v0": [],
    "rware:rware-tiny-2ag-v2": ["env.reward_weights=[1, 1]"],
    "shimmy:bsuite/catch-v0": [],
    "shimmy:bsuite/deep_sea-v0": ["env.kwargs={size: 8, mapping_seed: 0, max_episode_steps: 200}"],
    "tetris_gymnasium.envs:tetris_gymnasium/Tetris": [],
    "vizdoom.gymnasium_wrapper:VizdoomBasic-v1": ["hidden_sizes=[16]", "updates_per_step=0.05"],  # 230,400 pixels
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="TEXT", help="ids that contain one of these")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="settings of all runs")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the numbers")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "environments.md", help="with the table")
    parser.add_argument("--child", nargs="+", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure(Path(args.child[0]), args.child[1:])
    else:
        sys.exit(exit_code("environments.py", lambda: measure_all(args)))


def measure_all(args: argparse.Namespace) -> None:
    chosen = [env_id for env_id in ENVIRONMENTS if args.only is None or any(text in env_id for text in args.only)]
    rows = read_rows(args.out / "environments.json")
    for env_id in chosen:
        row = row_of(env_id, [*ENVIRONMENTS[env_id], *args.set], Path("runs/environments"))
        print(f"{env_id}: {row['outcome']}", flush=True)
        if row["outcome"] != MISSING:  # a row that was measured where it is installed stays
            rows = add_rows(args.out / "environments.json", [row], ("env_id",))
    table = results_table(rows)
    into_page(args.page, MARKS, table)
    print(table)


def row_of(env_id: str, settings: Sequence[str], folder: Path, seconds: float = SECONDS) -> Row:
    """Measures an id in a process of its own, of which no more than so many seconds are waited for."""
    module = env_id.rpartition(":")[0].partition(".")[0] or "gymnasium"
    if importlib.util.find_spec(module) is None:
        return {"env_id": env_id, "outcome": MISSING}
    packages = importlib.metadata.packages_distributions().get(module)  # none: a module beside the user
    package = f"{packages[0]} {importlib.metadata.version(packages[0])}" if packages else module
    folder = folder / re.sub(r"\W+", "-", env_id)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, __file__, "--child", str(folder), *SETTINGS, *settings, f"env.id={env_id}"]
    with (folder / "log.txt").open("w") as log:
        try:
            code = subprocess.run(command, stdout=log, stderr=log, timeout=seconds).returncode
            ended = "" if code == 0 else f"the process ended with code {code}"
        except subprocess.TimeoutExpired:
            ended = f"not done after {seconds:g} s"
    file = folder / "row.json"
    row = json.loads(file.read_text()) if file.exists() else {"failures": [], "stage": "start"}
    stage = row.pop("stage", "exit")
    failures = [*row.pop("failures"), *([f"{stage}: {ended}"] if ended else [])]
    return {"env_id": env_id, "package": package, "outcome": "; ".join(failures) or "ok", **row}


def measure(folder: Path, settings: Sequence[str]) -> None:
    """All stages of one id; folder/row.json holds what is known so far."""
    resource.setrlimit(resource.RLIMIT_AS, (GIB << 30, GIB << 30))
    row: Row = {"failures": []}

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[None]:
        (folder / "row.json").write_text(json.dumps(row | {"stage": name}))
        try:
            yield
        except UserError as error:
            row["failures"].append(f"{name}: {error}")
        except Exception as error:
            traceback.print_exc()
            row["failures"].append(f"{name}: traceback: {type(error).__name__}: {error}")
        (folder / "row.json").write_text(json.dumps(row))

    run, stopped = folder / "run", folder / "stopped"
    with stage("train"):
        config = load_config(None, [*settings, f"run_dir={run}"])
        train(config)
        row |= cost(run)
    if row["failures"]:
        return
    with stage("resume"):
        row["resumed"] = resumed(load_config(None, [*settings, f"run_dir={stopped}"]), run)
    with stage("evaluate"):
        row["greedy"], row["random"] = returns(Policy.load(run, trust=True))
    with stage("video"):
        row["video"] = video(run, folder)


def cost(run: Path) -> Row:
    """Median speed of the log lines; memory."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["time/env_steps_per_second"] for line in lines if "time/env_steps_per_second" in line]
    newest = latest(run)
    replay = {} if newest is None else {name: x for name, x in read(newest).tensors.items() if "replay/" in name}
    return {
        "env_steps_per_second": float(np.median(speeds)),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "replay_mib": sum(x.nbytes for x in replay.values()) / 2**20,
    }


class CtrlC(Callback):
    """Stops a run at its first evaluation."""

    def on_evaluation(self, evaluation: EvaluationView) -> None:
        signal.raise_signal(signal.SIGINT)


def resumed(config: Config, unbroken: Path) -> str:
    """Stops a run in its middle and resumes it: whether it ends with the weights of the unbroken one."""
    with contextlib.suppress(Stopped):
        train(config, callbacks=[CtrlC()])
    run = train(config, resume=True).folder
    ours, theirs = ((folder / "policy" / "final" / "weights.safetensors").read_bytes() for folder in (run, unbroken))
    return "same" if ours == theirs else "differs"


def returns(policy: Policy) -> tuple[float, float]:
    """Mean return of the policy's most probable actions, and of uniform ones: those of a policy whose logits are 0."""
    (greedy,) = evaluate(policy, episodes=EPISODES, modes=["greedy"], trust=True)
    for name, tensor in policy.tensors().items():
        if name.startswith("actor."):
            tensor.zero_()
    (uniform,) = evaluate(policy, episodes=EPISODES, modes=["sampled"], trust=True)
    return greedy["greedy"]["mean"], uniform["sampled"]["mean"]


def video(run: Path, folder: Path) -> str:
    try:
        options = ["--video", str(folder), "--greedy", "--episodes", "1", "--trust"]
        evaluate_script.report_returns(evaluate_script.parse([str(run), *options]))
    except UserError as error:
        if "cannot be rendered" not in str(error):
            raise
        return "none"
    (file,) = folder.glob("*.mp4")
    return f"{file.stat().st_size / 1024:.0f} KiB"


def results_table(rows: Sequence[Row]) -> str:
    """Markdown: a row per id in the order of ENVIRONMENTS, those without a row left out."""
    lines = [
        "| id | package | outcome | greedy | random | steps/s | peak memory | replay | resumed | video |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    of = {row["env_id"]: row for row in rows}
    for row in (of[env_id] for env_id in ENVIRONMENTS if env_id in of):
        figures = [f"{row[key]:,.0f}{unit}" if key in row else "" for key, unit in FIGURES.items()]
        scores = [number(row[key]) if key in row else "" for key in ("greedy", "random")]
        outcome = " ".join(row["outcome"].split()).replace("|", "\\|")
        cells = [f"`{row['env_id']}`", row["package"], outcome, *scores, *figures]
        lines.append(f"| {' | '.join([*cells, row.get('resumed', ''), row.get('video', '')])} |")
    return "\n".join([*lines, "", *commands(rows)])


if __name__ == "__main__":
    main()
