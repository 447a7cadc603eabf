"""The figures of a comparison: which there are, and what each says."""

import re
import shutil
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.analysis import figures
from agent.analysis.comparison import Comparison
from agent.analysis.run_folder import GRADIENTS_FIGURE, GREEDY_RETURN, Entry
from agent.analysis.statistics import Curve, on_common_grid, performance_profile
from agent.metrics import METRICS

SYMBOLS = {r"\bsum_": "Σ_", r"\bpi\b": "π", r"\bpi_": "π_", r"\balpha\b": "α", r"\bgamma\b": "γ", r"\(\.\|": "(·|"}
SYMBOLS |= {r"(?<![/.])\btau\b": "τ", r"<=": "≤", r">=": "≥"}
BAND = "IQM over seeds, in a band of its 95 % interval."


@dataclass(frozen=True)
class FigureFile:
    """A figure as it stands in the report."""

    path: Path
    title: str
    caption: str


def write_figures(comparison: Comparison, folder: Path) -> list[FigureFile]:
    """Writes each figure for which there is data."""
    written = [
        learning_curves(comparison, folder / "learning_curves.png"),
        *([] if comparison.without_test else [profile(comparison, folder / "performance_profile.png")]),
        improvement(comparison, folder / "probability_of_improvement.png"),
        metric(comparison, "estimator/tau", "Temperature τ", folder / "tau.png"),
        metric(comparison, "actor/entropy", "Entropy of the policy", folder / "entropy.png"),
    ]
    gradients = sorted({name for e in comparison.entries for name in e.metrics if name.startswith("gradient/")})
    for name in gradients:
        words = name.removeprefix("gradient/").replace("_", " ")
        written.append(metric(comparison, name, f"Gradient: {words}", folder / f"{name.replace('/', '_')}.png"))
    return [figure for figure in written if figure] + gradient_reports(comparison.entries, folder)


def heading(comparison: Comparison, what: str = "") -> str:
    """The title of a figure: it stands alone too, so it says where there are too few seeds."""
    return "\n".join([comparison.env_id + what, *textwrap.wrap(comparison.without_test, 60)])


def gradient_reports(entries: Sequence[Entry], folder: Path) -> list[FigureFile]:
    """Copies of what `evaluate --gradients` has drawn in the runs compared."""
    labels: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        for run in entry.runs:
            labels[run.folder].append(entry.label)
    drawn = [name for name in labels if (Path(name) / GRADIENTS_FIGURE).is_file()]
    copies = []
    for i, run_folder in enumerate(drawn):
        path = folder / f"gradients_{i}.png"
        for kind in (".png", ".svg"):
            if (drawn_file := (Path(run_folder) / GRADIENTS_FIGURE).with_suffix(kind)).is_file():
                shutil.copyfile(drawn_file, path.with_suffix(kind))
        caption = f"Bias against standard deviation on trained policies: evaluate {run_folder} --gradients."
        copies.append(FigureFile(path, f"Gradient estimators: {', '.join(labels[run_folder])}", caption))
    return copies


def learning_curves(comparison: Comparison, path: Path) -> FigureFile | None:
    curves = curves_of(comparison.entries, GREEDY_RETURN)
    if not curves:
        return None
    figures.learning_curves(curves, path, comparison.threshold, heading(comparison))
    return FigureFile(path, "Learning curves", f"Greedy return of the evaluations during training. {BAND}")


def metric(comparison: Comparison, name: str, title: str, path: Path) -> FigureFile | None:
    """A metric over time, of the entries that have it."""
    curves = curves_of(comparison.entries, name)
    if not curves:
        return None
    figures.metric_curves(curves, path, f"{title}\n(IQM of seeds, 95 % interval)", heading(comparison))
    known = METRICS.get(name)
    unit = "" if known is None or known.unit == "1" else f", in {known.unit}"
    what = f"{name}: {known.formula}{unit}; {known.meaning}." if known else f"{name}, as logged."
    return FigureFile(path, title, f"{with_symbols(what)} {BAND}")


def with_symbols(formula: str) -> str:
    """A formula in plain letters with the symbols that it stands for."""
    for pattern, symbol in SYMBOLS.items():
        formula = re.sub(pattern, symbol, formula)
    return formula


def curves_of(entries: Sequence[Entry], name: str) -> dict[str, Curve]:
    """A metric of each entry on the steps that all its seeds have."""
    grids = {entry.label: on_common_grid(entry.curves(name)) for entry in entries if entry.curves(name)}
    return {label: curve for label, curve in grids.items() if len(curve.env_steps)}


def profile(comparison: Comparison, path: Path) -> FigureFile:
    scores = np.unique(np.concatenate([entry.final_returns for entry in comparison.entries]))
    room = 0.05 * np.ptp(scores) or 1.0
    thresholds = np.array([scores[0] - room, *scores, scores[-1] + room])
    profiles = {entry.label: performance_profile(entry.final_returns, thresholds) for entry in comparison.entries}
    figures.performance_profiles(profiles, path, heading(comparison))
    caption = "Share of an entry's seeds that end above a return x; higher is better. Bands: 95 % intervals, x by x."
    return FigureFile(path, "Performance profile", caption)


def improvement(comparison: Comparison, path: Path) -> FigureFile | None:
    if not comparison.pairs:
        return None
    cells = {(p.better, p.worse): (p.probability_of_improvement, p.probability_interval) for p in comparison.pairs}
    figures.improvement_matrix(
        [entry.label for entry in comparison.entries], cells, path, heading(comparison, ": P(row > column)")
    )
    caption = "How likely a seed of the row ends above one of the column, a tie counting half; 95 % intervals."
    return FigureFile(path, "Probability of improvement", caption)
