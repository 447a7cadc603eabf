"""Comparisons of runs whose numbers are known."""

import csv
import json
from pathlib import Path

import pytest

from agent.analysis.comparison import compare_runs, name_of, plan, set_aside, train_missing, write
from agent.analysis.tables import pairs_table, summary_table
from agent.config import Config
from envs import UserError

STEPS = (100, 200, 300)


def fake_run(
    folder: Path, algorithm: str, curves: list[list[float]], env_id: str = "CartPole-v1", sweep: list | None = None
) -> Path:
    """A finished run: member i evaluated at STEPS with curves[i], the last of them being its final return."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"algorithm: {algorithm}\nenv: {{id: {env_id}}}\nreturn_threshold: 50\n")
    rows = [
        {"env_steps": step, "member": i, "eval/return_greedy": float(curve[k])}
        for k, step in enumerate(STEPS)
        for i, curve in enumerate(curves)
    ]
    lines = [json.dumps(row) for row in rows] + ['{"env_steps": 300, "member": 0, "actor/entropy": 1.0}', '{"env_st']
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    members = [
        {"member": i, "seed": i, "settings": sweep[i] if sweep else {}, "greedy": {"mean": float(curve[-1])}}
        for i, curve in enumerate(curves)
    ]
    result = {"env_id": env_id, "env_steps": 300, "wall_seconds": 12.0, "members": members}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    good = fake_run(tmp_path / "good", "gumbel_actor_critic", [[0.0, 60.0, 100.0], [0.0, 40.0, 90.0], [60, 60, 80]])
    bad = fake_run(tmp_path / "bad", "reinforce", [[0.0, 10.0, 20.0], [0.0, 0.0, 10.0], [0.0, 0.0, 60.0]])
    return [good, bad]


def test_figures_by_hand(runs: list[Path]) -> None:
    comparison = compare_runs(runs)
    good, bad = comparison.summaries
    assert (good.final_iqm, good.final_worst, good.final_median) == (90.0, 80.0, 90.0)
    assert good.area == pytest.approx((55 + 42.5 + 65) / 3)
    assert (good.num_reached, good.steps_to_reach, good.steps_to_hold) == (3, 200.0, float("inf"))
    assert (bad.num_reached, bad.steps_to_reach) == (1, float("inf"))
    first, second = comparison.pairs
    assert (first.better, first.probability_of_improvement) == ("gumbel_actor_critic", 1.0)
    assert first.final_difference == -second.final_difference == pytest.approx(60.0)
    assert first.final_difference_interval.low > 0 > second.final_difference_interval.high


def test_equal_runs_are_not_marked_as_different(tmp_path: Path) -> None:
    curves = [[0.0, 1.0, float(x)] for x in (3, 5, 9, 4)]
    pair = compare_runs([fake_run(tmp_path / str(i), f"a{i}", curves) for i in range(2)]).pairs[0]
    assert pair.final_difference_interval.low < 0 < pair.final_difference_interval.high
    assert pair.probability_of_improvement == 0.5


def test_swept_settings_are_told_apart(tmp_path: Path) -> None:
    sweep = [{"tau.start": 2.0}, {"tau.start": 2.0}, {"tau.start": 0.5}]
    run = fake_run(tmp_path / "sweep", "gumbel_actor_critic", [[0, 0, 1], [0, 0, 3], [0, 0, 5]], sweep=sweep)
    summaries = compare_runs([run]).summaries
    assert [(s.label, s.num_seeds, s.final_iqm) for s in summaries] == [
        ("gumbel_actor_critic tau.start=2", 2, 2.0),
        ("gumbel_actor_critic tau.start=0.5", 1, 5.0),
    ]


def test_everything_is_written(runs: list[Path], tmp_path: Path) -> None:
    comparison = compare_runs(runs)
    write(comparison, tmp_path / "out", "python compare.py …")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["command"] == "python compare.py …"
    assert results["entries"][0]["final_returns"] == [100.0, 90.0, 80.0]
    assert results["entries"][1]["steps_to_reach"] is None  # infinity is no JSON
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["gumbel_actor_critic", "reinforce"]
    assert float(rows[0]["final_interval_low"]) == 80.0
    assert (tmp_path / "out" / "learning_curves.png").read_bytes().startswith(b"\x89PNG")


def test_tables_have_a_row_per_entry_and_per_pair(runs: list[Path]) -> None:
    comparison = compare_runs(runs)
    assert summary_table(comparison).row_count == 2
    assert pairs_table(comparison).row_count == 1


def test_runs_of_different_environments_are_refused(runs: list[Path], tmp_path: Path) -> None:
    other = fake_run(tmp_path / "other", "reinforce", [[0, 0, 1]], env_id="Acrobot-v1")
    with pytest.raises(UserError, match="only runs of one environment can be compared"):
        compare_runs([*runs, other])


def test_unfinished_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=r"no result\.json"):
        compare_runs([tmp_path / "run"])


def test_plan_gives_each_configuration_a_folder_of_its_own() -> None:
    both = plan("configs/cartpole.yaml", ["gumbel_actor_critic", "reinforce"], 3, ["wandb.mode=disabled"])
    again = plan("configs/cartpole.yaml", ["gumbel_actor_critic"], 3, ["wandb.mode=disabled"])
    changed = plan("configs/cartpole.yaml", ["gumbel_actor_critic"], 3, ["wandb.mode=disabled", "gamma=0.9"])
    assert [c.seeds for c in both] == [3, 3] and [c.algorithm for c in both] == ["gumbel_actor_critic", "reinforce"]
    assert both[0].run_dir == again[0].run_dir
    assert len({both[0].run_dir, both[1].run_dir, changed[0].run_dir}) == 3


@pytest.mark.parametrize(
    ("path", "name"), [("configs/cartpole.yaml", "cartpole"), ("runs/x/config.yaml", "x"), ("runs/x", "x")]
)
def test_comparison_is_named_after_its_first_input(path: str, name: str) -> None:
    assert name_of(path) == name


def test_only_missing_runs_are_trained_and_unfinished_ones_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = plan("configs/cartpole.yaml", ["gumbel_actor_critic", "reinforce"], 1, [])
    monkeypatch.chdir(tmp_path)
    done, broken = (Path(str(config.run_dir)) for config in configs)
    done.mkdir(parents=True)
    (done / "result.json").touch()
    broken.mkdir(parents=True)
    (broken / "config.yaml").touch()
    trained: list[Config] = []

    def train(config: Config) -> Path:
        trained.append(config)
        return Path(str(config.run_dir))

    train_missing(configs, train, lambda text: None)
    assert [config.algorithm for config in trained] == ["reinforce"]
    assert not broken.exists() and (tmp_path / f"{broken}.unfinished-1" / "config.yaml").exists()
    broken.mkdir()
    set_aside(broken)
    assert (tmp_path / f"{broken}.unfinished-2").exists()
