"""Networks with memory: cells, replayed sequences, policies with a state."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.wrappers import TransformObservation
from torch import Generator, Tensor, nn

from agent import Policy, evaluate
from agent.config_fields import ConfigError
from agent.config_loader import load_config
from agent.networks.recurrent import CELLS, GRU
from agent.policy import PolicyError
from agent.seeding import member_seeds
from agent.training.loop import TrainingLoop
from agent.training.setup import make_env
from agent.training.trainer import train
from envs import UserError, make_single
from envs.keep_entries import KeepEntries
from envs.vector_environment import environment_seeds

CELL_NAMES = sorted(CELLS)
KEEP = "{name: 'envs.keep_entries:KeepEntries', kwargs: {entries: [0, 2]}}"
NO_VELOCITY = f"env.wrappers=[{KEEP}]"
SMALL = ["hidden_sizes=[8]", "network.memory_size=6", "sequence_length=5", "batch_size=20", "burn_in=3"]


def make_loop(*overrides: str) -> TrainingLoop:
    config = load_config(None, ["env.id=CartPole-v1", NO_VELOCITY, *SMALL, *overrides])
    return TrainingLoop(config, make_env(config, config.env.num_envs, torch.device("cpu")), torch.device("cpu"))


@pytest.mark.parametrize("name", CELL_NAMES)
def test_steps_one_by_one_are_the_steps_in_a_row(name: str, generator: Generator) -> None:
    cell = CELLS[name](4, 3)
    x, state = torch.randn(2, 11, 4, generator=generator), torch.randn(2, 3, generator=generator)
    starts = torch.zeros(2, 11, dtype=torch.bool)
    starts[0, 4] = starts[1, 0] = starts[1, 10] = True
    together, h = cell(x, state, starts), state
    for t in range(11):
        h = cell(x[:, t, None], h, starts[:, t, None])[:, 0]
        torch.testing.assert_close(together[:, t], h)


@pytest.mark.parametrize("name", CELL_NAMES)
def test_an_episode_begins_without_a_memory(name: str, generator: Generator) -> None:
    cell, starts = CELLS[name](4, 3), torch.zeros(2, 6, dtype=torch.bool)
    starts[:, 3] = True
    x = torch.randn(1, 6, 4, generator=generator).repeat(2, 1, 1)
    x[1, :3] = 7.0
    first, second = cell(x, torch.zeros(2, 3), starts)
    assert not torch.equal(first[2], second[2])
    torch.testing.assert_close(first[3:], second[3:])


def test_gru_is_that_of_torch(generator: Generator) -> None:
    ours, theirs = GRU(4, 3), nn.GRU(4, 3, batch_first=True)
    theirs.load_state_dict(
        {
            "weight_ih_l0": ours.of_input.weight.detach(),
            "weight_hh_l0": ours.of_state.weight.detach(),
            "bias_ih_l0": ours.of_input.bias.detach(),
            "bias_hh_l0": ours.of_state.bias.detach(),
        }
    )
    x, state = torch.randn(2, 5, 4, generator=generator), torch.randn(2, 3, generator=generator)
    expected, _ = theirs(x, state.unsqueeze(0))
    torch.testing.assert_close(ours(x, state, torch.zeros(2, 5, dtype=torch.bool)), expected)


class Acted:
    """What each observation that was acted on was remembered with; observations are told apart by their numbers."""

    def __init__(self, loop: TrainingLoop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.features: dict[bytes, Tensor] = {}
        learner = loop.learner
        encoder = learner.actor.encoder
        act = learner.act

        def watched(obs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            features, _ = encoder.step(learner.normalizer(obs), learner.memory)
            for row, value in zip(obs.flatten(0, 1), features.flatten(0, 1), strict=True):
                self.features[row.numpy().tobytes()] = value.clone()
            return act(obs, *args, **kwargs)

        monkeypatch.setattr(learner, "act", watched)


@pytest.mark.parametrize("cell", CELL_NAMES)
def test_replayed_sequences_are_read_as_when_they_were_acted_on(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an update between: each transition's features, and those of the observation its target looks at.

    The replay has wrapped, and episodes end within sequences.
    """
    loop = make_loop(f"network.memory={cell}", "replay_capacity=160", "total_env_steps=600", "normalize_obs=false")
    acted = Acted(loop, monkeypatch)
    for _ in range(150):
        loop.store(loop.env.step(loop.action.flatten(0, 1)))
        loop.act()
    learner, num_looked_at, num_starts = loop.learner, 0, 0
    for _ in range(20):
        batch, _ = learner.sample_sequences_(torch.tensor(0.0))
        assert batch.weight.mean() > 0.5
        features, next_features = learner.features(batch)
        learned = slice(learner.burn_in, learner.burn_in + learner.num_learned)
        obs = batch.obs[:, :, learned].flatten(1, 2)
        next_obs = batch.obs.gather(2, batch.next_at.unsqueeze(-1).expand(-1, -1, -1, 2)).flatten(1, 2)
        num_starts += int(batch.starts[:, :, learned].sum())
        for row in batch.weight[0].nonzero().flatten().tolist():
            torch.testing.assert_close(features[0, row], acted.features[obs[0, row].numpy().tobytes()])
            if batch.discount[0, row] > 0:  # else the task ended there, and nothing was done
                expected = acted.features.get(next_obs[0, row].numpy().tobytes())
                if expected is not None:
                    torch.testing.assert_close(next_features[0, row], expected)
                    num_looked_at += 1
    assert num_looked_at > 100 and num_starts > 10


def test_reinforce_reads_steps_as_when_they_were_acted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["reinforce.rollout_steps=40", "reinforce.max_episode_steps=30", "normalize_obs=false"]
    loop = make_loop("algorithm=reinforce", "network.memory=gru", "total_env_steps=600", *settings)
    acted = Acted(loop, monkeypatch)
    for _ in range(60):
        loop.store(loop.env.step(loop.action.flatten(0, 1)))
        loop.act()
    learner = loop.learner
    rollout = learner.gather(*learner.monte_carlo_returns_())
    features, obs = learner.features(rollout), rollout.obs.flatten(1, 2)
    counted = rollout.weight[0].nonzero().flatten().tolist()
    assert len(counted) > 80 and int(rollout.starts.sum()) > 4
    for row in counted:
        torch.testing.assert_close(features[0, row], acted.features[obs[0, row].numpy().tobytes()])


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["network.memory=gru"],
        ["network.memory=mingru"],
        ["network.memory=gru", "algorithm=reinforce", "reinforce.rollout_steps=96", "total_env_steps=12000"],
    ],
    ids=" ".join,
)
def test_what_was_seen_at_first_decides_in_the_end(tmp_path: Path, settings: list[str]) -> None:
    """All of six further seeds tried found it."""
    config = load_config(
        None,
        [
            "env.id=Probe/RememberedChoice-v0",
            *["hidden_sizes=[16]", "network.memory_size=16", "sequence_length=8", "batch_size=64", "burn_in=2"],
            *["total_env_steps=2000", "wandb.mode=disabled", f"run_dir={tmp_path / 'run'}", "compile=false"],
            *settings,
        ],
    )
    (member,) = evaluate(train(config), episodes=50, modes=["greedy"])
    assert member["greedy"]["mean"] == 1.0


@pytest.mark.parametrize("settings", [["critic.structure=joint"], ["env.id=Taxi-v4", "env.wrappers=[]"]], ids=" ".join)
def test_updates_are_finite(settings: list[str]) -> None:
    """Also with masks: rows without a transition have none that were ever written."""
    loop = make_loop("network.memory=mingru", "learning_starts=20", "total_env_steps=200", *settings)
    for env_steps in range(0, 120, 4):
        loop.run_iteration(env_steps)
    assert loop.num_updates > 0 and loop.learner.are_finite().all()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = ["env.id=CartPole-v1", NO_VELOCITY, *SMALL, "network.memory=gru", "total_env_steps=200"]
    folder = tmp_path_factory.mktemp("memory") / "run"
    return train(load_config(None, [*settings, "wandb.mode=disabled", "compile=false", f"run_dir={folder}"]))


def test_a_policy_takes_its_state_and_returns_the_next(run: Path) -> None:
    policy = Policy.load(run)
    env = policy.make_env()
    obs, _ = env.reset(seed=3)
    state, others = policy.initial_state(), policy.initial_state(2)
    assert state.shape == (6,) and others.shape == (2, 6) and not state.any()
    for _ in range(5):
        action, state = policy.act(obs, state)
        both, others = policy.act(np.stack([obs, obs]), others)
        assert both.tolist() == [action] * 2
        np.testing.assert_allclose(others, [state, state], rtol=1e-5)
        obs, *_ = env.step(action)
    assert state.any()
    env.close()


def test_an_evaluation_carries_the_state(run: Path) -> None:
    (member,) = evaluate(run, episodes=1, modes=["greedy"])
    policy = Policy.load(run)
    (seed,) = environment_seeds(member_seeds(policy.seeds, "evaluation", 0), 1)
    with_env = policy.make_env()
    obs, _ = with_env.reset(seed=seed)
    state, total, ended = policy.initial_state(), 0.0, False
    while not ended:
        action, state = policy.act(obs, state)
        obs, reward, terminated, truncated, _ = with_env.step(action)
        total, ended = total + reward, terminated or truncated
    with_env.close()
    assert member["greedy"]["returns"] == [total]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "this policy has a memory and needs its state with every observation"),
        (np.zeros(5), r"got a state \[5\], must be finite numbers of shape \[6\]"),
        (np.full(6, np.nan), "must be finite numbers"),
        ("start", "got a state that is str 'start', must be numbers"),
    ],
)
def test_a_wrong_state_is_told(run: Path, state: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        Policy.load(run).act(np.zeros(2, dtype=np.float32), state)


def test_a_policy_without_memory_has_a_state_of_no_numbers(tmp_path: Path) -> None:
    settings = ["env.id=CartPole-v1", "total_env_steps=40", "wandb.mode=disabled", f"run_dir={tmp_path / 'run'}"]
    policy = Policy.load(train(load_config(None, settings)))
    obs = np.zeros(4, dtype=np.float32)
    action, state = policy.act(obs, policy.initial_state())
    assert action == policy.act(obs) and state.shape == (0,)


def test_a_batch_holds_whole_sequences() -> None:
    with pytest.raises(ConfigError, match="must be a multiple of sequence_length=32, for example 96"):
        load_config(None, ["env.id=CartPole-v1", "network.memory=gru", "batch_size=100"])
    assert load_config(None, ["env.id=CartPole-v1", "network.memory=gru"]).batch_size == 512
    assert load_config(None, ["env.id=CartPole-v1", "batch_size=100"]).batch_size == 100


def test_a_history_of_observations_is_that_of_the_wrapper() -> None:
    stack = "{name: 'gymnasium.wrappers:FrameStackObservation', kwargs: {stack_size: 3}}"
    loops = [
        make_loop("learning_starts=20", "total_env_steps=400", s)
        for s in ("env.obs_history=3", f"env.wrappers=[{KEEP}, {stack}]")
    ]
    for env_steps in range(0, 80, 4):
        for loop in loops:
            loop.run_iteration(env_steps)
        assert torch.equal(*(loop.obs for loop in loops))
    assert loops[0].learner.replay.frame_stack.num_frames == 3 and loops[0].obs.shape[-1] == 6
    assert torch.equal(*(loop.learner.actor.network.flat for loop in loops))


@pytest.mark.parametrize("entries", [[], [4], [-1]])
def test_entries_to_keep_are_there(entries: list[int]) -> None:
    with pytest.raises(UserError, match="KeepEntries: got entries"):
        KeepEntries(make_single("CartPole-v1"), entries)


def test_kept_entries_are_those_of_the_vector() -> None:
    env = KeepEntries(make_single("CartPole-v1"), [0, 2])
    obs, _ = env.reset(seed=0)
    whole, _ = make_single("CartPole-v1").reset(seed=0)
    assert obs.tolist() == whole[[0, 2]].tolist() and obs in env.observation_space
    with pytest.raises(UserError, match="needs a Box of one axis"):
        KeepEntries(TransformObservation(make_single("Taxi-v4"), lambda x: x, None), [0])
