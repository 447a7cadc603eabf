"""What a GPU brings: everything that is measured on one, in one go.

    python benchmarks/gpu.py --out benchmarks/results

Updates a second of 1, 256 and 1024 members on CartPole-v1 as tensors, environments alone, the same with Gymnasium's own
CartPole on the CPU, and the wall time of training 1024 members. Five minutes or so.
"""

import argparse
import functools
import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # not this folder: its profile.py would hide the library's

from benchmarks.rows import versions

THROUGHPUT = [sys.executable, str(ROOT / "benchmarks" / "throughput.py"), "--device", "cuda", "--json"]
TENSORS = ["--env", "Tensor/CartPole-v1"]
COMMANDS = {
    "one member": [*THROUGHPUT, *TENSORS, "--members", "1"],
    "256 members": [*THROUGHPUT, *TENSORS, "--members", "256", "--steps", "5000"],
    "1024 members": [*THROUGHPUT, *TENSORS, "--members", "1024", "--steps", "2000"],
    "one member, environment on the CPU": [*THROUGHPUT, "--env", "CartPole-v1", "--members", "1"],
    "64 members, environments on the CPU": [*THROUGHPUT, "--env", "CartPole-v1", "--members", "64", "--steps", "5000"],
    "environments alone": [*THROUGHPUT, *TENSORS, "--only-envs", "--envs", "1048576", "--steps", "2000"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the numbers")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    measurements = {name: functools.partial(run, command) for name, command in COMMANDS.items()}
    results = {}
    for name, measure in {**measurements, "training 1024 members": train_many}.items():
        results[name] = measure()
        record = {"date": date.today().isoformat(), "versions": versions(), "results": results}
        (args.out / "gpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")  # so far


def run(command: list[str]) -> dict[str, Any]:
    """The JSON that it prints, or its last words where it fails: the rest still runs."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        answer = {"error": result.stderr.strip().splitlines()[-1:]}
    else:
        answer = json.loads(result.stdout.strip().splitlines()[-1])
    shown = " ".join(command[1:]).replace(f"{ROOT}/", "")
    print(f"{shown}\n  {json.dumps(answer)}", flush=True)
    return {"command": f"python {shown}", **answer}


def train_many() -> dict[str, Any]:
    """Wall time of a whole run of 1024 members, and how many of them it solves."""
    with tempfile.TemporaryDirectory() as folder:
        settings = ["env.id=Tensor/CartPole-v1", "seeds=1024", "device=cuda", "wandb.mode=disabled"]
        short = ["evaluation.episodes=2", "evaluation.final_episodes=10", f"run_dir={folder}/run"]
        train = [sys.executable, str(ROOT / "train.py"), str(ROOT / "configs" / "cartpole.yaml"), *settings, *short]
        result = subprocess.run(train, capture_output=True, text=True)
        if result.returncode:
            return {"error": result.stderr.strip().splitlines()[-1:]}
        outcome = json.loads((Path(folder) / "run" / "result.json").read_text())
    returns = [member["greedy"]["mean"] for member in outcome["members"]]
    answer = {"wall_s": outcome["wall_seconds"], "members_at_475": sum(x >= 475 for x in returns)}
    print(f"1024 members of configs/cartpole.yaml: {json.dumps(answer)}", flush=True)
    return {"command": "python train.py configs/cartpole.yaml " + " ".join(settings), **answer}


if __name__ == "__main__":
    main()
