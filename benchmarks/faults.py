"""What a run survives, counted: kills at random moments, and files damaged in every way.

    python benchmarks/faults.py                                     # all of it: a quarter of an hour on one core
    python benchmarks/faults.py --kills 5 --damaged 200 --soak 20000

Killed (SIGKILL) and resumed until it ends, a run must be the one that was never stopped, byte for byte, wall-clock
fields aside, and its newest checkpoint readable after each kill. A damaged file must give an error that names it, or
still be read. Soaked, a process must not grow by more than 1 % after its first quarter. Counts go to
benchmarks/results/faults.json and .md; exit code 1 where anything was lost.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path[0] = str(HERE.parent)  # not this folder: its profile.py would hide the library's

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from agent.analysis.run_folder import load_run
from agent.config_loader import load_config
from agent.exit_codes import exit_code
from agent.policy import Policy
from agent.training.checkpoint import latest, read
from agent.training.trainer import train
from agent.weights import load_weights
from benchmarks.rows import add_rows, commands
from envs import UserError

SETTINGS = [
    "env.id=CartPole-v1", "total_env_steps=300", "learning_starts=50", "batch_size=16", "hidden_sizes=[8]",
    "checkpoint.every_env_steps=30", "evaluation.every_env_steps=60", "evaluation.episodes=2",
    "evaluation.final_episodes=2", "log_every_env_steps=20", "reinforce.rollout_steps=32", "wandb.mode=disabled",
    "replay_capacity=200",  # wraps; small files
]  # fmt: skip
KINDS = [
    ["seeds=4", "env.num_envs=2"],
    ["env.id=Tensor/CartPole-v1", "n_step=1"],
    ["algorithm=reinforce", "seeds=4"],
    ["env.id=Tensor/CartPole-v1", "algorithm=reinforce", "env.num_envs=4"],
]
SOAK = ["env.num_envs=8", "env.id=Tensor/CartPole-v1", "replay_capacity=4000", "updates_per_step=0.1"]
MEMORY = 1 << 30  # bytes that reading a damaged file may take


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--damaged", type=int, default=10_000, help="files")
    parser.add_argument("--soak", type=int, default=400_000, help="environment steps of the long run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the counts")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    lost = 0

    def measure() -> None:
        nonlocal lost
        with tempfile.TemporaryDirectory() as folder:
            rows = [kills(Path(folder), args.kills, random.Random(args.seed))]
            rows.append(soak(Path(folder), args.soak))
            limit_memory()
            rows += damages(Path(folder), args.damaged, random.Random(args.seed))
        lost = sum(row["lost"] for row in rows)
        write(add_rows(args.out / "faults.json", rows, ("fault",)), args.out / "faults.md")

    code = exit_code("faults.py", measure)
    sys.exit(code or int(lost > 0))


def kills(folder: Path, count: int, draw: random.Random) -> dict:
    """Kills runs of one kind after the other until there were so many kills; each is held to its unbroken twin."""
    seconds: dict[int, float] = {}
    num_kills = num_runs = lost = 0
    while num_kills < count:
        which = num_runs % len(KINDS)
        unbroken, run = folder / f"unbroken-{which}", folder / f"killed-{num_runs}"
        if which not in seconds:
            begun = time.perf_counter()
            quietly(train, config_of(unbroken, KINDS[which]))
            seconds[which] = time.perf_counter() - begun
        while not (run / "result.json").exists():
            num_kills += killed(run, KINDS[which], draw.uniform(0, seconds[which]))
            with contextlib.suppress(FileNotFoundError):
                if (newest := latest(run)) is not None:
                    read(newest)  # raises where it is not whole
        ours, theirs = contents(run), contents(unbroken)
        differing = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
        lost += bool(differing)
        num_runs += 1
        shutil.rmtree(run)
        print(f"{num_kills} kills, {num_runs} runs ended, {lost} of them differ", *differing, flush=True)
    return {"fault": "SIGKILL at a random moment, then resumed", "count": num_kills, "runs": num_runs, "lost": lost}


def killed(run: Path, kind: list[str], seconds: float) -> bool:
    """Begins or resumes a run in a process that is killed after so long; whether it had not ended by then."""
    child = os.fork()
    if child == 0:
        quietly(train, config_of(run, kind), resume=True)
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def contents(run: Path) -> dict[str, object]:
    """What must not depend on whether a run was ever stopped."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    files = [path for path in sorted(run.rglob("*")) if path.name in ("weights.safetensors", "critics.safetensors")]
    return {
        "metrics": [{name: x for name, x in line.items() if not name.startswith("time/")} for line in lines],
        "members": json.loads((run / "result.json").read_text())["members"],
        **{str(path.relative_to(run)): path.read_bytes() for path in files},
    }


def soak(folder: Path, env_steps: int) -> dict:
    """A long run whose replay wraps many times, its memory watched from outside."""
    settings = [*SOAK, f"total_env_steps={env_steps}", "checkpoint.every_env_steps=20000"]
    settings += ["evaluation.every_env_steps=20000", "log_every_env_steps=2000"]
    child = os.fork()
    if child == 0:
        quietly(train, config_of(folder / "soaked", settings))
        os._exit(0)
    resident = []  # bytes
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        resident.append(1024 * int(Path(f"/proc/{child}/status").read_text().split("VmRSS:")[1].split()[0]))
        time.sleep(0.5)
    later = resident[len(resident) // 4 : -2]
    growth = max(later[len(later) // 2 :]) / max(later[: len(later) // 2]) - 1
    print(f"soak: {growth:+.2%} of {max(later) / 2**20:.0f} MiB", flush=True)
    fault = f"soak of {env_steps:,} steps: memory grew by {100 * growth:.1f} % after the first quarter"
    return {"fault": fault, "count": 1, "lost": int(growth > 0.01)}


def damages(folder: Path, count: int, draw: random.Random) -> list[dict]:
    """Reads damaged copies of every kind of file that a run leaves."""
    run = folder / "unbroken-0"
    step = latest(run)
    assert step is not None
    readers: dict[Path, Callable[[], object]] = {
        run / "config.yaml": lambda: load_config(run / "config.yaml"),
        run / "metrics.jsonl": lambda: load_run(run),
        run / "result.json": lambda: load_run(run),
        run / "policy" / "final" / "policy.json": lambda: Policy.load(run, member="all"),
        run / "policy" / "final" / "weights.safetensors": lambda: Policy.load(run, member="all"),
        run / "critics.safetensors": lambda: load_weights(run / "critics.safetensors"),
        step / "state.safetensors": lambda: read(step),
        step / "checkpoint.json": lambda: read(step),
        step / "SHA256SUMS": lambda: read(step),
        step.parent / "latest": lambda: read(latest(run) or step),
    }
    rows = []
    for path, reader in readers.items():
        whole = path.read_bytes()
        others = [other.read_bytes() for other in readers if other != path]
        contents, entropy = damaged(whole, others), draw.getrandbits(32)
        outcomes = attempts(path, reader, run, contents, -(-count // len(readers)), entropy)
        path.write_bytes(whole)
        lost = outcomes["crash"] + outcomes["unnamed"]
        row = {"fault": f"damaged {path.name}", "count": outcomes.total(), "refused": outcomes["refused"]}
        rows.append(row | {"read": outcomes["read"], "lost": lost})
        print(path.name, dict(outcomes), flush=True)
    return rows


def attempts(
    path: Path,
    reader: Callable[[], object],
    run: Path,
    contents: st.SearchStrategy[bytes],
    count: int,
    entropy: int,
) -> Counter[str]:
    """What comes of reading a file of many contents."""
    outcomes = Counter[str]()
    unhurried = settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

    @seed(entropy)
    @unhurried
    @given(contents)
    def attempt(content: bytes) -> None:
        path.write_bytes(content)
        outcomes[outcome(reader, run)] += 1

    attempt()
    return outcomes


def limit_memory() -> None:
    """A file that declares a huge size must not get it."""
    in_use = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY,) * 2)


def outcome(reader: Callable[[], object], run: Path) -> str:
    try:
        reader()
    except UserError as error:
        return "refused" if str(run) in str(error) or "config.yaml" in str(error) else "unnamed"
    except Exception as error:  # whatever it is: a reader must know its own errors
        print(f"  {type(error).__name__}: {error}"[:200])
        return "crash"
    return "read"


def damaged(whole: bytes, others: list[bytes]) -> st.SearchStrategy[bytes]:
    """Cut short, bits flipped, overwritten, another file's, huge numbers and sizes, deep nesting, other paths."""
    place = st.integers(0, len(whole) - 1)
    digits = [i for i, byte in enumerate(whole[:2000]) if chr(byte).isdigit()] or [0]
    nines = st.integers(1, 40).map(lambda n: b"9" * n)
    deep = [b"[" * 100_000, b"{a: " * 5000, b"- " * 5000, b'{"a":' * 50_000, b"&a [*a" * 1000]
    foreign = [b"../../../etc/passwd", b"!!python/object/apply:os.system [id]", b"\x00", b"/dev/zero"]
    return st.one_of(
        place.map(lambda at: whole[:at]),
        st.builds(lambda at, bit: overwritten(whole, at, bytes([whole[at] ^ 1 << bit])), place, st.integers(0, 7)),
        st.builds(lambda at, noise: overwritten(whole, at, noise), place, st.binary(min_size=1, max_size=64)),
        st.sampled_from(others),
        st.builds(lambda at, number: inserted(whole, at, number), st.sampled_from(digits), nines),
        st.binary(min_size=8, max_size=8).map(lambda size: overwritten(whole, 0, size)),
        st.sampled_from(deep),
        st.builds(lambda at, text: inserted(whole, at, text), place, st.sampled_from(foreign)),
    ).filter(lambda content: content != whole)


def overwritten(whole: bytes, at: int, new: bytes) -> bytes:
    return whole[:at] + new + whole[at + len(new) :]


def inserted(whole: bytes, at: int, new: bytes) -> bytes:
    return whole[:at] + new + whole[at:]


def config_of(run: Path, kind: list[str]):
    return load_config(None, [*SETTINGS, f"run_dir={run}", *kind])


def quietly(function: Callable, *args, **kwargs):
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*args, **kwargs)


def write(rows: list[dict], path: Path) -> None:
    lines = ["| fault | times | refused by name | still readable | lost |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [row["fault"], *(f"{row[key]:,}" if key in row else "" for key in ("count", "refused", "read", "lost"))]
        lines.append(f"| {' | '.join(cells)} |")
    path.write_text("\n".join(["# Faults", "", *lines, "", *commands(rows)]) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
