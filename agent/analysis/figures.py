"""Figures that read in colour, in grey and in print."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agent.analysis.statistics import Curve, iqm, stratified_bootstrap

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


def learning_curves(curves: Mapping[str, Curve], path: Path, threshold: float | None, title: str = "") -> None:
    """Writes a PNG with one line per label: IQM over seeds, in a band of its 95 % bootstrap interval.

    Args:
        curves: returns are [seeds, evaluations].
        threshold: the return that counts as solved.
    """
    figure = Figure(figsize=(7.2, 4.3), dpi=150, layout="constrained")
    axes = figure.subplots()
    for (label, curve), style in zip(curves.items(), cycle(STYLES), strict=False):
        draw_curve(axes, label, curve, style)
    if threshold is not None:
        draw_threshold(axes, threshold)
    finish(axes, title)
    if curves:
        figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9, handlelength=4, labelcolor=INK)
    figure.savefig(path)


def gradient_quality(rows: Sequence[Mapping[str, Any]], path: Path, batch_size: int, title: str) -> None:
    """Writes a PNG of bias against standard deviation: one line per estimator over tau, a point where it has none.

    Grey lines join points of equal mean squared error for the mean of `batch_size` draws.
    """
    figure = Figure(figsize=(7.2, 6.0), dpi=150, layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(row["estimator"] for row in rows))
    for name, (color, dashes, marker) in zip(names, cycle(STYLES), strict=False):
        own = [row for row in rows if row["estimator"] == name]
        x = [max(row["relative_std"], SMALLEST) for row in own]
        y = [max(row["relative_bias"], SMALLEST) for row in own]
        late = names.index(name) >= len(STYLES)  # the styles come round again: hollow markers
        axes.plot(
            x, y, color=color, linestyle=dashes, linewidth=1.5, marker=marker, markersize=6.5, label=name, zorder=3,
            markerfacecolor="white" if late else color, markeredgecolor=color if late else "white",
            markeredgewidth=1.2 if late else 0.7, clip_on=False,
        )  # fmt: skip
        if name == "straight_through_gumbel_softmax":
            for row, a, b in zip(own, x, y, strict=True):
                axes.annotate(
                    f"τ={row['tau']:g}", (a, b), xytext=(7, 4), textcoords="offset points", fontsize=8, color=INK
                )
    axes.set(xscale="log", yscale="log", xlim=(SMALLEST, None), ylim=(SMALLEST, None))
    std = np.geomspace(*axes.get_xlim(), 200)
    for error in (0.03, 0.1, 0.3):
        bias = np.sqrt(np.clip(error**2 - std**2 / batch_size, 0, None))
        axes.plot(std, bias, color="#d0d0d0", linewidth=0.9, zorder=1)
        axes.annotate(
            f"error {error:g}", (SMALLEST * 1.15, error), xytext=(0, 2), textcoords="offset points", fontsize=7.5,
            color=FAINT,
        )  # fmt: skip
    style(axes, f"{title}: error of a gradient estimate, relative to the exact gradient")
    axes.set_xlabel(f"standard deviation of one draw (at the edge: {SMALLEST:g} or less)", color=INK)
    axes.set_ylabel(f"bias (at the edge: {SMALLEST:g} or less)", color=INK)
    axes.set_title(
        f"grey: equal error of the mean of {batch_size} draws", loc="right", fontsize=8, color=FAINT, y=-0.19
    )
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=8.5, handlelength=4, labelcolor=INK)
    figure.savefig(path)


def draw_curve(axes: Axes, label: str, curve: Curve, style: tuple) -> None:
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
        axes.fill_between(curve.env_steps, band[:, 0], band[:, 1], color=color, alpha=0.16, linewidth=0)


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


def finish(axes: Axes, title: str) -> None:
    style(axes, title)
    axes.set_xlabel("environment steps per member", color=INK)
    axes.set_ylabel("greedy return\n(IQM of seeds, 95 % interval)", color=INK)
    axes.xaxis.set_major_formatter(lambda steps, _: f"{steps:,.0f}")
    axes.margins(x=0.02)


def style(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(color=FAINT, labelcolor=INK, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
