"""evaluate.py --gradients: saved critics come back, rows say what they claim, bad input is explained."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_scripts import SHORT
from torch import Generator

from agent import Policy
from agent.analysis import gradients
from agent.analysis.gradients import States, gradient_report, load_critics
from agent.cli import evaluate, train
from agent.config_loader import load_config
from agent.networks.heads import make_critics
from agent.state import members_first
from agent.weights import CRITICS_FILE, save_weights
from envs.spaces import ObsPart


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gradients") / "run"
    assert train.main([*SHORT, f"run_dir={folder}"]) == 0
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("NUM_STATES", 16), ("NUM_STEPS", 20), ("ROUNDS", 4), ("TAUS", (0.5, 1.0))):
        monkeypatch.setattr(gradients, name, value)


def test_json_has_a_row_for_every_estimator_and_tau(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert evaluate.main([str(run), "--gradients", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert set(rows[0]) == {"estimator", "tau", "relative_bias", "relative_std", "cosine", "mse", "microseconds"}
    assert all(row["microseconds"] > 0 and set(row["mse"]) == {"1", "4", "16", "64", "256", "1024"} for row in rows)
    pairs = [(row["estimator"], row["tau"]) for row in rows]
    assert pairs.count(("straight_through_gumbel_softmax", 0.5)) == 1 and ("exact", None) in pairs
    assert ("reinmax", 0.5) not in pairs and ("reinmax", 1.0) in pairs
    assert (run / "figures" / "gradients.png").stat().st_size > 10_000


def test_table_is_printed_without_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert evaluate.main([str(run), "--gradients", "--member", "all"]) == 0
    out = capsys.readouterr().out
    assert "straight_through_gumbel_softmax" in out and max(map(len, out.splitlines()[1:-2])) <= 80
    assert "cosine" in out and "1,024" in out and "figures/gradients.png" in out.replace("\n", "")


def test_a_policy_without_its_run_has_no_critics(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["zoo/cartpole", "--gradients"]) == 2
    assert "zoo/cartpole: --gradients needs the folder of a run" in capsys.readouterr().err


@pytest.mark.parametrize("is_of_old_version", [False, True])
def test_saved_critics_come_back_for_each_member(tmp_path: Path, run: Path, is_of_old_version: bool) -> None:
    config = load_config(run / "config.yaml")
    everyone = Policy.load(run, member="all")
    critics, _ = load_critics(run, config, everyone)
    with_noise = torch.randn(critics.network.flat.shape, generator=Generator().manual_seed(0))
    critics.network.flat.copy_(with_noise)
    tensors = critics.network.tensors()
    if not is_of_old_version:
        tensors = {name: members_first(x, 2) for name, x in tensors.items()}
    save_weights(tensors, tmp_path / CRITICS_FILE)
    rows = with_noise.unflatten(0, (2, 2))  # [C, P]
    for member in (0, 1):
        own, _ = load_critics(tmp_path, config, Policy.load(run, member=member))
        assert torch.equal(own.network.flat, rows[:, member])


def test_report_of_a_joint_critic_leaves_exact_out_and_finds_unbiased_estimators(run: Path) -> None:
    """Local expectation against local expectation: bias within the noise of 32 draws."""
    config = load_config(run / "config.yaml", ["critic.structure=joint"])
    policy = Policy.load(run, member=0)
    critics = make_critics(config, [ObsPart("", (4,))], policy.actor.actions, members=[1])
    obs = torch.randn(1, 16, 4, generator=Generator().manual_seed(0))
    rows = {row["estimator"]: row for row in gradient_report(policy, critics, config, States(obs, obs, None), seed=0)}
    assert "exact" not in rows
    assert rows["local_expectation"]["relative_bias"] < 1e-3  # one factor: the exact sum


def test_reinforce_has_no_gradients_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert train.main([*SHORT, "algorithm=reinforce", f"run_dir={folder}"]) == 0
    assert evaluate.main([str(folder), "--gradients"]) == 2
    assert "algorithm=reinforce has no critic" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("gone", "no such file"),
        ("cut", "not readable as safetensors"),
        ("flipped", "not what was written"),
        ("other", "do not fit"),
    ],
)
def test_unusable_critics_are_explained(
    run: Path, tmp_path: Path, damage: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    file = copy / "critics.safetensors"
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:50])
    elif damage == "flipped":
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    else:
        shutil.copy(copy / "policy" / "final" / "weights.safetensors", file)
    assert evaluate.main([str(copy), "--gradients"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "critics.safetensors" in error.replace(" ", "") and message in error


def test_illegal_choices_take_no_part(run: Path) -> None:
    """With one legal choice in every state there is no gradient to estimate: every norm is zero."""
    config, policy = load_config(run / "config.yaml"), Policy.load(run, member=0)
    critics, _ = load_critics(run, config, policy)
    obs = torch.randn(1, 16, 4, generator=Generator().manual_seed(0))
    one_legal = torch.tensor([[True, False]]).expand(1, 16, 1, 2)
    states = (States(obs, obs, mask) for mask in (one_legal, None))
    masked, free = (gradient_report(policy, critics, config, at, seed=0) for at in states)
    assert all(row["cosine"] != row["cosine"] for row in masked)  # NaN: 0 / 0
    assert all(row["cosine"] == row["cosine"] for row in free)


def test_masks_of_an_environment_reach_the_report(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "taxi"
    assert train.main(["env.id=Taxi-v4", *SHORT[1:], f"run_dir={folder}"]) == 0
    capsys.readouterr()
    assert evaluate.main([str(folder), "--gradients", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"]


@pytest.mark.parametrize("option", [["--weights", "best"], ["--greedy"], ["--video", "x"]])
def test_options_of_another_task_are_refused(run: Path, option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        evaluate.main([str(run), "--gradients", *option])
    assert exit_info.value.code == 2 and "leave the other options out" in capsys.readouterr().err
