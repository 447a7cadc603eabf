"""How good each estimator's gradient is on a trained policy and its critics: the report of evaluate.py --gradients."""

import time
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agent.action_space import ActionSpace
from agent.config import Config
from agent.config_sections import EstimatorConfig
from agent.diagnostics.gradient_quality import Moments, estimated_gradient, moments, quality
from agent.diagnostics.inspection import unbiased_estimator
from agent.estimators import make_estimator
from agent.networks.heads import NUM_CRITICS, Actor, Critics, CriticsAt, make_critics, reduction
from agent.networks.modules import network_spec
from agent.networks.shared_encoder import SharedEncoder
from agent.policy import Policy
from agent.seeding import member_seeds
from agent.weights import CRITICS_FILE, in_new_format, load_weights
from envs import VectorEnvironment
from envs.errors import UserError
from envs.random_streams import RandomStreams

TAUS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
BATCH_SIZES = (1, 4, 16, 64, 256, 1024)
NUM_STATES = 128
NUM_STEPS = 400  # of each environment, among whose states they are drawn
REPEATS, ROUNDS = 8, 256  # draws at each state: their product


def load_critics(run: Path, config: Config, policy: Policy) -> tuple[Critics, SharedEncoder | None]:
    """The critics of the members that a policy holds, and the encoder whose features they read.

    UserError where the run has none or they do not fit.
    """
    path = run / CRITICS_FILE
    if config.algorithm == "reinforce":
        raise UserError(f"{run}: algorithm=reinforce has no critic whose gradient could be estimated")
    if not path.is_file():
        raise UserError(f"{path}: no such file; --gradients needs the folder of a finished run of gumbel_actor_critic")
    named = network_spec(config, policy.observations.parts, config.actor.layer_norm).name
    if named != policy.info.network.name:
        raise UserError(f"{run}: config.yaml names network.name={named}, the policy {policy.info.network.name}")
    part = "joint." if config.critic.structure == "joint" else ""
    num_members = len(config.members())
    stored = in_new_format(load_weights(path), new=part)
    for name, x in stored.items():
        if not name.startswith("encoder.") and x.shape[:2] == (num_members, NUM_CRITICS):  # until 0.2.0: rows c P + p
            stored[name] = x.transpose(0, 1).flatten(0, 1)
    actions = ActionSpace(policy.factored.num_choices)
    critics = make_critics(config, policy.observations.parts, actions, members=policy.seeds)
    rows = [c * num_members + member.member for c in range(NUM_CRITICS) for member in policy.info.members]
    encoder = Actor(policy.info.network_spec(), policy.observations.parts, actions, policy.seeds).encoder
    members = [member.member for member in policy.info.members]
    own = {name: (tensor, rows, NUM_CRITICS * num_members) for name, tensor in critics.network.tensors().items()}
    if encoder is not None:
        own |= {f"encoder.{name}": (x, members, num_members) for name, x in encoder.network.tensors().items()}
    expected = {name: (count, *tensor.shape[1:]) for name, (tensor, _, count) in own.items()}
    if {name: tuple(weights.shape) for name, weights in stored.items()} != expected:
        raise UserError(f"{path}: the tensors do not fit the critics that config.yaml describes")
    for name, (tensor, chosen, _) in own.items():
        tensor.copy_(stored[name][chosen])
    return critics, encoder


class States(NamedTuple):
    """B states of each member, as its policy and as its critics read them: normalized observations or features."""

    features: Float[Tensor, "P B F"]
    for_critics: Float[Tensor, "P B F"]
    mask: Bool[Tensor, "P B K N"] | None  # of their legal choices, where the environment gives them


def visited_states(policy: Policy, encoder: SharedEncoder | None, env: VectorEnvironment, seed: int) -> States:
    """States that the policy comes by when it draws its actions, from all times of its episodes.

    `encoder`: the critics'; it sees the same observations as the policy's own.
    """
    policy.seed_(seed)
    visited: list[States] = []
    obs = env.reset(member_seeds(policy.seeds, "evaluation", seed)).unflatten(0, (policy.num_members, -1))
    state = policy.actor.initial_state(*obs.shape[:2])
    of_critics = state
    for _ in range(NUM_STEPS):
        mask = None if env.masks is None else env.masks.obs.unflatten(0, (policy.num_members, -1)).clone()
        seen = policy.normalizer(obs)
        features = seen if policy.actor.encoder is None else policy.actor.encoder.step(seen, state)[0]
        for_critics, of_critics = (seen, of_critics) if encoder is None else encoder.step(seen, of_critics)
        visited.append(States(features.clone(), for_critics.clone(), mask))
        action, state = policy.choose(obs, state, sampled=True, mask=mask)
        step = env.step(action.flatten(0, 1))
        goes_on = (step.valid & ~(step.terminated | step.truncated)).unflatten(0, obs.shape[:2]).unsqueeze(-1)
        obs, state, of_critics = step.obs.unflatten(0, obs.shape[:2]), state * goes_on, of_critics * goes_on
    num_visited = NUM_STEPS * obs.shape[1]
    chosen = torch.from_numpy(np.random.default_rng(seed).choice(num_visited, NUM_STATES, replace=False))

    def pick(of_each_step: list[Tensor]) -> Tensor:
        return torch.stack(of_each_step, 2).flatten(1, 2)[:, chosen]

    masks = [at.mask for at in visited if at.mask is not None]
    features, for_critics = pick([at.features for at in visited]), pick([at.for_critics for at in visited])
    return States(features, for_critics, pick(masks) if masks else None)


def gradient_report(
    policy: Policy, critics: Critics, config: Config, states: States, seed: int
) -> list[dict[str, Any]]:
    """One row per estimator and tau; bias, deviation and error are relative to the norm of the exact gradient.

    `mse` is the mean squared error that the mean of so many draws has. Members count together. `microseconds`: one
    estimate at `batch_size` states of one member, without the critics' forward pass that the TD loss needs too.
    """
    streams = RandomStreams(member_seeds(policy.seeds, "inspection", seed))
    reduce = reduction(config.critic, critics)
    at_states = policy.actor(states.features, states.mask)
    logits, q = (
        at_states.repeat(1, REPEATS, 1, 1),
        CriticsAt(critics, critics.encode(states.for_critics.repeat(1, REPEATS, 1)), reduce),
    )
    none = torch.ones(policy.num_members)
    truth = moments(unbiased_estimator(critics, reduce), q, logits, none, REPEATS, ROUNDS, streams)
    rows = []
    for settings in estimators(config.estimator, critics.is_multilinear):
        estimator = make_estimator(settings)
        for tau in taus(settings):
            found = moments(estimator, q, logits, none * (tau or 1.0), REPEATS, ROUNDS, streams)
            together = quality(pooled(found), pooled(truth))
            rows.append(
                {
                    "estimator": title(settings, config.estimator),
                    "tau": tau,
                    "relative_bias": together.relative_bias.item(),
                    "relative_std": together.relative_variance.sqrt().item(),
                    "cosine": together.cosine.item(),
                    "mse": {str(size): together.relative_mse(size).item() for size in BATCH_SIZES},
                    "microseconds": cost(
                        settings, tau or 1.0, critics, reduce, states.for_critics, at_states, config.batch_size
                    ),
                }
            )
    return rows


def pooled(of: Moments) -> Moments:
    """Members as if they were more states of one."""
    return Moments(of.mean.flatten(0, 1).unsqueeze(0), of.variance.sum(0, keepdim=True), of.num_draws)


def estimators(own: EstimatorConfig, is_multilinear: bool) -> list[EstimatorConfig]:
    """Every estimator that the critics allow, with the run's settings."""
    names = [n for n in get_args(EstimatorConfig.model_fields["name"].annotation) if is_multilinear or n != "exact"]
    settings = [own.model_copy(update={"name": name, "num_samples": max(2, own.num_samples)}) for name in names]
    score = settings[names.index("score_function")]
    other = {"leave_one_out": "value", "value": "leave_one_out"}[score.baseline]
    settings.insert(names.index("score_function") + 1, score.model_copy(update={"baseline": other}))
    return settings


def title(settings: EstimatorConfig, own: EstimatorConfig) -> str:
    """The estimator's name, with the baseline where it is not the run's."""
    return settings.name if settings.baseline == own.baseline else f"{settings.name} ({settings.baseline})"


def taus(settings: EstimatorConfig) -> list[float | None]:
    """Where to measure; none for an estimator without a temperature."""
    if not settings.depends_on_tau:
        return [None]
    return [tau for tau in TAUS if settings.name != "reinmax" or tau >= 1]


def cost(
    settings: EstimatorConfig,
    tau: float,
    critics: Critics,
    reduce: str,
    features: Float[Tensor, "P B F"],
    logits: Float[Tensor, "P B K N"],
    batch_size: int,
) -> float:
    """Median of 20 timed estimates, in microseconds."""
    estimator = make_estimator(settings)
    rows = torch.arange(batch_size) % features.shape[1]
    logits, q = logits[:, rows], CriticsAt(critics, critics.encode(features[:, rows]), reduce)
    uniform = RandomStreams([0] * len(logits)).uniform(estimator.num_samples, *logits.shape[1:])
    noise, temperature = estimator.noise(uniform), torch.full((len(features),), tau)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        estimated_gradient(estimator, q, logits, temperature, noise)
        seconds.append(time.perf_counter() - start)
    return 1e6 * float(np.median(seconds)) / len(features)
