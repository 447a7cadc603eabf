"""Speed against another revision of this project, in turns on one core.

    python benchmarks/against_revision.py dbc336e --rounds 5

Each revision runs its own benchmarks/throughput.py on the same work: CartPole-v1, two layers of 128, batch 128, layers
not normalized, one update per environment step. Ratios are medians over rounds of this one's speed by the other's in
the same round. In the first round nothing is compiled beforehand, so its set-up is what a first run waits for.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORK = {  # name: options of throughput.py
    "1 member, compiled": ["--members", "1", "--compile", "on", "--steps", "5000"],
    "8 members, compiled": ["--members", "8", "--compile", "on", "--steps", "1000"],
    "1 member, plain": ["--members", "1", "--compile", "off", "--steps", "2000"],
    "8 members, plain": ["--members", "8", "--compile", "off", "--steps", "400"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="what git calls it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--work", nargs="+", choices=list(WORK), default=list(WORK), metavar="NAME", help=", ".join(WORK)
    )
    parser.add_argument("--core", type=int, default=0, help="the core that all of it runs on (default: 0)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other"
        git("worktree", "add", "--quiet", "--detach", str(other), args.revision)
        try:
            print("| work | this | other | ratio (min to max) | set-up with nothing compiled, this and other |")
            print("|---|---|---|---|---|")
            for name in args.work:
                print(row(name, other, Path(folder), args.rounds, args.core), flush=True)
        finally:
            git("worktree", "remove", "--force", str(other))


def row(name: str, other: Path, folder: Path, rounds: int, core: int) -> str:
    """One line of the table: updates a second of each revision and their ratio."""
    runs = []
    for number in range(rounds):
        order = [ROOT, other] if number % 2 == 0 else [other, ROOT]  # neither is always the one after a pause
        runs.append({place: measure(place, WORK[name], folder / f"cache-{place.name}", core) for place in order})
    ours, theirs = ([run[place]["updates_per_s"] for run in runs] for place in (ROOT, other))
    ratios = [mine / yours for mine, yours in zip(ours, theirs, strict=True)]
    setups = [f"{runs[0][place]['setup_s']:.1f} s" for place in (ROOT, other)]
    return (
        f"| {name} | {statistics.median(ours):,.0f} | {statistics.median(theirs):,.0f} | "
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {' and '.join(setups)} |"
    )


def measure(place: Path, options: list[str], cache: Path, core: int) -> dict[str, float]:
    """What throughput.py of a checkout prints."""
    command = [sys.executable, "benchmarks/throughput.py", "--json", *options, "--set", "critic.layer_norm=false"]
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        ["taskset", "--cpu-list", str(core), *command], cwd=place, env=environment, capture_output=True, text=True
    )
    if result.returncode:
        sys.exit(f"{place}: {' '.join(command)} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout)


def git(*arguments: str) -> None:
    subprocess.run(["git", "-C", str(ROOT), *arguments], check=True)


if __name__ == "__main__":
    main()
