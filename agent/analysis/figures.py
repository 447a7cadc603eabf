"""Figures that read in colour, in grey, in print and on a phone."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from agent.analysis.statistics import Curve, Profile
from agent.bootstrap import Interval, iqm, stratified_bootstrap

# Colour, dash pattern and marker change together; neighbours differ in luminance too.
STYLES = [
    ("#123f73", "solid", "o"),
    ("#e8871e", (0, (5, 1.5)), "s"),
    ("#2a8c7c", (0, (1.5, 1.2)), "^"),
    ("#7a1f3d", (0, (7, 1.5, 1.5, 1.5)), "D"),
    ("#6ab4e0", (0, (3, 1, 1, 1, 1, 1)), "v"),
    ("#8a8a8a", (0, (9, 2)), "P"),
]
INK, FAINT = "#333333", "#888888"
SMALLEST = 0.01  # what the figure of gradients shows at its edge
LESS_TO_MORE = LinearSegmentedColormap.from_list("less_to_more", [STYLES[1][0], "#ffffff", STYLES[0][0]])


def learning_curves(curves: Mapping[str, Curve], path: Path, threshold: float | None, title: str = "") -> None:
    """Greedy returns during training; `threshold` is the return that counts as solved."""
    metric_curves(curves, path, "greedy return\n(IQM of seeds, 95 % interval)", title, threshold)


def metric_curves(
    curves: Mapping[str, Curve], path: Path, ylabel: str, title: str = "", threshold: float | None = None
) -> None:
    """Writes a PNG with one line per label: IQM over seeds, in a band of its 95 % bootstrap interval.

    Args:
        curves: returns are [seeds, evaluations].
    """
    figure, axes = new_figure(title, "environment steps per member", ylabel)
    for i, (label, curve) in enumerate(curves.items()):
        draw_curve(axes, label, curve, style(i), band_alpha(len(curves)))
    if threshold is not None:
        draw_threshold(axes, threshold)
    axes.xaxis.set_major_formatter(lambda steps, _: f"{steps:,.0f}")
    finish(figure, path)


def performance_profiles(profiles: Mapping[str, Profile], path: Path, title: str = "") -> None:
    """Writes a PNG with one staircase per label: the share of seeds that score more than x, in its band."""
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
    """Writes a PNG with a cell for each pair: how likely a run of the row beats one of the column.

    Columns are numbered, rows are numbered and named: names of any length have room.
    """
    size = len(labels)
    figure, axes = new_figure(title, "", "", (max(5.6, 1.8 + 0.68 * size), 1.3 + 0.55 * size))
    values = np.array([[cells[x, y][0] if x != y else np.nan for y in labels] for x in labels])
    axes.imshow(values, cmap=LESS_TO_MORE, vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if i != j:
            low, high = cells[labels[i], labels[j]][1]
            color = "white" if value > 0.75 else INK
            text = f"{value:.2f}\n[{low:.2f}, {high:.2f}]"
            axes.text(j, i, text, ha="center", va="center", fontsize=9 if size < 6 else 6, color=color)
    rows = [textwrap.fill(f"{i}  {label}", 26, break_long_words=True) for i, label in enumerate(labels, 1)]
    axes.set_yticks(range(size), rows)
    axes.set_xticks(range(size), [f"than {i}" for i in range(1, size + 1)])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    figure.savefig(path)


def gradient_quality(rows: Sequence[Mapping[str, Any]], path: Path, batch_size: int, title: str) -> None:
    """Writes a PNG of bias against standard deviation: one line per estimator over tau, a point where it has none.

    Grey lines join points of equal error for the mean of `batch_size` draws.
    """
    xlabel = f"standard deviation of one draw (at the edge: {SMALLEST:g} or less)"
    figure, axes = new_figure(title, xlabel, f"bias (at the edge: {SMALLEST:g} or less)", (5.6, 4.6))
    names = list(dict.fromkeys(row["estimator"] for row in rows))
    for i, name in enumerate(names):
        color, dashes, marker = style(i)
        own = [row for row in rows if row["estimator"] == name]
        x = [max(row["relative_std"], SMALLEST) for row in own]
        y = [max(row["relative_bias"], SMALLEST) for row in own]
        hollow = i >= len(STYLES)
        axes.plot(
            x, y, color=color, linestyle=dashes, linewidth=1.5, marker=marker, markersize=6, label=name, zorder=3,
            markerfacecolor="white" if hollow else color, markeredgecolor=color if hollow else "white",
            markeredgewidth=1.2 if hollow else 0.7, clip_on=False,
        )  # fmt: skip
        if name == "straight_through_gumbel_softmax":
            for row, a, b in zip(own, x, y, strict=True):
                text = f"τ={row['tau']:g}"
                axes.annotate(text, (a, b), xytext=(6, 3), textcoords="offset points", fontsize=8, color=INK)
    axes.set(xscale="log", yscale="log", xlim=(SMALLEST, None), ylim=(SMALLEST, None))
    std = np.geomspace(*axes.get_xlim(), 200)
    for error in (0.03, 0.1, 0.3):
        bias = np.sqrt(np.clip(error**2 - std**2 / batch_size, 0, None))
        axes.plot(std, bias, color="#d0d0d0", linewidth=0.9, zorder=1)
        text = f"error {error:g}" + f" of a batch of {batch_size}" * (error == 0.3)
        at = (SMALLEST * 1.15, error)
        axes.annotate(text, at, xytext=(0, 2), textcoords="offset points", fontsize=7.5, color=FAINT)
    finish(figure, path)


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
        markeredgecolor="white",
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
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    axes.tick_params(color=FAINT, labelcolor=INK, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    return figure, axes


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
    figure.savefig(path)
