"""What several ranks gain on this machine: a run of the same work with each number of ranks, in turns.

    python benchmarks/ranks.py --ranks 1 2                      # 16 members of CartPole-v1, dealt to the ranks
    python benchmarks/ranks.py --ranks 1 2 --set parallel.data=true seeds=1 hidden_sizes=[1024,1024] batch_size=1024
    python benchmarks/ranks.py --all-reduce 100000 10000000     # what the sum of so many numbers over two ranks takes

Member-updates a second are taken from the second half of a run, the waits of ranks for each other included; medians.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "env.id": "CartPole-v1", "seeds": "16", "total_env_steps": "3000", "learning_starts": "200", "compile": "true",
    "device": "cpu", "updates_per_step": "1", "checkpoint.every_env_steps": "null",
    "evaluation.every_env_steps": "3000",
    "evaluation.episodes": "1", "evaluation.final_episodes": "1", "log_every_env_steps": "100",
    "wandb.mode": "disabled",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="settings of all runs")
    parser.add_argument("--all-reduce", type=int, nargs="+", metavar="N", help="only this: float32 numbers to sum")
    parser.add_argument("--as-rank", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.as_rank:
        time_sums(args.all_reduce)
    elif args.all_reduce:
        torchrun(2, [__file__, "--as-rank", "--all-reduce", *map(str, args.all_reduce)])
    else:
        compare_ranks(args)


def compare_ranks(args: argparse.Namespace) -> None:
    settings = SETTINGS | dict(text.split("=", 1) for text in args.set)
    found: dict[int, list[float]] = {n: [] for n in args.ranks}
    for _ in range(args.rounds):
        for n in args.ranks:
            found[n].append(member_updates(n, settings))
    first = args.ranks[0]
    print("| ranks | member-updates a second | range | against the first |\n|---|---|---|---|")
    for n, values in found.items():
        ratios = [value / base for value, base in zip(values, found[first], strict=True)]
        print(
            f"| {n} | {statistics.median(values):,.4g} | {min(values):,.4g} to {max(values):,.4g} "
            f"| {statistics.median(ratios):.2f} |"
        )


def member_updates(num_ranks: int, settings: dict[str, str]) -> float:
    """A second, in the second half of a run."""
    with tempfile.TemporaryDirectory() as folder:
        own = [f"{key}={value}" for key, value in (settings | {"run_dir": f"{folder}/run"}).items()]
        torchrun(num_ranks, [str(ROOT / "train.py"), *own], quiet=True)
        rows = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "time/elapsed_seconds" in row]
    members = {row["member"] for row in rows}
    times = {row["env_steps"]: row["time/elapsed_seconds"] for row in rows if row["member"] == 0}
    last = max(times)
    middle = min(times, key=lambda steps: abs(steps - last / 2))
    updates = (last - middle) * float(settings["updates_per_step"])
    return len(members) * updates / (times[last] - times[middle])


def torchrun(num_ranks: int, command: list[str], quiet: bool = False) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={num_ranks}", f"--master-port={port}"]
    subprocess.run(
        [*launcher, *command],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL if quiet else None,
    )


def time_sums(sizes: list[int]) -> None:
    """As one of two ranks."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(minutes=5))
    for size in sizes:
        numbers, seconds = torch.ones(size), []
        for _ in range(30):
            dist.barrier()
            begun = time.perf_counter()
            dist.all_reduce(numbers)
            seconds.append(time.perf_counter() - begun)
        if dist.get_rank() == 0:
            print(f"{size:,} float32 numbers: {1000 * statistics.median(seconds):.2f} ms (median of {len(seconds)})")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
