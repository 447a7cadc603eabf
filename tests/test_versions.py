"""What a run says it was made with."""

import subprocess
from pathlib import Path

import pytest
import torch

from agent import versions


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    return subprocess.run(
        ["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "--quiet", "--message", "x")
    return tmp_path


def test_versions_name_what_results_may_hang_on() -> None:
    found = versions.versions(torch.device("cpu"))
    assert found["torch"] == torch.__version__ and found["device"].startswith("cpu (")
    assert set(found) == {"project", "torch", "kernels", "gymnasium", "numpy", "python", "device"}


def test_a_checkout_is_named_by_its_commit(checkout: Path) -> None:
    assert versions.checkout(checkout / "code.py") == git(checkout, "rev-parse", "HEAD")


def test_changes_since_the_commit_are_told(checkout: Path) -> None:
    (checkout / "code.py").write_text("2")
    assert str(versions.checkout(checkout / "code.py")).endswith(", changed")


def test_a_package_inside_another_repository_is_not_named_by_its_commit(checkout: Path) -> None:
    (checkout / "installed.py").touch()
    assert versions.checkout(checkout / "installed.py") is None


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert versions.checkout(Path(versions.__file__)) is None
