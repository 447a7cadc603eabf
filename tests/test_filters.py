"""Runs found by their settings."""

import re
from pathlib import Path

import pytest
from fake_runs import fake_run

from agent.analysis.filters import find, name_of, parse_term
from envs import UserError


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    fake_run(folder / "a", "reinforce", [[0, 0, 1]], settings="gamma: 0.9\ntotal_env_steps: 1000")
    fake_run(folder / "b", "gumbel_actor_critic", [[0, 0, 1]], settings="total_env_steps: 3e+3")
    fake_run(folder / "c", "gumbel_actor_critic", [[0, 0, 1]], env_id="Acrobot-v1", settings="hidden_sizes: [8]")
    sweep = [{"tau.start": 2.0}, {"tau.start": 0.5}]
    fake_run(
        folder / "d",
        "gumbel_actor_critic",
        [[0, 0, 1], [0, 0, 2]],
        sweep=sweep,
        settings="sweep: {tau.start: [2.0, 0.5]}",
    )
    return folder


def found(folder: Path, *terms: str) -> list[str]:
    entries, _ = find([parse_term(text) for text in terms], folder)
    return [entry.name for entry in entries]


@pytest.mark.parametrize(
    ("terms", "names"),
    [
        (["algorithm=reinforce"], ["a"]),
        (["algorithm!=reinforce"], ["b", "c", "d", "d"]),
        (["env.id=CartPole-v1", "algorithm=gumbel_actor_critic"], ["b", "d", "d"]),
        (["total_env_steps>=3000"], ["b", "c", "d", "d"]),
        (["total_env_steps<3000"], ["a"]),
        (["total_env_steps>1000", "total_env_steps <= 3000"], ["b"]),
        (["gamma=0.997", "env.id=Acrobot-v1"], ["c"]),
        (["hidden_sizes=[8]"], ["c"]),
        (["tau.start=2", "env.id=CartPole-v1"], ["d"]),
        (["env.kwargs.x!=1", "algorithm=reinforce"], ["a"]),
    ],
)
def test_terms_choose_runs_by_their_resolved_settings(terms: list[str], names: list[str], runs: Path) -> None:
    assert found(runs, *terms) == names


def test_pairs_are_found_also_where_a_run_has_the_old_keys(tmp_path: Path) -> None:
    fake_run(tmp_path / "new", "gumbel_actor_critic", [[0, 0, 1]], settings="n_step: [3, 1]")
    fake_run(tmp_path / "old", "gumbel_actor_critic", [[0, 0, 1]], settings="n_step_end: 1")
    fake_run(tmp_path / "one", "gumbel_actor_critic", [[0, 0, 1]], settings="n_step: 3")
    assert found(tmp_path, "n_step=[3, 1]") == ["new", "old"]
    assert found(tmp_path, "n_step=3") == found(tmp_path, "n_step>=2") == ["one"]
    with pytest.raises(UserError, match=r"n_step: \[3, 1\] \(2\), 3 \(1\); did you mean '\[3, 1\]'"):
        found(tmp_path, "n_step=[3, 2]")


def test_what_is_no_number_is_neither_more_nor_less() -> None:
    assert not parse_term("evaluation.every_env_steps>=1").holds({"evaluation.every_env_steps": None})


def test_matching_runs_that_cannot_be_compared_are_left_out_and_named(runs: Path) -> None:
    (runs / "b" / "result.json").unlink()
    (runs / "a" / "config.yaml").write_text("{")
    entries, left_out = find([parse_term("env.id=CartPole-v1")], runs)
    assert [entry.name for entry in entries] == ["d", "d"]
    assert [re.search("no result.json|not readable as YAML", why) is not None for why in left_out] == [True, True]


def test_a_filter_that_matches_nothing_lists_what_there_is(runs: Path) -> None:
    with pytest.raises(UserError) as error:
        found(runs, "env.id=CartPol-v1")
    assert "CartPole-v1 (4), Acrobot-v1 (1); did you mean 'CartPole-v1'?" in str(error.value)


def test_a_filter_without_any_runs_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which does not exist"):
        found(tmp_path / "runs", "gamma=1")


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ("algorithm", "not of the form key=value"),
        ("=reinforce", "not of the form key=value"),
        ("algoritm=reinforce", "unknown key 'algoritm'; did you mean 'algorithm'"),
        ("algorithm>=reinforce", "compares numbers, got 'reinforce'"),
        ("gamma=[", "cannot read the value"),
        ("frame_stack=4", "frame_stack was removed: the replay finds stacked frames itself"),
        ("n_step_end=1", r"n_step_end is the second number of n_step now; write n_step=\[first, second\]"),
    ],
)
def test_unreadable_terms_are_refused(term: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_term(term)


def test_name_of_a_filter_is_a_folder_name() -> None:
    assert name_of(["env.id=Tensor/CartPole-v1", "gamma>=0.9"]) == "env.id=Tensor-CartPole-v1-gamma-=0.9"
