import json
import logging
import os
import shlex
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from gymnasium import spaces
from test_checkpoint import INFO
from test_policy import OBS, make_policy
from wandb_server import wandb_server

from agent.config import Config
from agent.config_loader import flat, load_config
from agent.metrics import METRICS, Metric
from agent.training.run_dir import next_commands
from agent.training.tracking import Tracker
from agent.training.wandb_mirror import aggregates, log_comparison
from envs import UserError

REPOSITORY = Path(__file__).parents[1]
NAN, INF = float("nan"), float("inf")


def make_config(*overrides: str) -> Config:
    return load_config(None, ["env.id=CartPole-v1", *overrides])


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test may find the login, or the settings, of whoever runs it."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("NETRC", str(home / ".netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """Stands in for the module; no login is found."""
    module = MagicMock()
    module.login.return_value = False
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "my-run"
    path.mkdir()
    return path


def read_lines(run_dir: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def points(wandb: MagicMock) -> list[dict[str, float]]:
    """What was logged, step by step."""
    calls = wandb.init.return_value.log.call_args_list
    assert all(len(call.args) == 1 for call in calls)
    assert [call.kwargs for call in calls] in ([{"step": i} for i in range(len(calls))], [{}] * len(calls))
    return [call.args[0] for call in calls]


def test_every_metric_says_formula_unit_and_meaning() -> None:
    assert all(metric.formula and metric.unit and metric.meaning for metric in METRICS.values())


def test_each_member_gets_a_line_that_can_be_read_at_once(run_dir: Path) -> None:
    with Tracker(run_dir, make_config("seeds=2", "wandb.mode=disabled")) as tracker:
        tracker.write(100, [{"critic/loss": 1.5}, {"critic/loss": 2.5, "alpha/value": 0.1}])
        assert read_lines(run_dir) == [
            {"env_steps": 100, "member": 0, "critic/loss": 1.5},
            {"env_steps": 100, "member": 1, "critic/loss": 2.5, "alpha/value": 0.1},
        ]
        tracker.write(200, [{"critic/q": np.float32(0.5)}, {}])
        lines = read_lines(run_dir)[2:]
    assert lines == [{"env_steps": 200, "member": 0, "critic/q": 0.5}]  # nothing to say of the second


def test_what_json_cannot_hold_becomes_null(run_dir: Path) -> None:
    with Tracker(run_dir, make_config("wandb.mode=disabled")) as tracker:
        tracker.write(1, [{"critic/loss": INF, "critic/q": NAN, "actor/loss": -INF}])
    (line,) = read_lines(run_dir)
    assert [line[name] for name in ("critic/loss", "critic/q", "actor/loss")] == [None] * 3


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([{"critic/loss": 1.0}, {"critic/lose": 1.0}], r"no metrics are declared with the names \['critic/lose'\]"),
        ([{"critic/loss": 1.0}], "expected 2 rows, one per member, got 1"),
    ],
)
def test_our_own_mistakes_are_refused(rows: list[dict[str, float]], error: str, run_dir: Path) -> None:
    with Tracker(run_dir, make_config("seeds=2", "wandb.mode=disabled")) as tracker:
        with pytest.raises(AssertionError, match=error):
            tracker.write(1, rows)
    assert read_lines(run_dir) == []


def test_metrics_of_an_algorithm_of_your_own_can_be_declared(run_dir: Path) -> None:
    own = METRICS | {"my/loss": Metric("mean of it", "1", "of my algorithm")}
    with Tracker(run_dir, make_config("wandb.mode=disabled"), metrics=own) as tracker:
        tracker.write(1, [{"my/loss": 1.0, "critic/loss": 2.0}])
    (line,) = read_lines(run_dir)
    assert (line["my/loss"], line["critic/loss"]) == (1.0, 2.0)


def test_wandb_is_told_what_the_run_is(run_dir: Path, wandb: MagicMock) -> None:
    config = make_config("wandb.mode=offline", "wandb.tags=[a, b]", "wandb.project=p", "algorithm=reinforce")
    Tracker(run_dir, config).close()
    expected = {
        "project": "p",
        "group": "CartPole-v1",
        "name": "my-run",
        "job_type": "reinforce",
        "tags": ["a", "b"],
        "config": config.model_dump(),
        "dir": run_dir,
        "mode": "offline",
    }
    told = wandb.init.call_args.kwargs
    assert {key: told[key] for key in expected} == expected
    assert "monitor_gym" not in told
    settings = wandb.Settings.call_args.kwargs
    assert settings["console"] == "off" and settings["finish_timeout"] > 0 and settings["finish_timeout_raises"]
    wandb.init.return_value.define_metric.assert_called_once_with("*", step_metric="env_steps")


@pytest.mark.parametrize(
    ("mode", "step", "told"),
    [
        ("online", 7, {"resume_from": "abc?_step=6"}),  # the last that the checkpoint knows of
        ("online", 0, {"id": "abc", "resume": "allow"}),
        ("offline", 7, {"id": "abc", "resume": "allow"}),
    ],
)
def test_wandb_run_goes_on_under_its_id_without_what_came_after_the_checkpoint(
    run_dir: Path, wandb: MagicMock, mode: str, step: int, told: dict[str, str]
) -> None:
    wandb.login.return_value = True
    resumed = INFO.model_copy(update={"wandb_id": "abc", "wandb_step": step})
    Tracker(run_dir, make_config(f"wandb.mode={mode}"), resumed).close()
    arguments = wandb.init.call_args.kwargs
    assert {key: arguments.get(key) for key in ("resume_from", "id", "resume")} == {
        key: told.get(key) for key in ("resume_from", "id", "resume")
    }


def test_position_is_where_the_record_stands(run_dir: Path, wandb: MagicMock) -> None:
    wandb.init.return_value.id = "abc"
    with Tracker(run_dir, make_config("wandb.mode=offline")) as tracker:
        tracker.write(1, [{"critic/q": 1.0}])
        assert tracker.wandb.position() == ("abc", 1)
        assert tracker.num_bytes() == (run_dir / "metrics.jsonl").stat().st_size > 0
    with Tracker(run_dir, make_config("wandb.mode=disabled")) as tracker:
        assert tracker.wandb.position() == (None, 0)


def test_a_resumed_record_is_cut_to_what_the_checkpoint_knows(run_dir: Path) -> None:
    metrics, config = run_dir / "metrics.jsonl", make_config("wandb.mode=disabled")
    metrics.write_text("known\nlater\n")
    Tracker(run_dir, config, INFO.model_copy(update={"metrics_bytes": 6})).close()
    assert metrics.read_text() == "known\n"


def test_the_position_after_a_cut_is_the_new_end(run_dir: Path) -> None:
    (run_dir / "metrics.jsonl").write_text("known\nlater\n")
    with Tracker(run_dir, make_config("wandb.mode=disabled"), INFO.model_copy(update={"metrics_bytes": 6})) as tracker:
        assert tracker.num_bytes() == 6


def test_wandb_group_and_name_can_be_set(run_dir: Path, wandb: MagicMock) -> None:
    Tracker(run_dir, make_config("wandb.mode=offline", "wandb.group=g", "wandb.name=n")).close()
    assert [wandb.init.call_args.kwargs[key] for key in ("group", "name")] == ["g", "n"]


def test_wandb_shows_one_member_under_plain_names(run_dir: Path, wandb: MagicMock) -> None:
    with Tracker(run_dir, make_config()) as tracker:
        tracker.write(7, [{"critic/loss": 1.0, "eval/return_greedy": 3.0}])
    assert points(wandb) == [{"env_steps": 7, "critic/loss": 1.0, "eval/return_greedy": 3.0}]


@pytest.fixture
def wandb_runs(wandb: MagicMock) -> list[MagicMock]:
    """The W&B runs in the order of their start, each of its own id."""
    runs: list[MagicMock] = []

    def init(**arguments: Any) -> MagicMock:
        run = MagicMock(id=arguments.get("id", "pop"), offline=True)
        run.told = arguments
        runs.append(run)
        return run

    wandb.init.side_effect = init
    return runs


def logged(run: MagicMock) -> list[tuple[int, dict[str, float]]]:
    return [(call.kwargs["step"], call.args[0]) for call in run.log.call_args_list]


def test_members_have_wandb_runs_of_their_own_and_the_population_one(
    run_dir: Path, wandb_runs: list[MagicMock]
) -> None:
    name = "eval/return_greedy"
    config = make_config("seed=5", "seeds=2", "sweep={tau.start: [2.0, 1.0]}")
    with Tracker(run_dir, config) as tracker:
        tracker.write(7, [{"critic/loss": 1.0, name: 2.0}, {"critic/loss": 3.0}, {name: 6.0}, {}])
        tracker.write(8, [{"train/episode_return": value} for value in (1.0, 4.0, 4.0, 3.0)])
        tracker.summarize([{"eval/final_return_greedy": value} for value in (1.0, 2.0, 3.0, 4.0)])
    population, *members = wandb_runs
    assert [run.told["id"] for run in members] == ["pop-0", "pop-1", "pop-2", "pop-3"]
    assert {run.told["group"] for run in wandb_runs} == {"my-run"}
    assert [run.told["job_type"] for run in wandb_runs] == ["population", *["gumbel_actor_critic"] * 4]
    own = [run.told["config"] for run in members]
    assert [(c["seed"], c["tau"]["start"], c["member"]) for c in own] == [(5, 2, 0), (6, 2, 1), (5, 1, 2), (6, 1, 3)]
    assert all("sweep" not in c and c["seeds"] == 1 for c in own)
    assert [logged(run) for run in members[2:]] == [
        [(0, {"env_steps": 7, name: 6.0}), (1, {"env_steps": 8, "train/episode_return": 4.0})],
        [(1, {"env_steps": 8, "train/episode_return": 3.0})],  # it had nothing to say before
    ]
    first, second = (row for _, row in logged(population))
    assert first["critic/loss"] == 2.0 and [first[f"{name}{end}"] for end in ("", "_min", "_max")] == [4.0, 2.0, 6.0]
    low, high = (second[f"train/episode_return_{end}"] for end in ("low", "high"))
    assert 1.0 < low < second["train/episode_return"] == 3.0 < high <= 4.0
    (told,) = population.summary.update.call_args.args
    assert told["eval/final_return_greedy"] == 2.5
    members[3].summary.update.assert_called_once_with({"eval/final_return_greedy": 4.0})
    assert all(run.finish.called for run in wandb_runs)


@pytest.mark.parametrize(("seeds", "variable"), [(17, ""), (3, "WANDB_SWEEP_ID"), (3, "WANDB_RUN_ID")])
def test_many_members_and_those_of_a_wandb_sweep_share_one_run(
    seeds: int, variable: str, run_dir: Path, wandb_runs: list[MagicMock], monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv(variable, "x")
    with Tracker(run_dir, make_config(f"seeds={seeds}")) as tracker:
        tracker.write(7, [{"critic/loss": float(i)} for i in range(seeds)])
    (run,) = wandb_runs
    assert run.told["group"] == "CartPole-v1" and run.told["job_type"] == "gumbel_actor_critic"
    assert logged(run) == [(0, {"env_steps": 7, "critic/loss": (seeds - 1) / 2})]


def test_wandb_runs_of_members_resume_under_their_ids(run_dir: Path, wandb_runs: list[MagicMock]) -> None:
    resumed = INFO.model_copy(update={"wandb_id": "abc", "wandb_step": 7})
    with Tracker(run_dir, make_config("seeds=2", "wandb.mode=offline"), resumed) as tracker:
        tracker.write(1, [{"critic/loss": 1.0}, {"critic/loss": 2.0}])
    assert [run.told["id"] for run in wandb_runs] == ["abc", "abc-0", "abc-1"]
    assert [[step for step, _ in logged(run)] for run in wandb_runs] == [[7]] * 3


def test_aggregates_leave_nan_out() -> None:
    rows = [{"critic/loss": NAN, "critic/q": NAN}, {"critic/loss": 3.0, "critic/q": NAN}]
    assert aggregates(rows) == {"critic/loss": 3.0}


@pytest.mark.parametrize("what", ["policy", "video"])
def test_policy_and_video_are_uploaded(what: str, run_dir: Path, wandb: MagicMock) -> None:
    wandb.init.return_value.id = "abc"
    policy = run_dir / "policy"
    (policy / "best").mkdir(parents=True)
    (policy / "best" / "policy.json").touch()
    with Tracker(run_dir, make_config()) as tracker:
        if what == "policy":
            tracker.wandb.log_policy(policy, "policy")
        else:
            tracker.wandb.log_video(run_dir / "x.mp4")
    if what == "policy":
        wandb.Artifact.assert_called_once_with("policy-abc", type="model")
        file = str(policy / "best" / "policy.json")
        wandb.Artifact.return_value.add_file.assert_called_once_with(file, name="best/policy.json")
        wandb.init.return_value.log_artifact.assert_called_once_with(wandb.Artifact.return_value)
    else:
        wandb.Video.assert_called_once_with(str(run_dir / "x.mp4"), format="mp4")
        assert points(wandb) == [{"video": wandb.Video.return_value}]


@pytest.mark.parametrize(
    ("configured", "environment", "has_login", "expected"),
    [
        ("auto", "", True, "online"),
        ("auto", "", False, "offline"),
        ("auto", "offline", True, "offline"),
        ("auto", "online", True, "online"),
        ("auto", "disabled", True, "no run"),
        ("auto", "nonsense", True, "no run"),
        ("offline", "online", True, "offline"),
        ("online", "disabled", True, "online"),
        ("online", "", False, "no run"),
        ("disabled", "online", True, "no run"),
    ],
)
def test_mode_follows_config_then_environment_then_login(
    configured: str, environment: str, has_login: bool, expected: str, run_dir: Path, wandb: MagicMock, monkeypatch: Any
) -> None:
    wandb.login.return_value = has_login
    monkeypatch.setenv("WANDB_MODE", environment)
    Tracker(run_dir, make_config(f"wandb.mode={configured}")).close()
    assert (wandb.init.call_args.kwargs["mode"] if wandb.init.called else "no run") == expected


def test_disabled_does_not_even_import_wandb(run_dir: Path, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # makes the import fail
    Tracker(run_dir, make_config("wandb.mode=disabled")).close()
    assert not caplog.records


BREAK: dict[str, Callable[[MagicMock, Any], Any]] = {
    "no wandb": lambda wandb, monkeypatch: monkeypatch.setitem(sys.modules, "wandb", None),
    "no login though online": lambda wandb, monkeypatch: monkeypatch.setenv("WANDB_MODE", "online"),
    "login": lambda wandb, monkeypatch: wandb.configure_mock(**{"login.side_effect": RuntimeError("no\nway")}),
    "init": lambda wandb, monkeypatch: wandb.configure_mock(**{"init.side_effect": RuntimeError("no\nway")}),
    "log": lambda wandb, monkeypatch: wandb.init.return_value.configure_mock(**{"log.side_effect": OSError("no\nway")}),
    "finish": lambda wandb, monkeypatch: wandb.init.return_value.configure_mock(**{"finish.side_effect": OSError}),
}


@pytest.mark.parametrize("broken", BREAK)
def test_a_failing_wandb_costs_one_warning_and_nothing_else(
    broken: str, run_dir: Path, wandb: MagicMock, monkeypatch: Any, caplog: Any
) -> None:
    BREAK[broken](wandb, monkeypatch)
    with Tracker(run_dir, make_config()) as tracker:
        tracker.write(1, [{"critic/loss": 1.0}])
        tracker.write(2, [{"critic/loss": 2.0}])
    assert [line["critic/loss"] for line in read_lines(run_dir)] == [1.0, 2.0]
    (warning,) = caplog.records
    told = "W&B has not got all of this run; wandb sync " if broken == "finish" else "W&B is off"
    assert warning.levelno == logging.WARNING and warning.getMessage().startswith(told)
    assert "\n" not in warning.getMessage()
    assert wandb.init.return_value.finish.called == (broken == "finish")


def test_without_network_the_run_is_recorded_offline_and_that_is_said_once(
    run_dir: Path, wandb: MagicMock, caplog: Any
) -> None:
    wandb.login.return_value = True
    offline = wandb.init.return_value
    wandb.init.side_effect = [RuntimeError("timed\nout"), offline]
    with Tracker(
        run_dir, make_config("wandb.mode=online"), INFO.model_copy(update={"wandb_id": "abc", "wandb_step": 7})
    ) as tracker:
        tracker.write(1, [{"critic/loss": 1.0}])
    assert [call.kwargs["mode"] for call in wandb.init.call_args_list] == ["online", "offline"]
    assert wandb.init.call_args.kwargs["id"] == "abc" and wandb.Settings.call_args.kwargs["init_timeout"] <= 20
    offline.log.assert_called_once_with({"env_steps": 1, "critic/loss": 1.0}, step=7)
    (warning,) = caplog.records
    assert warning.getMessage().startswith(
        "W&B cannot be reached, the run is recorded offline: RuntimeError: timed out"
    )


def test_final_returns_are_in_the_summary(run_dir: Path, wandb: MagicMock) -> None:
    with Tracker(run_dir, make_config()) as tracker:
        tracker.summarize([{"eval/final_return_greedy": 1.0}])
    wandb.init.return_value.summary.update.assert_called_once_with({"eval/final_return_greedy": 1.0})


@pytest.mark.parametrize("what", ["run", "run/metrics.jsonl"])
def test_a_folder_that_is_moved_away_ends_the_record(what: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with Tracker(run_dir, make_config("wandb.mode=disabled")) as tracker:
        tracker.write(1, [{"critic/loss": 1.0}])
        (tmp_path / what).rename(tmp_path / "elsewhere")
        with pytest.raises(UserError, match=f"{run_dir} was moved or removed .* .*train.py --resume {run_dir}"):
            tracker.write(2, [{"critic/loss": 1.0}])
        run_dir.mkdir(exist_ok=True)
        (run_dir / "metrics.jsonl").touch()  # another's
        with pytest.raises(UserError, match="was moved"):
            tracker.require_in_place()


@pytest.mark.parametrize(("error", "exit_code"), [(None, 0), (KeyboardInterrupt, 1)])
def test_wandb_learns_once_how_the_run_ended(error: Any, exit_code: int, run_dir: Path, wandb: MagicMock) -> None:
    try:
        with Tracker(run_dir, make_config()) as tracker:
            if error:
                raise error
            tracker.close()
    except KeyboardInterrupt:
        pass
    wandb.init.return_value.finish.assert_called_once_with(exit_code=exit_code)


TABLES = {"results": [{"label": "a", "final_iqm": 1.0}, {"label": "b", "final_iqm": 2.0}]}


def test_comparison_is_logged_as_tables_and_figures(run_dir: Path, wandb: MagicMock) -> None:
    config = flat(make_config("wandb.mode=offline", "wandb.project=p", "wandb.name=of the run").model_dump())
    log_comparison(run_dir, config, TABLES, [run_dir / "tau.png"])
    told = wandb.init.call_args.kwargs
    assert {key: told[key] for key in ("project", "group", "name", "job_type", "mode")} == {
        "project": "p", "group": "CartPole-v1", "name": "my-run", "job_type": "comparison", "mode": "offline",
    }  # fmt: skip
    wandb.Table.assert_called_once_with(columns=["label", "final_iqm"], data=[["a", 1.0], ["b", 2.0]])
    wandb.Image.assert_called_once_with(str(run_dir / "tau.png"))
    assert [list(point) for point in points(wandb)] == [["comparison/results"], ["comparison/tau"]]
    wandb.init.return_value.finish.assert_called_once_with()


def test_comparison_needs_no_wandb(run_dir: Path, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # makes the import fail
    log_comparison(run_dir, flat(make_config("wandb.mode=disabled").model_dump()), TABLES, [])
    assert not caplog.records


def test_wandb_that_fails_costs_a_comparison_one_warning(run_dir: Path, wandb: MagicMock, caplog: Any) -> None:
    wandb.init.return_value.log.side_effect = RuntimeError("no\nway")
    log_comparison(run_dir, flat(make_config().model_dump()), TABLES, [])
    (warning,) = caplog.records
    assert warning.getMessage().startswith("W&B has not got this comparison") and "\n" not in warning.getMessage()


@pytest.mark.slow
def test_offline_run_lies_in_the_run_folder_with_its_history(run_dir: Path, caplog: Any, capfd: Any) -> None:
    wandb = pytest.importorskip("wandb")
    with Tracker(run_dir, make_config("seeds=2", "wandb.mode=offline")) as tracker:
        tracker.write(10, [{"critic/loss": 1.0}, {"critic/loss": 3.0}])
        tracker.write(20, [{"eval/return_greedy": 4.0}, {"critic/loss": NAN}])
    wandb.teardown()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert capfd.readouterr() == ("", "")
    found = {}
    for file in run_dir.glob("wandb/offline-run-*/run-*.wandb"):
        records = list(read_records(file))
        (run,) = [record.run for record in records if record.HasField("run")][:1]
        found[run.display_name] = [
            {"/".join(item.nested_key): float(item.value_json) for item in record.history.item}
            for record in records
            if record.HasField("history")
        ]
        metrics = [record.metric for record in records if record.HasField("metric")]
        assert ("*", "env_steps") in [(metric.glob_name, metric.step_metric) for metric in metrics]
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert run.run_group == "my-run" and config["env"]["id"] == "CartPole-v1"
    assert set(found) == {"my-run", "my-run-seed0-0", "my-run-seed1-1"}
    assert {"env_steps": 10, "critic/loss": 2}.items() <= found["my-run"][0].items()
    assert found["my-run"][1]["eval/return_greedy_max"] == 4
    assert {"env_steps": 10, "critic/loss": 3}.items() <= found["my-run-seed1-1"][0].items()
    assert found["my-run-seed0-0"][1]["eval/return_greedy"] == 4


@pytest.mark.slow
def test_a_resumed_offline_run_goes_on_with_its_steps_and_wandb_sync_finds_all_of_it(run_dir: Path) -> None:
    wandb, config = pytest.importorskip("wandb"), make_config("wandb.mode=offline")
    with Tracker(run_dir, config) as tracker:
        for env_steps in (10, 20):
            tracker.write(env_steps, [{"critic/loss": 1.0}])
        wandb_id, wandb_step = tracker.wandb.position()
    resumed = INFO.model_copy(update={"wandb_id": wandb_id, "wandb_step": wandb_step, "metrics_bytes": 10})
    with Tracker(run_dir, config, resumed) as tracker:
        tracker.write(30, [{"critic/loss": 1.0}])
        tracker.summarize([{"eval/final_return_greedy": 5.0}])
    wandb.teardown()
    files = sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"))
    records = [record for file in files for record in read_records(file)]
    assert [record.history.step.num for record in records if record.HasField("history")] == [0, 1, 2]
    summary = [item.value_json for record in records for item in record.summary.update if "final_return" in str(item)]
    assert set(summary) == {"5"} or set(summary) == {"5.0"}
    printed = next_commands(run_dir, make_policy(OBS, spaces.Discrete(2)).info)[-1]
    assert printed.startswith("wandb sync ")
    patterns = shlex.split(printed)[2:]  # as a shell expands them
    folders = [str(path) for pattern in patterns for path in sorted(run_dir.parent.glob("*/wandb/offline-run-*"))]
    assert patterns == [f"{run_dir}/wandb/offline-run-*"]
    cli = [sys.executable, "-m", "wandb", "sync", "--dry-run", *folders]
    told = subprocess.run(cli, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    shown = told.stdout + told.stderr
    assert all(file.name in shown for file in files) and "Would sync 2 run" in shown, shown


@pytest.mark.slow
def test_an_online_population_uploads_a_run_for_each_member(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    code = """
from pathlib import Path
from agent.config_loader import load_config
from agent.training.tracking import Tracker
with Tracker(Path(), load_config(None, ["env.id=CartPole-v1", "seed=3", "seeds=2", "wandb.mode=online"])) as tracker:
    tracker.write(10, [{"critic/loss": 1.0}, {"critic/loss": 3.0}])
    tracker.write(20, [{"eval/return_greedy": 5.0}, {"eval/return_greedy": 7.0}])
    tracker.summarize([{"eval/final_return_greedy": 5.0}, {"eval/final_return_greedy": 7.0}])
"""
    with wandb_server() as (url, uploads):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        done = run_python(code, run_dir, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    population = min(uploads.runs, key=len)
    assert set(uploads.runs) == {population, f"{population}-0", f"{population}-1"}
    assert {run["groupName"] for run in uploads.runs.values()} == {"my-run"}
    configs = [json.loads(uploads.runs[f"{population}-{i}"]["config"]) for i in range(2)]
    assert [config["seed"]["value"] for config in configs] == [3, 4]
    history = {run_id: lines["wandb-history.jsonl"] for run_id, lines in uploads.lines.items()}
    assert [line.get("critic/loss") for line in history[population]] == [2.0, None]
    assert [line["eval/return_greedy"] for line in history[f"{population}-1"][1:]] == [7.0]
    summary = uploads.lines[f"{population}-1"]["wandb-summary.json"][-1]
    assert summary["eval/final_return_greedy"] == 7.0


def read_records(path: Path) -> Iterator[Any]:
    """Records of a .wandb file: 7 bytes, then LevelDB's log: blocks of 32 KiB of (checksum, length, type, data)."""
    parse = pytest.importorskip("wandb.proto.wandb_internal_pb2").Record.FromString
    data, position, parts, block, header = path.read_bytes(), 7, b"", 32768, struct.Struct("<IHB")
    while position + header.size <= len(data):
        if (left := block - position % block) < header.size:
            position += left  # padding
            continue
        _, length, kind = header.unpack_from(data, position)
        position += header.size + length
        parts += data[position - length : position]
        if kind in (1, 4):  # full or last
            yield parse(parts)
            parts = b""


def run_python(code: str, cwd: Path, **streams: Any) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TERM": "xterm"}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, timeout=60, **streams)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["auto", "online"])
def test_no_login_on_a_terminal_leads_to_no_prompt(mode: str, run_dir: Path) -> None:
    """Here wandb.init itself asks, and waits for an answer."""
    pty = pytest.importorskip("pty")
    pytest.importorskip("wandb")
    code = f"""
from pathlib import Path
from agent.config_loader import flat, load_config
from agent.training.tracking import Tracker
with Tracker(Path(), load_config(None, ["env.id=CartPole-v1", "wandb.mode={mode}"])) as tracker:
    tracker.write(1, [{{"critic/loss": 1.0}}])
"""
    leader, terminal = pty.openpty()
    try:
        os.write(leader, b"3\n")  # what wandb would take for an answer
        done = run_python(code, run_dir, stdin=terminal, stdout=terminal, stderr=terminal)
        shown = os.read(leader, 65536).decode().removeprefix("3\r\n")  # the terminal's echo
        os.set_blocking(terminal, False)
        assert os.read(terminal, 10) == b"3\n"  # nobody has read it
    finally:
        os.close(leader)
        os.close(terminal)
    assert done.returncode == 0 and read_lines(run_dir)[0]["critic/loss"] == 1.0
    assert shown == "" if mode == "auto" else shown.startswith("W&B is off") and shown.count("\n") == 1
    assert len(list(run_dir.glob("wandb/offline-run-*"))) == (mode == "auto")


@pytest.mark.slow
@pytest.mark.parametrize("source", ["nowhere", "environment", "netrc"])
def test_login_is_found_without_network(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", f"http://{host}")
        if source == "environment":
            monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        if source == "netrc":
            Path(os.environ["NETRC"]).write_text(f"machine {host}\n  login user\n  password {'0' * 40}\n")
        code = (
            "import wandb; from agent.training.wandb_mirror import mode_by_login; print(mode_by_login(wandb, 'auto'))"
        )
        done = run_python(code, tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has called
            server.accept()
    assert (done.stdout.strip(), done.stderr) == ("offline" if source == "nowhere" else "online", "")


@pytest.mark.slow
def test_offline_comparison_lies_in_its_folder(run_dir: Path) -> None:
    pytest.importorskip("wandb")
    code = f"""
from pathlib import Path
from agent.config_loader import flat, load_config
from agent.training.wandb_mirror import log_comparison
config = load_config(None, ["env.id=CartPole-v1", "wandb.mode=offline"])
log_comparison(Path(), flat(config.model_dump()), {TABLES}, [])
"""
    done = run_python(code, run_dir, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")
    (table,) = run_dir.glob("wandb/offline-run-*/files/media/table/comparison/results_*.table.json")
    assert json.loads(table.read_text())["data"] == [["a", 1.0], ["b", 2.0]]
