"""A whole run: what it leaves behind, that it repeats bit for bit, that it learns."""

import contextlib
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import envs
from agent import Policy, PolicyError
from agent.algorithms.base import require_updates
from agent.config import Config
from agent.config_fields import ConfigError
from agent.config_loader import load_config
from agent.metrics import METRICS
from agent.ranks import ALONE
from agent.seeding import PURPOSES, member_seeds
from agent.training.accumulators import EpisodeStatistics, MetricMeans, Milestones
from agent.training.loop import TrainingLoop
from agent.training.trainer import Trainer, train
from benchmarks.factored import final_returns
from envs import Step, UserError
from envs.tensor.chain_bandit import ChainBandit

SHORT = [
    "env.id=CartPole-v1",
    "env.num_envs=1",
    "total_env_steps=300",
    "learning_starts=100",
    "batch_size=16",
    "hidden_sizes=[8]",
    "seeds=2",
    "evaluation.every_env_steps=100",
    "evaluation.episodes=2",
    "evaluation.final_episodes=3",
    "log_every_env_steps=50",
    "reinforce.rollout_steps=64",
    "wandb.mode=disabled",
]


def short(run_dir: Path, *overrides: str) -> Config:
    return load_config(None, [*SHORT, f"run_dir={run_dir}", *overrides])


def metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["learning_starts=300"],
            "learning_starts: got 300, must be below total_env_steps=300, or the run ends before",
        ),
        (["learning_starts=1000", "env.num_envs=64"], "learning_starts: got 1000, must be below total_env_steps=300"),
        (["updates_per_step=0.004"], "updates_per_step: got 0.004, which makes no update in the steps between"),
        (
            ["algorithm=reinforce", "reinforce.rollout_steps=301"],
            "reinforce.rollout_steps: got 301, must not be above total_env_steps=300, or the run ends before its first",
        ),
    ],
)
def test_a_run_that_would_never_update_is_an_error_before_it_starts(
    tmp_path: Path, settings: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(short(tmp_path / "run", *settings))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "settings",
    [
        ["learning_starts=299"],
        ["updates_per_step=0.005"],
        ["algorithm=reinforce", "reinforce.rollout_steps=300", "learning_starts=900"],  # which it does not read
    ],
)
def test_a_run_of_one_update_starts(tmp_path: Path, settings: list[str]) -> None:
    require_updates(config := short(tmp_path / "run", *settings))
    env = envs.make("CartPole-v1", 2, num_members=2)
    loop = TrainingLoop(config, env, torch.device("cpu"))
    assert sum(loop.learner.updates_due(step) for step in range(1, 301)) == 1


def test_gradients_are_inspected_only_where_that_takes_a_hundredth_of_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    brief = ["total_env_steps=120", "evaluation.every_env_steps=120"]
    run = train(short(tmp_path / "run", *brief)).folder
    assert not any(name.startswith("gradient/") for row in metrics(run) for name in row)
    told = [record.getMessage() for record in caplog.records if "gradient/*" in record.getMessage()]
    assert len(told) == 1
    assert re.match(
        r"gradient/\* are not measured: that takes as long as 0\.\d updates, more than 1 % of .* 20;", told[0]
    )
    adaptive = train(short(tmp_path / "adaptive", *brief, "tau.schedule=adaptive")).folder
    assert any("gradient/relative_bias" in row for row in metrics(adaptive))
    assert "tau.schedule=adaptive costs about" in caplog.text


@pytest.mark.parametrize("algorithm", ["gumbel_actor_critic", "reinforce"])
def test_run_folder_holds_everything(tmp_path: Path, algorithm: str) -> None:
    run = train(short(tmp_path / "run", f"algorithm={algorithm}")).folder
    assert load_config(run / "config.yaml") == short(run, f"algorithm={algorithm}")
    result = json.loads((run / "result.json").read_text())
    assert (result["env_id"], result["env_steps"], len(result["members"])) == ("CartPole-v1", 300, 2)
    for i, member in enumerate(result["members"]):
        assert (member["member"], member["seed"]) == (i, i)
        assert len(member["greedy"]["returns"]) == len(member["sampled"]["lengths"]) == 3
    for weights in ("final", "best"):
        assert Policy.load(run, member="all", weights=weights).num_members == 2


@pytest.mark.parametrize("algorithm", ["gumbel_actor_critic", "reinforce"])
def test_metrics_are_documented_finite_and_per_member(tmp_path: Path, algorithm: str) -> None:
    rows = metrics(train(short(tmp_path / "run", f"algorithm={algorithm}")).folder)
    names = {name for row in rows for name in row} - {"env_steps", "member"}
    expected = {"train/episode_return", "eval/return_greedy", "actor/entropy", "time/env_steps_per_second"}
    of_critic = {"critic/loss", "critic/q", "alpha/value", "estimator/tau", "actor/grad_norm"}
    assert expected <= names <= METRICS.keys()
    assert (of_critic <= names) == (algorithm == "gumbel_actor_critic")
    assert all(value is not None and np.isfinite(value) for row in rows for value in row.values())
    evaluated = [(row["env_steps"], row["member"]) for row in rows if "eval/return_greedy" in row]
    assert evaluated == [(step, member) for step in (100, 200, 300) for member in (0, 1)]


@pytest.mark.parametrize("algorithm", ["gumbel_actor_critic", "reinforce"])
def test_same_seed_gives_bit_identical_metrics_and_weights(tmp_path: Path, algorithm: str) -> None:
    runs = [train(short(tmp_path / name, f"algorithm={algorithm}")).folder for name in ("a", "b")]
    first, second = (
        [{k: v for k, v in row.items() if not k.startswith("time/")} for row in metrics(run)] for run in runs
    )
    assert first == second
    weights = [(run / "policy" / "final" / "weights.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]


def test_another_seed_gives_another_run(tmp_path: Path) -> None:
    runs = [train(short(tmp_path / str(seed), f"seed={seed}")).folder for seed in (0, 1)]
    returns = [[row.get("eval/return_sampled") for row in metrics(run)] for run in runs]
    assert returns[0] != returns[1]


def test_every_random_stream_comes_from_the_seed_and_none_is_shared(tmp_path: Path) -> None:
    streams = [[member_seeds([seed], purpose) for purpose in PURPOSES] for seed in (0, 1, 0)]
    assert streams[0] == streams[2]
    assert len({number for stream in (streams[0], streams[1]) for (number,) in stream}) == 10
    draws = []
    for seed in (0, 1):
        with contextlib.ExitStack() as stack:
            trainer = Trainer(short(tmp_path / str(seed), f"seed={seed}"), stack, ALONE)
            draws.append(trainer.loop.learner.noise_().estimator.sample)
    assert not torch.equal(draws[0], draws[1])


def test_best_weights_are_those_of_the_best_evaluation(tmp_path: Path) -> None:
    run = train(short(tmp_path / "run")).folder
    for member in Policy.load(run, member="all", weights="best").info.members:
        rows = [r for r in metrics(run) if r["member"] == member.member and "eval/return_greedy" in r]
        assert member.eval_return == max(r["eval/return_greedy"] for r in rows)
        assert member.env_steps == max(r["env_steps"] for r in rows if r["eval/return_greedy"] == member.eval_return)


@pytest.mark.parametrize(
    "overrides",
    [
        ["env.id=Taxi-v4"],
        ["env.id=Acrobot-v1", "env.num_envs=3"],
        ["env.id=MountainCarContinuous-v0", "env.action_bins=3"],
        ["env.id=Acrobot-v1", "critic.structure=joint", "estimator.name=score_function", "actor.layer_norm=true"],
        ["algorithm=reinforce", "actor.layer_norm=true"],
        ["estimator.name=exact", "critic.reduce=min", "critic.entropy_in_target=true", "n_step=1"],
        ["env.vectorization_mode=sync", "sweep={tau.start: [2.0, 0.5], learning_rate: [0.01]}", "seeds=1"],
        ["algorithm=reinforce", "env.num_envs=2", "reinforce.baseline=false", "reinforce.normalize_returns=false"],
        ["updates_per_step=0.3", "normalize_obs=false", "tau.schedule=cosine", "target_entropy.schedule=exponential"],
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_settings_train_to_the_end(tmp_path: Path, overrides: list[str]) -> None:
    run = train(
        short(tmp_path / "run", "evaluation.every_env_steps=300", "evaluation.final_episodes=1", *overrides)
    ).folder
    assert (run / "result.json").is_file()


@pytest.mark.parametrize("algorithm", ["gumbel_actor_critic", "reinforce"])
def test_saved_policy_is_normalised_as_the_actor_was(tmp_path: Path, algorithm: str) -> None:
    run = train(short(tmp_path / "run", f"algorithm={algorithm}", "actor.layer_norm=true")).folder
    assert Policy.load(run).info.network.kwargs["layer_norm"]
    info = json.loads((run / "policy" / "final" / "policy.json").read_text())
    info["network"]["kwargs"]["layer_norm"] = False
    (run / "policy" / "final" / "policy.json").write_text(json.dumps(info))
    with pytest.raises(PolicyError, match="do not fit the networks"):
        Policy.load(run)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("algorithm", ["gumbel_actor_critic", "reinforce"])
def test_trains_on_a_gpu(tmp_path: Path, algorithm: str) -> None:
    run = train(short(tmp_path / "run", f"algorithm={algorithm}", "device=cuda")).folder
    assert Policy.load(run).act(np.zeros(4, dtype=np.float32)) in (0, 1)


def test_run_folder_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    run = train(short(tmp_path / "run")).folder
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="already holds a run; resume it"):
        train(short(tmp_path / "run"))
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("env.id=Pendulum-v1", "Pendulum-v1 has action space"),
        ("frame_stack=1", "command line: frame_stack was removed: the replay finds"),
    ],
)
def test_what_cannot_be_run_leaves_no_folder(tmp_path: Path, override: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        train(short(tmp_path / "run", override))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_actor_critic_learns_cartpole(tmp_path: Path) -> None:
    """Untrained policies score about 9 to 20; eight of eight seeds tried ended above 300."""
    overrides = ["total_env_steps=3000", "learning_starts=500", "batch_size=64", "hidden_sizes=[64, 64]"]
    run = train(
        short(tmp_path / "run", "evaluation.every_env_steps=3000", "evaluation.final_episodes=10", *overrides)
    ).folder
    for member in json.loads((run / "result.json").read_text())["members"]:
        assert member["greedy"]["mean"] > 150


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["straight_through_gumbel_softmax", "exact"])
def test_actor_critic_learns_several_factors(tmp_path: Path, estimator: str) -> None:
    """Neighbouring factors interact, in each context otherwise; all of four seeds tried found the optimum."""
    kwargs = {"num_factors": 3, "num_choices": 3, "num_contexts": 4, "interaction": 2.0}
    settings = [f"env.kwargs={json.dumps(kwargs)}", "seeds=2", "total_env_steps=3000", f"estimator.name={estimator}"]
    quick = ["hidden_sizes=[32]", "batch_size=32", "evaluation.every_env_steps=3000", "evaluation.final_episodes=1"]
    run = train(
        load_config("configs/chain_bandit.yaml", [*settings, *quick, "wandb.mode=disabled", f"run_dir={tmp_path}"])
    ).folder
    bandit = ChainBandit(1, **kwargs)
    returns, random = final_returns(bandit, Policy.load(run, member="all")), bandit.random_value()
    assert (returns - random > 0.95 * (bandit.optimum() - random)).all()


def test_milestones_are_met_once_each_and_at_the_end() -> None:
    due = Milestones(every=10, total=25, parts=1)
    passed = []
    for steps in range(2, 27, 2):
        if due.is_due(steps):
            assert due.is_due(steps)  # asking changes nothing
            due.advance(steps)
            passed.append(steps)
    assert passed == [10, 20, 26]
    assert Milestones(None, total=200, parts=20).every == 10


def test_episode_statistics_by_hand() -> None:
    statistics = EpisodeStatistics(1, 2, torch.device("cpu"))
    obs = torch.zeros(1, 2, 1)

    def step(rewards: list[float], done: list[bool], valid: list[bool]) -> None:
        flags = [torch.tensor([x]) for x in (done, [False, False], valid)]
        statistics.update_(Step(obs, torch.tensor([rewards]), flags[0], flags[1], obs, flags[2]))

    step([1.0, 5.0], [False, True], [True, True])
    step([2.0, 100.0], [True, True], [True, False])  # the second environment's filler counts for nothing
    step([7.0, 7.0], [False, False], [True, True])
    read = statistics.read_()
    assert read["train/episode_return"][0] == 4.0 and read["train/episode_length"][0] == 1.5
    assert np.isnan(statistics.read_()["train/episode_return"][0])


def test_metric_means_average_since_the_last_read() -> None:
    means = MetricMeans(["critic/loss"], 2, torch.device("cpu"))
    for values in ([1.0, 10.0], [3.0, 30.0], [5.0, math.nan]):
        means.add_({"critic/loss": torch.tensor(values)})
    assert means.read_()["critic/loss"].tolist() == [3.0, 20.0]
    assert np.isnan(means.read_()["critic/loss"]).all()
