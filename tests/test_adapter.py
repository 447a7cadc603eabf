"""The adapter hands on the same transitions whatever the autoreset mode and the kind of vector environment."""

from itertools import islice
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from scripted_env import SCRIPTS, ScriptedEnv, ScriptedVectorEnv, Transition, kept, scripted_transitions

from envs import GymnasiumAdapter, Step, UserError, make

NUM_STEPS = 40
NUM_ENVS = len(SCRIPTS)


def sync_env(mode: AutoresetMode) -> VectorEnv:
    return SyncVectorEnv([lambda script=script: ScriptedEnv(script) for script in SCRIPTS], autoreset_mode=mode)


def async_env(mode: AutoresetMode) -> VectorEnv:
    return AsyncVectorEnv([lambda script=script: ScriptedEnv(script) for script in SCRIPTS], autoreset_mode=mode)


def own_env(mode: AutoresetMode) -> VectorEnv:
    return ScriptedVectorEnv(SCRIPTS, mode)


def rollout(adapter: GymnasiumAdapter, num_steps: int, seed: int = 0) -> tuple[torch.Tensor, list[Step]]:
    action = torch.zeros(adapter.num_envs, len(adapter.actions.num_choices), dtype=torch.int64)
    return adapter.reset([seed]), [kept(adapter.step(action)) for _ in range(num_steps)]


def seen_transitions(first_obs: torch.Tensor, steps: list[Step], index: int) -> list[Transition]:
    acted_on = [first_obs, *(step.obs for step in steps)]
    return [
        Transition(
            tuple(obs[index].tolist()),
            step.reward[index].item(),
            step.terminated[index].item(),
            step.truncated[index].item(),
            tuple(step.next_obs[index].tolist()),
        )
        for obs, step in zip(acted_on, steps, strict=False)
        if step.valid[index]
    ]


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("make_env", [sync_env, async_env, own_env])
def test_valid_transitions_are_those_of_the_script(make_env: Any, mode: AutoresetMode) -> None:
    adapter = GymnasiumAdapter(make_env(mode))
    first_obs, steps = rollout(adapter, NUM_STEPS)
    adapter.close()
    for index, script in enumerate(SCRIPTS):
        seen = seen_transitions(first_obs, steps, index)
        assert seen == list(islice(scripted_transitions(script), len(seen)))
        assert len(seen) >= NUM_STEPS // 2


@pytest.mark.parametrize("make_env", [sync_env, async_env, own_env])
def test_only_next_step_has_fillers_one_after_each_end(make_env: Any) -> None:
    for mode in AutoresetMode:
        adapter = GymnasiumAdapter(make_env(mode))
        _, steps = rollout(adapter, NUM_STEPS)
        adapter.close()
        ended = torch.stack([step.terminated | step.truncated for step in steps])
        valid = torch.stack([step.valid for step in steps])
        filler_after_end = ended[:-1] if mode is AutoresetMode.NEXT_STEP else torch.zeros_like(ended[:-1])
        assert valid[0].all() and torch.equal(~valid[1:], filler_after_end)


@pytest.mark.parametrize("make_env", [sync_env, async_env, own_env])
def test_fillers_are_empty_and_lead_to_the_next_episode(make_env: Any) -> None:
    adapter = GymnasiumAdapter(make_env(AutoresetMode.NEXT_STEP))
    _, steps = rollout(adapter, NUM_STEPS)
    adapter.close()
    fillers = [(step, index) for step in steps for index in range(NUM_ENVS) if not step.valid[index]]
    assert fillers
    for step, index in fillers:
        assert (step.reward[index], step.terminated[index], step.truncated[index]) == (0.0, False, False)
        assert step.obs[index, 1] == 0  # no step of the new episode was made


def test_every_step_has_the_promised_types_and_shapes() -> None:
    for mode in AutoresetMode:
        adapter = GymnasiumAdapter(own_env(mode))
        first_obs, steps = rollout(adapter, 8)
        assert first_obs.dtype == torch.float32 and first_obs.shape == (NUM_ENVS, 2)
        for step in steps:
            assert step.obs.shape == step.next_obs.shape == (NUM_ENVS, 2) and step.obs.is_contiguous()
            assert step.reward.shape == step.terminated.shape == step.truncated.shape == step.valid.shape == (NUM_ENVS,)
            assert step.obs.dtype == step.next_obs.dtype == step.reward.dtype == torch.float32
            assert step.terminated.dtype == step.truncated.dtype == step.valid.dtype == torch.bool


def test_reset_forgets_the_episode_that_had_ended() -> None:
    adapter = GymnasiumAdapter(own_env(AutoresetMode.NEXT_STEP))
    rollout(adapter, 1)  # the episode of the second script has ended now
    _, (step,) = rollout(adapter, 1)
    assert step.valid.all()


def test_cartpole_own_vector_env_gives_fillers_from_the_reset_distribution() -> None:
    adapter = make("CartPole-v1", 4, vectorization_mode="vector_entry_point")
    assert adapter.vector_env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    _, steps = rollout(adapter, 60)  # always left: an episode lasts about ten steps
    ended = torch.stack([step.terminated for step in steps])
    valid = torch.stack([step.valid for step in steps])
    reward = torch.stack([step.reward for step in steps])
    obs = torch.stack([step.obs for step in steps])
    assert ended.sum() >= 16 and torch.equal(~valid[1:], ended[:-1])
    assert (reward[valid] == 1).all() and (reward[~valid] == 0).all()
    assert (obs[~valid].abs() <= 0.05).all()  # a fresh start
    assert (obs[ended][:, 2].abs() > 0.2).all()  # the pole has fallen: successor of the last action, not a fresh start


class Echo(gymnasium.Env[Any, Any]):
    """Rewards with the sum of the action, which it checks to lie in its space; may break its promises."""

    def __init__(
        self, action_space: spaces.Space, obs: float = 0.0, reward: float | None = None, terminated: bool = False
    ) -> None:
        self.observation_space, self.action_space = spaces.Box(-np.inf, np.inf, (1,)), action_space
        self.obs, self.reward, self.terminated = np.array([obs], dtype=np.float32), reward, terminated

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.random(1, dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        reward = float(np.sum(action)) if self.reward is None else self.reward
        return self.obs, reward, self.terminated, False, {}


@pytest.mark.parametrize(
    ("space", "bins", "factors", "reward"),
    [
        (spaces.Discrete(3, start=5), None, [2], 7),
        (spaces.MultiDiscrete([2, 3], start=[10, 20]), None, [1, 2], 33),
        (spaces.MultiDiscrete([[2, 3], [4, 5]]), None, [1, 2, 3, 4], 10),
        (spaces.MultiBinary((2, 2)), None, [1, 0, 1, 1], 3),
        (spaces.Box(np.array([-1, 0], np.float32), np.array([1, 10], np.float32)), 5, [0, 4], 9),
    ],
)
@pytest.mark.parametrize("vector_class", [SyncVectorEnv, AsyncVectorEnv])
def test_actions_reach_each_environment(
    vector_class: Any, space: spaces.Space, bins: int | None, factors: list[int], reward: float
) -> None:
    adapter = GymnasiumAdapter(vector_class([lambda: Echo(space)] * 2), action_bins=bins)
    adapter.reset([0])
    lowest = adapter.step(torch.zeros(2, len(factors), dtype=torch.int64)).reward.clone()
    assert adapter.step(torch.tensor([[0] * len(factors), factors])).reward.tolist() == [lowest[0], reward]
    adapter.close()


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize(
    ("broken", "text"),
    [
        ({"reward": np.nan}, "SyncVectorEnv: environment 1 gave a reward that is not finite: nan"),
        ({"reward": np.inf}, "SyncVectorEnv: environment 1 gave a reward that is not finite: inf"),
        ({"reward": 1e300}, "SyncVectorEnv: environment 1 gave a reward that is not finite: inf"),
        ({"obs": np.nan}, "SyncVectorEnv: environment 1 gave an observation that is not finite"),
    ],
)
def test_numbers_that_are_not_finite_name_the_environment(broken: dict[str, float], text: str) -> None:
    space = spaces.Discrete(2)
    adapter = GymnasiumAdapter(SyncVectorEnv([lambda: Echo(space), lambda: Echo(space, **broken)]))
    adapter.reset([0])
    with pytest.raises(UserError, match=text):
        adapter.step(torch.zeros(2, 1, dtype=torch.int64))


def test_last_observation_that_is_not_finite_names_the_environment() -> None:
    space = spaces.Discrete(2)
    env_fns = [lambda: Echo(space), lambda: Echo(space, obs=np.nan, terminated=True)]
    adapter = GymnasiumAdapter(SyncVectorEnv(env_fns, autoreset_mode=AutoresetMode.SAME_STEP))
    adapter.reset([0])
    with pytest.raises(UserError, match="environment 1 gave an observation that is not finite"):
        adapter.step(torch.zeros(2, 1, dtype=torch.int64))


def test_same_step_without_the_last_observation_is_an_error() -> None:
    vector_env = SyncVectorEnv([ScriptedEnv] * 2, autoreset_mode=AutoresetMode.DISABLED)
    vector_env.metadata["autoreset_mode"] = AutoresetMode.SAME_STEP
    with pytest.raises(UserError, match=r"without info\['final_obs'\]"):
        rollout(GymnasiumAdapter(vector_env), 3)


@pytest.mark.parametrize("mode", [None, "NextStep", 3])
def test_unknown_autoreset_mode_is_refused(mode: Any) -> None:
    with pytest.raises(UserError, match=r"ScriptedVectorEnv: .*metadata\['autoreset_mode'\] = .*NEXT_STEP, SAME_STEP"):
        GymnasiumAdapter(ScriptedVectorEnv(SCRIPTS, mode))


def test_missing_autoreset_mode_is_refused() -> None:
    vector_env = own_env(AutoresetMode.NEXT_STEP)
    vector_env.metadata = {}
    with pytest.raises(UserError, match="= None, so it is unknown when episodes restart"):
        GymnasiumAdapter(vector_env)


@pytest.mark.parametrize("vectorization_mode", ["vector_entry_point", "sync", "async"])
def test_one_seed_decides_every_episode(vectorization_mode: str) -> None:
    adapter = make("CartPole-v1", 3, vectorization_mode=vectorization_mode)
    first, again, other = (
        torch.stack([obs, *(step.obs for step in steps)])
        for obs, steps in (rollout(adapter, 30, seed) for seed in (1, 1, 2))
    )
    adapter.close()
    assert torch.equal(first, again)
    assert (first != other).any(-1).all()  # not one observation in common


@pytest.mark.parametrize("vectorization_mode", ["vector_entry_point", "sync", "async"])
def test_environments_start_apart_from_each_other(vectorization_mode: str) -> None:
    adapter = make("CartPole-v1", 8, vectorization_mode=vectorization_mode)
    starts = torch.cat([adapter.reset([seed]) for seed in (0, 1)])
    adapter.close()
    assert len(starts.unique(dim=0)) == 16  # neighbouring seeds share no environment either


def test_each_environment_has_a_seed_of_its_own() -> None:
    adapter = make("Acrobot-v1", 3)
    adapter.reset([5])
    expected = np.random.SeedSequence(5).generate_state(3) >> 1
    assert adapter.vector_env.get_attr("np_random_seed") == tuple(expected)
    adapter.close()
    assert adapter.vector_env.closed
