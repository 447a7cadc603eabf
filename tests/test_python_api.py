"""What people do from Python: runs, environments that a callable makes, errors, reprs."""

import functools
import importlib.util
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from agent import Callback, Config, Policy, PolicyError, Run, compare, evaluate, train
from agent.cli import train as train_command
from agent.config_fields import ConfigError
from agent.training.callbacks import EvaluationView
from envs import UserError, registered

SHORT: dict[str, Any] = {
    "total_env_steps": 80,
    "learning_starts": 40,
    "batch_size": 8,
    "hidden_sizes": [8],
    "log_every_env_steps": 40,
    "evaluation": {"every_env_steps": 40, "episodes": 2, "final_episodes": 2},
    "wandb": {"mode": "disabled"},
    "compile": False,
}


class Corridor(gymnasium.Env[np.ndarray, int]):
    """Right is reward 1, left 0; an episode has ten steps."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, size: int = 3, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (size,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = 10
        return self.observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return self.observe(), float(action), self.left == 0, False, {}

    def observe(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, self.observation_space.shape).astype(np.float32)

    def render(self) -> np.ndarray:  # type: ignore[override]
        return np.zeros((32, 32, 3), np.uint8)


class StopsAtOnce(Callback):
    def on_evaluation(self, evaluation: EvaluationView) -> bool:
        return False


def config(folder: Path, **settings: Any) -> Config:
    return Config(run_dir=str(folder), **(SHORT | settings))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    sweep = {"tau.start": [2.0, 1.0]}
    return train(config(tmp_path_factory.mktemp("api") / "run", env={"id": "CartPole-v1"}, sweep=sweep))


def test_a_run_gives_its_policies(run: Run) -> None:
    obs = np.zeros(4, np.float32)
    for weights in ("final", "best"):
        assert run.policy(weights).act(obs) in (0, 1)  # type: ignore[arg-type]
        stored = Policy.load(run, weights=weights, member=1)  # type: ignore[arg-type]
        own = run.policy(weights, member=1)  # type: ignore[arg-type]
        assert own.info == stored.info
    assert run.policy(member="all").num_members == 2


def test_functions_that_take_a_run_folder_take_a_run(run: Run) -> None:
    assert evaluate(run, episodes=1) == evaluate(str(run.folder), episodes=1)
    assert len(compare(run).summaries) == 2
    assert Run(run) == run
    assert hash(Run(run)) == hash(run)


def test_a_run_gives_its_settings_and_results(run: Run) -> None:
    assert run.config.total_env_steps == 80
    assert [member["settings"] for member in run.result["members"]] == [{"tau.start": 2.0}, {"tau.start": 1.0}]


def test_metrics_are_a_row_for_each_member_and_time(run: Run) -> None:
    table = run.metrics()
    assert list(table.columns[:3]) == ["member", "seed", "tau.start"]
    last = table[table.env_steps == 80]
    assert list(zip(last.member, last.seed, last["tau.start"], strict=True)) == [(0, 0, 2.0), (1, 0, 1.0)]
    for metric in ("eval/return_greedy", "time/elapsed_seconds"):
        assert np.isfinite(last[metric]).all()
    assert not table.duplicated(["member", "env_steps"]).any()


def test_without_pandas_metrics_are_a_list_of_rows(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    table = run.metrics()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    rows = run.metrics()
    assert [(row["member"], row["env_steps"]) for row in rows] == list(zip(table.member, table.env_steps, strict=True))


def test_a_line_that_a_crash_cut_short_is_left_out(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((run.folder / "config.yaml").read_text())
    (tmp_path / "metrics.jsonl").write_text('{"env_steps": 1, "member": 0}\n{"env_st')
    assert len(Run(tmp_path).metrics()) == 1
    assert "not finished" in repr(Run(tmp_path))
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="metrics.jsonl: no such file"):
        Run(tmp_path).metrics()
    with pytest.raises(UserError, match="did not finish"):
        _ = Run(tmp_path).result


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing: not a run folder: no config.yaml"):
        Run(tmp_path / "nothing")


def test_what_things_are_is_seen_where_they_are_printed(run: Run) -> None:
    assert repr(run).startswith(f"Run('{run.folder}': CartPole-v1, gumbel_actor_critic, 2 members, 80 env steps, ")
    assert repr(run.policy(member=0)).startswith(
        f"Policy('{run.folder}': CartPole-v1, gumbel_actor_critic, 80 env steps, seed 0, greedy return"
    )
    assert repr(run.policy(member="all")).endswith("80 env steps, 2 members)")
    small = Config(env={"id": "CartPole-v1"}, tau={"start": 3.0}, gamma=0.997)
    assert repr(small) == "Config(env={'id': 'CartPole-v1'}, tau={'start': 3.0})"
    assert eval(repr(small)) == small


def test_a_wrong_setting_is_explained_as_on_the_command_line() -> None:
    with pytest.raises(ConfigError) as error:
        Config(env={"id": "CartPole-v1"}, tau={"strt": 1}, gamma=2)
    assert str(error.value).splitlines() == [
        "Config: gamma: got 2, must be less than 1",
        "Config: unknown key 'tau.strt'; did you mean 'tau.start'?",
    ]
    with pytest.raises(ConfigError, match=r"Config: sweep: noise_persistence: got \[0.9, 0.5\]"):
        Config(env={"id": "CartPole-v1"}, sweep={"noise_persistence": [0.5, [0.9, 0.5]]})


def test_without_progress_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(config(tmp_path, env={"id": "CartPole-v1"}), progress=False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("factory", "name", "kwargs"),
    [
        (Corridor, "Corridor", {"size": 5}),
        (lambda: Corridor(5), "lambda", {}),
        (functools.partial(Corridor, 5), "Corridor", {}),
        (lambda: gymnasium.wrappers.TimeLimit(Corridor(5), 5), "lambda", {}),
    ],
)
@pytest.mark.parametrize("mode", ["auto", "async"])
def test_a_factory_makes_the_environments(tmp_path: Path, factory: Any, name: str, kwargs: Any, mode: str) -> None:
    env = {"kwargs": kwargs, "vectorization_mode": mode, "num_envs": 2}
    run = train(config(tmp_path, env=env), env=factory, progress=False)
    assert run.config.env.id == f"factory/{name}-v0"
    (member,) = evaluate(run, episodes=2, env=factory, modes=["greedy"])
    assert 0 <= member["greedy"]["mean"] <= 10
    assert run.policy().act(np.zeros(5, np.float32)) in (0, 1)
    assert not any(env_id.startswith("factory/") for env_id in gymnasium.registry)


def test_a_run_of_a_factory_resumes_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    whole = train(config(tmp_path / "whole"), env=Corridor, progress=False)
    train(config(tmp_path / "run"), env=Corridor, progress=False, callbacks=[StopsAtOnce()])
    run = train(config(tmp_path / "run"), env=Corridor, resume=True, progress=False)
    weights = [(r.folder / "policy" / "final" / "weights.safetensors").read_bytes() for r in (whole, run)]
    assert weights[0] == weights[1]
    assert train(run.config, env=Corridor, resume=True) == run  # it is finished


def test_environments_of_a_factory_cannot_be_made_from_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(config(tmp_path), env=Corridor)
    assert "in Python: evaluate(run, env=Corridor)" in capsys.readouterr().out
    for attempt in (lambda: evaluate(run), lambda: run.policy().make_env()):
        with pytest.raises(PolicyError, match=r"made in Python by Corridor, .* evaluate\(policy, env=Corridor\)"):
            attempt()
    with registered(lambda: Corridor(7)), pytest.raises(PolicyError, match="made in Python by Corridor"):
        evaluate(run)
    assert train_command.main(["--resume", str(run.folder), "total_env_steps=120"]) == 2
    assert "train(config, env=Corridor, resume=True)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (Corridor(), r"env: got an environment, Corridor; .* lambda: MyEnv\(3\)"),
        ("CartPole-v1", r"""env: got 'CartPole-v1', must be a class .* env={"id": "CartPole-v1"}"""),
        (lambda: 3, "factory/lambda-v0 cannot be made"),
        (lambda size: Corridor(size), "factory/lambda-v0 needs size"),
    ],
)
def test_what_is_no_factory_is_refused(tmp_path: Path, env: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(config(tmp_path / "run"), env=env)
    assert not (tmp_path / "run").exists()


def test_environments_are_named_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="env: got factory/Corridor-v0, but the config has env.id=CartPole-v1"):
        train(config(tmp_path, env={"id": "CartPole-v1"}), env=Corridor)
    with pytest.raises(ConfigError, match=r"env.id is required: .* train\(config, env=MyEnv\)"):
        train(config(tmp_path))


def test_factories_of_one_name_do_not_meet(tmp_path: Path) -> None:
    with registered(lambda: Corridor(3)) as outer:
        with registered(lambda: Corridor(4)) as inner:
            assert inner == outer
            assert gymnasium.make(inner).observation_space.shape == (4,)
        assert gymnasium.make(outer).observation_space.shape == (3,)
    assert outer not in gymnasium.registry


@pytest.mark.slow
def test_a_run_uploads_its_policies_and_a_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of environments, too, that no file can name."""
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "of wandb"))
    wandb = {"mode": "offline", "log_policy": True, "log_video": True}
    run = train(config(tmp_path / "run", seeds=2, wandb=wandb), env=Corridor, progress=False)
    pytest.importorskip("wandb").teardown()
    (video,) = (run.folder / "videos").glob("*.mp4")
    (media,) = run.folder.glob("wandb/offline-run-*/files/media/videos/*.mp4")
    assert media.read_bytes() == video.read_bytes()
    population = min(run.folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda file: len(file.name))
    assert b"policy-" in population.read_bytes() and b"policy.json" in population.read_bytes()
    assert capfd.readouterr().out == ""
