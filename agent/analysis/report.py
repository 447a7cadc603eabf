"""What a comparison leaves: figures, results.json, results.csv, and report.html with all of it on one page."""

import base64
import csv
import dataclasses
import json
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from agent.analysis.comparison import HELD, Comparison, Summary, steps_by_seed
from agent.analysis.entries import differences, what_is_learned
from agent.analysis.figures import FAINT, FIRST, GRID, INK, PAPER
from agent.analysis.gallery import FigureFile, write_figures
from agent.analysis.run_folder import Entry, FinishedRun
from agent.analysis.statistics import area_under_curve
from agent.analysis.tables import notes
from agent.commands import as_called
from agent.config_loader import as_text
from agent.tables import number
from envs.errors import UserError

Row = dict[str, Any]
THEME = {
    INK: "ink",
    FAINT: "faint",
    GRID: "line",
    PAPER: "paper",
    FIRST: "first",
}  # colours of figures: the page's, light or dark
PROJECT = "gumbel-actor-critic"


def write(comparison: Comparison, folder: Path, command: str, versions: Mapping[str, str]) -> list[FigureFile]:
    """Writes everything into a folder, results before figures; returns the figures.

    Args:
        versions: of what computes and writes the comparison; each run has its own.
    """
    make_folder(folder)
    results = json.dumps(as_json(comparison, command, versions), indent=1, allow_nan=False)
    try:
        (folder / "results.json").write_text(results, encoding="utf-8")
        write_csv(summary_rows(comparison), folder / "results.csv")
        figures = write_figures(comparison, folder)
        (folder / "report.html").write_text(html(comparison, command, versions, figures), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: the report cannot be written: {error}") from None
    return figures


def make_folder(folder: Path) -> None:
    """UserError where the report cannot be written to this folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot make this folder for the report: {error.strerror}") from None


def as_json(comparison: Comparison, command: str, versions: Mapping[str, str]) -> Row:
    """Everything in figures; infinite step counts become null."""
    seeds = seed_rows(comparison)
    own = {
        entry.label: {
            "run": ", ".join(run.folder for run in entry.runs),
            "seeds": entry.seeds,
            "final_returns": entry.final_returns.tolist(),
            "settings": what_is_learned(entry),
            "by_seed": [row for row in seeds if row["label"] == entry.label],
        }
        for entry in comparison.entries
    }
    return finite(
        {
            "env_id": comparison.env_id,
            "command": command,
            "versions": dict(versions),
            "runs": [dataclasses.asdict(run) | {"command": repeat(run)} for run in runs_of(comparison)],
            "threshold": comparison.threshold,
            "best": None if comparison.untested else comparison.best.label,
            "without_test": comparison.without_test or None,
            "entries": [dataclasses.asdict(s) | own[s.label] for s in comparison.summaries],
            "pairs": [dataclasses.asdict(p) for p in comparison.pairs],
        }
    )


def finite(value: Any) -> Any:
    """Strict JSON: infinity and NaN as null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def tables(comparison: Comparison) -> dict[str, list[Row]]:
    """The results as flat tables, by name."""
    named = {"results": summary_rows(comparison), "pairs": pair_rows(comparison), "seeds": seed_rows(comparison)}
    return {name: rows for name, rows in named.items() if rows}


def summary_rows(comparison: Comparison) -> list[Row]:
    """One row per entry."""
    return [flat_intervals(dataclasses.asdict(summary)) for summary in comparison.summaries]


def pair_rows(comparison: Comparison) -> list[Row]:
    """One row per ordered pair of entries."""
    return [flat_intervals(dataclasses.asdict(pair)) for pair in comparison.pairs]


def seed_rows(comparison: Comparison) -> list[Row]:
    """One row per seed of each entry; no steps to a missing threshold."""
    rows = []
    for entry in comparison.entries:
        curves = entry.curves()
        reach, hold = (steps_by_seed(curves, comparison.threshold, in_a_row) for in_a_row in (1, HELD))
        for i, r in enumerate(entry.replications):
            row = {"label": entry.label, "seed": r.seed, "run": r.run.folder, "member": r.member}
            row |= {"final_return": r.final_return, "area": area_under_curve(curves[i]) if curves else None}
            row |= {"steps_to_reach": reach[i] if reach else None, "steps_to_hold": hold[i] if hold else None}
            rows.append(row)
    return rows


def flat_intervals(row: Row) -> Row:
    """Intervals as two columns."""
    columns: Row = {}
    for key, value in row.items():
        if key.endswith("interval"):
            low, high = value or (None, None)
            columns |= {f"{key}_low": low, f"{key}_high": high}
        else:
            columns[key] = value
    return columns


def write_csv(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def html(comparison: Comparison, command: str, versions: Mapping[str, str], figures: Sequence[FigureFile]) -> str:
    """One page that needs nothing else: no script, no font, no image from elsewhere."""
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters |= {"number": number, "steps": steps, "duration": duration, "short_hash": short_hash}
    template = resources.files("agent.analysis").joinpath("report.html.jinja").read_text(encoding="utf-8")
    return page.from_string(template).render(
        comparison=comparison,
        command=command,
        date=f"{datetime.now():%Y-%m-%d %H:%M}",
        project=PROJECT,
        versions=versions,
        runs=[(run, repeat(run)) for run in runs_of(comparison)],
        recorded=list(dict.fromkeys(name for run in runs_of(comparison) for name in run.versions)),
        shared=settings_table(comparison.entries, different=False),
        different=settings_table(comparison.entries, different=True),
        figures=[(figure, picture(figure.path)) for figure in figures],
        seeds=seed_rows(comparison),
        notes=notes(comparison),
        lower=[s for s in comparison.summaries if is_lower(comparison, s)],
        tied=[s for s in comparison.summaries if s != comparison.best and not is_lower(comparison, s)],
    )


def is_lower(comparison: Comparison, summary: Summary) -> bool:
    """Significantly, than the best."""
    against_best = comparison.against_best(summary.label)
    return against_best is not None and bool(against_best.final_differs)


def runs_of(comparison: Comparison) -> list[FinishedRun]:
    return list({run.folder: run for entry in comparison.entries for run in entry.runs}.values())


def repeat(run: FinishedRun) -> str:
    """The command that trains the same again, into a new folder."""
    return as_called(f"gumbel train {shlex.quote(run.folder)}/config.yaml run_dir=null")


def settings_table(entries: Sequence[Entry], different: bool) -> dict[str, list[str]]:
    """Per setting its value in each entry, '–' where an entry does not read it; the shared ones have one value."""
    learned = [what_is_learned(entry) for entry in entries]
    changing = differences(entries)
    keys = dict.fromkeys(key for settings in learned for key in settings)
    table = {}
    for key in keys:
        values = [as_text(settings[key]) if key in settings else "–" for settings in learned]
        if (key in changing) == different:
            table[key] = values if different else [next(value for value in values if value != "–")]
    return table


def picture(path: Path) -> Markup:
    """A figure as part of the page: its SVG in the page's colours, or its PNG where it has none."""
    drawing = path.with_suffix(".svg")
    if not drawing.is_file():
        data = base64.b64encode(path.read_bytes()).decode()
        return Markup('<img alt="" src="data:image/png;base64,{}">').format(data)
    text = drawing.read_text(encoding="utf-8")
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text[text.index("<svg") :])  # HTML knows what svg is
    for color, variable in THEME.items():
        text = text.replace(color, f"var(--{variable})")
    return Markup(text)  # drawn by ourselves: labels are text that matplotlib has escaped


def short_hash(version: str) -> str:
    """A version with eight digits of its commit."""
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{32}\b", r"\1", version)


def steps(value: float | int | None) -> str:
    return "–" if value is None else "never" if np.isinf(value) else f"{value:,.0f}"


def duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
