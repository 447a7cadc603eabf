"""Tensor environments keep the adapter's promises, on the device and as Gymnasium sees them."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from envs import FunctionalEnv, GymnasiumAdapter, RandomStreams, Step, TensorEnv, UserError, make
from envs.spaces import FactoredActions, FlatObservations
from envs.tensor.functional import _decoder, _flattener
from envs.tensor.registration import OWN, TWINS, register_tensor_envs
from envs.vector_environment import environment_seeds

HARVEST = "Tensor/Harvest-v0"
IDS = (*TWINS, *OWN)


def tensor_env(env_id: str, num_envs: int, **kwargs: Any) -> TensorEnv:
    env = make(env_id, num_envs, kwargs=kwargs)
    assert isinstance(env, TensorEnv)
    return env


def random_actions(env: Any, num_steps: int, seed: int = 0, device: str = "cpu") -> Tensor:
    (num_choices,) = set(env.actions.num_choices)
    shape = (num_steps, env.num_envs, len(env.actions.num_choices))
    return torch.randint(num_choices, shape, generator=Generator().manual_seed(seed)).to(device)


def rollout(env: Any, num_steps: int, seed: int = 0) -> tuple[Tensor, list[Step]]:
    obs = env.reset([seed])
    return obs, [env.step(action) for action in random_actions(env, num_steps)]


def same(a: Step, b: Step) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("env_id", IDS)
def test_step_has_the_promised_types_and_shapes(env_id: str) -> None:
    env = tensor_env(env_id, 3)
    obs, steps = rollout(env, 5)
    for step in steps:
        assert step.obs.shape == step.next_obs.shape == obs.shape == (3, env.observations.size)
        assert step.obs.is_contiguous() and step.next_obs.is_contiguous()
        assert step.reward.shape == step.terminated.shape == step.truncated.shape == step.valid.shape == (3,)
        assert obs.dtype == step.obs.dtype == step.next_obs.dtype == step.reward.dtype == torch.float32
        assert step.terminated.dtype == step.truncated.dtype == step.valid.dtype == torch.bool
        assert step.valid.all() and not step.obs.requires_grad


@pytest.mark.parametrize("env_id", IDS)
def test_seed_decides_everything(env_id: str) -> None:
    envs = [tensor_env(env_id, 16, max_episode_steps=9) for _ in range(3)]
    (first, *rest) = [rollout(env, 60, seed) for env, seed in zip(envs, (1, 1, 2), strict=True)]
    again, other = rest
    repeated = rollout(envs[0], 60, 1)  # the same environment, later on
    for obs, steps in (again, repeated):
        assert torch.equal(obs, first[0]) and all(map(same, steps, first[1]))
    assert not all(map(same, other[1], first[1]))


@pytest.mark.parametrize("env_id", ["Tensor/CartPole-v1", "Tensor/Acrobot-v1", "Tensor/MountainCar-v0"])
def test_environments_start_apart_from_each_other(env_id: str) -> None:
    env = tensor_env(env_id, 8)
    starts = torch.cat([env.reset(seeds) for seeds in ([0], [1], None, None)])
    assert len(starts.unique(dim=0)) == 32


def test_environments_without_a_seed_differ_from_run_to_run() -> None:
    assert not torch.equal(tensor_env("Tensor/CartPole-v1", 2).reset(), tensor_env("Tensor/CartPole-v1", 2).reset())


@pytest.mark.parametrize("env_id", IDS)
def test_tensors_handed_out_never_change(env_id: str) -> None:
    env = tensor_env(env_id, 8, max_episode_steps=7)
    obs = env.reset([0])
    handed_out, copies = [obs], [obs.clone()]
    for action in random_actions(env, 30):
        step = env.step(action)
        handed_out += step
        copies += [x.clone() for x in step]
    env.reset([1])
    assert all(map(torch.equal, handed_out, copies))


@pytest.mark.parametrize("env_id", IDS)
def test_ended_episodes_hand_on_their_last_observation_and_are_reset(env_id: str) -> None:
    env = tensor_env(env_id, 64, max_episode_steps=5)
    env.reset([0])
    elapsed = torch.zeros(64, dtype=torch.int64)
    for action in random_actions(env, 40):
        step = env.step(action)
        elapsed += 1
        ended = step.terminated | step.truncated
        assert torch.equal(step.truncated, elapsed >= 5)
        assert torch.equal(step.obs[~ended], step.next_obs[~ended])
        elapsed[ended] = 0
        assert torch.equal(env.elapsed, elapsed)
        assert torch.equal(step.obs, env._flatten(env.env.observation(env.env_state, env.streams)))
    env.elapsed.fill_(4)  # all end in the next step
    step = env.step(action)
    assert step.truncated.all() and (step.obs != step.next_obs).any()
    if env_id == HARVEST:
        assert (step.obs[:, [200, 299]] == 1).all()
    elif "FrozenLake" in env_id:
        assert (step.obs[:, 0] == 1).all()
    elif "KWalkers" in env_id:
        begun, ended = (obs.view(64, 4, 2, 7)[..., 3].all(-1) for obs in (step.obs, step.next_obs))  # who is home
        assert ended.any() and not begun.any()
    elif "Bandit" not in env_id:
        assert (step.obs - env.reset([1])).abs().max() <= 0.2 + 1e-6


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasiums_face_shows_the_same_trajectory(env_id: str) -> None:
    """The adapter turns NumPy back into tensors, so both flatten, decode and reset alike."""
    with (
        closing(gymnasium.make_vec(env_id, 6, max_episode_steps=8)) as vector_env,
        closing(GymnasiumAdapter(vector_env)) as adapter,
    ):
        (seed,) = environment_seeds([3], 1)
        env = tensor_env(env_id, 6, max_episode_steps=8)
        obs = env._flatten(env.start_(range(seed, seed + 6)))
        assert torch.equal(adapter.reset([3]), obs)
        for action in random_actions(env, 40):
            assert same(adapter.step(action), env.step(action))


@pytest.mark.parametrize("env_id", IDS)
def test_infos_and_types_are_those_of_gymnasiums_sync_vector_env(env_id: str) -> None:
    def single() -> Any:
        return gymnasium.make(env_id, max_episode_steps=2)

    sync = SyncVectorEnv([single] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    own = gymnasium.make_vec(env_id, 3, max_episode_steps=2)
    assert own.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert own.single_observation_space == sync.single_observation_space and own.action_space == sync.action_space
    seen: list[Any] = []
    for env in (sync, own):
        obs, _ = env.reset(seed=0)
        assert env.observation_space.contains(obs)
        for _ in range(2):
            obs, reward, terminated, truncated, infos = env.step(
                np.zeros(env.action_space.shape, env.action_space.dtype)
            )
        assert env.observation_space.contains(obs)
        final_obs = infos["final_obs"]
        assert final_obs.dtype == object and all(sync.single_observation_space.contains(x) for x in final_obs)
        keys = {key for key in infos if "prob" not in key}
        seen.append((keys, reward.dtype, terminated.dtype, truncated.tolist(), infos["_final_obs"].tolist()))
        env.close()
    assert seen[0] == seen[1]


def test_actions_outside_of_the_space_are_refused_where_that_is_free() -> None:
    with closing(gymnasium.make_vec("Tensor/CartPole-v1", 2)) as env:
        env.reset(seed=0)
        with pytest.raises(ValueError, match=r"expected actions in MultiDiscrete\(\[2 2\]\); got array\(\[0, 2\]\)"):
            env.step(np.array([0, 2]))


# --- Registration and factory ---


@pytest.mark.parametrize("env_id", TWINS)
def test_registration_is_that_of_the_twin(env_id: str) -> None:
    own, twin = gymnasium.spec(env_id), gymnasium.spec(env_id.removeprefix("Tensor/"))
    for name in ("entry_point", "max_episode_steps", "reward_threshold", "kwargs"):
        assert getattr(own, name) == getattr(twin, name)


@pytest.mark.parametrize("env_id", [HARVEST, "Tensor/KCartPole-v0", "Tensor/KWalkers-v0"])
def test_time_limit_is_that_of_the_docstring(env_id: str) -> None:
    doc, limit = type(tensor_env(env_id, 1).env).__doc__, gymnasium.spec(env_id).max_episode_steps
    assert doc is not None and f"Registered with a time limit of {limit} steps" in " ".join(doc.split())


def test_registering_again_changes_nothing() -> None:
    before = dict(gymnasium.registry)
    register_tensor_envs()
    assert gymnasium.registry == before and set(IDS) <= set(before)


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("max_episode_steps", [None, 3])
def test_time_limit_is_applied_once(env_id: str, max_episode_steps: int | None) -> None:
    limit = max_episode_steps or gymnasium.spec(env_id).max_episode_steps
    arguments = {"max_episode_steps": max_episode_steps} if max_episode_steps else {}
    assert tensor_env(env_id, 2, **arguments).max_episode_steps == limit
    with closing(gymnasium.make_vec(env_id, 2, **arguments)) as vector_env:
        assert vector_env.max_episode_steps == limit  # type: ignore[attr-defined]
    with closing(gymnasium.make(env_id, **arguments)) as env:
        limits, wrapped = [], env
        while wrapped is not env.unwrapped:
            limits += [wrapped._max_episode_steps] if isinstance(wrapped, gymnasium.wrappers.TimeLimit) else []
            wrapped = wrapped.env  # type: ignore[attr-defined]
        assert limits == ([limit] if limit else [])


def test_without_a_time_limit_nothing_is_truncated() -> None:
    env = TensorEnv(tensor_env("Tensor/MountainCar-v0", 2).env)
    _, steps = rollout(env, 300)
    assert not any(step.truncated.any() for step in steps)


@pytest.mark.parametrize("env_id", IDS)
def test_factory_returns_tensors_unless_told_otherwise(env_id: str) -> None:
    for mode in ("auto", "vector_entry_point"):
        env = make(env_id, 2, vectorization_mode=mode)
        assert isinstance(env, TensorEnv) and env.spec_id == env_id
        env.close()
    with closing(make(env_id, 2, vectorization_mode="sync")) as adapter:
        assert isinstance(adapter, GymnasiumAdapter) and adapter.spec_id == env_id
        assert adapter.reset([0]).shape == env.reset([0]).shape


@pytest.mark.parametrize("env_id", [*TWINS, HARVEST])
def test_single_environments_pass_gymnasiums_checks_and_give_frames(env_id: str) -> None:
    pytest.importorskip("pygame")
    with closing(make(env_id, 1, render_mode="rgb_array")) as env:
        assert isinstance(env, GymnasiumAdapter)
        env.reset([0])
        env.step(torch.zeros(1, 1, dtype=torch.int64))
        (frame,) = env.render()
        assert frame.ndim == 3 and frame.shape[-1] == 3 and frame.dtype == np.uint8 and frame.std() > 0


ERRORS: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown kwarg": (
        "Tensor/CartPole-v1",
        {"kwargs": {"gravity": 1}},
        "Tensor/CartPole-v1 does not know env.kwargs gravity; it takes: sutton_barto_reward",
    ),
    "unknown kwarg of its own": (
        "Tensor/MountainCar-v0",
        {"kwargs": {"x": 1}, "vectorization_mode": "vector_entry_point"},
        "does not know env.kwargs x; it takes: max_episode_steps, goal_velocity",
    ),
    "wrong value": ("Tensor/FrozenLake-v1", {"kwargs": {"map_name": "9x9"}}, "made with env.kwargs=.*KeyError: '9x9'"),
    "wrong time limit": (
        "Tensor/CartPole-v1",
        {"kwargs": {"max_episode_steps": 0}},
        "max_episode_steps must be a positive integer or None; got 0",
    ),
    "bins of choices": (
        "Tensor/CartPole-v1",
        {"action_bins": 3},
        r"Tensor/CartPole-v1 has action space Discrete\(2\): it is discrete",
    ),
    "misspelt": ("Tensor/CartPol-v1", {}, r"did you mean Tensor/CartPole-v1\?"),
    "older version": ("Tensor/CartPole-v0", {}, "use Tensor/CartPole-v1"),
}


@pytest.mark.parametrize(("env_id", "arguments", "text"), ERRORS.values(), ids=ERRORS.keys())
def test_mistakes_are_explained(env_id: str, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        make(env_id, 1, **arguments)


def test_kwargs_reach_the_environment() -> None:
    env = tensor_env("Tensor/CartPole-v1", 4, sutton_barto_reward=True)
    _, steps = rollout(env, 100)
    reward, terminated = (torch.stack(x) for x in zip(*((s.reward, s.terminated) for s in steps), strict=True))
    assert terminated.any() and torch.equal(reward, -terminated.float())
    assert tensor_env("Tensor/FrozenLake8x8-v1", 1).observations.size == 64
    assert tensor_env("Tensor/FrozenLake8x8-v1", 1, map_name="4x4").observations.size == 16


def test_frames_are_not_offered_as_tensors() -> None:
    with pytest.raises(UserError, match="Tensor/CartPole-v1 has no frames as tensors: make it with render_mode="):
        tensor_env("Tensor/CartPole-v1", 1).render()


# --- Spaces ---


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete([2, 3], start=[1, -1]),
        spaces.MultiDiscrete([[2, 3], [4, 2]]),
        spaces.MultiBinary((2, 2)),
        spaces.Box(0, 255, (2, 3), np.uint8),
        spaces.Box(-1, 1, (), np.float64),
    ],
    ids=str,
)
def test_observations_are_flattened_as_elsewhere(space: Any) -> None:
    space.seed(0)
    obs = np.stack([np.asarray(space.sample()) for _ in range(5)])
    flat = _flattener(space, torch.device("cpu"))(torch.from_numpy(obs))
    expected = FlatObservations(space).flatten(obs)
    assert flat.dtype == torch.float32 and np.array_equal(flat.numpy(), expected)


@pytest.mark.parametrize("space", [spaces.Dict({"x": spaces.Discrete(2)}), spaces.Tuple([spaces.Discrete(2)])], ids=str)
def test_composite_observations_are_refused(space: Any) -> None:
    with pytest.raises(UserError, match="tensors have Box, Discrete, MultiDiscrete or MultiBinary only"):
        _flattener(space, torch.device("cpu"))


@pytest.mark.parametrize(
    ("space", "bins"),
    [
        (spaces.Discrete(3), None),
        (spaces.Discrete(3, start=5), None),
        (spaces.MultiDiscrete([2, 3], start=[10, 20]), None),
        (spaces.MultiDiscrete([[2, 3], [4, 5]]), None),
        (spaces.MultiBinary((2, 2)), None),
        (spaces.Box(np.array([-1, 0], np.float32), np.array([1, 10], np.float32)), 5),
    ],
    ids=str,
)
def test_actions_are_decoded_as_elsewhere(space: Any, bins: int | None, generator: Generator) -> None:
    factored = FactoredActions(space, bins)
    choices = [torch.randint(n, (50,), generator=generator) for n in factored.num_choices]
    action = torch.stack(choices, dim=1)
    decoded = _decoder(space, factored, torch.device("cpu"))(action)
    assert np.array_equal(decoded.numpy(), factored.decode(action.numpy()))


# --- One static tensor program ---


class Recorder(TorchDispatchMode):
    """Notes the operations, and refuses those that wait for a value or have a shape that depends on one."""

    VALUE_DEPENDENT = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert not name.startswith(self.VALUE_DEPENDENT), f"{name} reads a value"
        masks = args[1] if name.startswith("index") and isinstance(args[1], list | tuple) else []
        assert not any(mask.dtype == torch.bool for mask in masks if mask is not None), "a mask as an index"
        self.operations.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("env_id", IDS)
def test_step_is_one_static_program_on_preallocated_state(env_id: str) -> None:
    env = tensor_env(env_id, 4, max_episode_steps=3)
    env.reset([0])
    addresses = {name: tensor.data_ptr() for name, tensor in env.state().items()}
    programs = []
    for action in random_actions(env, 12):
        with Recorder() as recorder:
            env.step(action)
        programs.append(recorder.operations)
    env.reset([1])
    assert all(program == programs[0] for program in programs)
    assert {name: tensor.data_ptr() for name, tensor in env.state().items()} == addresses


@pytest.mark.parametrize("env_id", IDS)
def test_step_runs_in_inference_mode_and_out_of_it(env_id: str) -> None:
    expected = rollout(tensor_env(env_id, 4, max_episode_steps=5), 20)
    env = tensor_env(env_id, 4, max_episode_steps=5)
    with torch.inference_mode():
        obs = env.reset([0])
    actions = iter(random_actions(env, 20))
    steps = []
    for action in actions:
        with torch.inference_mode(len(steps) % 2 == 0):
            steps.append(env.step(action))
    assert torch.equal(obs, expected[0]) and all(map(same, steps, expected[1]))


@pytest.fixture
def cuda() -> Iterator[str]:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    yield "cuda"


@pytest.mark.parametrize("env_id", IDS)
def test_captured_graph_gives_the_eager_trajectory(env_id: str, cuda: str) -> None:
    def make_one() -> Any:
        env = make(env_id, 32, kwargs={"max_episode_steps": 7}, device=cuda)
        env.reset([0])
        return env

    eager, captured = make_one(), make_one()
    actions = random_actions(eager, 40, device=cuda)
    action = actions[0].clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        captured.step(action)  # warms up
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        outcome = captured.step(action)
    torch.cuda.current_stream().wait_stream(stream)  # as in agent.training.acceleration
    captured.reset([0])
    for chosen in actions:
        action.copy_(chosen)
        graph.replay()
        assert same(outcome, eager.step(chosen))


@pytest.mark.parametrize("env_id", ["Tensor/CartPole-v1", "Tensor/Acrobot-v1", "Tensor/MountainCar-v0"])
def test_device_computes_what_the_cpu_does(env_id: str, cuda: str) -> None:
    on_cpu, on_device = (make(env_id, 1000, device=device) for device in ("cpu", cuda))
    on_cpu.reset([0])
    on_device.reset([0])
    on_device.env_state.copy_(on_cpu.env_state)  # type: ignore[attr-defined]
    action = random_actions(on_cpu, 1)[0]
    torch.testing.assert_close(on_device.step(action.to(cuda)).next_obs.cpu(), on_cpu.step(action).next_obs)


def test_functional_environment_may_be_anyones() -> None:
    class Counter(FunctionalEnv[Tensor]):
        """Counts its steps up to the action; the state is a float."""

        observation_space, action_space = spaces.Box(0, np.inf, ()), spaces.Discrete(4, start=1)

        def initial(self, rng: RandomStreams, params: Any = None) -> Tensor:
            return torch.zeros(self.num_envs)

        def transition(self, state: Tensor, action: Tensor, rng: RandomStreams, params: Any = None) -> Tensor:
            return state + action

        def observation(self, state: Tensor, rng: RandomStreams, params: Any = None) -> Tensor:
            return state

        def reward(self, state: Tensor, action: Tensor, next_state: Tensor, rng: Any, params: Any = None) -> Tensor:
            return next_state - state

        def terminal(self, state: Tensor, rng: RandomStreams, params: Any = None) -> Tensor:
            return state >= 5

    env = TensorEnv(Counter(2), max_episode_steps=3)
    env.reset()
    steps = [env.step(torch.tensor([[0], [3]])) for _ in range(3)]
    assert env.spec_id == "Counter"
    assert [step.next_obs.squeeze(1).tolist() for step in steps] == [[1, 4], [2, 8], [3, 4]]
    assert [step.obs.squeeze(1).tolist() for step in steps] == [[1, 4], [2, 0], [0, 4]]
    assert [step.reward.tolist() for step in steps] == [[1, 4]] * 3
    assert [step.terminated.tolist() for step in steps] == [[False, False], [False, True], [False, False]]
    assert [step.truncated.tolist() for step in steps] == [[False, False], [False, False], [True, False]]
