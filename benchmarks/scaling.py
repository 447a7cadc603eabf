"""Cost of a member's update against population, batch, width and environments: a figure and its numbers.

    python benchmarks/scaling.py --out benchmarks/results/scaling.png

Takes the options of throughput.py; each panel varies one of them and keeps the others at what is given.
"""

import argparse
import copy
import dataclasses
import json
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # not this folder: its profile.py would hide the library's

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.throughput import Throughput, make_config, measure, options

AXES: dict[str, tuple[str, list[int]]] = {  # option: label, values
    "members": ("members P", [1, 2, 4, 8, 16, 32]),
    "batch": ("batch size B", [32, 64, 128, 256, 512]),
    "hidden": ("width of two hidden layers", [32, 64, 128, 256]),
    "envs": ("environments of a member E", [1, 2, 4, 8, 16, 32]),
}


def main() -> None:
    parser = options(__doc__)
    parser.set_defaults(steps=300)
    parser.add_argument(
        "--out", type=Path, default=Path("scaling.png"), help="the figure; numbers go beside it as JSON"
    )
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    rows = {axis: [point(args, axis, value, device) for value in values] for axis, (_, values) in AXES.items()}
    draw(rows, args.out)
    numbers = {axis: [dataclasses.asdict(row) for row in measured] for axis, measured in rows.items()}
    args.out.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {args.out} and {args.out.with_suffix('.json')}")


def point(args: argparse.Namespace, axis: str, value: int, device: torch.device) -> Throughput:
    """One measurement, as long in iterations whatever the number of environments."""
    args = copy.copy(args)
    setattr(args, axis, [value, value] if axis == "hidden" else [value] if axis == "members" else value)
    args.set = [*args.set, "learning_starts=200", f"updates_per_step={1 / args.envs}"]
    row = measure(make_config(args, args.members[0]), device, args.steps * args.envs, time.perf_counter())
    print(f"{axis} {value}: {1e6 / row.member_updates_per_s:,.0f} us a member update", flush=True)
    return row


def draw(rows: dict[str, list[Throughput]], path: Path) -> None:
    figure, panels = plt.subplots(1, len(AXES), figsize=(15, 3.6), sharey=True, constrained_layout=True)
    for panel, (axis, (label, values)) in zip(panels, AXES.items(), strict=True):
        panel.plot(values, [1e6 / row.member_updates_per_s for row in rows[axis]], marker="o")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(values, [str(value) for value in values])
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("microseconds of one member's update,\nits environment steps included")
    base = rows["members"][0]
    figure.suptitle(f"{base.env}, {base.device}; where not varied: P = 1, B = {base.batch}, {base.hidden}, E = 1")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
