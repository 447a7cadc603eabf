"""What a comparison writes: the figures in it, the files, and a page that stands alone."""

import base64
import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_runs import compare_runs, fake_run

from agent.analysis import gallery
from agent.analysis.comparison import Comparison
from agent.analysis.figures import FAINT, INK, PAPER
from agent.analysis.report import as_json, tables, write
from agent.analysis.tables import pairs_table, summary_table
from envs import UserError

COMMAND = "python compare.py 'a b' --seeds 3"
VERSIONS = {"project": "0.0 (commit 1234abcd)", "torch": "9.9"}
PNG = b"\x89PNG drawn by evaluate.py --gradients"
VOID = {"meta", "img", "br", "link"}


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("runs")
    good = fake_run(
        folder / "good",
        "gumbel_actor_critic",
        [[0.0, 60.0, 100.0], [0.0, 40.0, 90.0], [60, 60, 80], [0, 50, 90], [0, 50, 90]],
        metrics={
            "estimator/tau": [1.0, 0.7, 0.5],
            "actor/entropy": [0.6, 0.3, 0.1],
            "gradient/cosine_to_exact": [0.5] * 3,
        },
    )
    bad = fake_run(
        folder / "bad",
        "reinforce",
        [[0.0, 10.0, 20.0], [0.0, 0.0, 10.0], [0.0, 0.0, 60.0], [0.0, 0.0, 20.0], [0.0, 0.0, 20.0]],
        metrics={"actor/entropy": [0.6, 0.5, 0.4]},
    )
    return compare_runs([good, bad])


class Page(HTMLParser):
    """Text, references and unclosed tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.references += [str(value) for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture(scope="module")
def out(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparisons") / "new"
    write(comparison, folder, COMMAND, VERSIONS)
    return folder


@pytest.fixture
def page(out: Path) -> str:
    return (out / "report.html").read_text()


def test_everything_is_written(out: Path) -> None:
    figures = ["learning_curves", "performance_profile", "probability_of_improvement", "tau", "entropy"]
    pngs = {f"{name}.png" for name in [*figures, "gradient_cosine_to_exact"]}
    svgs = {name.replace(".png", ".svg") for name in pngs}
    assert {path.name for path in out.iterdir()} == pngs | svgs | {"report.html", "results.json", "results.csv"}
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in pngs)


def test_results_json_holds_every_figure(out: Path) -> None:
    results = json.loads((out / "results.json").read_text())
    assert (results["command"], results["versions"], results["best"]) == (COMMAND, VERSIONS, "Actor-critic")
    assert results["entries"][0]["final_returns"] == [100.0, 90.0, 80.0, 90.0, 90.0]
    assert results["entries"][1]["steps_to_reach"] is None  # infinity is no JSON
    assert [row["final_return"] for row in results["entries"][1]["by_seed"]] == [20.0, 10.0, 60.0, 20.0, 20.0]
    assert results["pairs"][0]["final_differs"] is True
    assert results["runs"][0]["command"].startswith("python train.py ")


def test_results_csv_has_a_row_per_entry(out: Path) -> None:
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["Actor-critic", "REINFORCE"]
    assert float(rows[0]["final_interval_low"]) == pytest.approx(250 / 3)
    assert float(rows[1]["optimality_gap"]) == pytest.approx(130 / 5)


def test_page_is_well_formed_and_needs_nothing_from_elsewhere(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    assert parsed.references == [] and page.count("<svg") == page.count("</svg>") == 6
    assert "http" not in re.sub(r"base64,[^\"]*", "", page) and "<script" not in page and "@import" not in page


def test_page_says_what_was_compared_with_what(page: str) -> None:
    text = Page(page).text
    for words in (COMMAND, "commit 1234abcd", "torch 9.9", "/good/config.yaml run_dir=null", "did not record"):
        assert words in text


def test_page_has_every_section(page: str) -> None:
    text = Page(page).text
    for heading in (
        "Results", "Learning curves", "Performance profile", "Probability of improvement", "Temperature τ",
        "Entropy of the policy", "Gradient: cosine to exact", "What was compared", "Every seed",
    ):  # fmt: skip
        assert heading in text


def test_page_marks_what_differs_from_the_best(page: str) -> None:
    text = Page(page).text
    assert "Actor-critic has the highest final greedy return" in text
    assert "Significantly lower (the 95 % interval of the difference excludes zero): REINFORCE." in text
    assert "* differs from Actor-critic, the best" in text


def test_commits_are_eight_digits_and_the_project_has_its_name(comparison: Comparison, tmp_path: Path) -> None:
    versions = {"project": f"0.2.0 (commit {'0123456789' * 4})"}
    write(comparison, tmp_path / "out", COMMAND, versions)
    text = Page((tmp_path / "out" / "report.html").read_text()).text
    assert "Compared with gumbel-actor-critic 0.2.0 (commit 01234567)." in text


def test_figures_take_the_colours_of_the_page(page: str) -> None:
    drawings = page[page.index("<svg") :]
    assert "var(--ink)" in drawings and "var(--paper)" in drawings
    assert not any(color in drawings for color in (INK, FAINT, PAPER))


def test_few_seeds_have_no_performance_profile(tmp_path: Path) -> None:
    runs = [fake_run(tmp_path / a, a, [[0.0, 0.0, 1.0]] * 4) for a in ("gumbel_actor_critic", "reinforce")]
    drawn = [figure.path.stem for figure in write(compare_runs(runs), tmp_path / "out", COMMAND, {})]
    assert "learning_curves" in drawn and "performance_profile" not in drawn


def test_page_has_every_seed(page: str) -> None:
    table = page[page.index("Every seed") :]
    assert table.count("<tr>") == 1 + 10


def test_page_adapts_to_phone_dark_and_print(page: str) -> None:
    for rule in ('name="viewport"', "prefers-color-scheme: dark", "@media print", "overflow-x: auto"):
        assert rule in page


def test_page_leaves_out_what_there_is_not(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", "reinforce", [[0, 0, 1], [0, 0, 2]], settings="")
    write(compare_runs([run]), tmp_path / "out", COMMAND, VERSIONS)
    text = Page((tmp_path / "out" / "report.html").read_text()).text
    assert "No optimality gap" in text and "first at threshold" not in text
    for heading in ("Temperature τ", "Gradient", "Probability of improvement", "Settings that differ"):
        assert heading not in text


def test_page_shows_the_gradient_figures_that_its_runs_have(tmp_path: Path) -> None:
    """A figure once for each run, for a sweep's entries together; runs without one are passed over."""
    plain, swept = (tmp_path / name for name in ("plain", "swept"))
    fake_run(plain, "reinforce", [[0, 0, 1]])
    fake_run(swept, "gumbel_actor_critic", [[0, 0, 1], [0, 0, 2]], sweep=[{"tau.start": 1.0}, {"tau.start": 0.5}])
    (swept / "figures").mkdir()
    (swept / "figures" / "gradients.png").write_bytes(PNG)
    write(compare_runs([plain, swept]), tmp_path / "out", COMMAND, VERSIONS)
    assert [path.name for path in (tmp_path / "out").glob("gradients_*")] == ["gradients_0.png"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count(base64.b64encode(PNG).decode()) == 1 and "Gradient estimators:" in Page(page).text


def test_whatever_a_name_holds_is_shown_as_text(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "<b>&run", "reinforce", [[0, 0, 1]], env_id="<script>x</script>")
    write(compare_runs([run]), tmp_path / "out", "<img src=x>", {"torch": "<i>"})
    page = (tmp_path / "out" / "report.html").read_text()
    for markup in ("<script>", "<img src=x>", "<i>", "<b>"):
        assert markup not in page
    assert "<script>x</script>" in Page(page).text


def test_settings_are_listed_as_differing_or_shared(tmp_path: Path) -> None:
    runs = [fake_run(tmp_path / str(g), "reinforce", [[0, 0, g]], settings=f"gamma: {g}") for g in (0.5, 0.25)]
    write(compare_runs(runs), tmp_path / "out", COMMAND, VERSIONS)
    text = Page((tmp_path / "out" / "report.html").read_text()).text
    differing, shared = text[text.index("Settings that differ") :].split("Settings that do not differ")
    shared = shared[: shared.index("Runs")]
    assert "gamma 0.5 0.25" in differing and "gamma" not in shared and "normalize_obs true" in shared


def test_a_folder_that_cannot_be_made_is_the_users_to_mend(comparison: Comparison, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot make this folder"):
        write(comparison, tmp_path / "file", COMMAND, VERSIONS)


def test_tables_are_flat(comparison: Comparison) -> None:
    named = tables(comparison)
    assert {name: len(rows) for name, rows in named.items()} == {"results": 2, "pairs": 2, "seeds": 10}
    for rows in named.values():
        assert all(isinstance(v, str | int | float | None) for row in rows for v in row.values())


def test_seeds_without_a_common_step_have_no_curve(tmp_path: Path) -> None:
    """One seed's record broke off before the other's begins."""
    first = fake_run(tmp_path / "first", "reinforce", [[0, 0, 1]])
    second = fake_run(tmp_path / "second", "reinforce", [[0, 0, 1]], first_seed=1)
    for run, step in ((first, 100), (second, 200)):
        (run / "metrics.jsonl").write_text(json.dumps({"env_steps": step, "member": 0, "eval/return_greedy": 1.0}))
    write(compare_runs([first, second]), tmp_path / "out", COMMAND, VERSIONS)
    assert not (tmp_path / "out" / "learning_curves.png").exists()


@pytest.mark.parametrize("num_seeds", [1, 2, 4])
def test_with_few_seeds_there_is_no_verdict_and_no_mark(tmp_path: Path, num_seeds: int) -> None:
    """However far apart they are; the page, its figures and results.json say why."""
    runs = [
        fake_run(tmp_path / name, name, [[0.0, 0.0, base + seed] for seed in range(num_seeds)])
        for name, base in (("gumbel_actor_critic", 100.0), ("reinforce", 0.0))
    ]
    comparison = compare_runs(runs)
    figures = write(comparison, tmp_path / "out", COMMAND, VERSIONS)
    line = "fewer than 5 seeds: no test of significance"
    text = Page((tmp_path / "out" / "report.html").read_text()).text
    assert f"No verdict: {line}." in text and " *" not in text
    assert "has the highest" not in text and "ignificant" not in text and "the best" not in text
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["best"], results["without_test"]) == (None, line)
    assert all(pair["final_differs"] is None and pair["area_differs"] is None for pair in results["pairs"])
    assert [str(cell)[-1] for cell in summary_table(comparison).columns[2].cells] == ["]", "]"]
    assert str(summary_table(comparison).caption).count(line) == 1 and pairs_table(comparison).caption is None
    assert figures and gallery.heading(comparison) == f"CartPole-v1\n{line}"


def test_an_entry_of_few_seeds_takes_the_verdict_from_all_and_the_marks_from_its_own_pairs(tmp_path: Path) -> None:
    runs = [
        fake_run(tmp_path / f"{gamma}", "reinforce", [[0, 0, base + i] for i in range(n)], settings=f"gamma: {gamma}")
        for gamma, base, n in ((0.9, 100.0, 5), (0.8, 0.0, 5), (0.7, 50.0, 3))
    ]
    comparison = compare_runs(runs)
    assert comparison.without_test == "fewer than 5 seeds (gamma=0.7): no test of significance"
    assert comparison.pair("gamma=0.8", "gamma=0.9").final_differs is True
    assert comparison.pair("gamma=0.7", "gamma=0.9").final_differs is None
    assert as_json(comparison, COMMAND, VERSIONS)["best"] is None
