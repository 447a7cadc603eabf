"""Several processes train a population as one does: metrics, weights, evaluations and checkpoints are the same."""

import json
import random
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from loops import KINDS, SETTINGS
from rank_processes import ROOT, TRAIN, Ended, run, start, wait
from safetensors.torch import load_file

from agent.config import Config
from agent.config_fields import ConfigError
from agent.config_loader import load_config
from agent.ranks import shares
from agent.state import capture
from agent.training.loop import TrainingLoop
from agent.training.setup import make_env, select_device
from agent.training.trainer import train

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
SHORT = [
    "env.id=CartPole-v1",
    "env.num_envs=2",
    "total_env_steps=120",
    "learning_starts=30",
    "batch_size=8",
    "hidden_sizes=[8]",
    "seeds=3",
    "checkpoint.every_env_steps=50",
    "evaluation.every_env_steps=40",
    "evaluation.episodes=2",
    "evaluation.final_episodes=3",
    "log_every_env_steps=10",
    "reinforce.rollout_steps=16",
    "wandb.mode=disabled",
    "device=cpu",
]
SWEPT = ["seeds=1", "sweep={n_step: [1, 5, [3, 1]]}"]
LONG = "total_env_steps=600"  # enough to be interrupted after a checkpoint
REINFORCE = ["env.id=CartPole-v1", "algorithm=reinforce", "network.memory=gru", "sequence_length=4"]
CASES = {
    "swept": ["seeds=1", "sweep={learning_rate: [0.001, 0.003, 0.01]}"],
    "reinforce": ["algorithm=reinforce"],
    "memory": ["network.memory=gru", "sequence_length=4", "burn_in=1"],
    "masks": ["env.id=Taxi-v4", "env.kwargs={max_episode_steps: 6}"],
    "tensor": ["env.id=Tensor/CartPole-v1", "critic.structure=joint"],
    "adaptive": ["tau.schedule=adaptive", "updates_per_step=2"],
    "exchanges": ["seeds=4", "pbt.every_env_steps=40", "evaluation.episodes=1"],
    "vector": ["env.vectorization_mode=vector_entry_point"],
}


def short(run_dir: Path, *overrides: str) -> Config:
    return load_config(None, [*SHORT, f"run_dir={run_dir}", *overrides])


def train_command(*overrides: str) -> list[str]:
    keys = {text.partition("=")[0] for text in overrides}
    return [*TRAIN, *(text for text in SHORT if text.partition("=")[0] not in keys), *overrides]


def metrics(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def assert_same(folder: Path, other: Path, exactly: bool = False) -> None:
    """To rounding: a sum over a batch may be taken in another order in a smaller population."""
    rel, atol = (0.0, 0.0) if exactly else (1e-3, 1e-5)
    assert len(metrics(folder)) == len(metrics(other))
    for row, expected in zip(metrics(folder), metrics(other), strict=True):
        assert row == pytest.approx(expected, rel=rel, abs=atol)
    results = [json.loads((path / "result.json").read_text())["members"] for path in (folder, other)]
    assert results[0] == results[1]
    assert (folder / "policy/best/policy.json").read_text() == (other / "policy/best/policy.json").read_text()
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.safetensors"))
    assert files == sorted(path.relative_to(other) for path in other.rglob("*.safetensors"))
    for file in files:
        tensors, expected = load_file(folder / file), load_file(other / file)
        assert tensors.keys() == expected.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, expected[name], rtol=rel, atol=atol, msg=f"{file}: {name}")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Each case as two ranks have trained it; one start of them for all."""
    folder = tmp_path_factory.mktemp("ranks")
    files = []
    for name, overrides in CASES.items():
        (folder / f"{name}.yaml").write_text(short(folder / name, *overrides).to_yaml())
        files.append(str(folder / f"{name}.yaml"))
    ended = run(2, str(ROOT / "tests" / "rank_processes.py"), *files)
    assert ended.codes == [0, 0], ended.said
    yield folder


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_what_one_process_does(case: str, folders: Path, tmp_path: Path) -> None:
    train(short(tmp_path / "run", *CASES[case]), progress=False)
    assert_same(folders / case, tmp_path / "run")


@pytest.mark.parametrize("overrides", [*KINDS, REINFORCE])
def test_a_state_has_its_members_in_rows(overrides: list[str]) -> None:
    config = load_config(None, [*SETTINGS, *overrides, "seeds=3", "device=cpu"])
    loops = []
    for part in (config, config.with_members(range(1, 3))):
        env = make_env(part, 2, torch.device("cpu"))
        env.make_repeatable_()
        loops.append(TrainingLoop(part, env, torch.device("cpu")))
    for iteration in range(40):
        for loop in loops:
            loop.run_iteration(2 * iteration)
    whole, part = (capture(loop.state()) | loop.env.journal() for loop in loops)
    assert whole.keys() == part.keys() and any(tensor.ndim == 0 for tensor in whole.values())
    for name, tensor in whole.items():
        rows = tensor if tensor.ndim == 0 else tensor.unflatten(0, (3, -1))[1:].flatten(0, 1)
        others = [slice(0, length) for length in part[name].shape[1:]]  # of slots and steps a part may have fewer
        torch.testing.assert_close(rows[:, *others] if tensor.ndim else rows, part[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("count", "size"), [(3, 2), (16, 3), (5, 5), (7, 1)])
def test_members_are_dealt_evenly_and_in_order(count: int, size: int) -> None:
    dealt = shares(count, size)
    assert [i for own in dealt for i in own] == list(range(count)) and len(dealt) == size
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


@pytest.mark.parametrize("others", [1, 3])
def test_a_run_stopped_on_two_ranks_resumes_on_any_number(others: int, tmp_path: Path) -> None:
    unbroken = train(short(tmp_path / "unbroken", LONG, *SWEPT), progress=False).folder
    command = train_command(LONG, *SWEPT, f"run_dir={tmp_path / 'run'}", "--resume", "auto")
    processes = start(2, [command])
    wait_for(tmp_path / "run" / "checkpoints" / "latest")
    processes[1].send_signal(signal.SIGTERM)  # one is told, both stop
    ended = wait(processes)
    assert ended.codes == [143, 143] and "stopped at step" in ended.err[0] and not ended.err[1], ended
    ended = run(others, *command)
    assert ended.codes == [0] * others, ended.said
    assert_same(tmp_path / "run", unbroken)


def wait_for(path: Path, seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < ends, f"no {path}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks train where nothing comes between."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    ended = run(2, *train_command(LONG, f"run_dir={folder}"))
    assert ended.codes == [0, 0], ended.said
    return folder


def test_a_rank_that_dies_ends_the_run_and_the_same_command_resumes_it(unbroken: Path, tmp_path: Path) -> None:
    command = train_command(LONG, f"run_dir={tmp_path / 'run'}", "--resume", "auto")
    for dies in (0, 1):
        processes = start(2, [command])
        wait_for(tmp_path / "run" / "checkpoints" / f"step_{100 + 100 * dies}")
        processes[dies].kill()
        ended = wait(processes, seconds=30)
        assert ended.codes[dies] == -signal.SIGKILL and ended.codes[1 - dies] == 1, ended
        (said,) = (line for line in ended.said.splitlines() if not line.startswith("[rank"))  # which are PyTorch's
        assert said.startswith("train.py: another rank has ended or cannot be reached")
        assert f"run_dir={tmp_path / 'run'} --resume auto continues" in said
    assert run(2, *command).codes == [0, 0]
    assert_same(tmp_path / "run", unbroken, exactly=True)


def test_torchrun_begins_again_by_itself_where_a_rank_has_died(unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (process,) = start(1, [[*TORCHRUN, "--max-restarts=2", *train_command(LONG, f"run_dir={folder}")]])
    for step in (100, 300):
        wait_for(folder / "checkpoints" / f"step_{step}")
        kill_a_rank(process.pid, 0)
    ended = wait([process])
    assert ended.codes == [0], ended.said
    assert ended.out[0].count("Resumes at step") == 2
    assert_same(folder, unbroken, exactly=True)


def kill_a_rank(torchrun: int, which: int) -> None:
    psutil.Process(torchrun).children()[which].kill()


def wait_for_children(torchrun: int) -> None:
    while len(psutil.Process(torchrun).children()) < 2:
        time.sleep(0.05)


@pytest.mark.product
def test_a_run_comes_through_twenty_kills(tmp_path: Path) -> None:
    """Each at a random time, of a random rank."""
    drawn, folder, unbroken, steps = random.Random(0), tmp_path / "run", tmp_path / "unbroken", "total_env_steps=2500"
    assert run(2, *train_command(steps, f"run_dir={unbroken}")).codes == [0, 0]
    command = train_command(steps, f"run_dir={folder}", "--resume", "auto")
    for _ in range(20):
        (torchrun,) = start(1, [[*TORCHRUN, *command]])
        wait_for_children(torchrun.pid)
        time.sleep(drawn.uniform(0.0, 5.0))  # of which importing PyTorch takes about 3 s
        kill_a_rank(torchrun.pid, drawn.randrange(2))
        assert wait([torchrun], seconds=30).codes == [1]
    ended = run(2, *command)
    assert ended.codes == [0, 0], ended.said
    assert_same(folder, unbroken, exactly=True)


def refused(*arguments: list[str], port: int | None = None, env: dict[str, str] | None = None) -> str:
    """What one rank says, where both end as after a user's mistake."""
    ended: Ended = wait(start(2, arguments, port, env), seconds=60)
    assert ended.codes == [2, 2] and ended.said.count("error: ") == 1 and "Traceback" not in ended.said, ended
    return ended.said


def test_more_ranks_than_members_are_refused(tmp_path: Path) -> None:
    said = refused(train_command("seeds=1", f"run_dir={tmp_path / 'run'}"))
    assert "torchrun has started 2 ranks, but there are 1 members" in said
    assert not (tmp_path / "run").exists()


def test_ranks_with_other_settings_are_refused(tmp_path: Path) -> None:
    command = train_command(f"run_dir={tmp_path / 'run'}")
    said = refused(command, [*command, "gamma=0.9"])
    assert "rank 1 has other settings than rank 0: gamma: 0.997 at rank 0, 0.9" in said


def test_ranks_with_other_code_are_refused(tmp_path: Path) -> None:
    for folder in ("agent", "envs", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", tmp_path)
    (tmp_path / "agent" / "losses.py").write_text("# changed\n" + (ROOT / "agent" / "losses.py").read_text())
    said = refused(train_command(), [str(tmp_path / "train.py"), *SHORT], env={"PYTHONPATH": ""})
    assert "rank 1 has other code than rank 0" in said


def test_what_only_one_rank_lacks_is_told_by_that_rank() -> None:
    """Each rank reads its own files."""
    said = refused(train_command(), [*TRAIN, "no_such.yaml"])
    assert "no_such.yaml" in said


def test_a_mistake_of_all_is_told_once() -> None:
    assert "did you mean CartPole-v1?" in refused(train_command("env.id=CartPol-v1"))


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (process,) = start(1, [train_command()], port, {"WORLD_SIZE": "2"})
        ended = wait([process], seconds=60)
    assert ended.codes == [2] and f"127.0.0.1:{port}: the port is in use; choose another" in ended.said


def test_a_restart_does_not_resume_a_run_that_was_refused(unbroken: Path) -> None:
    """torchrun begins again where the first attempt ended because the folder holds another run."""
    before = metrics(unbroken)
    (torchrun,) = start(1, [[*TORCHRUN, "--max-restarts=1", *train_command(LONG, f"run_dir={unbroken}")]])
    ended = wait([torchrun])
    assert ended.codes == [1] and ended.said.count("already holds a run") == 2 and metrics(unbroken) == before


def test_restarts_need_a_folder_to_resume() -> None:
    said = refused(train_command(), env={"TORCHELASTIC_MAX_RESTARTS": "1"})
    assert "give run_dir=FOLDER" in said


def test_what_a_comparison_needs_is_trained_by_several_ranks(tmp_path: Path) -> None:
    """And its report is written by one."""
    (tmp_path / "task.yaml").write_text(short(tmp_path / "unused").to_yaml())
    command = [str(ROOT / "compare.py"), "task.yaml", "--vary", "gamma=0.9,0.95,0.99", "--seeds", "1"]
    ended = wait(start(2, [command], folder=tmp_path))
    assert ended.codes == [0, 0] and not ended.said, ended
    assert all(text.count("training gumbel_actor_critic") >= 1 for text in ended.out)
    assert sum(text.count("training gumbel_actor_critic") for text in ended.out) == 3
    assert [text.count("saved in") for text in ended.out] == [1, 0]
    results = json.loads((tmp_path / "comparisons" / "task" / "results.json").read_text())
    assert len(results["entries"]) == 3


def test_a_callback_of_rank_0_stops_all(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from agent import Callback, load_config, train\n"
        "class Stop(Callback):\n"
        "    def on_evaluation(self, evaluation):\n"
        "        return False\n"
        "run = train(load_config(None, sys.argv[1:]), callbacks=[Stop()], progress=False)\n"
        "print(run.result['env_steps'], len(run.result['members']))\n"
    )
    ended = run(2, str(script), *SHORT, f"run_dir={tmp_path / 'run'}")
    assert ended.codes == [0, 0] and ended.out == ["40 3\n"] * 2, ended


@pytest.mark.parametrize("kind", ["actor_critic", "joint", "masks", "memory", "reinforce"])
def test_one_update_on_the_same_rows_is_that_of_one_process(kind: str, tmp_path: Path) -> None:
    ended = run(2, str(ROOT / "tests" / "data_ranks_script.py"), str(tmp_path), kind)
    assert ended.codes == [0, 0], ended.said
    ranks = [load_file(tmp_path / str(rank)) for rank in range(2)]
    names = [name.removeprefix("whole/") for name in ranks[0] if name.startswith("whole/")]
    assert "actor" in names and len(names) >= 2
    for name in names:
        whole = ranks[0][f"whole/{name}"]
        assert torch.equal(ranks[0][f"part/{name}"], ranks[1][f"part/{name}"])
        torch.testing.assert_close(ranks[0][f"part/{name}"], whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "overrides", [["algorithm=reinforce"], ["pbt.every_env_steps=60"], ["network.memory=gru", "sequence_length=4"]]
)
def test_ranks_that_share_the_data_of_members_resume_bit_for_bit(overrides: list[str], tmp_path: Path) -> None:
    settings = [LONG, "parallel.data=true", "seeds=2", "evaluation.final_episodes=5", *overrides]
    command = train_command(*settings, f"run_dir={tmp_path / 'unbroken'}")
    assert run(2, *command).codes == [0, 0]
    command = train_command(*settings, f"run_dir={tmp_path / 'run'}", "--resume", "auto")
    processes = start(2, [command])
    wait_for(tmp_path / "run" / "checkpoints" / "step_100")
    for process in processes:
        process.send_signal(signal.SIGTERM)
    assert wait(processes).codes == [143, 143]
    ended = run(1, *command)
    assert ended.codes == [2] and "was written by 2 ranks" in ended.said
    ended = run(2, *command)
    assert ended.codes == [0, 0] and "Ranks: 2, each with 1 of the 2 environments of each member." in ended.out[0]
    assert_same(tmp_path / "run", tmp_path / "unbroken", exactly=True)
    member, _ = json.loads((tmp_path / "run" / "result.json").read_text())["members"]
    assert len(member["greedy"]["returns"]) == 5 and member["greedy"]["mean"] > 8
    assert {row["env_steps"] for row in metrics(tmp_path / "run")} >= {10, 300, 600}


@pytest.mark.parametrize(
    ("setting", "message"),
    [("env.num_envs=3", "use a multiple of 2, for example 4"), ("batch_size=7", "use a multiple of 2, for example 8")],
)
def test_data_that_cannot_be_divided_is_refused(setting: str, message: str) -> None:
    assert message in refused(train_command("parallel.data=true", setting))


def test_an_algorithm_that_does_not_pool_gradients_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from agent.algorithms.gumbel_actor_critic import GumbelActorCritic\n"
        "class Own(GumbelActorCritic):\n"
        "    pools_data = False\n"
    )
    settings = ["parallel.data=true", f"algorithm={tmp_path / 'own.py'}:Own"]
    assert "does not pool the gradients of several ranks" in refused(train_command(*settings))


def test_a_rank_without_a_device_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert select_device(load_config(None, ["env.id=x", "device=cuda"])).type == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigError, match=r"rank 1 of this machine has none, as there are 1 CUDA devices; start 1"):
        select_device(load_config(None, ["env.id=x", "device=cuda"]))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("overrides", [["seeds=4"], ["seeds=2", "parallel.data=true"]])
def test_two_gpus_train_as_one_does(overrides: list[str], tmp_path: Path) -> None:
    """Members to rounding. Data by NCCL: whole runs differ, but must learn, and end in the same folder."""
    settings = ["device=cuda", "env.id=Tensor/CartPole-v1", *overrides]
    assert run(2, *train_command(*settings, f"run_dir={tmp_path / 'two'}")).codes == [0, 0]
    train(short(tmp_path / "one", *settings), progress=False)
    if "parallel.data=true" not in overrides:
        assert_same(tmp_path / "two", tmp_path / "one")
    assert len(json.loads((tmp_path / "two" / "result.json").read_text())["members"]) == int(overrides[0][-1])


@pytest.mark.skipif(torch.cuda.device_count() != 1, reason="needs one CUDA device")
def test_two_ranks_on_one_gpu_are_refused() -> None:
    assert "as there are 1 CUDA devices; start 1 ranks here" in refused(train_command("device=cuda"))
