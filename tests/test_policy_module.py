"""A policy as a torch module, and as a model that Stable-Baselines3's tools take."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Generator, Tensor

from agent import Policy
from agent.config_loader import load_config
from agent.policy import PolicyError
from agent.training.trainer import train

IMAGE = spaces.Box(0, 255, (4, 36, 40), np.uint8)
KINDS: dict[str, list[str]] = {
    "vector": ["env.id=CartPole-v1"],
    "codes and masks": ["env.id=Taxi-v4", "env.kwargs={max_episode_steps: 5}"],
    "tuple of codes": ["env.id=Blackjack-v1"],
    "grid": ["env.id=Tensor/Harvest-v0"],
    "bins": ["env.id=MountainCarContinuous-v0", "env.action_bins=3"],
    "factors": ["env.id=Tensor/KCartPole-v0", "env.kwargs={num_poles: 2}"],
    "gru": ["env.id=CartPole-v1", "network.memory=gru"],
    "own network": ["env.id=CartPole-v1", "network.name=test_policy_module:Waves"],
    "mingru on a grid": ["env.id=Tensor/Harvest-v0", "network.memory=mingru"],
}


class Waves(torch.nn.Module):
    """A network of a user's own."""

    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.first, self.out_features = torch.nn.Linear(obs_shape[0], 8), 8

    def forward(self, obs: Tensor) -> Tensor:
        return self.first(obs).sin()


@pytest.fixture(params=KINDS.values(), ids=KINDS, scope="module")
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    run = tmp_path_factory.mktemp("policy") / "run"
    of_mlp = [] if any("network.name" in setting for setting in request.param) else ["hidden_sizes=[8]"]
    small = [
        *of_mlp,
        "network.memory_size=6",
        "total_env_steps=80",
        "updates_per_step=0.05",
        "wandb.mode=disabled",
        "compile=false",
    ]
    small += ["evaluation.episodes=1", "evaluation.final_episodes=1", "evaluation.max_episode_steps=20"]
    policy = train(load_config(None, [*request.param, *small, f"run_dir={run}"])).policy()
    generator = Generator().manual_seed(1)
    for tensor in policy.actor.tensors().values():  # else nearly uniform: every mistake would pass
        tensor.copy_(torch.randn(tensor.shape, generator=generator) / 2)
    return policy


def stacked(observations: list[Any]) -> Any:
    if isinstance(observations[0], tuple):
        return tuple(map(stacked, zip(*observations, strict=True)))
    return np.array(observations)


def as_tensors(obs: Any) -> Any:
    return tuple(map(as_tensors, obs)) if isinstance(obs, tuple) else torch.from_numpy(np.asarray(obs))


@pytest.fixture
def obs(policy: Policy) -> Any:
    space = policy.observations.space
    space.seed(0)
    return stacked([space.sample() for _ in range(32)])


def inputs_of(policy: Policy, obs: Any) -> tuple[Any, ...]:
    state = (torch.from_numpy(policy.initial_state(32)),) if policy.actor.state_size else ()
    if policy.info.action_mask_key is None:
        return (as_tensors(obs), *state)
    shape = (32, *policy.actor.actions.shape)
    mask = torch.rand(shape, generator=Generator().manual_seed(0)) < 0.7
    mask[..., 0] = True
    return (as_tensors(obs), *(state or (None,)), mask)


def acted(policy: Policy, obs: Any, inputs: tuple[Any, ...], *, sampled: bool = False) -> Any:
    mask = inputs[2][:, 0].numpy() if len(inputs) == 3 else None
    state = policy.initial_state(32) if policy.actor.state_size else None
    return policy.act(obs, state, sampled=sampled, action_mask=mask)


def same(ours: Any, theirs: Any) -> None:
    if isinstance(ours, tuple):
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
    else:
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-5)  # other kernels, float32
        assert ours.numpy().dtype == np.asarray(theirs).dtype


def test_the_module_acts_as_the_policy_does(policy: Policy, obs: Any) -> None:
    inputs = inputs_of(policy, obs)
    same(policy.to_module()(*inputs), acted(policy, obs, inputs))


def test_the_exported_module_acts_as_the_policy_does(policy: Policy, obs: Any) -> None:
    inputs = inputs_of(policy, obs)
    program = torch.export.export(policy.to_module(), inputs)
    same(program.module()(*inputs), acted(policy, obs, inputs))


def test_sampled_actions_are_distributed_as_those_of_the_policy(policy: Policy, obs: Any) -> None:
    """Means of 100 draws at each of 32 observations, within six standard errors (false alarm < 1e-5)."""
    inputs, num_draws, policy = inputs_of(policy, obs), 100, policy.select([0])
    for tensor in policy.actor.tensors().values():
        tensor.mul_(0.3)
    module = policy.to_module(sampled=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ours = torch.stack([flat(module(*inputs)) for _ in range(num_draws)])
    theirs = torch.stack([flat(as_tensors(acted(policy, obs, inputs, sampled=True))) for _ in range(num_draws)])
    error = ((ours.var(0) + theirs.var(0)) / num_draws).sqrt()
    assert (error > 0).any()
    assert ((ours.mean(0) - theirs.mean(0)).abs() <= 6 * error + 0.1).all()


def flat(answer: Any) -> Tensor:
    """Actions as numbers; where there is a state, without it."""
    action = answer[0] if isinstance(answer, tuple) else answer
    return action.flatten().double()


def test_predict_is_that_of_stable_baselines(policy: Policy, obs: Any) -> None:
    if policy.info.action_mask_key is not None:
        with pytest.raises(PolicyError, match="trained with masks"):
            policy.predict(obs)
        return
    action, state = policy.predict(obs, deterministic=True)
    has_memory = policy.actor.state_size > 0
    assert (state is not None) == has_memory
    np.testing.assert_array_equal(action, policy.act(obs, policy.initial_state(32))[0])
    starts = np.arange(32) % 2 == 0
    again, _ = policy.predict(obs, state, episode_start=starts, deterministic=True)
    np.testing.assert_array_equal(np.asarray(again)[starts], np.asarray(action)[starts])
    if has_memory:
        zeroed = np.where(starts[:, None], 0, state)
        np.testing.assert_array_equal(again, policy.act(obs, zeroed.astype(np.float32))[0])
    one = tuple(part[0] for part in obs) if isinstance(obs, tuple) else obs[0]
    np.testing.assert_array_equal(policy.predict(one, deterministic=True)[0], action[0])


def test_a_module_is_of_one_member(tmp_path: Path) -> None:
    settings = [
        "env.id=CartPole-v1",
        "seeds=2",
        "total_env_steps=40",
        "wandb.mode=disabled",
        f"run_dir={tmp_path / 'r'}",
    ]
    run = train(load_config(None, settings)).folder
    with pytest.raises(PolicyError, match="holds 2 members"):
        Policy.load(run, member="all").to_module()
