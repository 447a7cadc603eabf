"""Speed of installed peers and of this project, in turn on the same core.

    python benchmarks/against_peers.py --venv ../peers --install      # once: makes the virtual environment
    python benchmarks/against_peers.py --venv ../peers                # updates a second; half an hour
    python benchmarks/against_peers.py --venv ../peers --learning     # seconds of training until CartPole-v1 is solved

Machines drift: in each round every peer runs next to a run of ours, and only ratios within a round are compared.
PureJaxRL and CleanRL are no packages and run from checkouts (--purejaxrl, --cleanrl); LeanRL and SLM-Lab are not
measured here. The table and the numbers go to benchmarks/results/.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path[0] = str(HERE.parent)  # not this folder: its profile.py would hide the library's

THROUGHPUT = {  # peer: what it does in the time measured
    "tianshou_discrete_sac": "actor and two critics: 1.17 of our arithmetic; updates/s",
    "cleanrl_discrete_sac": "the same; updates/s",
    "sb3_dqn": "one Q network: a third of the work; updates/s",
    "sbx_dqn": "the same in JAX; updates/s",
    "purejaxrl_dqn": "the same in JAX, environment included; updates/s",
    "sb3_ppo": "on-policy, 8 environments; environment steps/s",
}
CHECKOUTS = {  # peer that is no package: its repository, a file of it
    "purejaxrl_dqn": ("luchris429/purejaxrl", "purejaxrl/dqn.py"),
    "cleanrl_discrete_sac": ("vwxyzjn/cleanrl", "cleanrl/sac_atari.py"),
}
LEARNING = {"sb3_ppo_learning": "PPO as rl-baselines3-zoo tuned it"}
THRESHOLD = 475
ONE_THREAD = {"OMP_NUM_THREADS": "1", "NPROC": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}  # NPROC: XLA's


def main() -> None:
    args = parse()
    python = args.venv / "bin" / "python"
    if args.install:
        install(args.venv, python)
    known = LEARNING if args.learning else THROUGHPUT
    peers = args.peers or [peer for peer in known if peer not in CHECKOUTS or checkout(args, peer)]
    if unknown := [peer for peer in peers if peer not in known]:
        fail(f"--peers {' '.join(unknown)}: unknown; choose from {', '.join(known)}")
    check_places(args, peers)
    rounds: dict[str, list[dict[str, Any]]] = {peer: [] for peer in peers}
    for number in range(args.rounds):
        for peer in peers:
            theirs = run_peer(python, peer, number, args)
            ours = our_learning(number, args.core) if args.learning else our_throughput(args)
            rounds[peer].append({"theirs": theirs, "ours": ours})
            print(f"round {number + 1}: {peer} {theirs}, ours {ours}", flush=True)
    name = "learning_speed" if args.learning else "against_peers"
    table = learning_table(rounds) if args.learning else throughput_table(rounds)
    write(name, table, rounds, args)
    print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, required=True, help="virtual environment of the peers")
    parser.add_argument("--install", action="store_true", help="make it first, from benchmarks/peers/requirements.txt")
    parser.add_argument("--learning", action="store_true", help="time to solve CartPole-v1 instead of updates a second")
    parser.add_argument("--peers", nargs="+", help=f"which: {', '.join(THROUGHPUT)}; none: all")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, in turn")
    parser.add_argument("--steps", type=int, default=10_000, help="environment steps on the clock")
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 128], help="width of each hidden layer")
    add_checkouts(parser)
    parser.add_argument("--core", type=int, default=0, help="the CPU core that everything runs on")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the table and the numbers")
    return parser.parse_args()


def add_checkouts(parser: argparse.ArgumentParser) -> None:
    for repository, _ in CHECKOUTS.values():
        parser.add_argument(f"--{repository.split('/')[1]}", type=Path, help=f"a checkout of github.com/{repository}")


def checkout(args: argparse.Namespace, peer: str) -> Path | None:
    folder: Path | None = getattr(args, CHECKOUTS[peer][0].split("/")[1])
    return folder


def check_places(args: argparse.Namespace, peers: list[str]) -> None:
    """Before minutes of measuring."""
    if not (args.venv / "bin" / "python").exists():
        fail(
            f"--venv {args.venv}: no virtual environment there; against_peers.py --venv {args.venv} --install makes one"
        )
    for peer in CHECKOUTS.keys() & set(peers):
        repository, file = CHECKOUTS[peer]
        folder = checkout(args, peer)
        if not (folder and (folder / file).exists()):
            fail(f"--{repository.split('/')[1]} {folder}: no {file} there; clone github.com/{repository}")


def fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def install(venv: Path, python: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    requirements = str(HERE / "peers" / "requirements.txt")
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--requirement", requirements], check=True)


def run_on_core(command: list[str], core: int) -> str:
    """What the command prints, run on one core with one thread; RuntimeError with its last words where it fails."""
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | ONE_THREAD,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    if result.returncode:
        raise RuntimeError((result.stderr.strip().splitlines() or ["no message"])[-1])
    return result.stdout


def run_peer(python: Path, peer: str, seed: int, args: argparse.Namespace, members: int = 1) -> dict[str, Any]:
    """Its measurement, or why it is missing: the other peers still run."""
    command = [str(python), str(HERE / "peers" / "measure.py"), peer, "--steps", str(args.steps), "--seed", str(seed)]
    if peer in CHECKOUTS:
        command += ["--checkout", str(checkout(args, peer)), "--members", str(members)]
    try:
        output = run_on_core([*command, "--hidden", *map(str, args.hidden)], args.core)
    except RuntimeError as error:
        return {"error": str(error)}
    return dict(json.loads(output.strip().splitlines()[-1]))


def our_throughput(args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "throughput.py"), "--steps", str(args.steps), "--compile", "on", "--json"]
    command += ["--set", "critic.layer_norm=false"]  # as the peers' networks are
    return dict(json.loads(run_on_core([*command, "--hidden", *map(str, args.hidden)], args.core)))


def our_learning(seed: int, core: int) -> dict[str, Any]:
    """Environment steps and seconds of training until the first greedy evaluation at the threshold."""
    with tempfile.TemporaryDirectory() as folder:
        config = HERE.parent / "configs" / "cartpole.yaml"
        overrides = ["seeds=1", f"seed={seed}", f"run_dir={folder}/run", "wandb.mode=disabled", "device=cpu"]
        frequent = ["evaluation.every_env_steps=500", "log_every_env_steps=500", "evaluation.final_episodes=1"]
        train = str(HERE.parent / "train.py")
        run_on_core([sys.executable, train, str(config), *overrides, *frequent], core)
        rows = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    return first_solved(rows)


def first_solved(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """From the rows of metrics.jsonl: log lines say how fast it trained, evaluations how well."""
    seconds, logged_at = 0.0, 0
    for row in rows:
        if "time/env_steps_per_second" in row:
            seconds += (row["env_steps"] - logged_at) / row["time/env_steps_per_second"]
            logged_at = row["env_steps"]
        if row.get("eval/return_greedy", -1.0) >= THRESHOLD:
            return {"env_steps": row["env_steps"], "seconds": seconds}
    return {"env_steps": None, "seconds": seconds}


def throughput_table(rounds: dict[str, list[dict[str, Any]]]) -> str:
    """Medians over rounds; of ratios also the smallest and the largest."""
    lines = [
        "| peer | what it does | peer, 1/s | ours, updates/s | ours / peer | GFLOP/s, peer and ours |",
        "|---|---|---|---|---|---|",
    ]
    for peer, measured in rounds.items():
        pairs = [(r["theirs"]["result"], r["ours"]["updates_per_s"]) for r in measured if "error" not in r["theirs"]]
        if not pairs:
            lines.append(f"| {peer} | {THROUGHPUT[peer]} | failed: {measured[0]['theirs']['error']} | | | |")
            continue
        ratios = [ours / theirs for theirs, ours in pairs]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        theirs, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
        gflops = ""
        if mflop := [r["theirs"]["mflop_per_update"] for r in measured if "mflop_per_update" in r["theirs"]]:
            own = statistics.median(r["ours"]["gflops"] for r in measured)
            gflops = f"{theirs * mflop[0] / 1e3:.1f} and {own:.1f}"
        lines.append(f"| {peer} | {THROUGHPUT[peer]} | {theirs:,.0f} | {ours:,.0f} | {spread} | {gflops} |")
    return "\n".join(lines)


def learning_table(rounds: dict[str, list[dict[str, Any]]]) -> str:
    lines = ["| who | environment steps until 475 | seconds of training, one core |", "|---|---|---|"]
    for peer, measured in rounds.items():
        theirs = [r["theirs"].get("result") or {"env_steps": None, "seconds": 0.0} for r in measured]
        ours = [r["ours"] for r in measured]
        for who, results in ((f"{peer}: {LEARNING[peer]}", theirs), ("this project, configs/cartpole.yaml", ours)):
            steps = ", ".join("never" if r["env_steps"] is None else f"{r['env_steps']:,}" for r in results)
            seconds = ", ".join(format(r["seconds"], ".1f") for r in results)
            lines.append(f"| {who} | {steps} | {seconds} |")
    return "\n".join(lines)


def about(args: argparse.Namespace) -> dict[str, Any]:
    """When, where and by which command."""
    import torch  # the measurements need neither

    from benchmarks.throughput import device_name

    places = [str(place) for place in (args.venv, *(checkout(args, peer) for peer in CHECKOUTS)) if place]
    return {
        "date": date.today().isoformat(),
        "device": device_name(torch.device("cpu")),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "command": " ".join("PATH" if word in places else word for word in ["python", *sys.argv]),
    }


def write(name: str, table: str, rounds: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> None:
    folder = args.out
    peers = {k: v for runs in rounds.values() for r in runs for k, v in r["theirs"].get("versions", {}).items()}
    facts = {**about(args), "peers": peers}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({**facts, "rounds": rounds}, indent=1) + "\n", encoding="utf-8")
    heading = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    (folder / f"{name}.md").write_text(f"{heading}\n\n{table}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
