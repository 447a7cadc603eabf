"""The comparison's page and the documentation in headless Chromium: nothing is cut off on a desktop or on a phone.

The screenshots are for people: `pytest tests/test_browser.py --basetemp=build/shots` leaves them there.
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fake_runs import compare_runs, fake_run

from agent.analysis.report import write

pytestmark = pytest.mark.product
BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
VERSIONS = {"project": f"0.2.0 (commit {'0123456789' * 4})", "torch": "2.13.0"}
MEASURE = """
<script>
const frame = document.getElementById("page");
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  const wide = [...page.querySelectorAll(".wide")].map(e => [e.clientWidth, e.scrollWidth]);
  const pictures = [...page.querySelectorAll("figure svg")].map(e => e.getBoundingClientRect().left);
  const style = frame.contentWindow.getComputedStyle(page.body);
  document.body.dataset.found = JSON.stringify(
    {width: root.clientWidth, needed: root.scrollWidth, wide, pictures, paper: style.backgroundColor});
};
</script>
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    good = fake_run(folder / "good", "gumbel_actor_critic", [[0.0, 60.0, 90.0 + seed] for seed in range(5)])
    bad = fake_run(folder / "bad", "reinforce", [[0.0, 10.0, 20.0 + seed] for seed in range(5)])
    write(compare_runs([good, bad]), folder, "python compare.py good bad", VERSIONS)
    return folder / "report.html"


def chromium(*arguments: str) -> str:
    if BROWSER is None:
        pytest.skip("needs chromium")
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def look(page: Path, folder: Path, width: int, *, dark: bool) -> dict[str, Any]:
    """What a page measures in a window of this width; its screenshot is beside."""
    frame = folder / f"{page.stem}-{width}-{'dark' if dark else 'light'}.html"
    text = html.escape(page.read_text(encoding="utf-8"))
    style = f"border: 0; width: {width}px; height: 1400px"
    frame.write_text(
        f'<!doctype html><body style="margin: 0"><iframe id="page" style="{style}" srcdoc="{text}"></iframe>{MEASURE}',
        encoding="utf-8",
    )
    scheme = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
    window = [f"--window-size={max(width, 500)},1400", "--virtual-time-budget=5000", *scheme]
    chromium(*window, f"--screenshot={frame.with_suffix('.png')}", frame.as_uri())
    found = re.search(r'data-found="([^"]*)"', chromium(*window, "--dump-dom", frame.as_uri()))
    assert found, "the page did not load"
    measured: dict[str, Any] = json.loads(html.unescape(found[1]))
    return measured


@pytest.mark.parametrize("dark", [False, True])
def test_a_desktop_shows_whole_tables_and_two_columns_of_figures(report: Path, tmp_path: Path, dark: bool) -> None:
    found = look(report, tmp_path, 1280, dark=dark)
    assert found["needed"] <= found["width"] == 1280
    assert all(needed <= shown for shown, needed in found["wide"])
    assert len(set(found["pictures"])) == 2
    assert found["paper"] == ("rgb(22, 24, 27)" if dark else "rgb(255, 255, 255)")


def test_a_phone_scrolls_within_tables_alone(report: Path, tmp_path: Path) -> None:
    found = look(report, tmp_path, 390, dark=False)
    assert found["needed"] <= found["width"] == 390
    assert any(needed > shown for shown, needed in found["wide"])  # the results: the shadow says that they go on
    assert len(set(found["pictures"])) == 1


def test_the_page_prints(report: Path, tmp_path: Path) -> None:
    chromium(f"--print-to-pdf={tmp_path / 'report.pdf'}", "--no-pdf-header-footer", report.as_uri())
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
