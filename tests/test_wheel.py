"""The wheel, installed without the checkout: its commands, its configs, and a project of the user's beside it."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = [pytest.mark.product, pytest.mark.whole_run]
SHORT = ["total_env_steps=200", "hidden_sizes=[8]", "seeds=1", "wandb.mode=disabled", "compile=false"]
SHORT += ["evaluation.episodes=1", "evaluation.final_episodes=1", "learning_starts=100", "batch_size=16"]
OWN_ENV = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

gymnasium.register("Mine-v0", CartPoleEnv, max_episode_steps=20)
"""


class Installed(NamedTuple):
    """A fresh virtual environment with the wheel in it."""

    programs: Path
    packages: Path


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: setuptools leaves a folder build, and takes what lies there
    for name in ("agent", "envs", "configs", "zoo"):
        shutil.copytree(name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", source, "--no-deps", "--no-build-isolation", "-w", folder], check=True)
    (wheel,) = folder.glob("gumbel_actor_critic-*.whl")
    venv.create(folder / "venv", symlinks=True)
    places = {
        key: Path(sysconfig.get_path(key, "venv", {"base": str(folder / "venv")})) for key in ("scripts", "purelib")
    }
    installed = Installed(places["scripts"], places["purelib"])
    # Its dependencies are those of this environment; what is installed there as editable is not among them.
    (installed.packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    into = ["--python", str(installed.programs / "python")]
    subprocess.run([*pip, *into, "install", wheel, "--no-deps", "--force-reinstall"], check=True)
    return installed


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's own, whose folder envs has the name of ours."""
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").write_text("")
    (tmp_path / "envs" / "mine.py").write_text(OWN_ENV)
    return tmp_path


def run(
    installed: Installed, cwd: Path, *arguments: str, program: tuple[str, ...] = ("gumbel",)
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{installed.programs}{os.pathsep}{environment['PATH']}"
    command = [str(installed.programs / program[0]), *program[1:], *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_a_project_with_a_folder_envs_uses_the_commands(installed: Installed, project: Path) -> None:
    trained = run(installed, project, "train", "cartpole", "env.id=./envs/mine.py:Mine-v0", *SHORT, "run_dir=runs/x")
    assert trained.returncode == 0, trained.stderr
    printed = [shlex.split(line) for line in trained.stdout.split("\nnext\n")[1].splitlines() if "evaluate" in line]
    name = printed[0].index("evaluate")
    again = run(installed, project, *printed[0][name:], "--trust", "--episodes", "1")
    assert again.returncode == 0, again.stderr
    exported = run(installed, project, "export", "runs/x", "policy.onnx", "--trust")
    assert (exported.returncode, exported.stderr) == (0, "")
    assert (project / "policy.onnx").stat().st_size > 0
    compared = run(installed, project, "compare", "runs/x")
    assert compared.returncode == 0, compared.stderr
    assert re.search(r"command: gumbel compare runs/x", compared.stdout)


def test_a_hidden_package_is_named(installed: Installed, project: Path) -> None:
    done = run(installed, project, "train", "cartpole", program=("python", "-m", "agent"))
    assert done.returncode != 0
    assert f"is hidden by {project}/envs/__init__.py" in done.stderr.splitlines()[-1]


def test_the_zoo_works_right_after_installation(installed: Installed, tmp_path: Path) -> None:
    listed = run(installed, tmp_path, "zoo")
    assert listed.returncode == 0, listed.stderr
    assert "gumbel evaluate zoo/cartpole" in listed.stdout
    evaluated = run(installed, tmp_path, "evaluate", "zoo/cartpole", "--episodes", "1")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "CartPole-v1: return per episode" in evaluated.stdout


def test_the_wheel_has_licence_configs_and_types(installed: Installed) -> None:
    assert list(installed.packages.glob("gumbel_actor_critic-*/licenses/LICENSE"))
    assert all((installed.packages / name / "py.typed").is_file() for name in ("agent", "envs"))
    for name in ("configs", "zoo"):
        packaged, own = installed.packages / "agent" / name, Path(name)
        assert {p.relative_to(packaged) for p in packaged.rglob("*")} == {p.relative_to(own) for p in own.rglob("*")}


def test_help_and_errors_name_the_installed_command(installed: Installed, tmp_path: Path) -> None:
    assert "gumbel train cartpole" in run(installed, tmp_path, "train", "--help").stdout
    unknown = run(installed, tmp_path, "trian")
    assert (unknown.returncode, unknown.stderr) == (2, "gumbel: error: no command 'trian'; did you mean 'train'?\n")
    missing = run(installed, tmp_path, "train", "cartpol")
    assert (missing.returncode, missing.stderr) == (
        2,
        "gumbel train: error: cartpol: no such config file; did you mean 'cartpole'?\n",
    )
