"""Figures that read in colour, in grey, in print and on a phone."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from agent.analysis.statistics import Curve, Profile
from agent.bootstrap import Interval, iqm, stratified_bootstrap

INK, FAINT, GRID, PAPER = "#333334", "#87878a", "#e5e5e7", "#fffffe"  # of no line: report.py gives them the page's
FIRST = "#123f73"  # of lines; too dark for a dark page, which has its own
# Colour, dash pattern and marker change together; neighbours differ in luminance too.
STYLES = [
    (FIRST, "solid", "o"),
    ("#e8871e", (0, (5, 1.5)), "s"),
    ("#2a8c7c", (0, (1.5, 1.2)), "^"),
    ("#7a1f3d", (0, (7, 1.5, 1.5, 1.5)), "D"),
    ("#6ab4e0", (0, (3, 1, 1, 1, 1, 1)), "v"),
    ("#8a8a8a", (0, (9, 2)), "P"),
]
ON_CELLS = "#1e1e1e"  # of the matrix, which are light on any page
MANY_COLORS = [FIRST, "#e8871e", "#2a8c7c", "#b02a5b", "#3f8fd0", "#7a6a00", "#7b52ab", "#d0453a", "#6b6b6b", "#00a3a3"]
SMALLEST = 0.01  # what the figure of gradients shows at its edge
LESS_TO_MORE = LinearSegmentedColormap.from_list("less_to_more", [STYLES[1][0], "#ffffff", STYLES[0][0]])


def learning_curves(curves: Mapping[str, Curve], path: Path, threshold: float | None, title: str = "") -> None:
    """Greedy returns during training; `threshold` is the return that counts as solved."""
    metric_curves(curves, path, "greedy return\n(IQM of seeds, 95 % interval)", title, threshold)


def metric_curves(
    curves: Mapping[str, Curve], path: Path, ylabel: str, title: str = "", threshold: float | None = None
) -> None:
    """One line per label: IQM over seeds, in a band of its 95 % bootstrap interval.

    Args:
        curves: returns are [seeds, evaluations].
    """
    figure, axes = new_figure(title, "environment steps of a member", ylabel)
    for i, (label, curve) in enumerate(curves.items()):
        draw_curve(axes, label, curve, style(i), band_alpha(len(curves)))
    if threshold is not None:
        draw_threshold(axes, threshold)
    axes.xaxis.set_major_formatter(lambda steps, _: short(steps))
    finish(figure, path)


def performance_profiles(profiles: Mapping[str, Profile], path: Path, title: str = "") -> None:
    """One staircase per label: the share of seeds that score more than x, in its band."""
    figure, axes = new_figure(title, "greedy return x at the end", "share of seeds above x\n(95 % interval)")
    for i, (label, profile) in enumerate(profiles.items()):
        color, dashes, _ = style(i)
        x = profile.thresholds
        axes.step(x, profile.share, where="post", color=color, linestyle=dashes, linewidth=1.8, label=label, zorder=3)
        alpha = band_alpha(len(profiles))
        axes.fill_between(x, profile.low, profile.high, step="post", color=color, alpha=alpha, linewidth=0)
    axes.set_ylim(-0.02, 1.02)
    finish(figure, path)


def improvement_matrix(
    labels: Sequence[str], cells: Mapping[tuple[str, str], tuple[float, Interval]], path: Path, title: str = ""
) -> None:
    """A cell for each pair: how likely a run of the row beats one of the column.

    Columns are numbered, rows are numbered and named: names of any length have room.
    """
    size = len(labels)
    figure, axes = new_figure(title, "", "", (max(5.6, 1.8 + 0.68 * size), 1.3 + 0.55 * size))
    values = np.array([[cells[x, y][0] if x != y else np.nan for y in labels] for x in labels])
    axes.imshow(values, cmap=LESS_TO_MORE, vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if i != j:
            low, high = cells[labels[i], labels[j]][1]
            color = "white" if value > 0.75 else ON_CELLS
            text = f"{value:.2f}\n[{low:.2f}, {high:.2f}]"
            axes.text(j, i, text, ha="center", va="center", fontsize=9 if size < 6 else 6, color=color)
    rows = [textwrap.fill(f"{i}  {label}", 26, break_long_words=True) for i, label in enumerate(labels, 1)]
    axes.set_yticks(range(size), rows)
    axes.set_xticks(range(size), [f"than {i}" for i in range(1, size + 1)])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    save(figure, path)


def gradient_quality(rows: Sequence[Mapping[str, Any]], path: Path, batch_size: int, title: str) -> None:
    """Bias against standard deviation: a colour for each estimator, its name beside, its points joined over tau.

    Markers are rings of falling size, so that points in the same place all show. Grey lines join points of equal error
    for the mean of `batch_size` draws.
    """
    xlabel = f"standard deviation of one draw (at the edge: {SMALLEST:g} or less)"
    figure, axes = new_figure(title, xlabel, f"bias (at the edge: {SMALLEST:g} or less)", (7.9, 4.6))
    names = list(dict.fromkeys(row["estimator"] for row in rows))
    ends = {}
    for i, name in enumerate(names):
        color = MANY_COLORS[i % len(MANY_COLORS)]
        own = [row for row in rows if row["estimator"] == name]
        x = [max(row["relative_std"], SMALLEST) for row in own]
        y = [max(row["relative_bias"], SMALLEST) for row in own]
        size = 12 - 8 * i / max(1, len(names) - 1)
        axes.plot(
            x, y, color=color, linewidth=1.5, marker="o", markersize=size, markerfacecolor="none",
            markeredgecolor=color, markeredgewidth=1.6, zorder=3 + i, clip_on=False,
        )  # fmt: skip
        ends[name] = (max(zip(x, y, strict=True)), color)
        if name == "straight_through_gumbel_softmax":
            for row, a, b in zip(own, x, y, strict=True):
                text = f"τ={row['tau']:g}"
                axes.annotate(
                    text, (a, b), xytext=(9, -3), textcoords="offset points", fontsize=8, color=INK, zorder=20
                )
    axes.set(xscale="log", yscale="log", xlim=(SMALLEST, None), ylim=(SMALLEST, None))
    std = np.geomspace(*axes.get_xlim(), 200)
    for error in (0.03, 0.1, 0.3):
        bias = np.sqrt(np.clip(error**2 - std**2 / batch_size, 0, None))
        axes.plot(std, bias, color=GRID, linewidth=0.9, zorder=1)
        text = f"error {error:g}" + f" of a batch of {batch_size}" * (error == 0.3)
        at = (SMALLEST * 1.15, error)
        axes.annotate(text, at, xytext=(0, 2), textcoords="offset points", fontsize=7.5, color=FAINT)
    name_beside(axes, ends)
    save(figure, path)


def name_beside(axes: Axes, ends: Mapping[str, tuple[tuple[float, float], str]]) -> None:
    """Names in a column beside the axes, each joined to its point; in the points' order, none on another."""
    low, high = np.log(axes.get_ylim())
    order = sorted(ends, key=lambda name: (ends[name][0][1], -ends[name][0][0]))
    gap, at = 0.062, -1.0
    places = {}
    for name in order:
        at = max(at + gap, float((np.log(ends[name][0][1]) - low) / (high - low)))
        places[name] = at
    excess = max(0.0, at - 1)
    for i, name in enumerate(order):  # down again where the column is too high, keeping the gaps
        places[name] = min(places[name], 1 - gap * (len(order) - 1 - i)) if excess else places[name]
    leader = {"arrowstyle": "-", "linewidth": 0.7, "alpha": 0.6, "relpos": (0, 0.5), "shrinkA": 2}
    for name, place in places.items():
        point, color = ends[name]
        axes.annotate(
            name, point, xytext=(1.09, place), textcoords="axes fraction", fontsize=8.5, color=color, va="center",
            arrowprops=leader | {"color": color}, annotation_clip=False,
        )  # fmt: skip


def style(index: int) -> tuple:
    """Colour, dashes and marker of the i-th line: 36 different ones."""
    color, _, marker = STYLES[index % len(STYLES)]
    _, dashes, _ = STYLES[(index + index // len(STYLES)) % len(STYLES)]
    return color, dashes, marker


def band_alpha(num_lines: int) -> float:
    """Bands of many lines lie over each other, so they are fainter."""
    return 0.64 / max(4, num_lines)


def draw_curve(axes: Axes, label: str, curve: Curve, style: tuple, band_alpha: float) -> None:
    color, dashes, marker = style
    num_seeds = len(curve.returns)
    axes.plot(
        curve.env_steps,
        iqm(curve.returns, axis=0),
        color=color,
        linestyle=dashes,
        linewidth=1.8,
        marker=marker,
        markersize=5,
        markeredgecolor=PAPER,
        markeredgewidth=0.7,
        markevery=max(1, len(curve.env_steps) // 20),
        label=f"{label}  ({num_seeds} seed{'s' * (num_seeds > 1)})",
        zorder=3,
    )
    if num_seeds > 1:
        band = np.array([stratified_bootstrap(column, iqm) for column in curve.returns.T])
        axes.fill_between(curve.env_steps, band[:, 0], band[:, 1], color=color, alpha=band_alpha, linewidth=0)


def draw_threshold(axes: Axes, threshold: float) -> None:
    axes.axhline(threshold, color=FAINT, linewidth=0.9, linestyle=":", zorder=1)
    axes.annotate(
        f"threshold {threshold:g}",
        (1, threshold),
        xycoords=("axes fraction", "data"),
        xytext=(-2, -3),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=8,
        color=FAINT,
    )


def new_figure(title: str, xlabel: str, ylabel: str, size: tuple[float, float] = (5.6, 3.6)) -> tuple[Figure, Axes]:
    """Narrow, so that text stays large on a phone."""
    figure = Figure(figsize=size, dpi=160, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    axes.tick_params(color=FAINT, labelcolor=INK, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    return figure, axes


def short(steps: float) -> str:
    """1500000 as 1.5M, 20000 as 20k."""
    for factor, letter in ((1e6, "M"), (1e3, "k")):
        if abs(steps) >= factor:
            return f"{steps / factor:g}{letter}"
    return f"{steps:g}"


def save(figure: Figure, path: Path) -> None:
    """As PNG, and as SVG without a background beside it."""
    figure.savefig(path)
    with rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(
            path.with_suffix(".svg"), transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )


def finish(figure: Figure, path: Path) -> None:
    """Legend below, in two columns where the labels are short; the figure grows by as much."""
    _, labels = figure.axes[0].get_legend_handles_labels()
    columns = 2 if max(map(len, labels)) <= 28 and len(labels) > 1 else 1
    legend = figure.legend(
        loc="outside lower left", ncols=columns, frameon=False, fontsize=9, handlelength=4, labelcolor=INK
    )
    for text in legend.get_texts():
        text.set_text(textwrap.fill(text.get_text(), 66))
    lines = sum(1 + text.get_text().count("\n") for text in legend.get_texts()) / columns
    figure.set_figheight(figure.get_figheight() + 0.2 * lines)
    save(figure, path)
