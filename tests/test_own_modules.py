"""Environments, wrappers, networks of the user's own: found where the user would look, refused in one sentence."""

import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import envs
from agent.config_fields import ConfigError, imported
from envs import UserError
from envs.importing import import_named

REGISTER = 'import gymnasium\ngymnasium.register("{id}", "{entry}")\n'
ENV = """
import gymnasium
from gymnasium import spaces

class Mine(gymnasium.Env):
    observation_space, action_space = spaces.Box(0, 9, (2, 3)), spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}
    def step(self, action):
        return self.observation_space.sample(), 1.0, True, False, {}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a space in its name; what a test imports or registers is forgotten after it."""
    folder = tmp_path / "my work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    registered = gymnasium.registry.copy()
    monkeypatch.setattr("gymnasium.envs.registration.registry", registered)
    monkeypatch.setattr("gymnasium.registry", registered)
    return folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def make_and_close(env_id: str, **arguments: Any) -> Any:
    env = envs.make(env_id, 1, **arguments)
    env.close()
    return env


def test_a_module_in_the_current_folder_is_found_after_the_installed_ones(folder: Path) -> None:
    write(folder / "beside_me.py", ENV + 'gymnasium.register("Mine-v0", "beside_me:Mine")\n')
    write(folder / "numpy.py", "raise RuntimeError('not this one')")
    assert make_and_close("beside_me:Mine-v0").spec_id == "Mine-v0"
    assert import_named("numpy") is np


@pytest.mark.parametrize("entry", ["envs.my:Mine", "my:Mine"])
@pytest.mark.parametrize("package", [False, True])
@pytest.mark.parametrize("absolute", [False, True])
def test_a_file_that_our_packages_would_hide_is_named_outright(
    folder: Path, entry: str, package: bool, absolute: bool
) -> None:
    write(folder / "envs" / "base.py", "NUMBER = 3\n")
    helper = "from .base import NUMBER\n" if package else "from base import NUMBER\n"
    write(folder / "envs" / "my.py", ENV + helper + f'gymnasium.register("Mine-v0", "{entry}")\n')
    if package:
        write(folder / "envs" / "__init__.py", "")
    file = folder / "envs" / "my.py" if absolute else "./envs/my.py"
    assert make_and_close(f"{file}:Mine-v0").observations.size == 6
    with pytest.raises(UserError, match=r"a module of the same name hides your file, name it outright: ./envs/my.py"):
        envs.make("envs.my:Mine-v0", 1)


@pytest.mark.parametrize("function", ["register_envs", "register_late_envs", "_register_late_envs"])
def test_what_a_module_has_to_register_its_ids_is_called_once(folder: Path, function: str) -> None:
    text = f'count = []\ndef {function}(quiet=True):\n    count.append(1)\n    gymnasium.register("Late-v0", Mine)\n'
    write(folder / "late.py", ENV + text)
    make_and_close("late:Late-v0")
    assert make_and_close("late:Late-v0").spec_id == "Late-v0" and sys.modules["late"].count == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "def f(:\n",
            r"env.id=bad:X-v0: cannot import 'bad', which should register X-v0: SyntaxError: .* \(bad.py, line 1\)",
        ),
        ("import os\nos.nothing\n", r"AttributeError: module 'os' has no attribute 'nothing' \(bad.py, line 2\)"),
        ("raise SystemExit(3)\n", r"cannot import 'bad'.*: SystemExit: 3 \(bad.py, line 1\)"),
        ("1 / 0\n", r"ZeroDivisionError: division by zero \(bad.py, line 1\)"),
        ("import not_installed_here\n", r"No module named 'not_installed_here' \(bad.py, line 1\)"),
        ("def register_envs():\n    1 / 0\n", r"bad.register_envs\(\) ZeroDivisionError: .* \(bad.py, line 2\)"),
        ("", "there is no environment 'X-v0': bad does not register it"),
    ],
)
@pytest.mark.parametrize("as_file", [False, True])
def test_whatever_a_module_raises_is_one_sentence(folder: Path, text: str, message: str, as_file: bool) -> None:
    write(folder / "bad.py", text)
    if as_file:
        message = (
            message.replace("bad:", "./bad.py:").replace("'bad'", "'./bad.py'").replace("bad does", "./bad.py does")
        )
        message = message.replace("bad.register", ".*bad.py.register")
    with pytest.raises(UserError, match=message) as caught:
        envs.make("./bad.py:X-v0" if as_file else "bad:X-v0", 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./mien.py", r"^there is no such file; did you mean 'mine.py'\?"),
        ("gymnasum", r"No module named 'gymnasum'; did you mean 'gymnasium'\?"),
        ("mine.more", "No module named 'mine.more'"),
    ],
)
def test_a_misspelt_module_has_a_nearest_match(folder: Path, name: str, message: str) -> None:
    write(folder / "mine.py", "")
    with pytest.raises(UserError, match=message):
        import_named(name)


def test_what_a_module_prints_does_not_mix_with_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder / "loud.py", "print('hello from the community')\n")
    import_named("loud")
    assert capsys.readouterr() == ("", "hello from the community\n")


def test_classes_of_a_file_are_settings_too(folder: Path) -> None:
    write(folder / "nets" / "own.py", "class Network: pass\n")
    assert imported("network.name", "nets/own.py:Network").__name__ == "Network"
    with pytest.raises(
        ConfigError, match=r"network.name: got 'nets/own.py:Netwrk', .*; did you mean 'nets/own.py:Network'\?"
    ):
        imported("network.name", "nets/own.py:Netwrk")


WRAPPERS = """
import gymnasium

class Twice(gymnasium.RewardWrapper):
    def __init__(self, env, times, offset=0):
        super().__init__(env)
        self.times, self.offset = times, offset
        assert times > 0, "must be positive"
    def reward(self, reward):
        return reward * self.times + self.offset

class Bare(gymnasium.Wrapper):
    def __init__(self):
        pass

def __getattr__(name):
    if name == "Lazy":
        import not_installed_here
    raise AttributeError(name)
"""
TWICE, TWO = "scale.py:Twice", {"times": 2}


@pytest.mark.parametrize("mode", ["auto", "sync", "async"])
def test_wrappers_are_put_around_each_environment_in_their_order(folder: Path, mode: str) -> None:
    write(folder / "scale.py", WRAPPERS)
    wrappers = [
        {"name": TWICE, "kwargs": {"times": 2, "offset": 1}},
        {"name": "scale:Twice", "kwargs": {"times": 3}},
        "gymnasium.wrappers:FlattenObservation",
    ]
    env = envs.make("CartPole-v1", 16, wrappers=wrappers, vectorization_mode=mode)
    env.reset([0])
    reward = env.step(zeros(16)).reward
    env.close()
    assert reward.tolist() == [9.0] * 16  # (1 * 2 + 1) * 3


def zeros(num_envs: int) -> torch.Tensor:
    return torch.zeros(num_envs, 1, dtype=torch.int64)


def test_an_environment_put_in_place_of_one_that_failed_has_the_wrappers(folder: Path) -> None:
    write(folder / "scale.py", WRAPPERS)
    arguments = {"kwargs": {"how": "raises", "at": 3}, "wrappers": [{"name": TWICE, "kwargs": {"times": 100}}]}
    env = envs.make("failing_env:Failing-v0", 1, on_error="restart", vectorization_mode="sync", **arguments)
    env.reset([0])
    rewards = [env.step(zeros(1)).reward.item() for _ in range(5)]
    env.close()
    assert env.restarts == [1] and rewards[2] == 0 and all(reward > 1 for reward in rewards[:2] + rewards[3:])


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        (
            "gymnasium.wrappers:FlatenObservation",
            r"has no attribute .*did you mean 'gymnasium.wrappers:FlattenObservation'\?",
        ),
        ("not_there:X", "env.wrappers: got 'not_there:X', which cannot be imported: .*No module named 'not_there'"),
        ("scale.py:gymnasium", r"'scale.py:gymnasium', which is not a class of gymnasium.Wrapper"),
        ("scale.py:Bare", "scale.py:Bare cannot be put around CartPole-v1: TypeError: .* takes 1 positional argument"),
        ("scale.py:Lazy", "which cannot be imported: .*No module named 'not_installed_here'"),
        ("./scale.txt:Bare", "cannot be imported: it is neither a module nor a file of Python"),
        ("gymnasium.wrappers.vector:FlattenObservation", "which is not a class of gymnasium.Wrapper"),
        (TWICE, r"scale.py:Twice needs times, for example \{name: scale.py:Twice, kwargs: \{times: …\}\}"),
        ({"name": TWICE, "kwargs": TWO | {"ofset": 1}}, r"does not know the argument 'ofset'; did you mean 'offset'\?"),
        (
            {"name": TWICE, "kwargs": {"times": -1}},
            r"scale.py:Twice cannot be put around CartPole-v1 with .*AssertionError",
        ),
    ],
)
@pytest.mark.parametrize("mode", ["auto", "async"])
def test_mistakes_with_wrappers_are_explained(folder: Path, wrapper: Any, message: str, mode: str) -> None:
    write(folder / "scale.py", WRAPPERS)
    with pytest.raises(UserError, match=message):
        envs.make("CartPole-v1", 1, wrappers=[wrapper], vectorization_mode=mode)
    if mode == "auto":
        with pytest.raises(UserError, match=message):
            envs.make_single("CartPole-v1", wrappers=[wrapper])
