"""What a run shows: a live panel on a terminal, else one plain line per log interval; a table at the end."""

import math
from collections import deque
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
from agent.evaluation import PROGRESS_SECONDS, EpisodeProgress
from agent.exit_codes import replace_what_cannot_be_shown
from agent.tables import number, results_table, sweep_table

RETURNS = {
    "return": "train/episode_return",
    "eval greedy": "eval/return_greedy",
    "eval sampled": "eval/return_sampled",
}
LEARNING = {"tau": "estimator/tau", "alpha": "alpha/value", "entropy": "actor/entropy"}
SPEED, UPDATES = "time/env_steps_per_second", "time/updates_per_second"
SPARKS, SIGNS = 40, "▁▂▃▄▅▆▇█"  # of the panel's sparkline of returns
RATE_LINES = 10  # newest log lines over which the time left is estimated
ECHO = len("^C")  # columns: what a terminal shows of Ctrl-C must not move the cursor to another line
SAVED = {
    "config.yaml": "every setting of the run",
    "metrics.jsonl": "every metric, one line per member",
    "result.json": "the returns above, episode by episode",
    "checkpoints": "full states of the run, for train --resume",
    "critics.safetensors": "the critics at the end, for evaluate --gradients",
    "policy/final": "the policies at the end",
    "policy/best": "the policies at each member's best evaluation",
    "wandb": "W&B's files",
}


class Console:
    """Shows how far a run is and its newest metrics."""

    def __init__(self, config: Config, output: Output | None = None) -> None:
        self.output = output or Output()
        replace_what_cannot_be_shown(self.output.file)
        num_members = len(config.members())
        self.over = f"mean of {num_members} members (min, max)" if num_members > 1 else ""
        self.title = " | ".join(filter(None, [config.env.id, config.algorithm, self.over]))
        self.returns: deque[float] = deque(maxlen=SPARKS)  # of the newest log lines
        self.env_steps = 0
        self.newest: dict[str, dict[int, tuple[float, int]]] = {}  # metric: member: value, env_steps then
        self.pace: deque[tuple[float, int]] = deque(maxlen=RATE_LINES + 1)  # time and env_steps of log lines
        self.evaluation = ""  # how far one under way is
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
        elif self.over:
            self.message(f"Returns: {self.over}.")
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
        """Takes in new metrics, rows[i] those of member i, without any where it was dropped.

        Metrics not among them keep their last value, which is shown with its step.
        """
        self.env_steps, self.evaluation = env_steps, ""
        for member, row in enumerate(rows):
            for name, value in row.items():
                if not math.isnan(value):
                    self.newest.setdefault(name, {})[member] = (float(value), env_steps)
            if not row:
                for values in self.newest.values():
                    values.pop(member, None)
        new = [float(row[RETURNS["return"]]) for row in rows if RETURNS["return"] in row]
        if new := [value for value in new if math.isfinite(value)]:
            self.returns.append(sum(new) / len(new))
        is_log_line = any(SPEED in row for row in rows)  # an evaluation between two of them has no line of its own
        if is_log_line and (self.pace or any(row.get(UPDATES) for row in rows)):
            # From the first line with updates on: steps before it were random, and the updates were compiled then.
            self.pace.append((self.output.get_time(), env_steps))
        self.progress.update(self.task.id, completed=env_steps, eta=self.eta())
        if self.live:
            self.live.update(self.panel())
        elif is_log_line:
            self.message(self.line())

    def evaluation_progress(self) -> EpisodeProgress:
        """To tell how far an evaluation is: in the panel, else in a line now and then."""
        every_seconds = 1 / self.live.refresh_per_second if self.live else PROGRESS_SECONDS
        return EpisodeProgress(self.show_evaluation, every_seconds, self.output.get_time)

    def show_evaluation(self, text: str) -> None:
        if self.live:
            self.evaluation = text
            self.live.update(self.panel())
        else:
            self.message(f"env_steps {self.env_steps}/{self.task.total:.0f} | {text}")

    def message(self, text: str) -> None:
        """Prints a line as it is, above the panel."""
        self.output.print(text, markup=False, highlight=False, soft_wrap=True)

    def final_table(self, result: Mapping[str, Any]) -> None:
        """Prints what came out of a run. `result`: as in result.json."""
        self.evaluation = ""
        if self.live:
            self.live.update(self.panel())
        self.stop_live()
        took = timedelta(seconds=round(result["wall_seconds"]))
        self.message(f"\n{result['env_id']}: {result['env_steps']} env steps in {took}")
        self.output.print(results_table(result["members"]))
        if any(member["settings"] for member in result["members"]):
            self.output.print(sweep_table(result["members"]))

    def saved(self, run_dir: Path, next_commands: Sequence[str]) -> None:
        """Prints where a run lies and what to do next."""
        self.message(f"saved in {run_dir}")
        for name, content in SAVED.items():
            if (run_dir / name).exists():
                self.message(f"  {name:<19} {content}")
        self.message("next")
        for command in next_commands:
            self.message(f"  {command}")

    def eta(self) -> str:
        """Time left at the pace of the newest log lines, evaluations included; "-" before there is a pace."""
        if len(self.pace) < 2 or self.pace[-1][1] == self.pace[0][1]:
            return "-"
        (then, steps_then), (now, steps_now) = self.pace[0], self.pace[-1]
        left = max(0, (self.task.total or 0) - self.env_steps)
        return str(timedelta(seconds=round((now - then) * left / (steps_now - steps_then))))

    def line(self) -> str:
        parts = [f"env_steps {self.env_steps}/{self.task.total:.0f}"]
        parts += [f"{label} {self.spread(name)}" for label, name in RETURNS.items() if self.newest.get(name)]
        return " | ".join([*parts, *self.learning(), f"{self.mean(SPEED)} steps/s", f"eta {self.task.fields['eta']}"])

    def panel(self) -> Panel:
        returns = Table.grid(padding=(0, 2))
        for label, name in RETURNS.items():
            returns.add_row(label, self.spread(name))
            if name == RETURNS["return"] and len(self.returns) > 1:
                returns.add_row("", sparkline(self.returns))
        details = "  ".join([*self.learning(), f"{self.mean(SPEED)} steps/s"])
        under_way = [self.evaluation] if self.evaluation else []
        content = Group(self.progress, returns, details, *under_way)
        return Panel(content, title=self.title, width=self.output.width - ECHO)

    def learning(self) -> list[str]:
        return [
            f"{label} {self.mean(name)}{in_brackets(self.age(name))}"
            for label, name in LEARNING.items()
            if self.newest.get(name)
        ]

    def values(self, name: str) -> list[float]:
        return [value for value, _ in self.newest.get(name, {}).values()]

    def mean(self, name: str) -> str:
        values = self.values(name)
        return number(sum(values) / len(values)) if values else "-"

    def spread(self, name: str) -> str:
        """The mean over members, their extremes where there are several, and of when they are where they are old."""
        values = self.values(name)
        extremes = f"min {number(min(values))}, max {number(max(values))}" if len(values) > 1 else ""
        return self.mean(name) + in_brackets(extremes, self.age(name))

    def age(self, name: str) -> str:
        """The steps that the values are of, unless all are new."""
        steps = {env_steps for _, env_steps in self.newest.get(name, {}).values()} or {self.env_steps}
        if min(steps) == self.env_steps:
            return ""
        return f"step {min(steps)}" if len(steps) == 1 else f"steps {min(steps)}-{max(steps)}"


def sparkline(values: Sequence[float]) -> str:
    """How numbers have moved, from the lowest sign to the highest."""
    low, high = min(values), max(values)
    return "".join(SIGNS[round((value - low) / ((high - low) or 1.0) * (len(SIGNS) - 1))] for value in values)


def in_brackets(*remarks: str) -> str:
    given = ", ".join(filter(None, remarks))
    return f" ({given})" if given else ""
