"""The policies that come with the library."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agent import Policy, PolicyError, evaluate
from agent.cli import zoo as zoo_command
from agent.config_loader import find_config, load_config
from agent.policy_zoo import ZooEntry, zoo_entries
from envs import UserError

ENTRIES = zoo_entries()


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_policy_of_the_zoo_does_what_its_result_says(entry: ZooEntry) -> None:
    assert find_config(entry.name).is_file()
    assert load_config(entry.name).env.id == entry.result["env_id"]
    assert sum(file.stat().st_size for file in entry.folder.iterdir()) < 1_000_000
    try:
        (member,) = evaluate(entry.folder, episodes=3, modes=["greedy"])
    except UserError as error:
        if "not installed" in str(error) or "cannot import" in str(error):
            pytest.skip(str(error))
        raise
    recorded = entry.result["greedy"]
    assert recorded["min"] <= member["greedy"]["mean"] <= recorded["max"]
    assert member["seed"] == entry.result["seed"]


def test_the_zoo_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Policy.load("zoo/cartpole").info.env.id == "CartPole-v1"
    with pytest.raises(PolicyError, match=r"zoo/cartpol: .* did you mean 'zoo/cartpole'\?"):
        Policy.load("zoo/cartpol")
    with pytest.raises(PolicyError, match="zoo/x: no such folder; gumbel zoo lists the zoo"):
        Policy.load("zoo/x")
    assert zoo_command.main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"zoo/{entry.name}" in shown for entry in ENTRIES)
    table, _, command = shown.partition("next\n")
    assert max(map(len, table.splitlines())) <= 80  # the command is as long as the path of what the user called
    assert command.strip().endswith("zoo/cartpole")


def test_a_run_is_put_into_the_zoo(tmp_path: Path) -> None:
    """With the best of its seeds, and the command that trains it again."""
    settings = ["total_env_steps=200", "seeds=2", "hidden_sizes=[8]", "learning_starts=100", "wandb.mode=disabled"]
    settings += ["evaluation.episodes=1", "evaluation.final_episodes=2", "compile=false", f"run_dir={tmp_path / 'run'}"]
    for command in (["train.py", "cartpole", *settings], ["benchmarks/zoo.py", f"cartpole={tmp_path / 'run'}"]):
        own = ["--zoo", str(tmp_path / "zoo")] if "zoo" in command[0] else []
        subprocess.run([sys.executable, *command, *own], check=True, capture_output=True)
    about = json.loads((tmp_path / "zoo" / "cartpole" / "result.json").read_text())
    members = json.loads((tmp_path / "run" / "result.json").read_text())["members"]
    assert about["greedy"]["mean"] == max(member["greedy"]["mean"] for member in members)
    assert about["command"].startswith("gumbel train cartpole seeds=2 total_env_steps=200 hidden_sizes=[8]")
    assert Policy.load(tmp_path / "zoo" / "cartpole").info.members[0].seed == about["seed"]
