"""The history of a population that tunes itself (population-based training), as a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from agent.analysis.figures import FAINT, FIRST, GRID, short

Row = Mapping[str, Any]
RETURN, FACTOR, PARENT = "eval/return_greedy", "pbt/", "pbt/parent"
TICKS, FEW_TICKS = (0.5, 0.8, 1.0, 1.25, 2.0), [2.0**power for power in range(-10, 11)]
OTHERS = {"color": FAINT, "linewidth": 0.8, "alpha": 0.6}
BEST: dict[str, Any] = {"color": FIRST, "linewidth": 2.0, "label": "ancestors of the best"}


def draw_exchanges(rows: Sequence[Row], path: Path) -> None:
    """Returns and settings of every member over the run, and of the ancestors of the best one in bold.

    Args:
        rows: of metrics.jsonl.
    """
    returns = by_member(rows, RETURN)
    settings = sorted({key for row in rows for key in row if key.startswith(FACTOR)} - {PARENT})
    before, after = ancestors(rows, best=max(returns, key=lambda member: returns[member][-1][1]))
    end = max(row["env_steps"] for row in rows)
    with rc_context({"font.size": 9}):
        figure = Figure(figsize=(7.2, 2.2 + 1.4 * len(settings)), layout="constrained")
        axes = figure.subplots(1 + len(settings), 1, sharex=True, squeeze=False)[:, 0]
        for ax, key in zip(axes, [RETURN, *settings], strict=True):
            values = by_member(rows, key)
            line = before if key == RETURN else after
            bold = [(step, of[line[step]]) for step, of in by_step(rows, key).items()]
            for points, look in [*((of, OTHERS) for of in values.values()), (bold, BEST)]:
                if key != RETURN:
                    points = [(0, 1.0), *points, (end, points[-1][1])]
                ax.step(*zip(*points, strict=True), where="post", **look)
            ax.set_ylabel("greedy return" if key == RETURN else f"{key.removeprefix(FACTOR)}\ntimes")
            ax.grid(color=GRID, linewidth=0.6)
            ax.spines[["top", "right"]].set_visible(False)
            if key != RETURN:
                ax.set_yscale("log")
                low, high = ax.get_ylim()
                ticks = FEW_TICKS if high > 3 * low else TICKS
                ax.set_yticks([tick for tick in ticks if low <= tick <= high])
                ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
                ax.yaxis.set_minor_formatter(lambda value, _: "")
        axes[0].legend(frameon=False, loc="lower right")
        axes[-1].set_xlabel("environment steps of a member")
        axes[-1].xaxis.set_major_formatter(lambda steps, _: short(steps))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def by_member(rows: Sequence[Row], key: str) -> dict[int, list[tuple[int, float]]]:
    """Step and value of a metric, for each member in the order of steps."""
    found: dict[int, list[tuple[int, float]]] = {}
    for row in rows:
        if row.get(key) is not None:
            found.setdefault(row["member"], []).append((row["env_steps"], float(row[key])))
    return found


def by_step(rows: Sequence[Row], key: str) -> dict[int, dict[int, float]]:
    """The values of a metric for each member, at each step that has it."""
    found: dict[int, dict[int, float]] = {}
    for row in rows:
        if row.get(key) is not None:
            found.setdefault(row["env_steps"], {})[row["member"]] = float(row[key])
    return dict(sorted(found.items()))


def ancestors(rows: Sequence[Row], best: int) -> tuple[dict[int, int], dict[int, int]]:
    """Which member held what became the best member, at each step: before an exchange there, and after it."""
    parents, member = by_step(rows, PARENT), best
    before, after = {}, {}
    for step in sorted({row["env_steps"] for row in rows}, reverse=True):
        after[step] = member
        member = before[step] = int(parents.get(step, {}).get(member, member))
    return before, after
