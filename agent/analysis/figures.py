"""Figures that read in colour, in grey and in print."""

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path

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
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel("environment steps per member", color=INK)
    axes.set_ylabel("greedy return\n(IQM of seeds, 95 % interval)", color=INK)
    axes.xaxis.set_major_formatter(lambda steps, _: f"{steps:,.0f}")
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    axes.tick_params(color=FAINT, labelcolor=INK, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
