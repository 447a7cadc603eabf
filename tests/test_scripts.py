"""The three scripts as a user calls them: exit codes, messages, and nothing but JSON where JSON is asked for."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from test_resume import stop_at

from agent.analysis import gradients, report
from agent.cli import compare, evaluate, train
from agent.exit_codes import Stopped

__all__ = ["stop_at"]  # a fixture
CARTPOLE = "configs/cartpole.yaml"
SHORT = [
    "env.id=CartPole-v1", "env.num_envs=1", "total_env_steps=200", "learning_starts=100", "batch_size=16",
    "hidden_sizes=[8]", "seeds=2", "reinforce.rollout_steps=100", "evaluation.episodes=1",
    "evaluation.final_episodes=2", "wandb.mode=disabled",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scripts") / "run"
    assert train.main([*SHORT, f"run_dir={folder}"]) == 0
    return folder


def test_train_ends_with_the_table_the_places_and_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*SHORT, f"run_dir={tmp_path / 'run'}"]) == 0
    out = capsys.readouterr().out
    for text in ("greedy", "sampled", f"saved in {tmp_path / 'run'}", "python evaluate.py", "python compare.py"):
        assert text in out


def test_print_config_prints_yaml_and_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main(["env.id=CartPole-v1", "--print-config", "tau.start=2"]) == 0
    assert "start: 2.0" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_evaluate_json_is_one_object_and_nothing_else(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(env: CartPoleEnv, action: Any) -> Any:
        print("a step")
        return unbroken(env, action)

    unbroken = CartPoleEnv.step
    monkeypatch.setattr(CartPoleEnv, "step", step)
    capsys.readouterr()
    assert evaluate.main([str(run), "--member", "all", "--episodes", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["env_id"], result["env_steps"]) == ("CartPole-v1", 200)
    assert [(m["member"], m["seed"], m["settings"]) for m in result["members"]] == [(0, 0, {}), (1, 1, {})]
    for member in result["members"]:
        for mode in ("greedy", "sampled"):
            assert set(member[mode]) >= {"mean", "std", "iqm", "returns", "lengths"}
            assert len(member[mode]["returns"]) == 3


@pytest.mark.parametrize(
    ("flag", "modes"), [("--greedy", {"greedy"}), ("--sampled", {"sampled"}), ("--both", {"greedy", "sampled"})]
)
def test_evaluate_runs_the_modes_asked_for(
    run: Path, flag: str, modes: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert evaluate.main([str(run), flag, "--episodes", "1", "--json", "--weights", "best"]) == 0
    (member,) = json.loads(capsys.readouterr().out)["members"]
    assert modes == {"greedy", "sampled"} & set(member)


def test_evaluation_repeats_with_its_seed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for seed in ("3", "3", "4"):
        capsys.readouterr()
        evaluate.main([str(run), "--seed", seed, "--episodes", "4", "--json"])
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]


def test_evaluate_writes_a_video(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    pytest.importorskip("pygame")
    assert evaluate.main([str(run), "--episodes", "1", "--video", str(tmp_path / "videos")]) == 0
    (video,) = (tmp_path / "videos").iterdir()
    assert video.suffix == ".mp4" and b"ftyp" in video.read_bytes()[:16]


def test_a_video_that_shows_nothing_is_named(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("imageio_ffmpeg")
    monkeypatch.setattr(CartPoleEnv, "render", lambda env: np.zeros((4, 4, 3), np.uint8))
    assert evaluate.main([str(run), "--episodes", "1", "--video", str(tmp_path / "videos")]) == 0
    assert re.search("videos/CartPole-v1.*mp4: every frame has one colour alone", caplog.text)


def test_a_renderer_that_fails_costs_only_the_video(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("imageio_ffmpeg")
    videos, picture = tmp_path / "videos", np.zeros((4, 4, 3), np.uint8)

    def render(env: CartPoleEnv) -> object:
        frame = next(frames)
        if isinstance(frame, Exception):
            raise frame
        return frame

    monkeypatch.setattr(CartPoleEnv, "render", render)
    for last, text in (
        (None, "CartPole-v1: no video: render() returned None; expected an array"),
        (ZeroDivisionError("no\nway"), "CartPole-v1 cannot be rendered: render raised ZeroDivisionError: no way"),
        (picture[:2], "CartPole-v1: no video: the frames change their size, from 4x4 to 2x4; a video has one size"),
    ):
        frames = iter([picture, last])
        assert evaluate.main([str(run), "--episodes", "3", "--json", "--video", str(videos)]) == 2
        out, error = capsys.readouterr()
        assert len(json.loads(out)["members"][0]["greedy"]["returns"]) == 3
        assert error.startswith(f"evaluate.py: error: {text}") and error.count("\n") == 1
        assert list(videos.iterdir()) == []


def test_a_video_of_each_member_lies_in_a_file_of_its_own(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("imageio_ffmpeg")
    monkeypatch.setattr(CartPoleEnv, "render", lambda env: np.zeros((4, 4, 3), np.uint8))
    for mode in ("--greedy", "--sampled"):
        command = [str(run), "--member", "all", "--episodes", "1", mode, "--video", str(tmp_path / "videos")]
        assert evaluate.main(command) == 0
    names = [f"CartPole-v1-member{i}-seed{i}-step200-episode0{mode}.mp4" for i in (0, 1) for mode in ("", "-sampled")]
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == sorted(names)


def test_episodes_that_are_cut_are_marked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert evaluate.main([str(run), "--episodes", "2", "--max-episode-steps", "3"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"length +cut *\n", shown) and "cut: episodes longer than max_episode_steps" in shown
    assert evaluate.main([str(run), "--episodes", "2", "--max-episode-steps", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["max_episode_steps"] == 3
    assert (result["members"][0]["greedy"]["cut"], result["members"][0]["greedy"]["were_cut"]) == (2, [True, True])
    assert evaluate.main([str(run), "--episodes", "2"]) == 0
    assert "cut" not in capsys.readouterr().out


def test_train_marks_episodes_that_are_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert train.main([*SHORT, "evaluation.max_episode_steps=3", f"run_dir={tmp_path / 'run'}"]) == 0
    assert re.search(r"length +cut *\n", capsys.readouterr().out)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["max_episode_steps"] == 3 and result["members"][0]["sampled"]["were_cut"] == [True, True]
    (warning,) = (record.getMessage() for record in caplog.records if "cut" in record.getMessage())
    assert warning.startswith("4 episodes of the evaluation at step 10 were cut after 3 steps (evaluation.max_ep")


@pytest.mark.parametrize(
    "command",
    [
        ["train.py", "--help"],
        ["evaluate.py", "{run}", "--episodes", "2"],
        ["compare.py", "{run}", "--name", "läuft"],
    ],
)
def test_output_that_can_only_be_ascii_is_no_reason_to_die(command: list[str], run: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path.cwd()), "LC_ALL": "C"}
    arguments = [str(Path.cwd() / command[0]), *(part.format(run=run) for part in command[1:])]
    done = subprocess.run([sys.executable, *arguments], env=environment, cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout.isascii()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: compare.main([str(run)]), "comparisons/run: cannot make this folder for the report"),
        (lambda run: evaluate.main([str(run), "--gradients", "--episodes", "1"]), "gradients.png: cannot be written"),
    ],
)
def test_a_folder_that_cannot_be_written_is_one_message(
    call: Callable[[Path], int],
    message: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A file where a folder would be: whoever runs the tests may be allowed to write to read-only folders."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gradients, "ROUNDS", 1)
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "comparisons").touch()
    (tmp_path / "run" / "figures").touch()
    assert call(Path("run")) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_figure_that_fails_leaves_the_results_of_a_comparison(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "write_figures", full)
    assert compare.main([str(run)]) == 2
    out, error = capsys.readouterr()
    assert "IQM over seeds" in out and "the report cannot be written: [Errno 28] No space left" in error
    assert json.loads((tmp_path / "comparisons" / run.name / "results.json").read_text())["env_id"] == "CartPole-v1"


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_have_the_permissions_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert train.main([*SHORT, f"run_dir={tmp_path / 'run'}"]) == 0
    finally:
        os.umask(before)
    for path in (tmp_path / "run").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_compare_trains_what_is_missing_and_then_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text("env: {id: CartPole-v1}\nreturn_threshold: 475\n")
    command = ["tiny.yaml", *SHORT[1:], "--algorithms", "gumbel_actor_critic", "reinforce"]
    assert compare.main(command) == 0
    assert "P(better than)" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "comparisons" / "tiny").iterdir()} >= {
        "report.html", "results.json", "results.csv", "learning_curves.png",
    }  # fmt: skip
    monkeypatch.setattr(compare, "train", lambda config: pytest.fail("trained again"))
    assert compare.main(command) == 0


def test_compare_takes_configs_folders_and_filters_together(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text("env: {id: CartPole-v1}\n")
    shutil.copytree(run, tmp_path / "runs" / "old")
    (tmp_path / "runs" / "old" / "config.yaml").write_text("env: {id: CartPole-v1}\ngamma: 0.5\n")
    settings = [*SHORT[1:], "gamma=0.9"]
    assert compare.main(["tiny.yaml", str(run), *settings, "--filter", "gamma=0.5", "--name", "all"]) == 0
    results = json.loads((tmp_path / "comparisons" / "all" / "results.json").read_text())
    assert [len(entry["seeds"]) for entry in results["entries"]] == [2, 2, 2]


def test_compare_records_the_versions_that_its_runs_were_trained_with(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert compare.main([str(run)]) == 0
    results = json.loads((tmp_path / "comparisons" / run.name / "results.json").read_text())
    for versions in (results["versions"], results["runs"][0]["versions"]):
        assert set(versions) == {"project", "torch", "kernels", "gymnasium", "numpy", "python", "device"}


def test_compare_refuses_two_environments_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare, "train", lambda config: pytest.fail("trained"))
    for name, env_id in (("a", "CartPole-v1"), ("b", "Acrobot-v1")):
        (tmp_path / f"{name}.yaml").write_text(f"env: {{id: {env_id}}}\n")
    assert compare.main(["a.yaml", "b.yaml"]) == 2
    assert "only runs of one environment can be compared" in capsys.readouterr().err


def test_compare_help_shows_a_command_for_every_way_to_choose(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.main(["--help"])
    text = capsys.readouterr().out
    for option in ("--algorithms", "--estimators", "--vary", "--seeds", "--filter", "sweep=", "runs/first"):
        assert re.search(f"python compare.py .*{re.escape(option)}", text)


@pytest.mark.parametrize(
    ("interruption", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "compare.py: stopped; the same command trains the runs still missing"),
        (
            Stopped(signal.SIGTERM, "stopped at step 5"),
            143,
            "compare.py: stopped at step 5; the same command trains the runs still missing",
        ),
    ],
)
def test_interrupted_comparison_says_how_to_go_on(
    interruption: BaseException,
    code: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "tiny.yaml").write_text("env: {id: CartPole-v1}\n")
    monkeypatch.chdir(tmp_path)

    def interrupt(config: object, **options: object) -> Path:
        raise interruption

    monkeypatch.setattr(compare, "train", interrupt)
    assert compare.main(["tiny.yaml"]) == code
    assert text in capsys.readouterr().err


def test_a_stopped_run_ends_with_the_signals_code_and_the_command_that_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stop_at: Callable[[int], None]
) -> None:
    run = tmp_path / "run"
    stop_at(150)
    assert train.main([*SHORT, f"run_dir={run}", "--resume", "auto"]) == 143
    message = capsys.readouterr().err
    assert "train.py: stopped at step 151 of 200; saved; " in message and f"python train.py --resume {run}" in message
    assert train.main(["--resume", str(run)]) == 0
    assert f"Resumes at step 151: {run}/checkpoints/step_151" in capsys.readouterr().out
    assert train.main(["--resume", str(run)]) == 0
    assert "has come to its end; a larger total_env_steps" in capsys.readouterr().out
    assert train.main(["--resume", str(run), "learning_rate=1"]) == 2


def other_policy(folder: Path) -> str:
    assert train.main([*SHORT[1:], "env.id=MountainCar-v0", f"run_dir={folder}"]) == 0
    return str(folder)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run, tmp: train.main(["env.id=CartPoll-v1"]), "did you mean|CartPole-v1"),
        (lambda run, tmp: train.main(["--resume", str(tmp / "none")]), "not a run folder: no config.yaml"),
        (lambda run, tmp: train.main(["--resume", "auto", "env.id=CartPole-v1"]), "needs run_dir=FOLDER"),
        (lambda run, tmp: train.main(["x.yaml", "--resume", str(run)]), "the run's own config; leave out x.yaml"),
        (lambda run, tmp: train.main(["env.id=Pendulum-v1"]), "set env.action_bins"),
        (lambda run, tmp: train.main(["env.id=CartPole-v1", "gama=1"]), "did you mean 'gamma'"),
        (lambda run, tmp: train.main(["env.id=CartPole-v1", "batch_size=many"]), "must be a valid integer"),
        (lambda run, tmp: train.main(["env.id=CartPole-v1", "tau.start=-1"]), "must be greater than 0"),
        (
            lambda run, tmp: train.main([*SHORT, "gamma=0.9", "gamma=0.8"]),
            "given twice, by 'gamma=0.9' and by 'gamma=0.8'",
        ),
        (lambda run, tmp: train.main([*SHORT, "tau.end=1", "tau={start: 2}"]), "tau.end is given twice"),
        (lambda run, tmp: train.main([*SHORT, "tau={start: 2}", "tau.start=1"]), "tau.start is given twice"),
        (lambda run, tmp: train.main([CARTPOLE, "--seeds", "3"]), "--seeds: no such option; .* example seeds=3$"),
        (lambda run, tmp: train.main([CARTPOLE, "--tau.start=2"]), "example tau.start=2$"),
        (lambda run, tmp: train.main(["--lr=0.1", CARTPOLE]), "example learning_rate=0.1$"),
        (lambda run, tmp: train.main([CARTPOLE, "--learning-rate", "1e-3"]), "example learning_rate=1e-3$"),
        (lambda run, tmp: train.main([CARTPOLE, "--resum", "x"]), r"no such option; did you mean --resume\?"),
        (lambda run, tmp: train.main([CARTPOLE, "--print"]), "--print: no such option"),
        (lambda run, tmp: train.main(["lr=0.1", *SHORT]), "did you mean 'learning_rate'"),
        (
            lambda run, tmp: train.main(
                [*SHORT[4:], "env.id=CartPole-v1", "total_env_steps=900", "learning_starts=1000"]
            ),
            "below total_env_steps=900",
        ),
        (lambda run, tmp: train.main([str(tmp / "missing.yaml")]), "no such config file"),
        (lambda run, tmp: train.main([str(empty(tmp))]), "the file is empty"),
        (lambda run, tmp: train.main([f"run_dir={run}", *SHORT]), "already holds a run"),
        (lambda run, tmp: evaluate.main([str(tmp)]), "no policy here"),
        (lambda run, tmp: evaluate.main([str(tmp / "nowhere")]), "no such folder"),
        (lambda run, tmp: evaluate.main([str(run), "--member", "7"]), "member 7 does not exist"),
        (lambda run, tmp: evaluate.main([str(run), "env.action_bins=2", "env.action_bins=3"]), "is given twice"),
        (lambda run, tmp: evaluate.main([str(run), "env.id=A-v0", "--env", "B-v0"]), "env.id is given twice"),
        (lambda run, tmp: evaluate.main([other_policy(tmp / "x"), "--env", "CartPole-v1"]), "this policy has"),
        (lambda run, tmp: compare.main([str(tmp)]), r"no result\.json"),
        (lambda run, tmp: compare.main([str(tmp / "missing.yaml")]), "no such config file"),
        (lambda run, tmp: compare.main([str(run), "gamma=0.9"]), "finished runs are as they are"),
        (lambda run, tmp: compare.main([str(run), "--seeds", "0"]), "finished runs are as they are"),
        (lambda run, tmp: compare.main([]), "name config files or run folders"),
        (lambda run, tmp: compare.main([f"{run}s"]), "did you mean '.*/run'"),
        (lambda run, tmp: compare.main([CARTPOLE, "--algorithms", "reinforc"]), "did you mean 'reinforce'"),
        (lambda run, tmp: compare.main([CARTPOLE, "--estimators", "exat"]), "did you mean 'exact'"),
        (lambda run, tmp: compare.main([CARTPOLE, "--vary", "gama=1,2"]), "did you mean 'gamma'"),
        (lambda run, tmp: compare.main([CARTPOLE, "--seeds", "0"]), "seeds: got 0"),
        (lambda run, tmp: compare.main([CARTPOLE, "--seeds", "2", "seeds=3"]), "seeds is given twice"),
        (lambda run, tmp: compare.main([CARTPOLE, "gamma=0.9", "--vary", "gamma=0.9,1"]), "by 'gamma=0.9' and by"),
        (lambda run, tmp: compare.main([CARTPOLE, "--seed", "2"]), "--seed: no such option; .* example seed=2$"),
        (lambda run, tmp: compare.main([CARTPOLE, "--estimator", "exact"]), "did you mean --estimators"),
        (lambda run, tmp: compare.main([CARTPOLE, f"run_dir={tmp}"]), "leave run_dir out"),
        (
            lambda run, tmp: compare.main([CARTPOLE, "total_env_steps=900", "learning_starts=1000"]),
            "below total_env_steps=900",
        ),
        (lambda run, tmp: compare.main(["--filter", "env=x"]), "unknown key 'env'"),
        (lambda run, tmp: compare.main([str(empty_result(tmp))]), "remove the file and train the run again"),
    ],
)
def test_a_users_mistake_is_one_readable_message_and_exit_code_2(
    call: Callable[[Path, Path], int], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(run, tmp_path) == 2
    error = capsys.readouterr().err
    assert ".py: error: " in error and "Traceback" not in error
    assert re.search(message, error)


def empty_result(folder: Path) -> Path:
    (folder / "result.json").touch()
    (folder / "config.yaml").touch()
    return folder


def empty(folder: Path) -> Path:
    (folder / "empty.yaml").touch()
    return folder / "empty.yaml"


@pytest.mark.parametrize(
    "arguments",
    [["--member", "first"], ["--episodes", "0"], ["--seed", "-1"], ["--greedy", "--sampled"], ["--ep", "5"]],
)
def test_unusable_options_exit_with_2(run: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        evaluate.main([str(run), *arguments])
    assert stop.value.code == 2
