"""The benchmarks' own sums and tables, and that each of them runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import against_peers

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
        assert row["gemm_peak_gflops"] > row["gflops"] >= 0 and row["peak_memory_mib"] > 100 and row["setup_s"] > 0


def test_throughput_counts_the_operations_of_matrix_products() -> None:
    """One hidden layer of 8 on CartPole: 4x8 and 8x2, 48 multiplications a row; batch 8, two critics."""
    from agent.config_loader import load_config
    from benchmarks.throughput import make_loop, operations

    config = load_config(None, ["env.id=CartPole-v1", "hidden_sizes=[8]", "batch_size=8"])
    import torch

    with make_loop(config, torch.device("cpu")) as loop:
        forward, backward = 48, 48 + 16  # to the parameters of both layers and back through the second
        assert operations(loop) == 2 * 8 * (2 * forward + backward + 2 * (2 * forward + backward))


def test_user_mistakes_end_with_code_2() -> None:
    for command in (
        ["benchmarks/throughput.py", *TINY, "--env", "CartPol-v1"],
        ["benchmarks/against_peers.py", "--venv", "nowhere"],
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
    assert all(part in result.stdout for part in ("environments", "replay: sample", "Adam", "aten::")), result.stderr


def test_ratios_are_within_a_round_and_a_failed_peer_is_named() -> None:
    def measured(theirs: float, ours: float) -> dict:
        return {"theirs": {"result": theirs}, "ours": {"updates_per_s": ours}}

    failed = {"theirs": {"error": "ModuleNotFoundError: tianshou"}, "ours": {"updates_per_s": 1.0}}
    table = against_peers.throughput_table(
        {
            "sb3_dqn": [measured(100, 200), measured(50, 200), measured(100, 300)],
            "tianshou_discrete_sac": [failed],
        }
    )
    assert "| 100 | 200 | 3.00 (2.00 to 4.00) |" in table
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
