"""The algorithm: an off-policy actor-critic whose critic's gradient reaches the policy through a discrete sample.

actor   L_pi = -mean_s [ Q(s, a~) + alpha sum_k H(pi_k(.|s)) ]    a~ the estimator's sample; Q min or mean of twins
target  z    = sum_{i<m} gamma^i r_i + gamma^m (1 - terminated) V(s_m)
critic  L_Q  = mean sum_c (Q_c(s, a) - z)^2
alpha   log alpha moves so that H(pi) meets an annealed target
"""

import math

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Generator, Tensor

from agent import losses
from agent.action_space import ActionSpace
from agent.config import Config, ConfigError, EstimatorConfig
from agent.critics import Critics, ReducedQ, make_critics, reduction
from agent.estimators import Estimator, gumbel_of, hard_sample, make_estimator
from agent.exploration import PersistentGumbelNoise, ladder
from agent.gradient_quality import GradientQuality, Moments, moments, quality
from agent.networks import Actor, all_finite, member_generators
from agent.normalizer import ObservationNormalizer
from agent.optimizer import PopulationAdam, clip_grad_norm
from agent.replay import Batch, Replay
from agent.schedules import ScheduleTable
from agent.state import State, named
from envs.gymnasium_adapter import Step
from envs.masks import Masks

NUM_CRITICS = 2
TAU = 1  # of the schedules: learning rate, tau, target entropy
TAU_STEPS = (1.0, 0.5, 0.5**0.5, 2**0.5, 2.0)  # an adaptive tau looks at these multiples of itself
TAU_RANGE = (0.05, 5.0)  # and stays in here
INSPECTED_STATES, INSPECTED_DRAWS, INSPECTION_ROUNDS = 64, 16, 2
JOINT_EVALUATIONS = 2048  # of a joint critic, for one draw at all inspected states: fewer states of larger actions


class GumbelActorCritic:
    """All members' networks, optimizer and entropy coefficients, and their update.

    After `__init__` every tensor stays in place and nothing branches on a value: one static tensor program.
    """

    is_static = True
    metric_names = (
        "critic/loss",
        "critic/q",
        "critic/td_target",
        "critic/grad_norm",
        "actor/loss",
        "actor/entropy",
        "actor/grad_norm",
        "alpha/value",
        "estimator/tau",
    )

    def __init__(
        self,
        config: Config,
        obs_size: int,
        actions: ActionSpace,
        normalizer: ObservationNormalizer,
        device: torch.device | str = "cpu",
        generator: Generator | None = None,
        *,
        obs_dtype: torch.dtype = torch.float32,
        has_masks: bool = False,
    ) -> None:
        self.config, self.actions, self.normalizer, self.generator = config, actions, normalizer, generator
        self.num_members = len(config.members())
        seeds = [member.seed for member in config.members()]

        def new_actor() -> Actor:
            generators = member_generators(seeds, 0)
            return Actor(obs_size, actions, config.hidden_sizes, generators, device, layer_norm=config.actor.layer_norm)

        self.actor, self.evaluated_actor = new_actor(), new_actor()

        def new_critics() -> Critics:
            generators = [g for critic in range(NUM_CRITICS) for g in member_generators(seeds, 1 + critic)]
            return make_critics(config.critic, obs_size, actions, config.hidden_sizes, generators, NUM_CRITICS, device)

        self.critics, self.target_critics = new_critics(), new_critics()
        self.reduce = reduction(config.critic, self.critics)
        self.estimator = make_estimator(config.estimator)
        self.num_target_samples = 0 if self.critics.is_multilinear else 1
        self.num_samples = self.num_target_samples + self.estimator.num_samples

        def per_member(key: str) -> Float[Tensor, " P"]:
            return torch.tensor(config.per_member(key), device=device)

        self.log_alpha = per_member("alpha.start").log().unsqueeze(-1)
        self.alpha_learning_rate = torch.full_like(self.log_alpha, config.alpha.learning_rate)
        self.optimizer = PopulationAdam([self.critics.mlp.flat, self.actor.mlp.flat, self.log_alpha])
        max_entropy = 1.0 if has_masks else actions.max_entropy  # with masks it is known only in the update
        self.schedules = schedules_of(config, max_entropy, device)
        if obs_size % config.frame_stack:
            raise ConfigError(
                f"frame_stack: got {config.frame_stack}, which does not divide the {obs_size} numbers of an observation"
            )
        n_steps = config.per_member_pairs("n_step")
        n_step_start, n_step_end = torch.tensor(n_steps, device=device).long().unsqueeze(-1).unbind(1)
        self.n_steps = n_step_start, n_step_end
        self.anneals_n_step = len({n for pair in n_steps for n in pair}) > 1
        num_envs = config.env.num_envs
        self.replay = Replay(
            self.num_members,
            num_envs,
            config.replay_capacity,
            obs_size,
            actions.num_factors,
            int(max(n for pair in n_steps for n in pair)),
            per_member("gamma"),
            frame_stack=config.frame_stack,
            obs_dtype=obs_dtype,
            mask_shape=(actions.num_factors, actions.width) if has_masks else None,
            device=device,
        )
        shape = (self.num_members, num_envs, actions.num_factors, actions.width)
        ends = config.per_member_pairs("noise_persistence")
        rho = [ladder([low], None if low == high else high, num_envs).expand(1, num_envs) for low, high in ends]
        self.exploration = PersistentGumbelNoise(shape, torch.cat(rho).to(device), generator)
        self.learns_from = config.learning_starts // num_envs * num_envs  # environment steps of a member

    def is_warming_up(self, env_steps: int) -> bool:
        """Whether actions are uniform after so many environment steps of a member."""
        return env_steps < self.config.learning_starts

    def updates_due(self, env_steps: int) -> int:
        """How many updates follow the step that made it so many."""
        num_envs = self.config.env.num_envs

        def due_until(env_steps: int) -> int:
            return math.floor(self.config.updates_per_step * max(0, env_steps - self.learns_from) + 1e-6)

        return due_until(env_steps) - due_until(env_steps - num_envs)

    def draw_exploration(self) -> Float64[Tensor, "P E U"]:
        """The randomness of one choice of actions."""
        return self.exploration.draw()

    def draw_update(self) -> Float64[Tensor, "P B U"]:
        """The randomness of one update: of the batch, of its n, of the target's action, of the estimator's samples."""
        num_noise = self.num_samples * self.actions.num_factors * self.actions.width
        shape = (self.num_members, self.config.batch_size, 2 + self.anneals_n_step + num_noise)
        return torch.rand(shape, dtype=torch.float64, generator=self.generator, device=self.log_alpha.device)

    def explore(
        self,
        obs: Float[Tensor, "P E D"],
        draw: Float64[Tensor, "P E U"],
        *,
        uniform: bool,
        mask: Bool[Tensor, "P E K N"] | None = None,
    ) -> Int[Tensor, "P E K"]:
        """The action to take while training: drawn from the policy or uniformly, with persistent noise."""
        noise = self.exploration.next(draw)
        if uniform:
            return self.actions.mask_logits(noise, mask).argmax(-1)
        return (self.actor(self.normalizer(obs), mask) + noise).argmax(-1)

    def observe(
        self, obs: Float[Tensor, "P E D"], action: Int[Tensor, "P E K"], step: Step, masks: Masks | None = None
    ) -> None:
        """Takes in one step of every environment; `masks` are of obs and of the step's next_obs."""
        self.replay.add(obs, action, step.reward, step.terminated, step.truncated, step.next_obs, step.valid, masks)

    def end_episodes(self, obs: Float[Tensor, "P E D"]) -> None:
        """Ends those under way in `obs` as a time limit would."""
        self.replay.end_episodes()

    def are_finite(self) -> Bool[Tensor, " P"]:
        """Which members' parameters are numbers."""
        return all_finite(self.num_members, self.actor.mlp.flat, self.evaluated_actor.mlp.flat, self.critics.mlp.flat)

    def state(self) -> State:
        """All that changes."""
        is_adaptive = self.config.tau.schedule == "adaptive"
        return {
            "actor": self.actor.mlp.flat,
            "evaluated_actor": self.evaluated_actor.mlp.flat,
            "critics": self.critics.mlp.flat,
            "target_critics": self.target_critics.mlp.flat,
            "log_alpha": self.log_alpha,
            **({"tau": self.schedules.table[:, TAU]} if is_adaptive else {}),  # the others follow from the config
            "noise": self.exploration.noise,
            **named("optimizer", self.optimizer.state()),
            **named("replay", self.replay.state()),
        }

    def learn(self, progress: Float[Tensor, ""], draw: Float64[Tensor, "P B U"]) -> dict[str, Float[Tensor, " P"]]:
        """One update on a batch from the replay; returns its metrics."""
        window = self.replay.sample(draw[..., 0], draw[..., 1])
        length = window.length
        if self.anneals_n_step:
            length = losses.steps_counted(length, *self.n_steps, progress, draw[..., 2])
        batch, masks = self.replay.batch(window, length), self.replay.masks(window, length)
        return self.update(batch, progress, self.noise_of(draw), masks)

    def noise_of(self, draw: Float64[Tensor, "P B U"]) -> Float[Tensor, "S P B K N"]:
        """Gumbel noise from the last of its numbers."""
        shape = (self.num_samples, self.actions.num_factors, self.actions.width)
        uniform = draw[..., draw.shape[-1] - math.prod(shape) :]
        return gumbel_of(uniform).unflatten(-1, shape).permute(2, 0, 1, 3, 4)

    def update(
        self,
        batch: Batch,
        progress: Float[Tensor, ""],
        noise: Float[Tensor, "S P B K N"],
        masks: Masks | None = None,
    ) -> dict[str, Float[Tensor, " P"]]:
        """One step of critics, actor and alpha together.

        Args:
            progress: part of the run done, in [0, 1].
            noise: Gumbel, of the action at the next observation where the critics are not multilinear, then of the
                estimator's samples.
            masks: of the batch's obs and next_obs, where the environment gives them.
        """
        obs, next_obs = self.normalizer(batch.obs), self.normalizer(batch.next_obs)
        alpha = self.log_alpha.squeeze(-1).exp()
        learning_rate, tau, target_entropy = self.schedules(progress).unbind()
        mask, next_mask = (None, None) if masks is None else masks
        if mask is not None:
            target_entropy = target_entropy * self.actions.max_entropy_of(mask).mean(-1)
        next_value = self.next_value(next_obs, alpha, noise, next_mask)
        target = losses.td_target(batch.reward, batch.discount, next_value)

        encoded = self.critics.encode(obs)
        taken = self.critics.evaluate(encoded, self.actions.one_hot(batch.action))
        critic_gradient = self.critics.parameter_gradient(taken, losses.critic_loss_gradient(taken.q, target))
        critic_norm = clip_grad_norm(critic_gradient, self.num_members, self.config.max_grad_norm)

        saved = self.actor.mlp.forward(obs)
        logits = self.actor.logits(saved, mask)
        q = ReducedQ(self.critics, encoded, self.reduce)
        estimate = self.estimator.estimate(logits, tau.view(-1, 1, 1, 1), noise[self.num_target_samples :], q)
        entropy, entropy_gradient = losses.entropy_and_gradient(logits)
        logits_gradient = losses.actor_loss_gradient(estimate.gradient, entropy_gradient, alpha)
        actor_gradient = self.actor.parameter_gradient(saved, logits_gradient)
        actor_norm = clip_grad_norm(actor_gradient, self.num_members, self.config.max_grad_norm)

        mean_entropy = entropy.mean(-1)
        alpha_gradient = losses.log_alpha_gradient(mean_entropy, target_entropy)
        rates = [learning_rate.repeat(NUM_CRITICS).unsqueeze(-1), learning_rate.unsqueeze(-1), self.alpha_learning_rate]
        self.optimizer.step([critic_gradient, actor_gradient, alpha_gradient.unsqueeze(-1)], rates)
        self.log_alpha.clamp_(math.log(self.config.alpha.min), math.log(self.config.alpha.max))
        self.target_critics.mlp.move_towards(self.critics.mlp, self.config.target_update_rate)
        self.evaluated_actor.mlp.move_towards(self.actor.mlp, self.config.policy_average_rate)
        return {
            "critic/loss": losses.critic_loss(taken.q, target),
            "critic/q": taken.q.mean((0, 2)),
            "critic/td_target": target.mean(-1),
            "critic/grad_norm": critic_norm,
            "actor/loss": losses.actor_loss(estimate.value, entropy, alpha),
            "actor/entropy": mean_entropy,
            "actor/grad_norm": actor_norm,
            "alpha/value": alpha,
            "estimator/tau": tau,
        }

    def next_value(
        self,
        next_obs: Float[Tensor, "P B D"],
        alpha: Float[Tensor, " P"],
        noise: Float[Tensor, "S P B K N"],
        mask: Bool[Tensor, "P B K N"] | None = None,
    ) -> Float[Tensor, "P B"]:
        """V(s') under the target critics: the exact expectation where they are multilinear, else Q at a hard sample."""
        logits = self.actor(next_obs, mask)
        action = logits.softmax(-1) if self.target_critics.is_multilinear else hard_sample(logits, noise[0])
        value = ReducedQ(self.target_critics, self.target_critics.encode(next_obs), self.reduce).value(action)
        if self.config.critic.entropy_in_target:
            value = value + alpha.unsqueeze(-1) * losses.entropy(logits)
        return value

    def inspect_gradients(self, progress: Float[Tensor, ""], generator: Generator) -> dict[str, Float[Tensor, " P"]]:
        """Measures the estimator at replayed states against an unbiased gradient; an adaptive tau moves.

        Off the hot path, with random numbers of its own: whoever looks changes nothing but an adaptive tau.
        """
        num_states = INSPECTED_STATES
        if not self.critics.is_multilinear:
            num_states = min(num_states, max(1, JOINT_EVALUATIONS // sum(self.actions.num_choices)))
        shape = (2, self.num_members, num_states)
        uniform = torch.rand(shape, dtype=torch.float64, generator=generator, device=generator.device)
        window = self.replay.sample(*uniform)
        masks = self.replay.masks(window, window.length)
        obs = self.normalizer(self.replay.obs(window.first_row, window.slot))
        logits = self.actor(obs, None if masks is None else masks.obs).repeat(1, INSPECTED_DRAWS, 1, 1)
        obs = obs.repeat(1, INSPECTED_DRAWS, 1)
        q = ReducedQ(self.critics, self.critics.encode(obs), self.reduce)

        def draws(estimator: Estimator, tau: Tensor) -> Moments:
            return moments(estimator, q, logits, tau, INSPECTED_DRAWS, INSPECTION_ROUNDS, generator)

        tau = self.schedules(progress)[TAU]
        truth = draws(unbiased_estimator(self.critics, self.reduce), tau)
        common = generator.get_state()  # the same noise at every tau: differences are tau's

        def quality_at(tau: Tensor) -> GradientQuality:
            generator.set_state(common)
            return quality(draws(self.estimator, tau), truth)

        if self.config.tau.schedule == "adaptive":
            candidates = torch.stack([tau * step for step in TAU_STEPS]).clamp(*TAU_RANGE)
            errors = torch.stack([quality_at(x).relative_mse(self.config.batch_size) for x in candidates])
            best = errors.nan_to_num(math.inf).argmin(0, keepdim=True)  # without a gradient to compare with, as it was
            tau = candidates.gather(0, best).squeeze(0)
            self.schedules.hold(TAU, tau)
        measured = quality_at(tau)
        return {
            "gradient/relative_bias": measured.relative_bias,
            "gradient/relative_variance": measured.relative_variance,
            "gradient/cosine_to_exact": measured.cosine,
        }


def schedules_of(config: Config, max_entropy: float, device: torch.device | str) -> ScheduleTable:
    """Learning rate, tau and target entropy [nats] of each member."""

    def per_member(key: str) -> Float[Tensor, " P"]:
        return torch.tensor(config.per_member(key), device=device)

    rate, tau, entropy, total = per_member("learning_rate"), config.tau, config.target_entropy, config.total_env_steps
    held = "constant" if tau.schedule == "adaptive" else tau.schedule  # anew at each inspection
    entropy_start, entropy_end = (per_member(f"target_entropy.{end}") * max_entropy for end in ("start", "end"))
    return ScheduleTable(
        [
            ("linear", rate, rate * config.learning_rate_end, 1.0),
            (held, per_member("tau.start"), per_member("tau.end"), tau.part_of_run(total)),
            (entropy.schedule, entropy_start, entropy_end, entropy.part_of_run(total)),
        ]
    )


def unbiased_estimator(critics: Critics, reduce: str) -> Estimator:
    """The best there is to measure others against: the exact gradient, or the local expectation.

    The min of twin critics is linear in no factor, even where each of them is.
    """
    is_multilinear = critics.is_multilinear and reduce == "mean"
    return make_estimator(EstimatorConfig(name="exact" if is_multilinear else "local_expectation"))
