"""Evaluation: exactly the episodes asked for, none preferred for being short."""

import io
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from rich.console import Console
from scripted_env import TERMINATED, Episode, ScriptedEnv
from test_policy import make_policy

import envs
from agent import Policy, evaluate
from agent.evaluation import EpisodeProgress, evaluate_members, num_parallel_envs, run_episodes, summary
from agent.tables import results_table
from envs import GymnasiumAdapter, UserError


def cartpole_policy(num_members: int = 1) -> Policy:
    space = envs.make("CartPole-v1", 1).observations.space
    return make_policy(space, spaces.Discrete(2), num_members)


@pytest.mark.parametrize("num_episodes", [1, 3, 10, 23])
def test_every_member_finishes_exactly_the_episodes_asked_for(num_episodes: int) -> None:
    env = envs.make("CartPole-v1", 2 * num_parallel_envs(num_episodes), num_members=2)
    episodes = run_episodes(cartpole_policy(2), env, num_episodes, seed=[0], sampled=True)
    assert episodes.returns.shape == episodes.lengths.shape == (2, num_episodes)
    assert (episodes.returns == episodes.lengths).all()  # CartPole's reward is 1 a step


def test_same_seed_repeats_and_another_differs() -> None:
    policy, env = cartpole_policy(), envs.make("CartPole-v1", 4)
    first, second = (run_episodes(policy, env, 8, seed=[3], sampled=True).returns for _ in range(2))
    assert (first == second).all()
    assert (run_episodes(policy, env, 8, seed=[4], sampled=True).returns != first).any()


def test_short_episodes_are_not_counted_more_often() -> None:
    """One environment's episodes last 1 step, the other's 9: half of each is 5; the first twenty to end are shorter."""
    scripts = [(Episode(length, *TERMINATED),) for length in (1, 9)]
    env = GymnasiumAdapter(
        SyncVectorEnv([partial(ScriptedEnv, script) for script in scripts], autoreset_mode=AutoresetMode.SAME_STEP)
    )
    policy = make_policy(env.observations.space, spaces.Discrete(2))
    lengths = run_episodes(policy, env, 20, seed=[0], sampled=False).lengths
    assert lengths.mean() == 5.0


class Endless(gymnasium.Env):
    """Pays the number of steps since its reset. Every third episode ends after `ends_at` steps, the others never."""

    observation_space, action_space = spaces.Box(0, np.inf, (1,)), spaces.Discrete(2)

    def __init__(self, ends_at: int = 0) -> None:
        self.ends_at, self.episode = ends_at, -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.num_steps, self.episode = 0, self.episode + 1
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.num_steps += 1
        ends = self.episode % 3 == 0 and self.num_steps == self.ends_at
        return np.full(1, self.num_steps, np.float32), float(self.num_steps), ends, False, {}


def endless(num_envs: int, ends_at: int = 0) -> GymnasiumAdapter:
    return GymnasiumAdapter(
        SyncVectorEnv([lambda: Endless(ends_at)] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
    )


def test_every_episode_starts_at_a_reset_and_a_cut_one_is_marked() -> None:
    env = endless(2)
    policy, seen = make_policy(env.observations.space, spaces.Discrete(2)), []
    episodes = run_episodes(policy, env, 5, [0], sampled=False, max_episode_steps=4, watch=seen.append)
    assert episodes.returns.tolist() == [[1.0 + 2 + 3 + 4] * 5] and episodes.lengths.tolist() == [[4] * 5]
    assert episodes.cut.all() and seen == sorted(seen) and set(seen) == {0, 2, 4}
    assert summary(*(values[0] for values in episodes))["cut"] == [True] * 5


def test_an_episode_that_ends_at_the_limit_is_not_cut_and_its_environment_continues() -> None:
    env = endless(1, ends_at=4)
    policy = make_policy(env.observations.space, spaces.Discrete(2))
    episodes = run_episodes(policy, env, 4, [0], sampled=False, max_episode_steps=4)
    assert episodes.cut.tolist() == [[False, True, True, False]] and episodes.lengths.tolist() == [[4] * 4]


def test_cut_episodes_show_in_the_table() -> None:
    row = {"member": 0, "seed": 0, "settings": {}, "greedy": summary(*np.array([[9.0, 9], [4, 4], [0, 1]]))}
    output = io.StringIO()
    Console(file=output, width=120).print(results_table([row]))
    assert "4 (1 cut)" in output.getvalue()


def test_a_long_evaluation_tells_how_far_it_is() -> None:
    told: list[str] = []
    progress = EpisodeProgress(20, told.append, every_seconds=0.0)
    progress(3)
    EpisodeProgress(20, told.append)(4)  # not yet
    assert told == ["evaluation: 3 of 20 episodes"]


def test_normaliser_stays_frozen() -> None:
    policy, env = cartpole_policy(), envs.make("CartPole-v1", 2)
    before = policy.normalizer.mean.clone()
    run_episodes(policy, env, 4, seed=[0], sampled=False)
    assert torch.equal(policy.normalizer.mean, before)


def test_summary_by_hand() -> None:
    figures = summary(np.array([1.0, 2.0, 3.0, 10.0]), np.array([4, 5, 6, 7]), np.zeros(4))
    assert (figures["mean"], figures["min"], figures["max"], figures["iqm"]) == (4.0, 1.0, 10.0, 2.5)
    assert figures["std"] == pytest.approx(np.std([1, 2, 3, 10]))
    assert figures["returns"] == [1.0, 2.0, 3.0, 10.0] and figures["lengths"] == [4, 5, 6, 7]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cartpole_policy(2).save(tmp_path / "policy" / "final")
    return tmp_path


def test_a_run_is_evaluated_by_its_folder(folder: Path) -> None:
    rows = evaluate(folder, member="all", episodes=3, seed=5)
    assert [(row["member"], len(row["greedy"]["returns"]), len(row["sampled"]["returns"])) for row in rows] == [
        (0, 3, 3),
        (1, 3, 3),
    ]
    assert evaluate(Policy.load(folder, member="all"), episodes=3, seed=5) == rows
    (best,) = evaluate(folder, episodes=3, modes=["sampled"])
    assert best["member"] == 1 and "greedy" not in best


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modes": ["gredy"]}, r"modes: got 'gredy', must be among greedy, sampled; did you mean 'greedy'\?"),
        ({"modes": []}, "modes: got none"),
        ({"episodes": 0}, "episodes: got 0, must be at least 1"),
        ({"seed": -1}, "seed: got -1, must be between 0 and"),
        ({"member": 7}, "member 7 does not exist"),
        ({"env_id": "Acrobot-v1"}, "this policy has observations"),
    ],
)
def test_evaluate_says_what_is_wrong(arguments: dict, message: str, folder: Path) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(folder, **arguments)


def test_only_the_user_may_name_an_environment_that_imports_a_module(folder: Path) -> None:
    policy = Policy.load(folder)
    policy.info = policy.info.model_copy(update={"env_id": "scripted_env:CartPole-v1"})
    with pytest.raises(UserError, match="which imports the Python module 'scripted_env'; if you trust it, say so"):
        evaluate(policy, episodes=1)
    assert len(evaluate(policy, episodes=1, env_id="scripted_env:CartPole-v1")) == 1


def test_members_keep_their_number_when_selected() -> None:
    policy, env = cartpole_policy(3).select([2]), envs.make("CartPole-v1", 2)
    (row,) = evaluate_members(policy, env, 2, [0], ["greedy"])
    assert (row["member"], row["seed"]) == (2, 12) and "sampled" not in row
