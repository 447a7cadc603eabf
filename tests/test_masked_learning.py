"""Legal choices in the learner, the replay and the policy: none that is barred is taken or counts."""

import contextlib
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from masked_env import ACTION_SPACE, ALL, MaskedEnv, padded_mask
from scripted_env import SCRIPTS
from test_gumbel_actor_critic import COMBINATIONS, PROGRESS, make_agent, make_task, q_values, random_batch
from test_masks import Turnstile
from torch import Generator, Tensor

import envs
from agent import Policy
from agent.action_space import ActionSpace
from agent.algorithms.gumbel_actor_critic import GumbelActorCritic
from agent.algorithms.reinforce import Reinforce
from agent.config_fields import ConfigError
from agent.config_loader import load_config
from agent.evaluation import evaluate_members, num_parallel_envs
from agent.networks.heads import Actor
from agent.policy import MemberInfo, describe_policy
from agent.replay import Batch, Replay
from agent.training.loop import TrainingLoop
from envs import ACTION_MASK_KEY, FrameStack, GymnasiumAdapter, Masks, Step, TensorEnv, UserError, VectorEnvironment
from envs.guard import Guard

ALGORITHMS = ["gumbel_actor_critic", "reinforce"]
SMALL = [
    "hidden_sizes=[16]",
    "batch_size=16",
    "updates_per_step=0.05",
    "reinforce.rollout_steps=32",
    "reinforce.max_episode_steps=50",
    "compile=false",
]


def scripted(num_envs: int, mode: AutoresetMode = AutoresetMode.SAME_STEP, num_members: int = 1) -> GymnasiumAdapter:
    """Environments that refuse actions which their masks bar."""
    scripts = list(itertools.islice(itertools.cycle(SCRIPTS), num_envs))
    makers = [lambda script=script: Guard(MaskedEnv(script), ACTION_MASK_KEY, "stop") for script in scripts]
    return GymnasiumAdapter(SyncVectorEnv(makers, autoreset_mode=mode), num_members=num_members, guarded=True)


def make_loop(env: VectorEnvironment, *overrides: str) -> TrainingLoop:
    config = load_config(None, ["env.id=Test-v0", *SMALL, *overrides])
    return TrainingLoop(config, env, torch.device("cpu"))


def watch_logits(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The gradients with respect to logits from here on."""
    seen: list[Tensor] = []
    call = Actor.__call__

    def watched(self: Actor, *args: Any) -> Tensor:
        logits = call(self, *args)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: seen.append(gradient.clone()))
        return logits

    monkeypatch.setattr(Actor, "__call__", watched)
    return seen


def masks_of(obs: Tensor) -> Tensor:
    return torch.tensor([[padded_mask(*o) for o in member] for member in obs.tolist()])


def random_mask(num_choices: tuple[int, ...], shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Each choice legal with probability one half, and one for sure."""
    width = max(num_choices)
    padding = torch.arange(width) >= torch.tensor(num_choices).unsqueeze(-1)
    score = torch.rand((*shape, len(num_choices), width), generator=generator).masked_fill(padding, -1.0)
    return (score > 0.5) | (score == score.amax(-1, keepdim=True))


def batch_and_masks(replay: Replay, u: Tensor, v: Tensor, generator: Generator) -> tuple[Batch, Masks]:
    """Of windows of which any number of steps may count."""
    window = replay.sample(u, v)
    length = 1 + (torch.rand(u.shape, generator=generator) * window.length).long()
    masks = replay.masks(window, length)
    assert masks is not None
    return replay.batch(window, length), masks


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_replay_keeps_masks_beside_their_observations(mode: AutoresetMode, n_step: int, generator: Generator) -> None:
    """Two members; the ring wraps many times."""
    settings = ["env.num_envs=3", "seeds=2", f"n_step={n_step}", "replay_capacity=60", "learning_starts=1000"]
    loop = make_loop(scripted(6, mode, 2), *settings)
    num_terminal = num_others = 0
    for iteration in range(120):
        loop.run_iteration(3 * iteration)
        if iteration % 10 != 9:
            continue
        u, v = torch.rand((2, 2, 50), dtype=torch.float64, generator=generator)
        batch, masks = batch_and_masks(loop.learner.replay, u, v, generator)
        assert torch.equal(masks.obs, masks_of(batch.obs))
        terminal = batch.discount == 0
        expected = torch.where(terminal[..., None, None], torch.tensor(ALL), masks_of(batch.next_obs))
        assert torch.equal(masks.next_obs, expected)
        num_terminal, num_others = num_terminal + int(terminal.sum()), num_others + int((~terminal).sum())
    assert min(num_terminal, num_others) > 200


def test_replay_of_stacked_frames_keeps_one_mask_for_each_observation(generator: Generator) -> None:
    replay = Replay(
        1, 1, 30, 2 * 3, 2, n_step=2, gamma=torch.tensor([0.5]), frame_stack=FrameStack(3), mask_shape=(2, 3)
    )

    def stack(episode: int, t: int) -> Tensor:
        return torch.tensor([[[x for s in (t - 2, t - 1, t) for x in (episode, max(s, 0))]]], dtype=torch.float32)

    for episode in range(1, 30):
        for t in range(length := 1 + episode % 5):
            obs, next_obs = stack(episode, t), stack(episode, t + 1)
            masks = Masks(masks_of(obs[..., -2:]), masks_of(next_obs[..., -2:]))
            ends, no = torch.tensor([[t == length - 1]]), torch.tensor([[False]])
            action = torch.zeros(1, 1, 2, dtype=torch.int64)
            replay.add_(obs, action, torch.ones(1, 1), no, ends, next_obs, ~no, masks)
        u, v = torch.rand((2, 1, 40), dtype=torch.float64, generator=generator)
        batch, masks = batch_and_masks(replay, u, v, generator)
        assert torch.equal(masks.obs, masks_of(batch.obs[..., -2:]))
        assert torch.equal(masks.next_obs, masks_of(batch.next_obs[..., -2:]))


def test_replay_memory_grows_by_a_byte_for_each_choice_with_masks_alone() -> None:
    gamma = torch.tensor([0.99])
    assert Replay(1, 1, 100, 4, 2, 1, gamma).kept_masks is None
    assert Replay(1, 1, 100, 4, 2, 1, gamma, mask_shape=(2, 3)).kept_masks.nbytes == 100 * 2 * 3


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("mode", "num_members"), [(AutoresetMode.NEXT_STEP, 2), (AutoresetMode.SAME_STEP, 1), (AutoresetMode.DISABLED, 2)]
)
def test_no_barred_choice_is_taken_in_training_or_evaluation(
    algorithm: str, num_members: int, mode: AutoresetMode
) -> None:
    """A barred choice is an error of the environment. A quarter of a member's 2000 steps is warm-up."""
    num_envs = 4
    settings = [f"algorithm={algorithm}", f"seeds={num_members}", f"env.num_envs={num_envs}", "learning_starts=500"]
    loop = make_loop(scripted(num_members * num_envs, mode, num_members), *settings)
    for iteration in range(500):
        loop.run_iteration(num_envs * iteration)
    assert loop.num_updates > 10
    evaluate_for(loop, scripted(num_members * num_parallel_envs(40), mode, num_members))


def evaluate_for(loop: TrainingLoop, env: VectorEnvironment) -> None:
    """Greedy and sampled evaluation of what the loop has trained."""
    infos = [MemberInfo(member=i, seed=i, settings={}, env_steps=0, eval_return=None) for i in range(loop.num_members)]
    policy = Policy(describe_policy(loop.config, loop.env, infos))
    policy.copy_from_(loop.learner.evaluated_actor, loop.normalizer)
    evaluate_members(policy, env, 40, [0], ["greedy", "sampled"])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_learner_without_masks_takes_barred_choices(algorithm: str) -> None:
    """Negative control of the environment above."""
    env = scripted(4)
    env._info_masks = None
    with pytest.raises(UserError, match="is barred by"):
        loop = make_loop(env, f"algorithm={algorithm}", "env.num_envs=4")
        for iteration in range(20):
            loop.run_iteration(4 * iteration)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_barred_choice_is_taken_in_tensor_environments(algorithm: str) -> None:
    """The second number of an observation counts those that were; with padding."""
    loop = make_loop(TensorEnv(Turnstile(4), 4, num_members=2), f"algorithm={algorithm}", "env.num_envs=2", "seeds=2")
    for iteration in range(300):
        loop.run_iteration(2 * iteration)
        assert (loop.obs[..., 1] == 0).all()
    evaluate_for(loop, TensorEnv(Turnstile(20), 4, num_members=2))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_taxi_is_driven_by_legal_actions_alone(algorithm: str, mode: str) -> None:
    env = envs.make("Taxi-v4", 4, num_members=2, vectorization_mode=mode, kwargs={"max_episode_steps": 30})
    with contextlib.closing(env):
        loop = make_loop(env, f"algorithm={algorithm}", "env.num_envs=2", "seeds=2", "learning_starts=100")
        for iteration in range(150):
            loop.run_iteration(2 * iteration)
            assert loop.mask.gather(-1, loop.action.unsqueeze(-1)).all()


@pytest.mark.parametrize("structure", ["per_action", "joint"])
def test_value_of_the_next_state_is_the_expectation_over_legal_choices(structure: str, generator: Generator) -> None:
    """By enumeration; where it is sampled, within five standard errors (false alarm < 1e-6)."""
    agent = make_agent(f"critic.structure={structure}", "critic.reduce=mean", num_choices=(3, 2))
    with torch.no_grad():
        agent.actor.network.flat.mul_(50)
    num_draws = 20_000 if structure == "joint" else 1
    obs = torch.randn(1, 1, 4, generator=generator)
    mask = torch.tensor([[True, False, True], [True, True, False]]).view(1, 1, 2, 3)
    pi = agent.actor(obs)[0, 0].exp() * mask[0, 0]  # padding is 0 already
    pi = pi / pi.sum(-1, keepdim=True)
    values, expected = [], 0.0
    for first, second in ((0, 0), (0, 1), (2, 0), (2, 1)):
        action = agent.actions.one_hot(torch.tensor([[[first, second]]]))
        q = agent.target_critics.evaluate(agent.target_critics.encode(obs), action).mean().item()
        values.append(q)
        expected += float(pi[0, first] * pi[1, second]) * q
    noise = make_agent(f"critic.structure={structure}", f"batch_size={num_draws}", num_choices=(3, 2)).noise_()
    rows = obs.expand(1, num_draws, 4), mask.expand(1, num_draws, 2, 3)
    value = agent.next_value(*rows, torch.ones(1), noise.target)
    tolerance = 5 * max(np.ptp(values) / 2, 1e-9) / math.sqrt(num_draws) if structure == "joint" else 1e-6
    assert abs(value.mean().item() - expected) < tolerance


def test_entropy_in_the_target_is_over_legal_choices(generator: Generator) -> None:
    plain, soft = make_agent(), make_agent("critic.entropy_in_target=true")
    obs, mask = torch.randn(1, 8, 4, generator=generator), torch.tensor([[True, False, True]]).expand(1, 8, 1, 3)
    arguments = obs, mask, torch.ones(1), plain.noise_().target
    difference = soft.next_value(*arguments) - plain.next_value(*arguments)
    torch.testing.assert_close(difference, torch.full((1, 8), math.log(2)), rtol=1e-2, atol=0)  # nearly uniform


@pytest.mark.parametrize("tau", [0.01, 1.0])
@pytest.mark.parametrize(("structure", "estimator"), COMBINATIONS)
def test_gradient_is_zero_at_barred_and_padding_choices(
    structure: str, estimator: str, tau: float, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_choices, settings = (4, 2, 3), [f"estimator.name={estimator}", f"critic.structure={structure}"]
    agent = make_agent(
        *settings, f"tau.start={tau}", f"tau.end={tau}", "alpha.start=0.1", "batch_size=64", num_choices=num_choices
    )
    with torch.no_grad():
        agent.actor.network.flat.mul_(20)
    mask, next_mask = (random_mask(num_choices, (1, 64), generator) for _ in range(2))
    seen = watch_logits(monkeypatch)
    metrics = agent.learn(random_batch(agent, generator, 64), Masks(mask, next_mask), agent.noise_(), PROGRESS)
    (gradient,) = seen
    assert gradient.isfinite().all() and (gradient[~mask] == 0).all() and (gradient[mask] != 0).any()
    assert all(value.isfinite().all() for value in metrics.values())
    assert agent.actor.network.flat.isfinite().all() and agent.critics.network.flat.isfinite().all()


def test_entropy_is_over_legal_choices(generator: Generator) -> None:
    agent = make_agent(num_choices=(4, 2))
    mask = random_mask((4, 2), (1, 8), generator)
    logits = agent.actor(batch_obs := torch.randn(1, 8, 4, generator=generator))
    expected = 0.0
    for row, legal in zip(logits[0], mask[0], strict=True):
        for k in range(2):
            pi = row[k][legal[k]].softmax(-1)
            expected += float(-(pi * pi.log()).sum()) / 8
    batch = random_batch(agent, generator)._replace(obs=batch_obs)
    metrics = agent.learn(batch, Masks(mask, mask), agent.noise_(), PROGRESS)
    assert metrics["actor/entropy"].item() == pytest.approx(expected, rel=1e-5)


def test_target_entropy_is_a_fraction_of_what_the_legal_choices_allow(generator: Generator) -> None:
    """Two members, all of eight choices legal or two: both nearly uniform, above nine tenths of their own largest."""
    agent = make_masked_agent("seeds=2", "target_entropy.schedule=constant", "target_entropy.start=0.9")
    mask = torch.ones(2, 8, 1, 8, dtype=torch.bool)
    mask[1, ..., 2:] = False
    before = agent.log_alpha.clone()
    metrics = agent.learn(random_batch(agent, generator), Masks(mask, mask), agent.noise_(), PROGRESS)
    torch.testing.assert_close(metrics["actor/entropy"], torch.tensor([math.log(8), math.log(2)]), rtol=1e-2, atol=0)
    assert (agent.log_alpha < before).all()


def test_target_entropy_lies_above_a_policy_that_favours_one_of_two_legal_choices(generator: Generator) -> None:
    agent = make_masked_agent("target_entropy.schedule=constant", "target_entropy.start=0.9")
    agent.actor.network.tensors()["head.bias"][..., 1] = 2.0
    mask = (torch.arange(8) < 2).expand(1, 8, 1, 8)
    before = agent.log_alpha.clone()
    agent.learn(random_batch(agent, generator), Masks(mask, mask), agent.noise_(), PROGRESS)
    assert (agent.log_alpha > before).all()


def make_masked_agent(*overrides: str) -> GumbelActorCritic:
    return make_agent(*overrides, num_choices=(8,), has_masks=True)


def test_first_actions_are_uniform_over_legal_choices() -> None:
    """Within five standard errors (false alarm < 1e-6)."""
    agent = make_agent("env.num_envs=1", "noise_persistence=0", num_choices=(4, 2))
    mask = torch.tensor([[True, False, True, True], [False, True, False, False]]).view(1, 1, 2, 4)
    actions = torch.stack([agent.act(torch.zeros(1, 1, 4), mask, uniform=True)[0, 0] for _ in range(3000)])
    frequency = actions[:, 0].bincount(minlength=4) / 3000
    assert frequency[1] == 0 and (actions[:, 1] == 1).all()
    assert ((frequency[[0, 2, 3]] - 1 / 3).abs() < 5 * (1 / 3 / 3000) ** 0.5).all()


def test_reinforce_gradient_is_zero_at_barred_choices(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two members, whose episodes end at different steps; each row has the mask of its own observation."""
    config = load_config(None, ["env.id=Test-v0", "algorithm=reinforce", *SMALL, "env.num_envs=3", "seeds=2"])
    learner = Reinforce(config, make_task(config, (3, 2), 2, has_masks=True))
    for t in range(6):
        obs = torch.stack([torch.arange(6.0).view(2, 3), torch.full((2, 3), float(t))], -1)
        masks = masks_of(obs)
        ends, no = torch.rand((2, 3), generator=generator) < 0.5, torch.zeros(2, 3, dtype=torch.bool)
        action = learner.act(obs, masks)
        reward = torch.randn((2, 3), generator=generator)
        learner.store(obs, action, Step(obs, reward, ends, no, obs, ~no), Masks(masks, masks))
    seen, gathered, gather = watch_logits(monkeypatch), [], learner.gather
    monkeypatch.setattr(learner, "gather", lambda *args: gathered.append(gather(*args)) or gathered[0])
    learner.update(torch.tensor(0.0))
    (gradient,), (rollout,) = seen, gathered
    mask = rollout.mask
    assert torch.equal(mask, masks_of(rollout.obs.flatten(1, 2)))
    assert gradient.isfinite().all() and (gradient[~mask] == 0).all() and (gradient[mask] != 0).any()


def learn_barred_choice(*overrides: str) -> TrainingLoop:
    settings = [
        "hidden_sizes=[32]",
        "batch_size=32",
        "learning_starts=50",
        "gamma=0.8",
        "n_step=1",
        "normalize_obs=false",
    ]
    loop = make_loop(
        envs.make("Probe/BarredChoice-v0", 2),
        *settings,
        "updates_per_step=0.5",
        "env.num_envs=2",
        "total_env_steps=1000",
        *overrides,
    )
    for iteration in range(500):
        loop.run_iteration(2 * iteration)
    return loop


def greedy(actor: Actor, obs: float, mask: list[bool]) -> int:
    return int(actor(torch.tensor([[[obs]]]), torch.tensor(mask).view(1, 1, 1, 3)).argmax())


@pytest.mark.slow
@pytest.mark.parametrize("settings", [[], ["critic.structure=joint"]], ids=str)
def test_probe_whose_best_choice_is_barred_half_of_the_time_has_its_known_value(settings: list[str]) -> None:
    loop = learn_barred_choice(*settings)
    expected = torch.tensor([[0.4, 0.4, 0.4], [-1.0, 0.0, 1.0]])
    torch.testing.assert_close(q_values(loop.learner, [0.0, 1.0]), expected, rtol=0.08, atol=0.15)
    actor = loop.learner.evaluated_actor
    assert (greedy(actor, 1.0, [True, True, True]), greedy(actor, 1.0, [True, True, False])) == (2, 1)


@pytest.mark.slow
def test_barred_choices_in_the_target_give_the_wrong_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the probe: the value of the first observation is then that of the best, barred or not."""
    honest = Replay.masks
    monkeypatch.setattr(
        Replay,
        "masks",
        lambda replay, window, n: (m := honest(replay, window, n))._replace(next_obs=torch.ones_like(m.obs)),
    )
    loop = learn_barred_choice()
    assert (q_values(loop.learner, [0.0]) > 0.6).all()


@pytest.mark.slow
def test_reinforce_learns_the_best_of_the_legal_choices() -> None:
    loop = learn_barred_choice("algorithm=reinforce")
    actor = loop.learner.evaluated_actor
    assert (greedy(actor, 1.0, [True, True, True]), greedy(actor, 1.0, [True, True, False])) == (2, 1)


def test_key_under_which_there_is_no_mask_is_refused() -> None:
    env = envs.make("Taxi-v4", 1, action_mask_key="legal")
    message = (
        r"env.action_mask_key: got 'legal', but at its reset Taxi-v4 gives neither obs\['legal'\] nor info\['legal'\]"
    )
    with pytest.raises(ConfigError, match=message):
        make_loop(env, "env.action_mask_key=legal")


def test_action_space_of_the_scripted_environment_is_ragged() -> None:
    """So that the tests above have padding and masks together."""
    assert ActionSpace(ACTION_SPACE.nvec.tolist()).is_ragged
