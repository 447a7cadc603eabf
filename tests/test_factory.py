"""make() finds the environment and the way to run it, or says what to write instead."""

import dataclasses
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from scripted_env import SCRIPTS, ScriptedEnv, ScriptedVectorEnv, kept, scripted_transitions

from envs import GymnasiumAdapter, MemberEnvs, UserError, make


class Wordy(gymnasium.Env[Any, Any]):
    """Its observations are texts, which are not supported; remembers whether it was closed."""

    closed = False

    def __init__(self, word: str = "x", **options: Any) -> None:
        self.observation_space, self.action_space = spaces.Text(3), spaces.Discrete(2)
        self.word = word.upper()

    def close(self) -> None:
        Wordy.closed = True


class Needy(ScriptedEnv):
    def __init__(self, df: Any, size: int, depth: int = 1) -> None:
        super().__init__()


class Broken(ScriptedEnv):
    def __init__(self, how: str = "divides") -> None:
        match how:
            case "exit":
                raise SystemExit("no display")
            case "import":
                import a_package_of_its  # noqa: F401
        super().__init__((1 // 0,))


def scripted_vector_env(num_envs: int) -> ScriptedVectorEnv:
    return ScriptedVectorEnv(SCRIPTS[:1] * num_envs, AutoresetMode.NEXT_STEP)


class Clipping(ScriptedVectorEnv):
    """Clips rewards where nobody turns that off, as Atari's vector class does."""

    def __init__(self, num_envs: int, reward_clipping: bool = True) -> None:
        super().__init__(SCRIPTS[:1] * num_envs, AutoresetMode.NEXT_STEP)
        self.clips = reward_clipping

    def step(self, actions: Any) -> Any:
        obs, reward, *rest = super().step(actions)
        return obs, np.clip(reward, -1, 1) if self.clips else reward, *rest


seen: list[bool] = []


def _sees(reuse_obs: bool) -> ScriptedVectorEnv:
    seen.append(reuse_obs)
    return scripted_vector_env(1)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Gymnasium's registry, put back after the test."""
    registered = gymnasium.registry.copy()
    monkeypatch.setattr("gymnasium.envs.registration.registry", registered)
    monkeypatch.setattr("gymnasium.registry", registered)
    gymnasium.register("Reusing-v0", ScriptedEnv, disable_env_checker=True, kwargs={"reuse_obs": True})
    gymnasium.register("Wordy-v0", Wordy)
    gymnasium.register("Wordless-v0", "a_package_not_installed:Wordless")
    gymnasium.register("Needy-v0", Needy)
    gymnasium.register("Broken-v0", Broken)
    gymnasium.register("Number-v0", lambda: 3)
    gymnasium.register("Forwards-v0", lambda **kwargs: Broken(**kwargs))
    gymnasium.register("Limited-v0", ScriptedEnv, max_episode_steps=9, vector_entry_point=scripted_vector_env)
    gymnasium.register("Alike-v0", ScriptedEnv, vector_entry_point=scripted_vector_env)
    gymnasium.register("Unlike-v0", ScriptedEnv, vector_entry_point=lambda num_envs: CartPoleVectorEnv(num_envs))
    gymnasium.register("Clipping-v0", ScriptedEnv, vector_entry_point=Clipping)
    gymnasium.register("Other-v0", ScriptedEnv, vector_entry_point=lambda num_envs, reuse_obs=True: _sees(reuse_obs))
    gymnasium.register("OnlyVector-v0", vector_entry_point=lambda num_envs: ScriptedVectorEnv(SCRIPTS, None))
    return registered


def mode_of(adapter: GymnasiumAdapter | MemberEnvs) -> str:
    adapter.close()
    if isinstance(adapter, MemberEnvs):
        return "a vector class for each member"
    return {SyncVectorEnv: "sync", AsyncVectorEnv: "async"}.get(type(adapter.vector_env), "vector class")


@pytest.mark.parametrize(
    ("env_id", "num_envs", "arguments", "expected"),
    [
        ("CartPole-v1", 16, {}, "vector class"),
        ("CartPole-v1", 15, {}, "sync"),
        ("CartPole-v1", 16, {"kwargs": {"sutton_barto_reward": True, "max_episode_steps": 7}}, "vector class"),
        ("CartPole-v1", 16, {"kwargs": {"disable_env_checker": True}}, "sync"),  # its own one does not take it
        ("CartPole-v1", 16, {"render_mode": "rgb_array"}, "sync"),
        ("CartPole-v1", 16, {"vectorization_mode": "sync"}, "sync"),
        ("CartPole-v1", 2, {"vectorization_mode": "async"}, "async"),
        ("CartPole-v1", 2, {"vectorization_mode": "vector_entry_point"}, "vector class"),
        ("CartPole-v1", 32, {"num_members": 2}, "a vector class for each member"),
        ("CartPole-v1", 30, {"num_members": 2}, "sync"),  # fifteen of a member
        ("CartPole-v1", 2, {"num_members": 2, "vectorization_mode": "async"}, "async"),
        ("Acrobot-v1", 16, {}, "sync"),
        ("Alike-v0", 1, {}, "vector class"),
        ("Alike-v0", 1, {"wrappers": ["gymnasium.wrappers:FlattenObservation"]}, "sync"),
        ("Unlike-v0", 1, {}, "sync"),  # the vector class has other spaces
        ("Clipping-v0", 1, {}, "sync"),  # and this one an argument that a single environment lacks
        ("Limited-v0", 1, {}, "sync"),  # and this one no time limit
    ],
)
def test_mode_is_the_one_asked_for_or_the_fastest_that_fits(
    env_id: str, num_envs: int, arguments: Any, expected: str
) -> None:
    assert mode_of(make(env_id, num_envs, **arguments)) == expected


def test_wrappers_in_the_registration_keep_an_environment_from_its_vector_class(registry: dict[str, Any]) -> None:
    spec = gymnasium.wrappers.FlattenObservation(gymnasium.make("CartPole-v1")).spec
    registry["Wrapped-v0"] = dataclasses.replace(spec, id="Wrapped-v0")
    assert mode_of(make("Wrapped-v0", 1)) == "sync"
    with pytest.raises(UserError, match="Wrapped-v0 has no vector class"):
        make("Wrapped-v0", 1, vectorization_mode="vector_entry_point")


@pytest.mark.parametrize("vectorization_mode", ["sync", "async"])
def test_episodes_restart_in_the_same_step(vectorization_mode: str) -> None:
    adapter = make("Acrobot-v1", 2, vectorization_mode=vectorization_mode)
    assert adapter.vector_env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    adapter.close()


@pytest.mark.parametrize("vectorization_mode", ["sync", "async"])
def test_last_observation_survives_an_environment_that_reuses_its_array(vectorization_mode: str) -> None:
    adapter = make("Reusing-v0", 2, vectorization_mode=vectorization_mode)
    adapter.reset([0])
    for expected, _ in zip(scripted_transitions(ScriptedEnv().script), range(12), strict=False):
        assert adapter.step(torch.zeros(2, 1, dtype=torch.int64)).next_obs.tolist() == [list(expected.next_obs)] * 2
    adapter.close()


@pytest.mark.parametrize("vectorization_mode", ["vector_entry_point", "sync", "async"])
def test_kwargs_and_time_limit_reach_the_environment(vectorization_mode: str) -> None:
    kwargs = {"sutton_barto_reward": True, "max_episode_steps": 3}
    adapter = make("CartPole-v1", 2, kwargs=kwargs, vectorization_mode=vectorization_mode)
    adapter.reset([0])
    steps = [kept(adapter.step(torch.tensor([[0], [1]]))) for _ in range(3)]
    adapter.close()
    assert [step.reward.tolist() for step in steps] == [[0, 0]] * 3  # Sutton and Barto: -1 when the pole falls, else 0
    assert [step.truncated.tolist() for step in steps] == [[False] * 2, [False] * 2, [True] * 2]


@pytest.mark.slow
@pytest.mark.parametrize(("end", "code"), [("", 0), ("del env", 0), ("os.kill(os.getpid(), 9)", -9)])
def test_processes_of_environments_end_with_the_run(end: str, code: int) -> None:
    """In silence; whoever reads their errors waits for them."""
    script = f"import os, envs; env = envs.make('CartPole-v1', 2, vectorization_mode='async'); {end}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (code, "")


def test_box_actions_are_cut_into_bins() -> None:
    adapter = make("Pendulum-v1", 2, action_bins=3)
    adapter.reset([0])
    assert adapter.actions.num_choices == (3,) and adapter.observations.size == 3
    assert adapter.step(torch.tensor([[0], [2]])).reward.shape == (2,)
    adapter.close()


@pytest.mark.parametrize("mode", ["sync", "vector_entry_point"])
def test_tensors_lie_on_the_device(mode: str) -> None:
    adapter = make("CartPole-v1", 2, num_members=2, device="meta", vectorization_mode=mode)
    assert adapter.reset([0, 1]).device.type == "meta"
    assert {tensor.device.type for tensor in adapter.step(torch.zeros(2, 1, dtype=torch.int64))} == {"meta"}


@pytest.mark.skipif(find_spec("Box2D") is None, reason="needs Box2D")
def test_bindings_of_box2d_do_not_warn() -> None:
    make("LunarLander-v3", 1).close()


@pytest.mark.parametrize("mode", ["sync", "vector_entry_point"])
def test_frames_come_from_every_environment(mode: str) -> None:
    pytest.importorskip("pygame")
    adapter = make("CartPole-v1", 2, num_members=2, render_mode="rgb_array", vectorization_mode=mode)
    adapter.reset([0, 1])
    assert [frame.shape for frame in adapter.render()] == [(400, 600, 3)] * 2
    adapter.close()


def test_rendering_without_pygame_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    adapter = make("CartPole-v1", 1, render_mode="rgb_array")
    adapter.reset([0])
    with pytest.raises(UserError, match=r'CartPole-v1 cannot be rendered: .*"gymnasium\[classic.control\]"'):
        adapter.render()


def test_module_is_imported_for_the_environment_it_registers(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = 'import gymnasium\ngymnasium.register("Registered-v0", "scripted_env:ScriptedEnv")\n'
    (tmp_path / "registers_one.py").write_text(module)
    monkeypatch.syspath_prepend(str(tmp_path))
    adapter = make("registers_one:Registered-v0", 1)
    assert adapter.spec_id == "Registered-v0"
    adapter.close()
    with pytest.raises(UserError, match="there is no environment 'Qqq-v0': registers_one does not register it"):
        make("registers_one:Qqq-v0", 1)


ERRORS: dict[str, tuple[str, dict[str, Any], str]] = {
    "misspelt": ("CartPol-v1", {}, r"no environment 'CartPol-v1': did you mean CartPole-v1\?"),
    "lower case": ("LUNARLANDER", {}, r"did you mean LunarLander-v3\?"),
    "unlike any": ("Zzz", {}, "no environment 'Zzz': for your own, name the module .*: module:Zzz"),
    "older version": ("Taxi-v3", {}, "no environment 'Taxi-v3': this version is older .*; use Taxi-v4"),
    "future version": ("CartPole-v9", {}, "no environment 'CartPole-v9': use CartPole-v1"),
    "no version": ("CartPole", {}, "no environment 'CartPole': use CartPole-v1"),
    "no id at all": ("", {}, "no environment ''"),
    "Atari": ("ALE/Pong-v5", {}, r'pip install "gymnasium\[atari\]", then use ale_py:ALE/Pong-v5'),
    "unknown module": ("not_there:X-v0", {}, "env.id=not_there:X-v0: cannot import 'not_there'.*No module named"),
    "relative module": (".x:X-v0", {}, "cannot import '.x'"),
    "unknown package": (
        "Wordless-v0",
        {},
        r"Wordless-v0 needs a package .*\(No module named 'a_package_not_installed'",
    ),
    "text observations": ("Wordy-v0", {}, r"Wordy-v0 has observation space Text\(.*not supported: use Box, Discrete"),
    "continuous": (
        "Pendulum-v1",
        {},
        r"Pendulum-v1 has action space Box\(-2.0, 2.0, \(1,\), float32\): set env.action_",
    ),
    "too few bins": ("Pendulum-v1", {"action_bins": 1}, "Pendulum-v1 has .*env.action_bins must be at least 2.*got 1"),
    "bins of choices": (
        "CartPole-v1",
        {"action_bins": 3},
        r"CartPole-v1 has action space Discrete\(2\): it is discrete",
    ),
    "no environments": ("CartPole-v1", {"num_envs": 0}, "env.num_envs must be at least 1; got 0"),
    "unknown mode": ("CartPole-v1", {"vectorization_mode": "fast"}, "must be one of auto, sync, .*; got 'fast'"),
    "none of its own": ("Acrobot-v1", {"vectorization_mode": "vector_entry_point"}, "Acrobot-v1 has no vector class"),
    "unknown kwarg": ("CartPole-v1", {"kwargs": {"gravity": 1}}, "does not know env.kwargs gravity; it takes: sutton_"),
    "kwarg of another": (
        "CartPole-v1",
        {"kwargs": {"disable_env_checker": True}, "vectorization_mode": "vector_entry_point"},
        "does not know env.kwargs disable_env_checker; it takes: max_episode_steps, sutton_barto_reward",
    ),
    "bad value": (
        "FrozenLake-v1",
        {"kwargs": {"map_name": "9x9"}},
        "made with env.kwargs={'map_name': '9x9'}: KeyError",
    ),
    "bad type": ("Wordy-v0", {"kwargs": {"word": 3}}, "Wordy-v0 cannot be made with env.kwargs={'word': 3}"),
    "any kwarg": (
        "Wordy-v0",
        {"kwargs": {"anything": 3}},
        "Wordy-v0 has observation space",
    ),  # its constructor's choice
    "no autoreset mode": ("OnlyVector-v0", {}, r"OnlyVector-v0: .* metadata\['autoreset_mode'\] = None"),
    "kwarg of neither": (
        "OnlyVector-v0",
        {"kwargs": {"x": 1}},
        "OnlyVector-v0 does not know env.kwargs x; it takes: none",
    ),
    "own setting": ("CartPole-v1", {"kwargs": {"num_envs": 3}}, "env.kwargs must not contain num_envs"),
    "no frames": (
        "Probe/Choice-v0",
        {"render_mode": "rgb_array"},
        "Choice-v0 cannot be rendered: it has no frames",
    ),
    "frames that only its constructor can tell of": (
        "Forwards-v0",
        {"render_mode": "rgb_array"},
        "Forwards-v0 cannot be rendered: it has no frames",
    ),
    "frames": ("CartPole-v1", {"render_mode": "ansi"}, "cannot be rendered as ansi; it offers human, rgb_array"),
}


@pytest.mark.parametrize(("env_id", "arguments", "text"), ERRORS.values(), ids=ERRORS.keys())
def test_mistakes_are_explained(env_id: str, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        make(env_id, **{"num_envs": 1, **arguments})


@pytest.mark.filterwarnings("ignore:.*is out of date")
@pytest.mark.parametrize(
    ("env_id", "module", "extra"),
    [
        ("LunarLander-v3", "Box2D", "box2d"),
        ("HalfCheetah-v5", "mujoco", "mujoco"),
        ("phys2d/CartPole-v0", "jax", "jax"),  # a newer version would need it too
    ],
)
def test_missing_dependency_names_the_extra(
    env_id: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith((f"gymnasium.envs.{extra}", module))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf'{env_id} needs a package .*: pip install "gymnasium\[{extra}\]"'):
        make(env_id, 1)


def test_version_that_cannot_run_names_the_newest() -> None:
    with (
        pytest.warns(UserWarning, match="HalfCheetah-v3 is out of date, its newest version is HalfCheetah-v5"),
        pytest.raises(UserError, match="HalfCheetah-v3 cannot be made, use HalfCheetah-v5"),
    ):
        make("HalfCheetah-v3", 1)


def test_every_members_vector_class_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Any] = []
    monkeypatch.setattr(CartPoleVectorEnv, "close", lambda env: closed.append(env))
    adapter = make("CartPole-v1", 32, num_members=2)
    adapter.close()
    assert closed[-2:] == [member.vector_env.unwrapped for member in adapter.members]  # before, one to look at


def test_refused_environment_is_closed() -> None:
    Wordy.closed = False
    with pytest.raises(UserError):
        make("Wordy-v0", 1)
    assert Wordy.closed


def test_narrower_bounds_do_not_warn() -> None:
    def make_env() -> gymnasium.Env[Any, Any]:
        env = ScriptedEnv()
        env.observation_space = spaces.Box(np.zeros(2), np.full(2, 1e30))  # float64 bounds of a float32 space
        return env

    gymnasium.register("Narrow-v0", make_env)
    make("Narrow-v0", 1).close()


@pytest.mark.parametrize("mode", ["auto", "sync", "vector_entry_point"])
def test_rewards_are_the_environments_own_in_every_mode(mode: str) -> None:
    env = make("Clipping-v0", 1, vectorization_mode=mode)
    env.reset([0])
    rewards = [env.step(torch.zeros(1, 1, dtype=torch.int64)).reward.item() for _ in range(3)]
    env.close()
    assert rewards == [0, 1, 2]  # 2 would be clipped to 1


def test_a_vector_class_has_the_arguments_of_a_single_environment() -> None:
    seen.clear()
    make("Other-v0", 1, vectorization_mode="vector_entry_point").close()
    assert seen == [False]  # as ScriptedEnv's own default


def test_members_are_closed_where_a_later_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    closed: list[Any] = []

    def third_fails(num_envs: int) -> ScriptedVectorEnv:
        if len(made) == 3:
            raise OSError("no more sockets")
        made.append(scripted_vector_env(num_envs))
        return made[-1]

    monkeypatch.setattr(ScriptedVectorEnv, "close", lambda env: closed.append(env))
    gymnasium.register("Third-v0", vector_entry_point=third_fails)
    with pytest.raises(UserError, match="Third-v0 cannot be made: OSError: no more sockets"):
        make("Third-v0", 4, num_members=4)
    assert len(made) == 3 and set(map(id, closed)) == set(map(id, made))


@pytest.mark.parametrize("env_id", ["Broken-v0", "Needy-v0"])
def test_processes_report_a_failing_constructor_as_the_others_do(env_id: str) -> None:
    with pytest.raises(UserError, match=f"{env_id} (cannot be made|needs)"):
        make(env_id, 2, vectorization_mode="async")
