"""What the environments of a population member do depends on its own seed and actions alone."""

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from failing_env import ENV_ID as FAILING
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from scripted_env import kept
from torch import Generator, Tensor

from envs import GymnasiumAdapter, MemberEnvs, TensorEnv, VectorEnvironment, make
from envs.guard import Guard
from envs.tensor.registration import OWN, TWINS
from envs.vector_environment import environment_seeds

NUM_STEPS = 60
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "sync": ("CartPole-v1", 2, {"vectorization_mode": "sync"}),
    "async": ("CartPole-v1", 1, {"vectorization_mode": "async"}),
    "vector class": ("CartPole-v1", 16, {}),  # the fewest environments for which auto uses it
    "vector class of one": ("CartPole-v1", 1, {"vectorization_mode": "vector_entry_point"}),
    "slippery": ("FrozenLake-v1", 3, {}),
    "masks": ("Taxi-v4", 2, {"kwargs": {"max_episode_steps": 15}}),
    "replaced": (FAILING, 2, {"kwargs": {"how": "raises", "at": 25}, "on_error": "restart"}),
}
CASES |= {env_id: (env_id, 4, {"kwargs": {"max_episode_steps": 15}}) for env_id in (*TWINS, *OWN)}
CASES |= {f"{env_id} alone": (env_id, 1, {}) for env_id in ("Tensor/ChainBandit-v0", "Tensor/CartPole-v1")}
KINDS: dict[str, tuple[str, int, dict[str, Any]]] = {
    name: CASES[name] for name in ("sync", "async", "vector class", "masks", "Tensor/CartPole-v1", "Tensor/Harvest-v0")
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def make_members(case: Any, num_members: int) -> Any:
    env_id, envs_per_member, settings = case
    return closing(make(env_id, num_members * envs_per_member, num_members=num_members, **settings))


def draw_action(env: VectorEnvironment, member: int, generators: dict[int, Generator]) -> Tensor:
    """A legal one for each environment of a member, that depends on the member's stream and masks alone."""
    own = slice(member * (n := env.num_envs // env.num_members), (member + 1) * n)
    generator = list(generators.values())[member]
    num_choices = torch.tensor(env.actions.num_choices)
    legal = (torch.arange(int(num_choices.max())) < num_choices.unsqueeze(-1)).expand(n, -1, -1)
    if env.masks is not None:
        legal = env.masks.obs[own]
    return torch.where(legal, torch.rand(legal.shape, generator=generator), -1.0).argmax(-1)


def follow(
    env: VectorEnvironment, obs: Tensor, generators: dict[int, Generator], num_steps: int
) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """The last observations, and of each member all that its environments gave in so many steps."""
    seen = [values.clone() for values in (obs, *(env.masks or ()))]
    for _ in range(num_steps):
        step = env.step(torch.cat([draw_action(env, member, generators) for member in range(env.num_members)]))
        seen += [values.clone() for values in (*step, *(env.masks or ()))]
        obs = step.obs
    return obs, list(zip(*(values.chunk(env.num_members) for values in seen), strict=True))


def trajectories(env: VectorEnvironment, seeds: Sequence[int], num_steps: int = NUM_STEPS) -> list[tuple[Tensor, ...]]:
    """Of each member, all that its environments gave in so many steps after a reset with these seeds."""
    return follow(env, env.reset(seeds), {seed: Generator().manual_seed(seed) for seed in seeds}, num_steps)[1]


def same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_member_does_what_it_would_do_alone_at_any_place(case: Any) -> None:
    """Bit for bit, through several episodes."""
    with make_members(case, 1) as alone, make_members(case, 2) as two, make_members(case, 3) as three:
        (expected,) = trajectories(alone, [5])
        first, _ = trajectories(two, [5, 8])
        _, middle, _ = trajectories(three, [11, 5, 8])
        *others, last = trajectories(three, [8, 11, 5])  # the same environments, later on
    assert same(first, expected) and same(middle, expected) and same(last, expected)
    assert not any(same(other, expected) for other in others)
    flags = [values for values in expected if values.dtype == torch.bool and values.ndim == 1]  # three a step
    assert torch.stack(flags[::3]).sum() + torch.stack(flags[1::3]).sum() >= 2  # terminated or truncated


def test_seeds_of_environments_differ_and_follow_from_the_members_seed_alone() -> None:
    seeds = environment_seeds([3, 4], 50)
    assert len(set(seeds)) == 100 and all(0 <= seed < 2**31 for seed in seeds)
    assert environment_seeds([4], 20) == seeds[50:70]


def test_every_environment_has_the_one_interface(kind: Any) -> None:
    with make_members(kind, 2) as env:
        assert isinstance(env, VectorEnvironment) and isinstance(env, GymnasiumAdapter | MemberEnvs | TensorEnv)
        assert env.num_members == 2 and env.restarts.tolist() == [0] * env.num_envs
        assert env.has_state == env.is_tensor_program == isinstance(env, TensorEnv)
        assert bool(env.state()) == env.has_state


def shorten_segments(monkeypatch: pytest.MonkeyPatch, num_steps: int) -> None:
    monkeypatch.setattr("envs.guard.SEGMENT_STEPS", num_steps)
    monkeypatch.setattr("envs.gymnasium_adapter.CLASS_SEGMENT_STEPS", num_steps)


@pytest.mark.parametrize("segment_steps", [1, 12, 1000])
def test_journal_and_state_bring_a_population_back(
    kind: Any, segment_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the middle of an episode; the continuation is the same bit for bit."""
    seeds = [9, 2**40, 0]
    shorten_segments(monkeypatch, segment_steps)
    with make_members(kind, 3) as env, make_members(kind, 3) as other:
        other.reset([1, 2, 3])
        env.make_repeatable_()
        trajectories(env, [1, 2, 3], 5)  # before the last reset: not in the journal
        generators = {seed: Generator().manual_seed(seed) for seed in seeds}
        acted_on, _ = follow(env, env.reset(seeds), generators, 25)
        journal, state = env.journal(), {name: value.clone() for name, value in env.state().items()}
        for name, value in other.state().items():
            value.copy_(state[name])
        other.make_repeatable_()
        obs = other.repeat(journal)
        assert torch.equal(obs, acted_on) and np.array_equal(other.restarts, env.restarts)
        assert (other.masks is None) == (env.masks is None)
        copies = {seed: Generator() for seed in seeds}
        for seed, copy in copies.items():
            copy.set_state(generators[seed].get_state())
        _, ours = follow(env, acted_on, generators, 25)
        _, theirs = follow(other, obs, copies, 25)
        assert all(map(same, ours, theirs))
    if env.has_state:
        assert journal == {}
    else:
        assert journal["env/seeds"].tolist() == seeds and journal["env/seeds"].dtype == torch.int64
        num_steps, actions = journal["env/num_steps"], journal["env/actions"]
        assert actions.shape == (env.num_envs, num_steps.max(), len(env.actions.num_choices))
        assert actions.dtype == torch.int32 and ((num_steps == 25).all() or segment_steps < 1000)
        assert journal["env/restarts"].tolist() == [0] * env.num_envs


def test_journal_right_after_a_reset_holds_the_seeds(kind: Any) -> None:
    with make_members(kind, 2) as env, make_members(kind, 2) as other:
        env.make_repeatable_()
        obs, state = env.reset([4, 6]), env.state()
        other.reset([0, 1])
        for name, value in other.state().items():
            value.copy_(state[name])
        assert torch.equal(other.repeat(env.journal()), obs)


class Long(gymnasium.Env):
    """Rewards the last of `length` steps; with its seeds it counts the episodes that begin with a seeded reset."""

    observation_space, action_space = gymnasium.spaces.Box(0, np.inf, (2,)), gymnasium.spaces.Discrete(2)

    def __init__(self, length: int) -> None:
        self.length, self.num_seeded = length, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.num_steps, self.num_seeded = 0, self.num_seeded + (seed is not None)
        return np.array([0, self.num_seeded], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.num_steps += 1
        ends = self.num_steps == self.length
        return np.array([self.num_steps, self.num_seeded], np.float32), float(ends), ends, False, {}


def test_episodes_longer_than_a_segment_end_and_the_next_begins_with_a_seeded_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shorten_segments(monkeypatch, 15)
    monkeypatch.setitem(gymnasium.registry, "Long-v0", gymnasium.envs.registration.EnvSpec("Long-v0", Long))
    with closing(make("Long-v0", 1, kwargs={"length": 10})) as env:
        env.reset([0])
        steps = [kept(env.step(torch.zeros(1, 1, dtype=torch.int64))) for _ in range(100)]
    assert [i + 1 for i, step in enumerate(steps) if step.terminated] == list(range(10, 101, 10))
    assert sum(step.reward.item() for step in steps) == 10
    assert [int(step.obs[0, 1]) for step in steps[9::10]] == [1, 2, 2, 3, 3, 4, 4, 5, 5, 6]


def test_environments_of_a_vector_class_wait_for_the_last_episode_of_a_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No episode is cut, and what the waiting ones do meanwhile is not valid."""
    shorten_segments(monkeypatch, 100)
    seeds: list[int] = []
    reset = CartPoleVectorEnv.reset

    def reset_and_note(env: CartPoleVectorEnv, *, seed: int, options: Any = None) -> Any:
        seeds.append(seed)
        return reset(env, seed=seed, options=options)

    monkeypatch.setattr(CartPoleVectorEnv, "reset", reset_and_note)
    with closing(make("CartPole-v1", 4, vectorization_mode="vector_entry_point")) as env:
        env.make_repeatable_()
        env.reset([3])
        ended = waits = torch.zeros(4, dtype=torch.bool)
        num_steps, num_waiting, generator = 0, 0, Generator().manual_seed(0)
        for _ in range(1000):
            num_seeded = len(seeds)
            step = env.step(torch.randint(2, (4, 1), generator=generator))
            num_steps += 1
            assert torch.equal(step.valid, ~ended & ~waits) and torch.equal(step.reward, step.valid.float())
            ended = step.terminated | step.truncated
            waits = waits | (ended & (num_steps >= 100))
            num_waiting += int(waits.sum())
            assert (len(seeds) > num_seeded) == bool(waits.all())
            if waits.all():
                num_steps, ended, waits = 0, torch.zeros(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)
                assert (step.obs.abs() <= 0.05).all() and (step.next_obs[:, 2].abs() > 0.2).any()
    assert len(set(seeds)) == len(seeds) > 4 and num_waiting > 10


class Endless(VectorEnv):
    """The first of two environments never ends, the other after every fifth step; observations count the steps."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
    observation_space = gymnasium.spaces.Box(0, np.inf, (2, 1))
    single_observation_space = gymnasium.spaces.Box(0, np.inf, (1,))
    action_space, single_action_space = gymnasium.spaces.MultiDiscrete([2, 2]), gymnasium.spaces.Discrete(2)

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.num_steps = 0
        return np.zeros((2, 1)), {}

    def step(self, actions: Any) -> Any:
        self.num_steps += 1
        ended = np.array([False, self.num_steps % 6 == 5])
        return np.full((2, 1), self.num_steps), np.ones(2), ended, np.zeros(2, np.bool_), {}


def test_an_environment_of_a_vector_class_that_never_ends_is_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_segments(monkeypatch, 20)
    spec = gymnasium.envs.registration.EnvSpec("Endless-v0", vector_entry_point=Endless)
    monkeypatch.setitem(gymnasium.registry, "Endless-v0", spec)
    with closing(make("Endless-v0", 2)) as env:
        env.make_repeatable_()
        env.reset([0])
        steps = [kept(env.step(torch.zeros(2, 1, dtype=torch.int64))) for _ in range(80)]
        assert [i + 1 for i, step in enumerate(steps) if step.truncated[0]] == [40, 80]
        assert steps[39].next_obs.tolist() == [[40], [40]] and steps[39].obs.tolist() == [[0], [0]]
        assert not any(step.valid[1] for step in steps[23:40]) and all(step.valid[0] for step in steps)
        env.reset([0])
    with closing(make("Endless-v0", 2)) as env:  # as for an evaluation
        env.reset([0])
        steps = [kept(env.step(torch.zeros(2, 1, dtype=torch.int64))) for _ in range(80)]
        assert not any(step.truncated.any() for step in steps) and sum(bool(step.valid[1]) for step in steps) == 67


def test_actions_that_nothing_needs_any_more_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_segments(monkeypatch, 15)
    monkeypatch.setattr("envs.gymnasium_adapter.TRIM_STEPS", 10)
    with closing(GymnasiumAdapter(SyncVectorEnv([lambda: Guard(Long(10), None, "stop")] * 2), guarded=True)) as env:
        env.make_repeatable_()
        env.reset([0])
        longest = 0
        for _ in range(500):
            env.step(torch.zeros(2, 1, dtype=torch.int64))
            longest = max(longest, len(env._taken or ()))
        assert longest < 100 and env.journal()["env/actions"].shape[1] <= 20


def test_replaced_environments_are_counted_by_member() -> None:
    with make_members(CASES["replaced"], 2) as env:
        env.make_repeatable_()
        trajectories(env, [0, 1])
        assert env.restarts.tolist() == [2] * 4
        assert env.journal()["env/restarts"].tolist() == [2] * 4


def test_an_unseeded_reset_continues_the_random_numbers(kind: Any) -> None:
    with make_members(kind, 2) as env:
        starts = [env.reset(seeds).clone() for seeds in ([1, 2], None, [1, 2], None)]
    assert torch.equal(starts[0], starts[2]) and torch.equal(starts[1], starts[3])
    assert not torch.equal(starts[0], starts[1])


@pytest.mark.parametrize("env_id", OWN)
def test_vector_and_single_tensor_environments_take_the_seeds_of_gymnasium(env_id: str) -> None:
    """One seed for each environment, or the first of consecutive ones, as Gymnasium's SyncVectorEnv does."""
    single: Any = gymnasium.make(env_id).unwrapped
    with closing(gymnasium.make_vec(env_id, 3)) as vector:
        for seeds, given in (([7, 8, 9], 7), ([5, 5, 2], [5, 5, 2])):
            obs, _ = vector.reset(seed=given)  # type: ignore[arg-type]
            assert all(np.array_equal(row, single.reset(seed=seed)[0]) for row, seed in zip(obs, seeds, strict=True))
