"""Evaluation: exactly the episodes asked for, none preferred for being short."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from failing_env import ENV_ID as FAILING
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from scripted_env import TERMINATED, Episode, ScriptedEnv, ScriptedVectorEnv
from test_policy import make_policy

import envs
from agent import Policy, evaluate
from agent.config_sections import EnvSettings
from agent.evaluation import EpisodeProgress, evaluate_members, num_parallel_envs, run_episodes, summary
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


@pytest.mark.parametrize("mode", AutoresetMode)
def test_an_episode_that_is_cut_is_marked_and_the_next_starts_at_a_reset(mode: AutoresetMode) -> None:
    """One environment's episodes never end in time, the other's do; a reward tells its episode and step."""
    scripts = [(Episode(30, *TERMINATED),), (Episode(5, *TERMINATED), Episode(3, *TERMINATED))]
    env = GymnasiumAdapter(ScriptedVectorEnv(scripts, mode))
    policy = make_policy(env.observations.space, spaces.Discrete(2))
    episodes = run_episodes(policy, env, 5, seed=[0], sampled=False, max_episode_steps=20)
    assert episodes.lengths[0, :4].tolist() == [20, 5, 3, 20] and episodes.lengths[0, 4] in (3, 5)
    assert episodes.were_cut.tolist() == [[True, False, False, True, False]]
    assert episodes.returns[0, 0] == sum(range(20))
    number, rest = divmod(episodes.returns[0, 3] - sum(range(20)), 20 * 100)
    assert number >= 1 and rest == 0  # all of one later episode, from its first step


def test_an_episode_that_a_failure_broke_off_is_marked() -> None:
    env = envs.make(FAILING, 1, kwargs={"how": "raises", "at": 25}, on_error="restart")
    policy = make_policy(env.observations.space, spaces.Discrete(2))
    episodes = run_episodes(policy, env, 5, seed=[0], sampled=False)
    assert episodes.lengths.tolist() == [[10, 10, 5, 10, 10]]
    assert episodes.were_cut.tolist() == [[False, False, True, False, False]]


def test_a_member_has_the_same_episodes_alone_when_some_are_cut() -> None:
    policy = cartpole_policy(3)
    together = run_episodes(
        policy, envs.make("CartPole-v1", 9, num_members=3), 7, seed=[0], sampled=True, max_episode_steps=9
    )
    assert together.were_cut.any(1).all() and not together.were_cut.all()
    assert (together.lengths <= 9).all() and (together.lengths[together.were_cut] == 9).all()
    for i in range(3):
        alone = run_episodes(
            policy.select([i]), envs.make("CartPole-v1", 3), 7, seed=[0], sampled=True, max_episode_steps=9
        )
        assert (alone.lengths == together.lengths[i]).all() and (alone.were_cut == together.were_cut[i]).all()


def test_an_episode_that_ends_with_the_last_step_allowed_is_whole() -> None:
    env = GymnasiumAdapter(ScriptedVectorEnv([(Episode(4, *TERMINATED),)], AutoresetMode.SAME_STEP))
    policy = make_policy(env.observations.space, spaces.Discrete(2))
    assert not run_episodes(policy, env, 2, seed=[0], sampled=False, max_episode_steps=4).were_cut.any()


def test_a_long_evaluation_says_how_far_it_is_and_a_quick_one_nothing() -> None:
    seconds, said = [0.0], []
    progress = EpisodeProgress(said.append, clock=lambda: seconds[0])
    policy, env = cartpole_policy(2), envs.make("CartPole-v1", 4, num_members=2)

    def before_step(done: int, total: int) -> None:
        counts.append((done, total))
        progress(done, total)

    counts: list[tuple[int, int]] = []
    evaluate_members(policy, env, 4, [0], ["greedy", "sampled"], before_step=before_step)
    assert said == [] and counts[0] == (0, 16) and counts == sorted(counts) and 12 < counts[-1][0] < 16
    seconds[0] = 10.0
    progress(3, 16)
    progress(4, 16)
    assert said == ["evaluation: 3 of 16 episodes done"]


def test_normaliser_stays_frozen() -> None:
    policy, env = cartpole_policy(), envs.make("CartPole-v1", 2)
    before = policy.normalizer.mean.clone()
    run_episodes(policy, env, 4, seed=[0], sampled=False)
    assert torch.equal(policy.normalizer.mean, before)


def test_summary_by_hand() -> None:
    figures = summary(np.array([1.0, 2.0, 3.0, 10.0]), np.array([4, 5, 6, 7]), np.array([False, False, True, False]))
    assert (figures["mean"], figures["min"], figures["max"], figures["iqm"]) == (4.0, 1.0, 10.0, 2.5)
    assert figures["std"] == pytest.approx(np.std([1, 2, 3, 10]))
    assert figures["returns"] == [1.0, 2.0, 3.0, 10.0] and figures["lengths"] == [4, 5, 6, 7]
    assert figures["cut"] == 1 and figures["were_cut"] == [False, False, True, False]


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
    assert evaluate(folder, episodes=3, max_episode_steps=2)[0]["greedy"]["cut"] == 3
    (best,) = evaluate(folder, episodes=3, modes=["sampled"])
    assert best["member"] == 1 and "greedy" not in best


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modes": ["gredy"]}, r"modes: got 'gredy', must be among greedy, sampled; did you mean 'greedy'\?"),
        ({"modes": []}, "modes: got none"),
        ({"episodes": 0}, "episodes: got 0, must be at least 1"),
        ({"max_episode_steps": 0}, "max_episode_steps: got 0, must be at least 1"),
        ({"seed": -1}, "seed: got -1, must be between 0 and"),
        ({"member": 7}, "member 7 does not exist"),
        ({"env": {"id": "Acrobot-v1"}}, "this policy has observations"),
    ],
)
def test_evaluate_says_what_is_wrong(arguments: dict, message: str, folder: Path) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(folder, **arguments)


def test_only_the_user_may_name_an_environment_that_imports_a_module(folder: Path) -> None:
    policy = Policy.load(folder)
    policy.info = policy.info.model_copy(update={"env": EnvSettings(id="scripted_env:CartPole-v1")})
    with pytest.raises(UserError, match="which imports the Python module 'scripted_env'; if you trust it, allow it"):
        evaluate(policy, episodes=1)
    assert len(evaluate(policy, episodes=1, env={"id": "scripted_env:CartPole-v1"})) == 1


def test_members_keep_their_number_when_selected() -> None:
    policy, env = cartpole_policy(3).select([2]), envs.make("CartPole-v1", 2)
    (row,) = evaluate_members(policy, env, 2, [0], ["greedy"])
    assert (row["member"], row["seed"]) == (2, 12) and "sampled" not in row
