"""A policy knows its environment: evaluation, video and policy.make_env() build the one that it was trained in."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode
from scripted_env import SCRIPTS, ScriptedEnv, ScriptedVectorEnv
from test_policy import make_policy

from agent import Policy, PolicyError
from agent.cli import evaluate, train
from agent.config_loader import load_config
from agent.config_sections import EnvSettings, WrapperConfig
from agent.evaluation import make_env
from envs import UserError

MODULE = """
import gymnasium, torch

class Times(gymnasium.RewardWrapper):
    def __init__(self, env, times):
        super().__init__(env)
        self.times = times
    def reward(self, reward):
        return reward * self.times

class Net(torch.nn.Module):
    def __init__(self, obs_shape):
        super().__init__()
        self.layer, self.out_features = torch.nn.Linear(4, 8), 8
    def forward(self, x):
        return self.layer(x).relu()

gymnasium.register("Mine-v0", "gymnasium.envs.classic_control:CartPoleEnv")
"""
SHORT = [
    "total_env_steps=120", "learning_starts=100", "batch_size=8", "evaluation.episodes=1", "wandb.mode=disabled",
    "evaluation.final_episodes=1", "compile=false", "checkpoint.every_env_steps=null",
]  # fmt: skip
ENVIRONMENT = [
    "env.kwargs={sutton_barto_reward: true, max_episode_steps: 9}", "env.vectorization_mode=sync",
    "env.on_error=restart", "env.timeout_seconds=7", "env.wrappers=[{name: theirs.py:Times, kwargs: {times: 4}}]",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a space in its name and a module of the user's own."""
    folder = tmp_path / "my work"
    folder.mkdir()
    (folder / "theirs.py").write_text(MODULE)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    monkeypatch.setattr("gymnasium.envs.registration.registry", registered := gymnasium.registry.copy())
    monkeypatch.setattr("gymnasium.registry", registered)
    return folder


def arguments(command: str) -> list[str]:
    """Of a script, from a command line that was printed."""
    _, _, *found = shlex.split(command)
    return found


def test_a_policy_holds_what_made_its_environment_and_evaluation_makes_it_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["env.id=CartPole-v1", *ENVIRONMENT, *SHORT, "run_dir=a run"]) == 0
    printed = capsys.readouterr().out.splitlines()
    saved = json.loads((folder / "a run" / "policy" / "final" / "policy.json").read_text())["env"]
    expected = load_config(None, ["env.id=CartPole-v1", *ENVIRONMENT, "env.preprocessing=none"]).env
    assert saved == expected.model_dump(exclude={"num_envs"})
    assert saved["wrappers"] == [{"name": "theirs.py:Times", "kwargs": {"times": 4}}]

    assert evaluate.main(["a run", "--episodes", "2", "--json"]) == 2
    refusal = capsys.readouterr().err
    assert "names the wrapper 'theirs.py:Times', which imports the Python module 'theirs.py'" in refusal
    (command,) = re.findall(r"allow it: (.*) \(in Python", refusal)
    assert evaluate.main([*arguments(command), "--episodes=2", "--json"]) == 0
    returns = json.loads(capsys.readouterr().out)["members"][0]["greedy"]["returns"]
    assert all(value in (0, -4) for value in returns)  # -1 as the pole falls, by the wrapper

    next_one = next(line.strip() for line in printed if "evaluate.py 'a run'" in line)
    assert evaluate.main([*arguments(next_one), "--episodes", "1"]) == 0

    policy = Policy.load("a run")
    with pytest.raises(PolicyError, match="names the wrapper"):
        policy.make_env()
    env = policy.make_env(trust=True)
    obs, _ = env.reset(seed=0)
    _, reward, *_ = env.step(policy.act(obs))
    assert reward == 0 and env.spec.max_episode_steps == 9  # type: ignore[union-attr]
    assert policy.make_env(wrappers=[], kwargs={}).spec.max_episode_steps == 500  # type: ignore[union-attr]


def test_commands_name_what_a_file_may_not(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["env.id=theirs:Mine-v0", "network.name=theirs:Net", "sweep={tau.start: [2.0, 1.0]}"]
    assert train.main([*own, *SHORT, "run_dir=a run"]) == 0
    next_one = next(line.strip() for line in capsys.readouterr().out.splitlines() if "evaluate.py 'a" in line)
    assert next_one.endswith("evaluate.py 'a run' --trust")
    assert evaluate.main([*arguments(next_one), "--episodes=1"]) == 0
    del sys.modules["theirs"]
    assert evaluate.main(["a run"]) == 2 and "theirs" not in sys.modules
    (command,) = re.findall(r"allow it: (.*) \(in Python", capsys.readouterr().err)
    assert command.endswith("evaluate.py 'a run' --network theirs:Net --env theirs:Mine-v0")
    done = subprocess.run(f"{command} --episodes=1", shell=True, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "theirs:Mine-v0: return per episode" in done.stdout, done.stderr


def test_evaluation_takes_settings_of_the_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = make_policy(gymnasium.make("CartPole-v1").observation_space, spaces.Discrete(2))
    policy.save(tmp_path / "p")
    command = [str(tmp_path / "p"), "--episodes", "1", "--greedy", "--json"]
    assert evaluate.main([*command, "env.kwargs.max_episode_steps=3", "env.vectorization_mode=async"]) == 0
    assert json.loads(capsys.readouterr().out)["members"][0]["greedy"]["lengths"] == [3]
    for setting, message in {
        "env.vectorisation_mode=sync": "unknown key 'env.vectorisation_mode'; did you mean 'env.vectorization_mode'?",
        "tau.start=2": "'tau.start': an evaluation changes settings of the environment alone, env.key=value",
        "env.wrappers=[Flatten]": "env.wrappers: got 'Flatten', must be module:Class, for example",
        "env.id=Acrobot-v1": "this policy has observations",
    }.items():
        assert evaluate.main([*command, setting]) == 2
        assert message in capsys.readouterr().err


def policy_for(env: Any, settings: EnvSettings) -> Policy:
    policy = make_policy(env.observation_space, env.action_space)
    return Policy(policy.info.model_copy(update={"env": settings}))


@pytest.fixture
def vector_only_view(folder: Path) -> EnvSettings:
    """Settings of an environment whose vector class sees something else than a single one, and cannot be rendered."""

    def make_vector_env(num_envs: int) -> ScriptedVectorEnv:
        env = ScriptedVectorEnv(SCRIPTS[:1] * num_envs, AutoresetMode.NEXT_STEP)
        env.single_observation_space = spaces.Box(0, np.inf, (2, 1), np.float32)
        return env

    gymnasium.register("Unlike-v0", Rendered, vector_entry_point=make_vector_env)
    return EnvSettings(id="Unlike-v0", vectorization_mode="vector_entry_point")


class Rendered(ScriptedEnv):
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.render_mode = render_mode

    def render(self) -> Any:
        return np.zeros((4, 4, 3), dtype=np.uint8)


def test_a_video_of_a_vector_class_that_differs_is_refused_by_its_shapes(vector_only_view: EnvSettings) -> None:
    with_other_shape = ScriptedEnv()
    with_other_shape.observation_space = spaces.Box(0, np.inf, (2, 1), np.float32)
    policy = policy_for(with_other_shape, vector_only_view)
    make_env(policy, 2).close()
    for act in (lambda: make_env(policy, 1, render_mode="rgb_array"), policy.make_env):
        with pytest.raises(
            PolicyError, match=r"but Unlike-v0 has Box.*trained in the vector class, a single .* differs"
        ):
            act()
    auto = {"vectorization_mode": "auto"}
    with pytest.raises(PolicyError, match="this policy has observations"):
        make_env(policy, 1, changes=auto)  # auto takes no vector class that differs
    policy = policy_for(ScriptedEnv(), vector_only_view)
    make_env(policy, 1, changes=auto, render_mode="rgb_array").close()


def test_a_vector_class_that_renders_is_the_one_in_the_video() -> None:
    pytest.importorskip("pygame")
    settings = EnvSettings(id="CartPole-v1", vectorization_mode="vector_entry_point")
    env = make_env(policy_for(gymnasium.make("CartPole-v1"), settings), 1, render_mode="rgb_array")
    env.reset([0])
    assert env.render()[0].shape == (400, 600, 3) and isinstance(env.vector_env.unwrapped, CartPoleVectorEnv)  # type: ignore[attr-defined]
    env.close()


@pytest.mark.parametrize(
    ("settings", "needs"),
    [
        (EnvSettings(id="CartPole-v1"), None),
        (EnvSettings(id="gymnasium:CartPole-v1"), None),
        (EnvSettings(id="CartPole-v1", wrappers=[WrapperConfig(name="gymnasium.wrappers:FlattenObservation")]), None),
        (EnvSettings(id="m:CartPole-v1"), "--env m:CartPole-v1"),
        (EnvSettings(id="./a b/m.py:X-v0"), "--env './a b/m.py:X-v0'"),
        (EnvSettings(id="envs/m.py:X-v0"), "--env envs/m.py:X-v0"),
        (EnvSettings(id="gymnasium_robotics:X-v0"), "--env gymnasium_robotics:X-v0"),
        (EnvSettings(id="CartPole-v1", wrappers=[WrapperConfig(name="m:W")]), "--trust"),
        (EnvSettings(id="CartPole-v1", wrappers=[WrapperConfig(name="gymnasium/evil.py:W")]), "--trust"),
        (EnvSettings(id="CartPole-v1", wrappers=[WrapperConfig(name="gymnasium.wrappers:RecordVideo")]), "--trust"),
    ],
)
def test_a_file_alone_names_no_module_outside_gymnasium(settings: EnvSettings, needs: str | None) -> None:
    policy = policy_for(gymnasium.make("CartPole-v1"), settings)
    if needs is None:
        assert policy.env_settings() == settings
        return
    with pytest.raises(PolicyError, match=f"evaluate.py RUN {re.escape(needs)}") as refused:
        policy.env_settings()
    assert "\n" not in str(refused.value)
    assert policy.env_settings(trust=True) == settings
    assert policy.env_settings(id="CartPole-v1", wrappers=[]).id == "CartPole-v1"


def test_a_policy_of_format_3_is_read(tmp_path: Path) -> None:
    policy = make_policy(gymnasium.make("Taxi-v4").observation_space, spaces.Discrete(6))
    policy.save(tmp_path)
    info = json.loads((tmp_path / "policy.json").read_text())
    del info["env"]
    old = {"format": 3, "env_id": "Taxi-v4", "env_kwargs": {"is_rainy": True}, "action_bins": None}
    (tmp_path / "policy.json").write_text(json.dumps(info | old | {"action_mask_key": "action_mask"}))
    read = Policy.load(tmp_path)
    assert read.info.env == EnvSettings(id="Taxi-v4", kwargs={"is_rainy": True})
    assert read.info.action_mask_key == "action_mask"
    env = read.make_env()
    obs, info = env.reset(seed=0)
    env.step(read.act(obs, action_mask=info["action_mask"]))


def test_wrong_settings_are_one_sentence() -> None:
    policy = policy_for(gymnasium.make("CartPole-v1"), EnvSettings(id="CartPole-v1"))
    with pytest.raises(UserError, match=r"unknown key 'env.wrapers'; did you mean 'env.wrappers'\?"):
        policy.make_env(wrapers=[])
