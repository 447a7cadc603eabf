"""The documentation: links lead somewhere, the site builds without a warning, the tutorial and the examples run."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "reference" not in page.parts]
LINK = re.compile(r"\]\(([^)\s]+)\)")
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def code_of_the_tutorial() -> str:
    cells = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_titles(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        path, _, title = link.partition("#")
        if re.match(r"\w+:", link) or path.startswith("reference/"):
            continue  # of other hosts, or a page that the site generates
        target = (page.parent / path) if path else page
        assert target.exists(), f"{page}: {link}"
        if title:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in titles]
            assert title in anchors, f"{page}: {link}: there are {anchors}"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


@pytest.mark.product
def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    code = code_of_the_tutorial()
    short = code.replace("STEPS = 10_000", "STEPS = 400").replace("total_env_steps=", "**QUICK, total_env_steps=")
    exec(short, {"__name__": "tutorial", "QUICK": {"evaluation": {"episodes": 1, "final_episodes": 2}}})
    assert "of the way" in capsys.readouterr().out


@pytest.mark.product
def test_the_examples_have_the_right_types(tmp_path: Path) -> None:
    """With an environment of one's own where an example has one."""
    examples = "\n\n".join(BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    head = "from gymnasium.envs.classic_control import CartPoleEnv as MyEnv\n"
    own = head + "from agent import Config, evaluate, train\n\nrun = train(Config(total_env_steps=1), env=MyEnv)\n"
    own += "run = train(Config(total_env_steps=1), env=lambda: MyEnv())\nevaluate(run, env=MyEnv)\n"
    for name, code in {"readme": examples, "own": own, "tutorial": code_of_the_tutorial()}.items():
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    files = [str(file) for file in tmp_path.glob("*.py")]
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "--allow-untyped-defs", *files]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


class Loaded(HTMLParser):
    """What a page loads when it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe"):
            self.addresses.append(given.get("src") or "")
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.addresses.append(given.get("href") or "")


@pytest.mark.product
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="needs the extra [docs]")
    for name in ("docs", "benchmarks/results", "agent", "envs", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "reference"))
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "train.py", "evaluate.py", "compare.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("benchmarks", "tests"):  # what pages link to
        for file in (ROOT / name).glob("*"):
            if file.is_file():
                (tmp_path / name).mkdir(exist_ok=True)
                shutil.copy(file, tmp_path / name / file.name)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "--quiet", "-c", "docs", ".", "site"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert {"index.html", "docs/index.html", "docs/reference/settings.html"} <= {
        str(page.relative_to(tmp_path / "site")) for page in pages
    }
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert not [address for address in loaded.addresses if "//" in address], page
    for style in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"url\(['\"]?https?:", style.read_text(encoding="utf-8")), style
    settings = (tmp_path / "site" / "docs" / "reference" / "settings.html").read_text(encoding="utf-8")
    assert "total_env_steps" in settings and "noise_persistence" in settings
    works = (tmp_path / "site" / "docs" / "how_it_works.html").read_text(encoding="utf-8")
    assert "def" in works and "straight_through_gumbel_softmax" in works and "code: agent" not in works
