"""What a run shows: a live panel on a terminal, else one plain line per log interval; a table at the end."""

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsFloat

from rich.console import Console as Output
from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from agent.config import Config
from agent.tables import number, results_table

RETURNS = {
    "return": "train/episode_return",
    "eval greedy": "eval/return_greedy",
    "eval sampled": "eval/return_sampled",
}
LEARNING = {"tau": "estimator/tau", "alpha": "alpha/value", "entropy": "actor/entropy"}
SPEED = "time/env_steps_per_second"
SAVED = {
    "config.yaml": "every setting of the run",
    "metrics.jsonl": "every metric, one line per member",
    "result.json": "the returns above, episode by episode",
    "checkpoints": "full states of the run, for train.py --resume",
    "critics.safetensors": "the critics at the end, for evaluate.py --gradients",
    "policy/final": "the policies at the end",
    "policy/best": "the policies at each member's best evaluation",
    "wandb": "W&B's files; `wandb sync` uploads an offline run",
}


class Console:
    """Shows how far a run is and its newest metrics."""

    def __init__(self, config: Config, first_env_step: int = 0, output: Output | None = None) -> None:
        """`first_env_step`: at which a run resumes."""
        self.output = output or Output()
        self.first_env_step = first_env_step
        self.title = f"{config.env.id} | {config.algorithm}"
        self.newest: dict[str, dict[int, float]] = {}  # metric: member: value
        self.progress = Progress(
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("eta {task.fields[eta]}"),
            console=self.output,
            expand=True,
        )
        task = self.progress.add_task("", start=False, total=config.total_env_steps, eta="-")
        self.task = self.progress.tasks[task]
        on_terminal = self.output.file.isatty() and self.output.is_interactive  # FORCE_COLOR makes no terminal
        self.live = Live(self.panel(), console=self.output, refresh_per_second=2) if on_terminal else None

    def __enter__(self) -> "Console":
        self.progress.start_task(self.task.id)
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop_live()

    def stop_live(self) -> None:
        """Leaves the panel where it stands; what is printed from here on comes below."""
        if self.live:
            self.live.stop()

    def update(self, env_steps: int, rows: Sequence[Mapping[str, SupportsFloat]]) -> None:
        """Takes in new metrics, rows[i] those of member i. Metrics not among them keep their last value."""
        for member, row in enumerate(rows):
            for name, value in row.items():
                if not math.isnan(value):
                    self.newest.setdefault(name, {})[member] = float(value)
        self.progress.update(self.task.id, completed=env_steps, eta=self.eta(env_steps))
        if self.live:
            self.live.update(self.panel())
        elif any(SPEED in row for row in rows):  # an evaluation between two log lines has no line of its own
            self.message(self.line(env_steps))

    def message(self, text: str) -> None:
        """Prints a line as it is, above the panel."""
        self.output.print(text, markup=False, highlight=False, soft_wrap=True)

    def final_table(self, result: Mapping[str, Any], run_dir: Path, next_commands: Sequence[str]) -> None:
        """Prints what came out of a run, where it lies and what to do next. `result`: as in result.json."""
        self.stop_live()
        took = timedelta(seconds=round(result["wall_seconds"]))
        self.message(f"\n{result['env_id']}: {result['env_steps']} env steps in {took}")
        self.output.print(results_table(result["members"]))
        self.message(f"saved in {run_dir}")
        for name, content in SAVED.items():
            if (run_dir / name).exists():
                self.message(f"  {name:<19} {content}")
        self.message("next")
        for command in next_commands:
            self.message(f"  {command}")

    def eta(self, env_steps: int) -> str:
        """Time left at the average speed since it began, or went on."""
        done, left = env_steps - self.first_env_step, (self.task.total or 0) - env_steps
        if not done or self.task.elapsed is None:
            return "-"
        return str(timedelta(seconds=round(self.task.elapsed * max(0, left) / done)))

    def line(self, env_steps: int) -> str:
        parts = [f"env_steps {env_steps}/{self.task.total:.0f}"]
        parts += [f"{label} {self.spread(name)}" for label, name in RETURNS.items() if name in self.newest]
        parts += [f"{label} {self.mean(name)}" for label, name in LEARNING.items() if name in self.newest]
        return " | ".join([*parts, f"{self.mean(SPEED)} steps/s", f"eta {self.task.fields['eta']}"])

    def panel(self) -> Panel:
        returns = Table.grid(padding=(0, 2))
        for label, name in RETURNS.items():
            returns.add_row(label, self.spread(name))
        learning = [f"{label} {self.mean(name)}" for label, name in LEARNING.items() if name in self.newest]
        details = "  ".join([*learning, f"{self.mean(SPEED)} steps/s"])
        return Panel(Group(self.progress, returns, details), title=self.title)

    def mean(self, name: str) -> str:
        values = self.newest.get(name, {}).values()
        return number(sum(values) / len(values)) if values else "-"

    def spread(self, name: str) -> str:
        """The mean over members, and their extremes where there are several."""
        values = self.newest.get(name, {}).values()
        extremes = f" (min {number(min(values))}, max {number(max(values))})" if len(values) > 1 else ""
        return self.mean(name) + extremes
