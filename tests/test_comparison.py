"""Comparisons of runs whose numbers are known."""

import io
import json
from pathlib import Path

import pytest
from fake_runs import compare_runs, fake_run
from rich.console import Console

from agent import compare, config_loader
from agent.analysis.entries import arrange, load_runs
from agent.analysis.tables import notes, pairs_table, summary_table
from envs import UserError


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
    assert (first.better, first.probability_of_improvement) == ("Actor-critic", 1.0)
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
        ("tau.start=2", 2, 2.0),
        ("tau.start=0.5", 1, 5.0),
    ]


def test_swept_pairs_are_told_apart(tmp_path: Path) -> None:
    sweep = [{"noise_persistence": value} for value in ([0.5, 0.95], 0.5, [0.5, 0.95])]
    run = fake_run(tmp_path / "sweep", "gumbel_actor_critic", [[0, 0, 1], [0, 0, 3], [0, 0, 5]], sweep=sweep)
    summaries = compare(run).summaries
    assert [(s.label, s.num_seeds) for s in summaries] == [
        ("noise_persistence=[0.5, 0.95]", 2),
        ("noise_persistence=0.5", 1),
    ]


def test_a_run_with_old_keys_is_pooled_with_one_with_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(config_loader, "told", set())
    old_sweep, sweep = ([{"noise_persistence": value}] * 2 for value in (0.7, [0.7, 0.95]))
    runs = [
        fake_run(tmp_path / name, "gumbel_actor_critic", [[0, 0, 1]] * 2, sweep=own, settings=text, first_seed=seed)
        for name, seed, own, text in (
            ("old", 0, old_sweep, "sweep: {noise_persistence: [0.7]}\nnoise_persistence_max: 0.95"),
            ("older", 2, old_sweep, "sweep: {noise_persistence: [0.7]}\nnoise_persistence_max: 0.95"),
            ("new", 4, sweep, "sweep: {noise_persistence: [[0.7, 0.95]]}"),
        )
    ]
    (entry,) = compare(*runs).entries
    assert (entry.seeds, entry.config["noise_persistence"]) == ([0, 1, 2, 3, 4, 5], [0.7, 0.95])
    assert len(caplog.records) == 1  # not one for each of many runs


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(UserError, match="compare: got no run, must be the folders of finished runs"):
        compare()


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


def test_all_statistics_of_an_entry_by_hand(runs: list[Path]) -> None:
    good, bad = compare_runs(runs).summaries
    assert (good.final_mean, bad.final_mean) == (90.0, 30.0)
    assert (good.final_mean_interval.low, good.final_mean_interval.high) == (80.0, 100.0)
    assert bad.final_median == 20.0 and bad.final_median_interval == (10.0, 60.0)
    assert (good.optimality_gap, good.optimality_gap_interval) == (0.0, (0.0, 0.0))
    assert bad.optimality_gap == pytest.approx((30 + 40 + 0) / 3)


def test_without_a_threshold_there_is_no_optimality_gap(tmp_path: Path) -> None:
    (summary,) = compare_runs([fake_run(tmp_path / "run", "reinforce", [[0, 0, 1]], settings="")]).summaries
    assert summary.optimality_gap is summary.optimality_gap_interval is summary.steps_to_reach is None


def test_thresholds_that_disagree_are_none(tmp_path: Path) -> None:
    runs = [
        fake_run(tmp_path / algorithm, algorithm, [[0, 0, 1]], settings=f"return_threshold: {threshold}")
        for algorithm, threshold in (("reinforce", 1), ("gumbel_actor_critic", 2))
    ]
    assert compare_runs(runs).threshold is None


def test_difference_is_marked_against_the_best_only_where_its_interval_excludes_zero(tmp_path: Path) -> None:
    best, close, far = (
        fake_run(tmp_path / name, "reinforce", [[0, 0, base + x] for x in range(5)], settings=f"gamma: {gamma}")
        for name, base, gamma in (("best", 10, 0.9), ("close", 9, 0.8), ("far", 0, 0.7))
    )
    comparison = compare_runs([close, far, best])
    assert comparison.best.label == "gamma=0.9" and comparison.against_best("gamma=0.9") is None
    marked = [(p := comparison.against_best(label)) and p.final_differs for label in ("gamma=0.8", "gamma=0.7")]
    assert marked == [False, True]
    column = list(summary_table(comparison).columns[2].cells)
    assert [str(cell).endswith("*") for cell in column] == [False, True, False]
    assert "* differs from gamma=0.9" in notes(comparison)[0]


def test_one_seed_is_never_tested(tmp_path: Path) -> None:
    """Its bootstrap interval is a point, which excludes zero wherever two runs are not equal."""
    runs = [fake_run(tmp_path / a, a, [[0, 0, x]]) for a, x in (("reinforce", 1), ("gumbel_actor_critic", 9))]
    pair = compare_runs(runs).pairs[0]
    assert pair.final_difference_interval.excludes_zero and (pair.final_differs, pair.area_differs) == (None, None)


def test_few_seeds_come_with_a_warning(runs: list[Path]) -> None:
    assert any("fewer than 5 seeds: no test of significance" in line for line in notes(compare_runs(runs)))


def test_episodes_that_were_cut_are_told(tmp_path: Path) -> None:
    runs = [fake_run(tmp_path / name, name, [[1, 2, 3]]) for name in ("gumbel_actor_critic", "reinforce")]
    assert not any("cut" in line for line in notes(compare_runs(runs)))
    result = json.loads((runs[1] / "result.json").read_text())
    result["members"][0]["greedy"]["cut"] = 7
    (runs[1] / "result.json").write_text(json.dumps(result))
    told = "REINFORCE: 7 episodes at the end were cut (evaluation.max_episode_steps)"
    assert told in notes(compare_runs(runs))


def test_runs_that_differ_in_their_seeds_only_are_pooled(tmp_path: Path) -> None:
    runs = [fake_run(tmp_path / str(seed), "reinforce", [[0, 0, seed]], first_seed=seed) for seed in range(3)]
    (entry,) = compare_runs(runs).entries
    assert (entry.label, entry.seeds, entry.final_returns.tolist()) == ("REINFORCE", [0, 1, 2], [0.0, 1.0, 2.0])
    assert entry.wall_seconds == 36.0


def test_the_same_seed_twice_is_no_replication(tmp_path: Path) -> None:
    runs = [fake_run(tmp_path / name, "reinforce", [[0, 0, 1]]) for name in ("before", "after")]
    assert [entry.label for entry in compare_runs(runs).entries] == ["before", "after"]


def test_a_run_named_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fake_run(tmp_path / "run", "reinforce", [[0, 0, 1]])
    monkeypatch.chdir(tmp_path)
    assert [entry.seeds for entry in compare_runs([run, Path("run")]).entries] == [[0]]


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        (["gamma: 0.9", "gamma: 0.8"], ["gamma=0.9", "gamma=0.8"]),
        (["estimator: {name: exact}", ""], ["exact", "straight_through_gumbel_softmax"]),
        (["hidden_sizes: [8]", "hidden_sizes: [8, 8]"], ["hidden_sizes=[8]", "hidden_sizes=[8, 8]"]),
        (["{gamma: 0.9, n_step: 1, batch_size: 1, total_env_steps: 1}", ""], ["first", "second"]),
        (["wandb: {mode: disabled}\ndevice: cpu", ""], ["first", "second"]),
    ],
    ids=["one setting", "estimator", "list", "too many: the name", "nothing learned differs: the name"],
)
def test_entries_are_labelled_by_what_differs(settings: list[str], labels: list[str], tmp_path: Path) -> None:
    as_lines = [text.strip("{}").replace(", ", "\n") if text.startswith("{") else text for text in settings]
    runs = [
        fake_run(tmp_path / name, "gumbel_actor_critic", [[0, 0, 1]], settings=text)
        for name, text in zip(("first", "second"), as_lines, strict=True)
    ]
    assert [entry.label for entry in compare_runs(runs).entries] == labels


def test_members_that_differ_in_nothing_read_are_told_apart(tmp_path: Path) -> None:
    sweep = [{"tau.start": tau} for tau in (2.0, 1.0)]
    run = fake_run(tmp_path / "r", "reinforce", [[1.0] * 3, [2.0] * 3], sweep=sweep)
    result = (run / "result.json").read_text()
    (run / "result.json").write_text(result.replace('"seed": 1', '"seed": 0'))
    other = fake_run(tmp_path / "a", "gumbel_actor_critic", [[1.0] * 3])
    labels = [entry.label for entry in arrange(load_runs({run: "r", other: "a"}))]
    assert labels == [f"REINFORCE {run} member 0", f"REINFORCE {run} member 1", f"Actor-critic {other} member 0"]


def test_a_setting_that_an_algorithm_does_not_read_is_not_in_its_label(tmp_path: Path) -> None:
    exact = fake_run(tmp_path / "a", "gumbel_actor_critic", [[0, 0, 1]], settings="estimator: {name: exact}")
    default = fake_run(tmp_path / "b", "gumbel_actor_critic", [[0, 0, 1]])
    labels = [
        e.label for e in compare_runs([exact, default, fake_run(tmp_path / "c", "reinforce", [[0, 0, 1]])]).entries
    ]
    assert labels[0] == "Actor-critic exact" and labels[2] == "REINFORCE"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not the result of a run"),
        ("{", "not the result of a run"),
        ('{"env_id": 1}', "env_id"),
        ('{"env_id": "x", "env_steps": 1, "wall_seconds": 1, "members": []}', "members"),
    ],
)
def test_broken_result_is_named_with_what_to_do(text: str, message: str, tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", "reinforce", [[0, 0, 1]])
    (run / "result.json").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        compare_runs([run])
    assert str(run / "result.json") in str(error.value) and "remove the file" in str(error.value)


def test_versions_of_a_run_are_read(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", "reinforce", [[0, 0, 1]])
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"versions": {"torch": "2.0"}}))
    assert compare_runs([run]).entries[0].runs[0].versions == {"torch": "2.0"}


def test_labels_do_not_break_within_a_word(tmp_path: Path) -> None:
    sweep = [{"tau.start": tau} for tau in (2.0, 0.25)]
    run = fake_run(tmp_path / "r", "gumbel_actor_critic", [[-1234.5] * 3, [1234.5] * 3], sweep=sweep)
    output = Console(width=80, file=io.StringIO(), record=True)
    comparison = compare_runs([run])
    for table in (summary_table(comparison), pairs_table(comparison)):
        output.print(table)
    assert output.export_text().count("tau.start=0.25 ") >= 2
