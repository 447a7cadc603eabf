"""The algorithm: an off-policy actor-critic whose critic's gradient reaches the policy through a discrete sample.

actor   L_pi = -mean_s [ Q(s, a~) + alpha sum_k H(pi_k(.|s)) ]    a~ the estimator's sample; Q min or mean of twins
target  z    = sum_{i<m} gamma^i r_i + gamma^m (1 - terminated) V(s_m)
critic  L_Q  = mean sum_c (Q_c(s, a) - z)^2
alpha   log alpha moves so that H(pi) meets an annealed target
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from agent import losses
from agent.action_space import ActionSpace
from agent.config import Config, ConfigError, ScheduleConfig
from agent.estimators import ESTIMATORS, gumbel_noise, hard_sample
from agent.exploration import PersistentGumbelNoise
from agent.networks import Actor, JointCritic, PerActionCritic, member_generators
from agent.normalizer import ObservationNormalizer
from agent.optimizer import PopulationAdam, clip_grad_norm
from agent.replay import Batch, Replay
from agent.schedules import scheduled
from envs.gymnasium_adapter import Step

NUM_CRITICS = 2


class Noise(NamedTuple):
    """Gumbel draws of one update: of the estimator's samples, and of the target's where it samples an action."""

    actor: Float[Tensor, "S P B K N"]
    target: Float[Tensor, "T P B K N"]


class GumbelActorCritic:
    """All members' networks, optimizers and entropy coefficients, and their update."""

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
    ) -> None:
        self.config, self.actions, self.normalizer, self.generator = config, actions, normalizer, generator
        self.num_members = len(config.members())
        seeds = [member.seed for member in config.members()]
        self.actor = Actor(obs_size, actions, config.hidden_sizes, member_generators(seeds, 0), device)
        self.evaluated_actor = Actor(obs_size, actions, config.hidden_sizes, member_generators(seeds, 0), device)
        structure = config.critic.structure
        if structure == "auto":
            structure = "per_action" if actions.num_factors == 1 else "joint"
        critic_type = PerActionCritic if structure == "per_action" else JointCritic

        def make_critics() -> PerActionCritic | JointCritic:
            generators = [g for critic in range(NUM_CRITICS) for g in member_generators(seeds, 1 + critic)]
            layer_norm = config.critic.layer_norm
            return critic_type(
                obs_size, actions, config.hidden_sizes, generators, NUM_CRITICS, device, layer_norm=layer_norm
            )

        self.critics, self.target_critics = make_critics(), make_critics()
        self.reduce = config.critic.reduce
        if self.reduce == "auto":
            self.reduce = "mean" if self.critics.is_linear else "min"
        self.estimator = ESTIMATORS[config.estimator.name]
        if self.estimator.needs_linear_critic and not self.critics.is_linear:
            raise ConfigError(
                f"estimator.name={config.estimator.name} needs critic.structure=per_action: with "
                f"{actions.num_factors} action factors 'auto' means joint, which has no sum over actions"
            )

        self.per_member: Callable[[str], Tensor] = lambda key: torch.tensor(config.per_member(key), device=device)
        self.gamma, self.learning_rate = self.per_member("gamma"), self.per_member("learning_rate")
        self.log_alpha = self.per_member("alpha.start").log().unsqueeze(-1)  # [P, 1]
        self.actor_optimizer = PopulationAdam(self.actor.mlp.flat)
        self.critic_optimizer = PopulationAdam(self.critics.mlp.flat)
        self.alpha_optimizer = PopulationAdam(self.log_alpha)
        self.alpha_learning_rate = torch.full_like(self.log_alpha, config.alpha.learning_rate)
        self.ends = {
            key: (self.per_member(f"{key}.start"), self.per_member(f"{key}.end")) for key in ("tau", "target_entropy")
        }
        self.replay = Replay(
            self.num_members,
            config.env.num_envs,
            config.replay_capacity,
            obs_size,
            actions.num_factors,
            obs_dtype=obs_dtype,
            device=device,
        )
        noise_shape = (self.num_members, config.env.num_envs, actions.num_factors, actions.width)
        self.exploration = PersistentGumbelNoise(noise_shape, self.per_member("noise_persistence"), generator)
        self.num_env_steps = 0
        self.updates_due = 0.0

    @torch.no_grad()
    def explore(self, obs: Float[Tensor, "P E D"]) -> Int[Tensor, "P E K"]:
        """The action to take while training: uniform at first, then drawn from the policy, with persistent noise."""
        noise = self.exploration.next()
        if self.num_env_steps < self.config.learning_starts:
            return self.actions.mask_logits(noise).argmax(-1)
        return (self.actor(self.normalizer(obs)) + noise).argmax(-1)

    def observe(self, obs: Float[Tensor, "P E D"], action: Int[Tensor, "P E K"], step: Step) -> None:
        """Takes in one step of every environment."""
        self.replay.add(obs, action, step.reward, step.terminated, step.truncated, step.next_obs, step.valid)
        self.num_env_steps += self.config.env.num_envs
        if self.num_env_steps > self.config.learning_starts:
            self.updates_due += self.config.updates_per_step * self.config.env.num_envs

    def learn(self, progress: Tensor) -> Iterator[dict[str, Float[Tensor, " P"]]]:
        """Does the updates that are due; yields the metrics of each."""
        while self.updates_due >= 1:
            self.updates_due -= 1
            batch = self.replay.sample(self.config.batch_size, self.config.n_step, self.gamma, self.generator)
            yield self.update(batch, progress, self.draw_noise(self.config.batch_size))

    def draw_noise(self, batch_size: int) -> Noise:
        """The Gumbel draws of one update."""
        shape = (self.num_members, batch_size, self.actions.num_factors, self.actions.width)
        device = self.log_alpha.device
        num_target = 0 if self.critics.is_linear else 1
        draws = gumbel_noise((self.estimator.num_samples + num_target, *shape), self.generator, device)
        return Noise(draws[num_target:], draws[:num_target])

    def update(self, batch: Batch, progress: Tensor, noise: Noise) -> dict[str, Float[Tensor, " P"]]:
        """One step of critics, actor and alpha, in this order. Progress: part of the run done, in [0, 1]."""
        obs, next_obs = self.normalizer(batch.obs), self.normalizer(batch.next_obs)
        alpha = self.log_alpha.squeeze(-1).exp()
        learning_rate = self.learning_rate * (1 - progress * (1 - self.config.learning_rate_end))
        target = losses.td_target(batch.reward, batch.discount, self.next_value(next_obs, alpha, noise.target))

        encoded = self.critics.encode(obs)
        q_a = self.critics.q(encoded, self.actions.one_hot(batch.action))
        critic_loss = losses.critic_loss(q_a, target)
        (critic_gradient,) = torch.autograd.grad(critic_loss.sum(), self.critics.mlp.flat)
        critic_norm = clip_grad_norm(critic_gradient, self.num_members, self.config.max_grad_norm)
        self.critic_optimizer.step(critic_gradient, learning_rate.repeat(NUM_CRITICS).unsqueeze(-1))

        tau = self.schedule("tau", self.config.tau, progress)
        logits = self.actor(obs)
        frozen = encoded.detach()
        objective = self.estimator.objective(
            logits,
            tau.view(-1, 1, 1, 1),
            noise.actor,
            lambda action: losses.reduce_critics(self.critics.frozen_q(frozen, action), self.reduce),
        )
        entropy = losses.entropy(logits)
        actor_loss = losses.actor_loss(objective, entropy, alpha)
        (actor_gradient,) = torch.autograd.grad(actor_loss.sum(), self.actor.mlp.flat)
        actor_norm = clip_grad_norm(actor_gradient, self.num_members, self.config.max_grad_norm)
        self.actor_optimizer.step(actor_gradient, learning_rate.unsqueeze(-1))

        entropy = entropy.detach()
        self.update_alpha(entropy, progress)
        self.target_critics.mlp.move_towards(self.critics.mlp, self.config.target_update_rate)
        self.evaluated_actor.mlp.move_towards(self.actor.mlp, self.config.policy_average_rate)
        return {
            "critic/loss": critic_loss.detach(),
            "critic/q": q_a.detach().mean((0, 2)),
            "critic/td_target": target.mean(-1),
            "critic/grad_norm": critic_norm,
            "actor/loss": actor_loss.detach(),
            "actor/entropy": entropy.mean(-1),
            "actor/grad_norm": actor_norm,
            "alpha/value": alpha,
            "estimator/tau": tau,
        }

    @torch.no_grad()
    def next_value(
        self, next_obs: Float[Tensor, "P B D"], alpha: Float[Tensor, " P"], noise: Float[Tensor, "T P B K N"]
    ) -> Float[Tensor, "P B"]:
        """V(s') under the target critics: the exact expectation where they are linear, else Q at a hard sample."""
        logits = self.actor(next_obs)
        action = logits.softmax(-1) if self.target_critics.is_linear else hard_sample(logits, noise[0])
        q = self.target_critics.q(self.target_critics.encode(next_obs), action)
        value = losses.reduce_critics(q, self.reduce)
        if self.config.critic.entropy_in_target:
            value = value + alpha.unsqueeze(-1) * losses.entropy(logits)
        return value

    @torch.no_grad()
    def update_alpha(self, entropy: Float[Tensor, "P B"], progress: Tensor) -> None:
        target = self.schedule("target_entropy", self.config.target_entropy, progress) * self.actions.max_entropy
        gradient = losses.log_alpha_gradient(entropy, target).unsqueeze(-1)
        self.alpha_optimizer.step(gradient, self.alpha_learning_rate)
        self.log_alpha.clamp_(math.log(self.config.alpha.min), math.log(self.config.alpha.max))

    def schedule(self, key: str, section: ScheduleConfig, progress: Tensor) -> Float[Tensor, " P"]:
        start, end = self.ends[key]
        return scheduled(section.schedule, start, end, progress, section.fraction)
