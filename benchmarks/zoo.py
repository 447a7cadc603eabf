"""Puts the best seed of finished runs into zoo/: its policy, result, seed and command.

    gumbel train cartpole seeds=3 run_dir=runs/cartpole
    python benchmarks/zoo.py cartpole=runs/cartpole

NAME is that of a config. Of its run's members the one with the highest greedy return at the end is taken. A policy of
more than 1 MB is refused.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from agent import Policy, load_config  # noqa: E402  (the path comes first)
from agent.config import changes_learning, settings  # noqa: E402
from agent.config_faults import yaml_scalar  # noqa: E402
from agent.policy_zoo import RESULT  # noqa: E402
from envs.registry import find_spec  # noqa: E402

LARGEST = 1_000_000  # bytes of a folder
EXTRAS = {"gymnasium.envs.box2d": "box2d", "gymnasium.envs.mujoco": "mujoco", "minatar": "minatar", "ale_py": "atari"}


def put(name: str, run: Path, zoo: Path) -> Path:
    """Writes zoo/NAME from a run folder; returns it."""
    result = json.loads((run / RESULT).read_text(encoding="utf-8"))
    best = max(result["members"], key=lambda member: member["greedy"]["mean"])
    folder = zoo / name
    shutil.rmtree(folder, ignore_errors=True)
    Policy.load(run, member=best["member"]).save(folder)
    about = {
        "config": name,
        "command": command_of(name, run),
        "seed": best["seed"],
        "best_of_seeds": len(result["members"]),
        "env_id": result["env_id"],
        "env_steps": result["env_steps"],
        "needs": extra_of(result["env_id"]),
        **{mode: in_short(best[mode]) for mode in ("greedy", "sampled")},
        "versions": result["versions"],
    }
    (folder / RESULT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    if (size := sum(file.stat().st_size for file in folder.iterdir())) > LARGEST:
        shutil.rmtree(folder)
        raise SystemExit(f"{name}: {size / 1e6:.1f} MB, more than {LARGEST / 1e6:.0f} MB")
    return folder


def in_short(episodes: dict[str, Any]) -> dict[str, Any]:
    return {key: episodes[key] for key in ("mean", "std", "iqm", "min", "max", "cut")}


def command_of(name: str, run: Path) -> str:
    """The command that trains such a run, with what it had other than the config."""
    own, run_own = load_config(name), load_config(run / "config.yaml", of_run=True)
    keys = [key for key, _ in settings() if changes_learning(key) or key in ("seed", "seeds")]
    changed = [key for key in keys if own.value_of(key) != run_own.value_of(key)]
    return " ".join(["gumbel train", name, *(f"{key}={yaml_scalar(run_own.value_of(key))}" for key in changed)])


def extra_of(env_id: str) -> str:
    """The extra of this library that the environment needs; empty for none."""
    entry_point = str(find_spec(env_id).entry_point)
    return next((extra for package, extra in EXTRAS.items() if entry_point.startswith(package)), "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--zoo", type=Path, default=HERE.parent / "zoo")
    options = parser.parse_args()
    for pair in options.runs:
        name, _, run = pair.partition("=")
        print(put(name, Path(run), options.zoo))


if __name__ == "__main__":
    main()
