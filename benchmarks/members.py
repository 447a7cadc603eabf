"""Updates a second of a population against its members, on one core, beside peers: a figure and its numbers.

    python benchmarks/members.py --venv ../peers --purejaxrl ../purejaxrl --cleanrl ../cleanrl
    python benchmarks/members.py --draw-only      # the figure again, from the numbers beside it

The virtual environment is that of against_peers.py. Peers without populations are drawn as lines: on one core, several
of their runs are together as fast as one.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # not this folder: its profile.py would hide the library's

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.against_peers import HERE, about, add_checkouts, check_places, fail, run_on_core, run_peer

MEMBERS = [1, 2, 4, 8, 16]
LINES = {  # peer: label, color
    "sb3_dqn": ("Stable-Baselines3, DQN", "tab:green"),
    "sbx_dqn": ("SBX, DQN", "tab:red"),
    "tianshou_discrete_sac": ("tianshou, discrete SAC", "tab:brown"),
    "cleanrl_discrete_sac": ("CleanRL, discrete SAC", "tab:purple"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, help="virtual environment of the peers")
    add_checkouts(parser)
    parser.add_argument("--draw-only", action="store_true", help="draw the numbers beside --out again, measure nothing")
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 128], help="width of each hidden layer")
    parser.add_argument("--steps", type=int, default=2000, help="environment steps on the clock, of all members")
    parser.add_argument("--core", type=int, default=0, help="the CPU core that everything runs on")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "members.png", help="numbers go beside it")
    args = parser.parse_args()
    path = args.out.with_suffix(".json")
    if not args.draw_only:
        if not args.venv:
            fail("--venv: missing; against_peers.py --help says how to make it")
        check_places(args, ["purejaxrl_dqn", *LINES])
        path.write_text(json.dumps(measure(args), indent=1) + "\n", encoding="utf-8")
    elif not path.exists():
        fail(f"--draw-only: {path} is missing; measure first")
    draw(json.loads(path.read_text(encoding="utf-8")), args.out)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    total = args.steps
    rates: dict[str, list[float]] = {"compiled": [], "plain": [], "purejaxrl_dqn": []}
    for members in MEMBERS:
        args.steps = max(200, total // members)
        rates["compiled"].append(our_rate(args, members, "on"))
        rates["plain"].append(our_rate(args, members, "off"))
        rates["purejaxrl_dqn"].append(peer_rate(args, "purejaxrl_dqn", members))
        print(members, {name: round(values[-1]) for name, values in rates.items()}, flush=True)
    args.steps = total
    lines = {peer: peer_rate(args, peer) for peer in LINES}
    return {**about(args), "hidden": args.hidden, "members": MEMBERS, "updates_per_second": rates, "peers": lines}


def peer_rate(args: argparse.Namespace, peer: str, members: int = 1) -> float:
    measured = run_peer(args.venv / "bin" / "python", peer, 0, args, members)
    if "error" in measured:
        fail(f"{peer}: {measured['error']}")
    return float(measured["result"])


def our_rate(args: argparse.Namespace, members: int, compiled: str) -> float:
    """Updates of all members a second, layers not normalised, as the peers' are not."""
    command = [sys.executable, str(HERE / "throughput.py"), "--steps", str(args.steps), "--compile", compiled, "--json"]
    command += ["--members", str(members), "--hidden", *map(str, args.hidden), "--set", "critic.layer_norm=false"]
    return float(json.loads(run_on_core(command, args.core))["member_updates_per_s"])


def draw(numbers: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7.5, 5), constrained_layout=True)
    rates, members = numbers["updates_per_second"], numbers["members"]
    axes.plot(
        members, rates["purejaxrl_dqn"], marker="s", color="tab:orange", label="PureJaxRL, DQN (a third of the work)"
    )
    axes.plot(members, rates["compiled"], marker="o", color="tab:blue", label="ours, compiled")
    axes.plot(members, rates["plain"], marker="o", color="tab:blue", linestyle=":", label="ours, plain")
    for peer, (label, color) in LINES.items():
        axes.axhline(numbers["peers"][peer], color=color, linestyle="--", label=label)
    axes.set(
        xscale="log", yscale="log", xlabel="members of the population", ylabel="updates a second, all members together"
    )
    axes.set_xticks(members, [str(count) for count in members])
    axes.minorticks_off()
    ticks = [50, 100, 200, 500, 1000, 2000, 5000]
    axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    layers = "×".join(map(str, numbers["hidden"]))
    axes.set_title(f"CartPole-v1, {layers}, batch 128, one core ({numbers['device']})", fontsize=10)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
