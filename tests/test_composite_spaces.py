"""Actions that are a Dict or a Tuple, masks from wherever they come, observations with parts that are not numeric."""

import logging
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from composite_env import (
    ACTION_SPACE,
    BINS,
    ENV_ID,
    EPISODE,
    NUM_CHOICES,
    VECTOR_ID,
    CompositeEnv,
    flat_mask,
    mask_by_leaf,
    wanted,
)
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space, iterate
from test_masks import Turnstile, legal_actions
from test_policy import make_policy
from test_resume import assert_same, short, stop_at
from torch import Generator

import envs
from agent import Policy, PolicyError, evaluate
from agent.config import Config
from agent.evaluation import make_env
from agent.exit_codes import Stopped
from agent.training.trainer import train
from agent.video import record
from envs import TensorEnv, UserError, VectorEnvironment

__all__ = ["stop_at"]  # a fixture
MODES = [(ENV_ID, "sync"), (ENV_ID, "async"), (VECTOR_ID, "vector_entry_point")]
every_mode = pytest.mark.parametrize(("env_id", "mode"), MODES, ids=[mode for _, mode in MODES])
EXISTS = torch.arange(3) < torch.tensor(NUM_CHOICES).unsqueeze(-1)
MASKED = ["info", "info by leaf", "obs", "obs by leaf"]


def make(env_id: str = ENV_ID, mode: str = "sync", num_envs: int = 7, **kwargs: Any) -> VectorEnvironment:
    return envs.make(env_id, num_envs, kwargs=kwargs, action_bins=BINS, vectorization_mode=mode)


@every_mode
def test_each_leaf_gets_its_factor(env_id: str, mode: str) -> None:
    """Environment e gets the wanted choice of factor e alone, the last one of all."""
    with closing(make(env_id, mode)) as env:
        assert env.actions.num_choices == NUM_CHOICES
        env.reset([0])
        for t in range(EPISODE):
            best, counts = torch.tensor(wanted(t)), torch.tensor(NUM_CHOICES)
            right = torch.cat([torch.eye(6, dtype=torch.bool), torch.ones(1, 6, dtype=torch.bool)])
            step = env.step(torch.where(right, best, (best + 1) % counts))
            assert step.reward.tolist() == [1, 2, 4, 8, 16, 32, 63]


@every_mode
@pytest.mark.parametrize("mask", MASKED)
def test_masks_by_leaf_or_flat_are_those_of_their_observations(
    env_id: str, mode: str, mask: str, generator: Generator
) -> None:
    """The environment raises where a choice that is barred is taken."""
    with closing(make(env_id, mode, 3, mask=mask)) as env:
        follow_masks(env, generator)


@pytest.mark.parametrize("autoreset", list(AutoresetMode))
def test_masks_in_observations_are_found_in_every_autoreset_mode(
    autoreset: AutoresetMode, generator: Generator
) -> None:
    with closing(make(VECTOR_ID, "vector_entry_point", 3, mask="obs", autoreset_mode=autoreset)) as env:
        follow_masks(env, generator)


@pytest.mark.parametrize("mode", ["sync", "async", "auto"])
def test_masks_come_from_the_method_of_an_environment_or_wrapper(mode: str, generator: Generator) -> None:
    """Which a vector class does not have: auto chooses sync."""
    with closing(make(VECTOR_ID, mode, mask="method")) as env:
        follow_masks(env, generator)


def follow_masks(env: VectorEnvironment, generator: Generator) -> None:
    obs = env.reset([0])
    assert obs.shape == (env.num_envs, EPISODE + 1)  # the mask is no feature
    for _ in range(4 * EPISODE):
        assert env.masks is not None
        step = env.step(legal_actions(env.masks.obs, generator))
        for seen, masks in ((step.obs, env.masks.obs), (step.next_obs, env.masks.next_obs)):
            for own, mask in zip(seen.argmax(-1).tolist(), masks, strict=True):
                assert mask[EXISTS].tolist() == flat_mask(own).tolist()


class Sources(CompositeEnv):
    """Has the mask of step 1 in its observation, that of step 2 in info, that of step 0 as a method."""

    def __init__(self, where: list[str]) -> None:
        super().__init__("obs" if "obs" in where else "method" if "method" in where else "")
        self.where = where

    def obs(self) -> Any:
        return {"step": 0, "action_mask": flat_mask(1).astype(np.int8)} if "obs" in self.where else 0

    def info(self) -> dict[str, Any]:
        return {"action_mask": flat_mask(2)} if "info" in self.where else {}


@pytest.mark.parametrize(
    ("where", "key", "first"),
    [
        (["obs", "info", "method"], "action_mask", 1),
        (["info", "method"], "action_mask", 2),
        (["method"], "action_mask", 0),
        (["method"], "legal", None),
        (["obs", "info", "method"], None, None),
    ],
    ids=str,
)
def test_the_first_source_counts(where: list[str], key: str | None, first: int | None) -> None:
    gymnasium.registry.pop("Sources-v0", None)
    gymnasium.register("Sources-v0", Sources)
    with closing(envs.make("Sources-v0", 1, kwargs={"where": where}, action_bins=3, action_mask_key=key)) as env:
        obs = env.reset([0])
        found = None if env.masks is None else env.masks.obs[0][EXISTS].tolist()
        assert found == (None if first is None else flat_mask(first).tolist())
        assert obs.shape[1] == EPISODE + 1 + (15 if key is None else 0)  # where masks are ignored, it is a feature


class Fails(CompositeEnv):
    def __init__(self, mask: Any) -> None:
        super().__init__()
        self.given = mask

    def info(self) -> dict[str, Any]:
        return {"action_mask": self.given}


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"gear": np.ones(3)}, "returned an action mask without the key 'arm'; expected 'arm', 'gear', 'lamps'"),
        (mask_by_leaf(0) | {"x": 1}, "returned an action mask with the key 'x'; expected 'arm', 'gear', 'lamps'"),
        (mask_by_leaf(0) | {"arm": {}}, r"returned an action mask that is a dict; the action space is Tuple\("),
        (mask_by_leaf(0) | {"gear": np.ones(4)}, r"returned an action mask\['gear'\] of shape \[4\]; expected \[3\]"),
        (
            mask_by_leaf(0) | {"gear": np.full(3, np.nan)},
            r"returned an action mask\['gear'\] of float64, .*; expected bool, or numbers 0 and 1",
        ),
        (
            np.ones(6),
            r"returned an action mask of shape \[6\]; expected \[15\] or "
            r"\{'arm': \(\[3\], \[5\]\), 'gear': \[3\], 'lamps': \[4\]\}",
        ),
        (
            mask_by_leaf(0) | {"arm": (np.ones(3), np.ones(4))},
            r"returned an action mask\['arm'\]\[1\] of shape \[4\]; expected \[5\] or 2 arrays \[2\], \[3\]",
        ),
        (mask_by_leaf(0) | {"gear": np.zeros(3)}, "returned an action mask without a legal choice for action factor 3"),
    ],
)
def test_mask_that_does_not_fit_names_the_leaf(mask: Any, message: str) -> None:
    gymnasium.registry.pop("Fails-v0", None)
    gymnasium.register("Fails-v0", Fails)
    with closing(envs.make("Fails-v0", 1, kwargs={"mask": mask}, action_bins=3)) as env:
        with pytest.raises(UserError, match=message):
            env.reset([0])


def test_tensor_environments_do_not_take_them() -> None:
    class Nested(Turnstile):
        action_space = spaces.Dict({"gear": spaces.Discrete(3)})

    with pytest.raises(
        UserError, match="action space Dict.*: tensors have Box, Discrete, MultiDiscrete or MultiBinary"
    ):
        TensorEnv(Nested(2))


COMPOSITE = [
    (ACTION_SPACE, BINS),
    (spaces.Tuple([spaces.Discrete(3), spaces.Discrete(5, start=-2)]), None),
    (spaces.Tuple([spaces.Box(0, 1, (2, 2)), spaces.Tuple([spaces.MultiBinary((2, 1))])]), 2),
]


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize(("space", "bins"), COMPOSITE, ids=["Dict", "Tuple", "nested Tuple"])
def test_policy_acts_in_the_structure_of_the_space(space: spaces.Space, bins: int | None, sampled: bool) -> None:
    policy = make_policy(spaces.Discrete(4), space, bins=bins)
    assert space.contains(policy.act(2, sampled=sampled))
    batch = policy.act(np.arange(4), sampled=sampled)
    batched = batch_space(space, 4)
    assert batched.contains(batch)
    actions = list(iterate(batched, batch))
    assert len(actions) == 4 and all(space.contains(action) for action in actions)


def masked_policy() -> Policy:
    policy = make_policy(spaces.Dict({"step": spaces.Discrete(EPISODE + 1)}), ACTION_SPACE, bins=BINS)
    policy.info = policy.info.model_copy(update={"action_mask_key": "action_mask"})
    return policy


@pytest.mark.parametrize("mask", ["obs", "obs by leaf"])
def test_policy_takes_the_masks_in_observations(mask: str) -> None:
    """The environments raise where a choice that is barred is taken."""
    policy, env = masked_policy(), CompositeEnv(mask)
    obs, _ = env.reset()
    for _ in range(EPISODE):
        obs, *_ = env.step(policy.act(obs, sampled=True))
    with closing(gymnasium.make_vec(ENV_ID, 3, vectorization_mode="sync", mask=mask)) as vector_env:
        obs, _ = vector_env.reset()
        for _ in range(EPISODE):
            obs, *_ = vector_env.step(policy.act(obs, sampled=True))
    with pytest.raises(PolicyError, match=r"as obs\['action_mask'\], in info\['action_mask'\], or by env.action_masks"):
        policy.act({"step": 0})


def test_policy_takes_masks_by_leaf_alone_and_batched() -> None:
    policy, env = make_policy(spaces.Discrete(4), ACTION_SPACE, bins=BINS), CompositeEnv("info")
    obs, _ = env.reset()
    env.step(policy.act(obs, action_mask=mask_by_leaf(0), sampled=True))
    batch = policy.act(np.zeros(2, int), action_mask=[mask_by_leaf(0), flat_mask(0)], sampled=True)
    one = mask_by_leaf(0)
    arm, gear = tuple(np.stack([own] * 2) for own in one["arm"]), np.stack([one["gear"]] * 2)
    stacked = {"gear": gear, "arm": arm, "lamps": None}
    again = policy.act(np.zeros(2, int), action_mask=stacked, sampled=True)
    for actions in (batch, again):
        for action in iterate(batch_space(ACTION_SPACE, 2), actions):
            env.reset()
            env.step(action)


@pytest.mark.parametrize("swapped", ["observations", "actions"])
def test_policy_does_not_fit_where_the_parts_come_in_another_order(swapped: str) -> None:
    parts = [("a", spaces.Discrete(2)), ("b", spaces.Discrete(2))]
    policy = make_policy(spaces.Dict(parts), spaces.Dict(parts))

    class Swapped(gymnasium.Env):
        observation_space = spaces.Dict(parts[::-1] if swapped == "observations" else parts, sort_keys=False)
        action_space = spaces.Dict(parts[::-1] if swapped == "actions" else parts, sort_keys=False)

    gymnasium.registry.pop("Swapped-v0", None)
    gymnasium.register("Swapped-v0", Swapped)
    with (
        closing(envs.make("Swapped-v0", 1)) as env,
        pytest.raises(PolicyError, match=f"this policy has {swapped} Dict"),
    ):
        policy.check_fits(env)


class Mission(spaces.Space[str]):
    """As MiniGrid's: a space that Gymnasium does not know."""

    def __init__(self) -> None:
        super().__init__(dtype=str)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        return "get the red key"

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)


GRID = {"direction": spaces.Discrete(4), "image": spaces.Box(0, 255, (2, 2, 3), np.uint8)}
OTHERS: dict[str, spaces.Space] = {
    "Text": spaces.Text(20),
    "Mission": Mission(),
    "Sequence": spaces.Sequence(spaces.Discrete(3)),
    "Graph": spaces.Graph(spaces.Box(0, 1), None),
    "OneOf": spaces.OneOf([spaces.Discrete(2), spaces.Box(0, 1)]),
}


class GridEnv(gymnasium.Env):
    """Observations with one part that is not numeric, in a Dict or in a Tuple."""

    def __init__(self, kind: str, is_tuple: bool = False) -> None:
        self.action_space, self.is_tuple = spaces.Discrete(2), is_tuple
        parts = {**GRID, "mission": OTHERS[kind]}
        ordered = [parts["direction"], parts["mission"], parts["image"]]
        self.observation_space: spaces.Space = spaces.Tuple(ordered) if is_tuple else spaces.Dict(parts)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 1.0, bool(self.np_random.random() < 0.3), False, {}


class GridVectorEnv(SyncVectorEnv):
    """The same as a vector class, for the parts that Gymnasium can batch."""

    def __init__(self, num_envs: int, **kwargs: Any) -> None:
        super().__init__([partial(GridEnv, **kwargs)] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)


if "Grid-v0" not in gymnasium.registry:
    gymnasium.register("Grid-v0", GridEnv, vector_entry_point=GridVectorEnv)


@pytest.mark.parametrize("is_tuple", [False, True], ids=["Dict", "Tuple"])
@pytest.mark.parametrize(
    ("kind", "mode"),
    [*((kind, "sync") for kind in OTHERS), ("Mission", "async"), ("Graph", "async"), ("Text", "vector_entry_point")],
)
def test_a_part_that_is_no_number_is_left_out(kind: str, mode: str, is_tuple: bool) -> None:
    kwargs = {"kind": kind, "is_tuple": is_tuple}
    with closing(envs.make("Grid-v0", 2, kwargs=kwargs, vectorization_mode=mode)) as env:
        assert env.reset([0]).shape == (2, 4 + 12)
        for _ in range(5):
            env.step(torch.zeros(2, 1, dtype=torch.int64))
        policy = make_policy(env.observations.space, spaces.Discrete(2))
        policy.check_fits(env)
    obs, _ = GridEnv(kind, is_tuple).reset(seed=3)
    without = (obs[0], (), obs[2]) if is_tuple else {key: obs[key] for key in GRID}
    assert policy.act(obs) == policy.act(without)
    assert np.array_equal(policy.observations.flatten_one(obs), policy.observations.flatten_one(without))


def test_parts_that_are_left_out_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    gymnasium.registry.pop("Named-v0", None)
    gymnasium.register("Named-v0", GridEnv)
    with caplog.at_level(logging.WARNING):
        for mode in ("sync", "async"):
            envs.make("Named-v0", 2, kwargs={"kind": "Text"}, vectorization_mode=mode).close()
    assert caplog.messages == [
        "Named-v0: left out of the observations, because it is not numeric: 'mission' (Text); a wrapper can encode it "
        "(env.wrappers)"
    ]


class Nothing(gymnasium.Env):
    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Space) -> None:
        self.observation_space = space


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Mission(), "observation space .*Mission.* not supported: use Box, .*, or a wrapper"),
        (spaces.Dict({"a": spaces.Text(3)}), "observation space Dict.*, which is not supported: use Box"),
        (
            spaces.Dict({"action_mask": spaces.MultiBinary(2)}),
            "observation space .*, which has nothing to observe besides",
        ),
    ],
    ids=["alone", "in a Dict", "the mask"],
)
def test_observations_without_any_number_say_what_to_do(space: spaces.Space, message: str, mode: str) -> None:
    gymnasium.registry.pop("Nothing-v0", None)
    gymnasium.register("Nothing-v0", lambda: Nothing(space))
    with pytest.raises(UserError, match=f"^Nothing-v0 has {message}"):
        envs.make("Nothing-v0", 1, vectorization_mode=mode)


def composite_run(run_dir: Path, mask: str, *overrides: str) -> Config:
    settings = [f"env.id={ENV_ID}", f"env.kwargs={{counts: true, mask: '{mask}'}}", "env.action_bins=3", "seeds=1"]
    return short(run_dir, *settings, *overrides)


@pytest.mark.whole_run
@pytest.mark.parametrize("mask", ["", "info by leaf", "obs"])
def test_a_run_that_was_stopped_continues_and_is_evaluated_and_filmed(
    tmp_path: Path, stop_at: Callable[[int], None], mask: str
) -> None:
    whole = train(composite_run(tmp_path / "whole", mask)).folder
    stop_at(62)
    with pytest.raises(Stopped):
        train(composite_run(tmp_path / "run", mask))
    run = train(composite_run(tmp_path / "run", mask), resume=True).folder
    assert_same(run, whole)
    Policy.load(run).make_env().close()  # it fits
    (row,) = evaluate(run, episodes=3)
    assert set(row["greedy"]["lengths"]) == {EPISODE}
    pytest.importorskip("imageio_ffmpeg")
    with closing(make_env(Policy.load(run), 1, render_mode="rgb_array")) as env:
        assert record(Policy.load(run), env, tmp_path, 0, sampled=True).path.stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["", "info by leaf", "obs"])
def test_every_leaf_is_learned(tmp_path: Path, mask: str) -> None:
    settings = ["env.num_envs=2", "hidden_sizes=[32]", "batch_size=32", "gamma=0.5", "updates_per_step=0.5"]
    short_of_evaluations = ["evaluation.every_env_steps=null", "log_every_env_steps=500", "total_env_steps=1200"]
    run = train(composite_run(tmp_path / "run", mask, *settings, *short_of_evaluations, "learning_starts=100")).folder
    policy, env = Policy.load(run), CompositeEnv(mask, counts=True)
    obs, info = env.reset()
    total = 0.0
    for _ in range(EPISODE):
        obs, reward, _, _, info = env.step(policy.act(obs, action_mask=info.get("action_mask")))
        total += reward
    assert total == EPISODE * len(NUM_CHOICES)
