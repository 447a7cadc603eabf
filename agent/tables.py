"""Tables and numbers for people."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from agent.bootstrap import iqm, stratified_bootstrap
from agent.config_loader import as_text


def results_table(members: Sequence[Mapping[str, Any]]) -> Table:
    """Returns of each member, greedy and sampled as far as there are; the interval is of the IQM over episodes."""
    some_cut = any(member.get(mode, {}).get("cut") for member in members for mode in ("greedy", "sampled"))
    headings = ["member", "policy", "mean ± std", "IQM [95 % interval]", "min", "max", "length"]
    table = new_table(*headings, *(["cut"] if some_cut else []))
    for member in members:
        settings = [f"{key}={as_text(value)}" for key, value in member["settings"].items()]
        name = "\n".join([f"{member['member']} (seed {member['seed']})", *settings])
        for mode in ("greedy", "sampled"):
            if mode in member:
                cut = [str(member[mode].get("cut", 0))] if some_cut else []
                table.add_row(name, mode, *figures_of(member[mode]), *cut)
                name = ""
    if some_cut:
        table.caption = (
            "cut: episodes longer than max_episode_steps, or broken off where the environment failed; each counts with "
            "its return so far"
        )
    return table


def sweep_table(members: Sequence[Mapping[str, Any]]) -> Table:
    """Greedy and sampled returns by swept setting: IQM over its seeds in a 95 % interval, and the worst seed."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for member in members:
        groups.setdefault(" ".join(f"{k}={as_text(v)}" for k, v in member["settings"].items()), []).append(member)
    table = new_table("setting", "seeds", "greedy [95 % interval]", "worst", "sampled [95 % interval]", "worst")
    for setting, own in groups.items():
        cells = []
        for mode in ("greedy", "sampled"):
            means = np.array([member[mode]["mean"] for member in own])
            low, high = stratified_bootstrap(means, iqm)
            cells += [f"{number(float(iqm(means)))} [{number(low)}, {number(high)}]", number(means.min())]
        table.add_row(setting, str(len(own)), *cells)
    table.caption = "by setting: IQM over seeds"
    return table


def figures_of(episodes: Mapping[str, Any]) -> list[str]:
    interval = stratified_bootstrap(np.array(episodes["returns"]), iqm)
    return [
        f"{number(episodes['mean'])} ± {number(episodes['std'])}",
        f"{number(episodes['iqm'])} [{number(interval.low)}, {number(interval.high)}]",
        number(episodes["min"]),
        number(episodes["max"]),
        f"{np.mean(episodes['lengths']):.0f}",
    ]


def new_table(*headings: str) -> Table:
    """The first column is text and may fold, the rest are figures."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title_justify="left")
    for column, heading in enumerate(headings):
        table.add_column(heading, justify="right" if column else "left", overflow="fold")
    return table


def number(value: float) -> str:
    """About three digits, for people."""
    size = abs(value)
    if not math.isfinite(value):
        return str(value)
    if size >= 1000:
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.1 else f"{value + 0.0:.3g}"
