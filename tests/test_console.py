import io
import os
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as Output

from agent.config_loader import load_config
from agent.training.console import SAVED, Console, number, sparkline

SPEED = "time/env_steps_per_second"


class Screen(io.StringIO):
    """A terminal of so many columns, and the clock on the wall."""

    def __init__(self, columns: int = 80, terminal: bool = False) -> None:
        super().__init__()
        self.terminal, self.seconds = terminal, 0.0
        self.output = Output(
            file=self, width=columns, height=40, get_time=lambda: self.seconds, _environ={"TERM": "xterm"}
        )

    def isatty(self) -> bool:
        return self.terminal

    def lines(self) -> list[str]:
        """What was written, without control codes."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue()).replace("\r", "\n").splitlines()


def make_console(screen: Screen, total: int = 20_000, seeds: int = 1) -> Console:
    settings = ["env.id=CartPole-v1", f"total_env_steps={total}", f"seeds={seeds}"]
    return Console(load_config(None, settings), output=screen.output)


def row(**values: float) -> dict[str, float]:
    """A log line's metrics."""
    names = {
        "speed": SPEED,
        "updates": "time/updates_per_second",
        "train": "train/episode_return",
        "greedy": "eval/return_greedy",
    }
    names |= {
        "tau": "estimator/tau",
        "alpha": "alpha/value",
        "entropy": "actor/entropy",
        "sampled": "eval/return_sampled",
    }
    return {names[key]: value for key, value in values.items()}


def test_off_a_terminal_a_log_line_is_one_plain_line() -> None:
    screen = Screen(columns=40)
    with make_console(screen, seeds=3) as console:
        screen.seconds = 8.0
        learning = {"speed": 1829.6, "tau": 0.9312, "alpha": 0.0812, "entropy": 0.612}
        console.update(2000, [row(train=value, **learning) for value in (41.0, 50.7, 80.2)])
    assert screen.getvalue() == (
        "Returns: mean of 3 members (min, max).\n"
        "env_steps 2000/20000 | return 57.3 (min 41.0, max 80.2) | tau 0.93 | alpha 0.0812 | entropy 0.61"
        " | 1830 steps/s | eta -\n"
    )


def test_an_evaluation_shows_in_the_next_log_line() -> None:
    screen = Screen()
    with make_console(screen) as console:
        console.update(1000, [row(greedy=120.1, sampled=90.0)])
        assert screen.getvalue() == ""
        screen.seconds = 1.0
        console.update(1000, [row(speed=5.0)])
        console.update(2000, [row(speed=5.0)])
    assert [line.split(" | ")[1:3] for line in screen.lines()] == [
        ["eval greedy 120.1", "eval sampled 90.0"],
        ["eval greedy 120.1 (step 1000)", "eval sampled 90.0 (step 1000)"],
    ]


def test_a_member_without_a_new_value_keeps_its_last_with_its_step() -> None:
    screen = Screen()
    with make_console(screen, seeds=2) as console:
        console.update(10, [row(speed=5.0, train=1.0), row(speed=5.0, train=3.0)])
        console.update(20, [row(speed=5.0, train=5.0), row(speed=5.0)])
        console.update(30, [row(speed=5.0, train=float("nan")), row(speed=5.0)])
    returns = [line.split(" | ")[1] for line in screen.lines() if " | " in line]
    assert returns == [
        "return 2.00 (min 1.00, max 3.00)",
        "return 4.00 (min 3.00, max 5.00, steps 10-20)",
        "return 4.00 (min 3.00, max 5.00, steps 10-20)",
    ]


def test_what_is_old_says_of_which_step_it_is() -> None:
    screen = Screen()
    with make_console(screen, total=160_000) as console:
        console.update(80_000, [row(speed=5.0, train=17.5, tau=0.5)])
        console.update(160_000, [row(speed=5.0)])
    assert [line.split(" | ")[1:3] for line in screen.lines()] == [
        ["return 17.5", "tau 0.50"],
        ["return 17.5 (step 80000)", "tau 0.50 (step 80000)"],
    ]


def test_a_member_that_was_dropped_no_longer_counts() -> None:
    screen = Screen()
    with make_console(screen, seeds=2) as console:
        console.update(10, [row(speed=5.0, train=1.0), row(speed=5.0, train=3.0)])
        console.update(20, [row(speed=5.0, train=1.0), {}])
    assert screen.lines()[-1].split(" | ")[1] == "return 1.00"


def test_time_left_is_that_of_the_newest_lines_after_warm_up_and_compilation() -> None:
    """Fast random steps, a line of a minute in which the updates are compiled, then 100 steps a second."""
    screen = Screen()
    with make_console(screen, total=10_000) as console:
        for seconds, steps, updates in ((1, 1000, 0), (2, 2000, 0), (62, 2100, 1), (72, 3100, 9), (82, 4100, 9)):
            screen.seconds = float(seconds)
            console.update(steps, [row(speed=5.0, updates=updates)])
    assert [line.split("eta ")[1] for line in screen.lines()] == ["-", "-", "-", "0:01:09", "0:00:59"]


def test_time_left_follows_a_pace_that_changes() -> None:
    screen = Screen()
    with make_console(screen, total=100_000) as console:
        for i in range(60):  # a second a line, then ten
            screen.seconds = i if i < 40 else 40 + 10.0 * (i - 40)
            console.update(1000 * i, [row(speed=5.0, updates=1.0)])
    assert screen.lines()[-1].endswith("eta 0:06:50")


@pytest.mark.parametrize("terminal", [False, True])
def test_an_evaluation_under_way_is_seen(terminal: bool) -> None:
    screen = Screen(terminal=terminal)
    with make_console(screen) as console:
        console.update(1000, [row(speed=5.0)])
        progress = console.evaluation_progress()
        for seconds, done in ((1.0, 3), (12.0, 5), (13.0, 6)):
            screen.seconds = seconds
            progress(done, 40)
        shown = screen.getvalue() if not terminal else str(console.evaluation)
        console.update(1000, [row(greedy=1.0)])
        assert console.evaluation == ""
    assert ("5 of 40" in shown) != terminal and ("6 of 40" in shown) == terminal
    assert terminal or "env_steps 1000/20000 | evaluation: 5 of 40 episodes done\n" in shown


def test_what_a_terminal_echoes_of_ctrl_c_fits_beside_the_panel() -> None:
    """Else the cursor moves to another line, and the next panel is drawn below the top border of this one."""
    screen = Screen(columns=60, terminal=True)
    with make_console(screen) as console:
        console.update(10, [row(speed=5.0)])
    assert {len(line) for line in screen.lines() if line.startswith(("╭", "╰"))} == {58}


def test_a_stream_that_cannot_encode_a_character_shows_another(tmp_path: Path) -> None:
    for encoding in ("ascii", "utf-8"):
        with (tmp_path / encoding).open("w", encoding=encoding) as file:
            with Console(load_config(None, ["env.id=CartPole-v1"]), output=Output(file=file, width=100)) as console:
                console.message("läuft – ±")
                console.final_table(make_result({}))
    assert "l?uft ? ?" in (tmp_path / "ascii").read_text("ascii") and "mean ? std" in (tmp_path / "ascii").read_text()
    assert "läuft – ±" in (tmp_path / "utf-8").read_text("utf-8")


def test_what_is_printed_is_taken_literally() -> None:
    screen = Screen(columns=20)
    with make_console(screen) as console:
        console.message("[red]a path[/red] /longer/than/the/screen")
    assert screen.getvalue() == "[red]a path[/red] /longer/than/the/screen\n"


@pytest.mark.parametrize("columns", [62, 120])
def test_a_terminal_shows_everything_in_a_panel(columns: int) -> None:
    screen = Screen(columns, terminal=True)
    with make_console(screen, total=1_000_000, seeds=2) as console:
        screen.seconds = 1800.0
        learning = {"speed": 1830.0, "tau": 0.93, "alpha": 0.081, "entropy": 0.61}
        console.update(150_000, [row(speed=1.0, updates=1.0)] * 2)
        screen.seconds = 3600.0
        console.update(250_000, [row(train=-1041.5, **learning), row(train=-80.25, **learning)])
        console.update(250_000, [row(greedy=120.1, sampled=90.0), row(greedy=480.1, sampled=100.0)])
        console.message("a note")
    shown = screen.lines()
    assert "a note" in shown and max(len(line) for line in shown) <= columns
    last = "\n".join(shown[-8:])
    for part in (
        "CartPole-v1 | gumbel_actor_critic",
        "250000/1000000  25% 1:00:00 eta 3:45:00",
        "return        -560.9 (min -1042, max -80.2)",
        "eval greedy   300.1 (min 120.1, max 480.1)",
        "eval sampled  95.0 (min 90.0, max 100.0)",
        "tau 0.93  alpha 0.081  entropy 0.61  1830 steps/s",
    ):
        assert part in last


def test_panel_is_taken_down_when_the_run_fails() -> None:
    screen = Screen(terminal=True)
    with pytest.raises(RuntimeError), make_console(screen) as console:
        assert console.live is not None and console.live.is_started
        raise RuntimeError
    assert console.live and not console.live.is_started
    assert screen.getvalue().endswith("\x1b[?25h")  # the cursor is back


def test_forced_colour_does_not_make_a_file_a_terminal() -> None:
    screen = Screen()
    screen.output = Output(file=screen, force_terminal=True)
    assert make_console(screen).live is None


def returns(mean: float) -> dict[str, Any]:
    return {
        "mean": mean,
        "std": 12.31,
        "iqm": mean + 1,
        "min": mean - 100,
        "max": 500.0,
        "returns": [mean],
        "lengths": [9],
    }


def make_result(settings: dict) -> dict[str, Any]:
    members = [
        {"member": i, "seed": 7 + i, "settings": settings, "greedy": returns(487.3 + i), "sampled": returns(380.0 + i)}
        for i in range(2)
    ]
    return {"env_id": "CartPole-v1", "env_steps": 20_000, "wall_seconds": 42.4, "members": members}


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("settings", [{}, {"tau.end": 0.25, "noise_persistence": [0.5, 0.95]}])
def test_final_table_has_returns_places_and_commands(settings: dict, terminal: bool, tmp_path: Path) -> None:
    screen = Screen(100, terminal)
    (tmp_path / "policy" / "final").mkdir(parents=True)
    (tmp_path / "config.yaml").touch()
    command = f"python evaluate.py {tmp_path} --video {tmp_path}/videos"
    with make_console(screen) as console:
        console.final_table(make_result(settings))
        console.saved(tmp_path, [command])
        assert console.live is None or not console.live.is_started  # nothing is drawn over the table
    shown = [re.sub(r" +", " ", line).strip() for line in screen.lines()]
    assert "CartPole-v1: 20000 env steps in 0:00:42" in shown
    first = shown.index("0 (seed 7) greedy 487.3 ± 12.3 488.3 [487.3, 487.3] 387.3 500.0 9")
    rest = shown[first + 1 : first + 4]
    assert any(line.endswith("sampled 380.0 ± 12.3 381.0 [380.0, 380.0] 280.0 500.0 9") for line in rest)
    assert any(line.startswith("1 (seed 8) greedy 488.3") for line in shown)
    assert ("tau.end=0.25" in rest) == ("noise_persistence=[0.5, 0.95]" in rest) == bool(settings)
    saved = shown[shown.index(f"saved in {tmp_path}") + 1 : shown.index("next")]
    assert saved == [f"config.yaml {SAVED['config.yaml']}", f"policy/final {SAVED['policy/final']}"]
    assert shown[-1] == command


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (123456.7, "123457"), (1829.6, "1830"), (120.14, "120.1"), (57.349, "57.3"), (9.534, "9.53"), (-0.5, "-0.50"),
        (0.08123, "0.0812"), (0.0001, "0.0001"), (3.14e-7, "3.14e-07"), (0.0, "0"), (-0.0, "0"),
        (float("nan"), "nan"), (float("-inf"), "-inf"),
    ],
)  # fmt: skip
def test_numbers_have_about_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_output_is_standard_output(capsys: Any) -> None:
    with Console(load_config(None, ["env.id=CartPole-v1"])) as console:
        console.message("hello")
    assert capsys.readouterr() == ("hello" + os.linesep, "")


def test_a_sweep_ends_with_a_table_by_setting() -> None:
    episodes = {"returns": [1.0, 2.0], "lengths": [1, 1], "mean": 1.5, "std": 0.5, "min": 1.0, "max": 2.0, "iqm": 1.5}

    def member(number: int, tau: float, mean: float) -> dict[str, Any]:
        own = {mode: episodes | {"mean": mean} for mode in ("greedy", "sampled")}
        return {"member": number, "seed": number % 2, "settings": {"tau.start": tau}, **own}

    members = [member(i, tau, mean) for i, (tau, mean) in enumerate([(2.0, 10.0), (2.0, 30.0), (0.5, 7.0), (0.5, 7.0)])]
    screen = Screen(columns=80)
    with make_console(screen, seeds=2) as console:
        console.final_table({"wall_seconds": 1.0, "env_id": "X", "env_steps": 5, "members": members})
    lines = [" ".join(line.split()) for line in screen.lines()]
    by_setting = lines[next(i for i, line in enumerate(lines) if line.startswith("setting")) :]
    assert "tau.start=2 2 20.0 [10.0, 30.0] 10.0 20.0 [10.0, 30.0] 10.0" in by_setting
    assert "tau.start=0.5 2 7.00 [7.00, 7.00] 7.00 7.00 [7.00, 7.00] 7.00" in by_setting


def test_the_sparkline_goes_from_the_lowest_to_the_highest() -> None:
    assert sparkline([0.0, 7.0, 3.5, 0.0]) == "▁█▅▁"
    assert sparkline([2.0, 2.0]) == "▁▁"


def test_the_panel_shows_how_the_return_has_moved() -> None:
    screen = Screen(columns=80, terminal=True)
    with make_console(screen) as console:
        for step, value in enumerate((1.0, float("nan"), 5.0, float("inf"), 9.0)):
            console.update(step, [row(train=value, speed=1.0)])
    assert "▁▅█" in screen.getvalue()
