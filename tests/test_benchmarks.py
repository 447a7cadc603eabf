"""The benchmarks' own sums and tables, and that each of them runs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agent.config_loader import load_config
from agent.ranks import ALONE
from benchmarks import against_peers, environments, peer_runs, suite
from benchmarks.peer_runs import from_peer
from benchmarks.peers import measure as peers
from benchmarks.rows import add_rows, read_rows
from benchmarks.suite import TASKS, BanditModel
from envs import UserError

ROOT = Path(__file__).parents[1]
MARKS = "<!-- results: written by benchmarks/suite.py -->", "<!-- end of results -->"
TINY = ["--hidden", "8", "--batch", "8", "--steps", "20", "--set", "learning_starts=20"]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True)


def test_throughput_prints_one_object_a_population() -> None:
    result = run("benchmarks/throughput.py", *TINY, "--members", "1", "2", "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["members"] for row in rows] == [1, 2], result.stderr
    for row in rows:
        assert row["member_updates_per_s"] == pytest.approx(row["members"] * row["updates_per_s"], rel=1e-2)
        assert row["env_steps_per_s"] == pytest.approx(row["member_updates_per_s"], rel=1e-2)
        assert row["peak_gflops"] > row["gflops"] >= 0 and row["peak_memory_mib"] > 100 and row["setup_s"] > 0


def test_throughput_counts_the_operations_of_matrix_products() -> None:
    """One hidden layer of 8 on CartPole: 4x8 and 8x2, 48 multiplications a row; batch 8, two critics."""
    from benchmarks.throughput import make_loop, operations

    config = load_config(None, ["env.id=CartPole-v1", "hidden_sizes=[8]", "batch_size=8"])
    import torch

    with make_loop(config, torch.device("cpu")) as loop:
        forward, backward = 48, 48 + 16  # to the parameters of both layers and back through the second
        assert operations(loop) == 2 * 8 * (2 * forward + backward + 2 * (2 * forward + backward))


def test_operations_of_peers_are_those_of_matrix_products() -> None:
    """One hidden layer of 8 on CartPole, as above; a backward pass needs no derivative by the observation."""
    args = against_peers.argparse.Namespace(env="CartPole-v1", hidden=[8], batch=8)
    assert peers.mflop(*peers.DQN, args) == pytest.approx(2 * 8 * (2 * 48 + 48 + 16) / 1e6)
    assert peers.mflop(*peers.DISCRETE_SAC, args) == pytest.approx(2 * 8 * (8 * 48 + 3 * (48 + 16)) / 1e6)


def test_the_figure_of_members_is_drawn_from_its_numbers(tmp_path: Path) -> None:
    numbers = (ROOT / "benchmarks" / "results" / "members.json").read_text()
    (tmp_path / "members.json").write_text(numbers)
    result = run("benchmarks/members.py", "--draw-only", "--out", str(tmp_path / "members.png"))
    assert (tmp_path / "members.png").exists(), result.stderr
    assert (tmp_path / "members.json").read_text() == numbers


def test_user_mistakes_end_with_code_2() -> None:
    for command in (
        ["benchmarks/throughput.py", *TINY, "--env", "CartPol-v1"],
        ["benchmarks/against_peers.py", "--venv", "nowhere"],
        ["benchmarks/members.py"],
        ["benchmarks/members.py", "--venv", "nowhere", "--purejaxrl", "nowhere"],
        ["benchmarks/against_peers.py", "--venv", str(Path(sys.executable).parents[1]), "--peers", "purejaxrl_dqn"],
        ["benchmarks/members.py", "--draw-only", "--out", "nowhere/members.png"],
        ["benchmarks/against_peers.py", "--venv", str(Path(sys.executable).parents[1]), "--peers", "sb4"],
    ):
        result = run(*command)
        assert result.returncode == 2 and result.stderr.startswith("error: "), result.stderr


def test_environments_alone() -> None:
    result = run(
        "benchmarks/throughput.py", "--env", "Tensor/CartPole-v1", "--envs", "8", "--only-envs", "--steps", "64"
    )
    assert json.loads(result.stdout)["num_envs"] == 8, result.stderr


def test_profile_names_the_parts() -> None:
    result = run("benchmarks/profile.py", *TINY)
    assert all(part in result.stdout for part in ("| step |", "update: sample", "Adam", "aten::")), result.stderr


def test_ratios_are_within_a_round_and_a_failed_peer_is_named() -> None:
    def measured(theirs: float, ours: float) -> dict:
        return {
            "theirs": {"result": theirs, "mflop_per_update": 30.0},
            "ours": {"updates_per_s": ours, "gflops": ours / 20},
        }

    failed = {"theirs": {"error": "ModuleNotFoundError: tianshou"}, "ours": {"updates_per_s": 1.0}}
    table = against_peers.throughput_table(
        {
            "sb3_dqn": [measured(100, 200), measured(50, 200), measured(100, 300)],
            "tianshou_discrete_sac": [failed],
        },
    )
    assert "| 100 | 200 | 3.00 (2.00 to 4.00) | 3.0 and 10.0 |" in table
    assert "failed: ModuleNotFoundError: tianshou" in table


def test_seconds_until_solved_are_of_training_alone() -> None:
    rows = [
        {"env_steps": 100, "time/env_steps_per_second": 50.0},
        {"env_steps": 100, "eval/return_greedy": 20.0},
        {"env_steps": 300, "time/env_steps_per_second": 100.0},
        {"env_steps": 300, "eval/return_greedy": 480.0},
    ]
    assert against_peers.first_solved(rows) == {"env_steps": 300, "seconds": 4.0}
    assert against_peers.first_solved(rows[:3]) == {"env_steps": None, "seconds": 4.0}


def test_a_peer_that_fails_stops_no_other(tmp_path: Path) -> None:
    args = against_peers.argparse.Namespace(steps=1, hidden=[8], core=0)
    answer = against_peers.run_peer(Path(sys.executable), "sb3_dqn", 0, args)  # stable-baselines3 is not here
    assert "stable_baselines3" in answer["error"]


def test_rows_of_new_commands_stand_beside_old_ones(tmp_path: Path) -> None:
    file = tmp_path / "new" / "rows.json"
    add_rows(file, [{"task": "a", "share": 1}, {"task": "b", "share": 2}], ["task"])
    rows = add_rows(file, [{"task": "b", "share": 3}], ["task"])
    assert [(row["task"], row["share"]) for row in rows] == [("a", 1), ("b", 3)] and read_rows(file) == rows
    assert all(row["command"].startswith("python ") and row["date"] for row in rows)


def test_suite_writes_its_table_into_the_readme(tmp_path: Path) -> None:
    readme, page, results = (
        tmp_path / "README.md",
        tmp_path / "docs" / "results.md",
        tmp_path / "benchmarks" / "results",
    )
    page.parent.mkdir()
    for file in (readme, page):
        file.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    short = ["total_env_steps=416", "learning_starts=100", "hidden_sizes=[8]", "evaluation.episodes=1"]
    short += ["reinforce.rollout_steps=100", "evaluation.final_episodes=10"]
    tasks = ["--tasks", "blackjack", "chain_bandit_1e8", "--seeds", "2"]
    command = [str(ROOT / "benchmarks" / "suite.py"), *tasks, "--set", *short, "--root", str(tmp_path)]
    subprocess.run([sys.executable, *command], cwd=tmp_path, check=True, timeout=300)
    text, detailed = readme.read_text(), page.read_text()
    assert text.startswith(f"before\n{MARKS[0]}\n|") and text.endswith(f"|\n{MARKS[1]}\nafter\n")
    assert "| [Blackjack-v1](configs/blackjack.yaml) | 416 | -" in text and ", 2 failed) |" in text
    assert "| [Tensor/ChainBandit-v0](configs/chain_bandit_1e8.yaml) | 416 | " in text
    assert "](../configs/blackjack.yaml) (optimum -0.0431) | -" in detailed and "/2 failed | " in detailed
    assert all(f"| Blackjack-v1 | {name} | 2000 to 2001 | -" in detailed for name in ("reinforce", "defaults"))
    assert detailed.endswith(f"```\n{MARKS[1]}\nafter\n")
    assert (results / "suite.png").stat().st_size > 10_000


def test_sac_is_compared_after_as_many_steps_as_it_had() -> None:
    ours = {"env_steps": 300, "returns": [9.0], "curve_env_steps": [100, 200, 300], "curve_returns": [[1.0, 2.0, 9.0]]}
    sac = {"env_steps": 290, "returns": [3.0, 3.0]}
    assert suite.beside_sac(ours, sac) == "missed: 2.00 after 200 steps against SAC's 3.00 (2 seeds) after 290"
    early = suite.beside_sac(ours, sac | {"env_steps": 50})
    assert early == "missed: 1.00 after 100 steps against SAC's 3.00 (2 seeds) after 50"
    assert suite.beside_sac(ours, {"env_steps": 300, "returns": [3.0]}) == "met: 9.00 against SAC's 3.00 (1 seed)"
    assert suite.beside_sac(ours, None) == "SAC's, not run"


def test_defaults_know_the_task_alone() -> None:
    settings = suite.task_alone(load_config("configs/half_cheetah_bins.yaml", []))
    assert settings == ["env.id=HalfCheetah-v5", "env.action_bins=3", "total_env_steps=300000"]


def test_a_row_of_a_peer_holds_every_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def peer(venv: Path, script: str, arguments: list[str]) -> dict:
        task = json.loads(arguments[0])
        assert (venv, script, task["library"], task["agent"]) == (Path("v"), "agent_on_task.py", "sbx", "SAC")
        assert (task["env_id"], task["bins"], task["states"], task["final_episodes"]) == ("Ant-v5", None, None, 100)
        steps, seed = task["env_steps"], task["seed"]
        curve, final = [[steps // 2, 1.0], [steps, 10.0 + seed]], 20.0 + seed
        return {"curve": curve, "final": final, "seconds": 2.0, "version": "sbx 1"}

    monkeypatch.setattr(peer_runs, "from_peer", peer)
    config = load_config("configs/ant_bins.yaml", ["seeds=2", "seed=3", "total_env_steps=400"])
    row = suite.peer_row("ant_bins", config, Path("v"), "sbx_sac")
    assert row["returns"] == [23.0, 24.0] and row["curve_returns"] == [[1.0, 13.0], [1.0, 14.0]]
    assert row["curve_env_steps"] == [200, 400] and row["first_seed"] == 3
    assert row["env_steps"] == 400 and row["wall_seconds"] == 4


def test_a_peers_return_is_worked_out_where_ours_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def peer(venv: Path, script: str, arguments: list[str]) -> dict:
        states = json.loads(arguments[0])["states"]
        assert len(states) == 370 and states[0] == [4, 1, 0]
        return {"curve": [[1, 0.0]], "final": 9.0, "seconds": 2.0, "version": "x", "actions": [0] * len(states)}

    monkeypatch.setattr(peer_runs, "from_peer", peer)
    config = load_config("configs/blackjack.yaml", ["seeds=1"])
    (value,) = suite.peer_row("blackjack", config, Path("v"), "sb3_dqn")["returns"]
    assert value == pytest.approx(suite.blackjack_model().value_of(np.zeros(370, int))) and value < 0


def test_peers_take_the_actions_that_they_can() -> None:
    cartpole, ant = (load_config(f"configs/{name}.yaml", []) for name in ("cartpole", "ant_bins"))
    assert [suite.takes(peer, cartpole) for peer in suite.PEERS] == [True, True, False, False]
    assert [suite.takes(peer, ant) for peer in suite.PEERS] == [False, True, True, True]


def test_scores_lie_between_random_actions_and_the_config() -> None:
    of = {"gumbel_actor_critic": {"returns": [475.0]}, "defaults": {"returns": [400.0, 250.0]}}
    assert suite.score(of, suite.Task(random=25.0)) == "0.67, worst 0.50"
    assert suite.score({"defaults": of["defaults"]}, suite.Task(random=25.0)) == ""


def test_tables_and_figure_show_peers_beside_their_tasks(tmp_path: Path) -> None:
    origin = {"date": "today", "command": "python x", "versions": "y"}
    curve = {"curve_env_steps": [150, 300], "curve_returns": [[1.0, 2.0]], "wall_seconds": 1, **origin}
    ant = {"task": "ant_bins", "env_id": "Ant-v5", "env_steps": 300, "first_seed": 0, **curve}
    rows = [ant | {"algorithm": "gumbel_actor_critic", "returns": [2.0]}]
    assert "worst 2.00 | SAC's, not run |" in suite.long_table(rows)
    rows.append(ant | {"algorithm": "sbx_sac", "library": "sbx 1", "returns": [4.0]})
    text = suite.details(rows)
    assert "worst 2.00 | missed: 2.00 against SAC's 4.00 (1 seed) |" in text
    assert "| Ant-v5 | sbx_sac (sbx 1) | 0 to 0 | 4.00 | 1 |" in text
    suite.draw(rows, tmp_path / "suite.png")
    assert (tmp_path / "suite.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("peers", "message"),
    [
        (["nowhere", "sb3_dqn"], "nowhere: no virtual environment there"),
        ([sys.prefix, "sb3-dqn"], "--peers: no peer 'sb3-dqn'; did you mean 'sb3_dqn'?"),
        ([sys.prefix], "no peer is named; choose from sb3_dqn, "),
    ],
)
def test_mistakes_about_peers_are_told_before_anything_is_trained(
    peers: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trained: list[object] = []
    monkeypatch.setattr(suite.plan, "train_missing", lambda *arguments: trained.append(arguments))
    options = ["--tasks", "cartpole", "ant_bins", "--peers", *peers, "--root", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["suite.py", *options])
    with pytest.raises(UserError, match=re.escape(message)):
        suite.measure(suite.parse(), ALONE)
    assert not trained


def test_a_peer_is_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Then its environment may be gone; one that fails leaves nothing behind."""
    monkeypatch.chdir(tmp_path)
    interpreter = tmp_path / "venv" / "bin" / "python"
    interpreter.parent.mkdir(parents=True)
    interpreter.write_text("#!/bin/sh\necho '{\"seed\": '$2'}'\ntest $2 = 0")
    interpreter.chmod(0o755)
    assert from_peer(tmp_path / "venv", "x.py", ["0"]) == {"seed": 0}
    with pytest.raises(UserError, match=r"x\.py failed, see above"):
        from_peer(tmp_path / "venv", "x.py", ["1"])
    interpreter.unlink()
    assert from_peer(tmp_path / "venv", "x.py", ["0"]) == {"seed": 0}
    with pytest.raises(UserError, match="no virtual environment there"):
        from_peer(tmp_path / "venv", "x.py", ["1"])


def test_a_bandits_value_is_that_of_its_tables() -> None:
    model = BanditModel("configs/chain_bandit_1e8.yaml")
    first = np.zeros((len(model.obs), 8), dtype=np.int64)  # the first choice of every factor in every context
    bandit = model.bandit
    expected = bandit.unary[:, :, 0].sum(1) + bandit.pairwise[:, :, 0, 0].sum(1)
    assert model.value_of(first) == pytest.approx(expected.mean().item())
    goal = TASKS["chain_bandit_1e8"].goal
    assert goal is not None and bandit.random_value() < goal < model.optimum()


def test_half_cheetah_writes_a_row_for_each_run(tmp_path: Path) -> None:
    short = ["total_env_steps=200", "learning_starts=100", "hidden_sizes=[8]", "evaluation.final_episodes=1"]
    quick = [
        "reinforce.rollout_steps=100",
        "evaluation.every_env_steps=200",
        "evaluation.episodes=1",
        "env.kwargs={max_episode_steps: 20}",
    ]
    runs = ["--runs", "multilinear/exact", "reinforce", "--seeds", "2", "--set", *short, *quick]
    command = [sys.executable, str(ROOT / "benchmarks" / "half_cheetah.py"), *runs, "--out", str(tmp_path / "out")]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    rows = read_rows(tmp_path / "out" / "half_cheetah.json")
    assert {row["run"] for row in rows} == {"multilinear/exact", "reinforce"}
    table = (tmp_path / "out" / "half_cheetah.md").read_text()
    assert all(len(row["returns"]) == 2 and f"| {row['run']} | total_env_steps=200" in table for row in rows)


QUICK = ["total_env_steps=60", "learning_starts=20", "evaluation.every_env_steps=30", "env.kwargs.max_episode_steps=20"]


@pytest.mark.slow
def test_an_id_is_trained_resumed_evaluated_and_filmed(tmp_path: Path) -> None:
    row = environments.row_of("CartPole-v1", QUICK, tmp_path)
    assert (row["outcome"], row["resumed"]) == ("ok", "same") and row["package"].startswith("gymnasium 1."), row
    assert 8 <= row["random"] <= 20 and row["greedy"] >= 8 and row["env_steps_per_second"] > 0
    assert row["peak_mib"] > 100 and row["replay_mib"] > 0 and row["video"].endswith(" KiB")
    assert "| `CartPole-v1` | gymnasium " in environments.results_table(
        [row | {"date": "", "versions": "", "command": ""}]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ("raise ValueError('no such map')", r"train: .*no such map \(broken.py, line 3\)"),
        ("import os; os._exit(9)", "train: the process ended with code 9"),
    ],
)
def test_an_id_that_crashes_is_a_row(body: str, outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text(
        f"import gymnasium\ndef make(**kwargs):\n    {body}\ngymnasium.register('Broken-v0', entry_point=make)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    row = environments.row_of("broken:Broken-v0", QUICK, tmp_path)
    assert re.fullmatch(outcome, row["outcome"]), row


def test_an_id_that_hangs_is_a_row(tmp_path: Path) -> None:
    row = environments.row_of("CartPole-v1", QUICK, tmp_path, seconds=0.01)
    assert row["outcome"] == "start: not done after 0.01 s"


def test_an_id_that_is_not_installed_is_said_to_be(tmp_path: Path) -> None:
    row = environments.row_of("no_such_package:X-v0", [], tmp_path)
    assert row == {"env_id": "no_such_package:X-v0", "outcome": "not installed"}


def test_every_environment_has_settings_that_can_be_read() -> None:
    for env_id, settings in environments.ENVIRONMENTS.items():
        load_config(None, [*environments.SETTINGS, *settings, f"env.id={env_id}"])
