"""An off-policy actor-critic whose critic's gradient reaches the policy through a discrete sample.

actor   L_pi    = -mean_s [ Q(s, a~) + alpha sum_k H(pi_k(.|s)) ]    a~ the estimator's sample; Q min or mean of twins
target  z       = sum_{i<m} gamma^i r_i + gamma^m (1 - terminated) V(s_m)
critic  L_Q     = mean sum_c (Q_c(s, a) - z)^2
alpha   L_alpha = log_alpha (H(pi) - H_target)                       H_target is annealed
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agent import losses
from agent.algorithms.base import Task
from agent.algorithms.off_policy import OffPolicy, num_updates
from agent.config import Config
from agent.diagnostics.inspection import inspect, planned
from agent.estimators import Noise, gumbel, hard_sample, make_estimator
from agent.exploration import PersistentGumbelNoise, ladder
from agent.metrics import METRICS
from agent.networks.heads import NUM_CRITICS, CriticsAt, make_actor, make_critics, reduction
from agent.networks.population import Parameters, all_finite, gradients
from agent.optimizer import PopulationAdam, clip_grad_norm_
from agent.replay import Batch, SequenceBatch
from agent.schedules import Schedules
from agent.state import State, members_first, named
from agent.weights import CRITICS_FILE
from envs.masks import Masks
from envs.random_streams import RandomStreams
from envs.vector_environment import Step


class UpdateNoise(NamedTuple):
    """Gumbel noise of one update."""

    target: Float[Tensor, "P B K N"] | None  # of the action at the next observation; multilinear critics need none
    estimator: Noise


class GumbelActorCritic(OffPolicy):
    """All members' networks, optimizer and entropy coefficients, and their update."""

    reads_sequences = pools_data = True
    metrics = {name: METRICS[name] for name in (
        "critic/loss", "critic/q", "critic/td_target", "critic/grad_norm", "actor/loss", "actor/entropy",
        "actor/grad_norm", "alpha/value", "estimator/tau",
    )}  # fmt: skip

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__(config, task)
        self.actor, self.evaluated_actor = (make_actor(config, task.obs_parts, self.actions, self.device) for _ in "12")
        self.critics, self.target_critics = (
            make_critics(config, task.obs_parts, self.actions, self.device) for _ in "12"
        )
        self.reduce = reduction(config.critic, self.critics)
        self.estimator = make_estimator(config.estimator)
        self.log_alpha = self.per_member("alpha.start").log().unsqueeze(-1)
        self.alpha_learning_rate = torch.full_like(self.log_alpha, config.alpha.learning_rate)
        self.encoder = self.actor.encoder  # which the critics train, as SAC-AE's (Yarats et al. 2021); often none
        self.trained = [self.critics.network, *self.actor.populations().values()]
        self.optimizer = PopulationAdam([*(network.flat for network in self.trained), self.log_alpha])
        self.schedules = Schedules(config, self.device)
        part, num_parts = config.data_part
        rho = ladder(self.tensor(config.per_member_pairs("noise_persistence")), num_parts * self.num_envs)
        rho = rho[:, part * self.num_envs : (part + 1) * self.num_envs]
        self.exploration = PersistentGumbelNoise(self.actions, rho, self.num_envs, self.streams)
        self.memory_after = self.memory.clone()
        self.num_inspections, self.num_inspected_states = planned(self, num_updates(config))

    @torch.no_grad()
    def act(
        self, obs: Float[Tensor, "P E D"], mask: Bool[Tensor, "P E K N"] | None = None, *, uniform: bool = False
    ) -> Int[Tensor, "P E K"]:
        noise = self.exploration.next_()
        if uniform and not self.memory_size:
            return self.actions.mask_logits(noise, mask).argmax(-1)
        logits, state = self.actor.step(self.normalizer(obs), self.memory, mask)
        self.memory_after.copy_(state)
        return (self.actions.mask_logits(noise, mask) if uniform else logits + noise).argmax(-1)

    def store(
        self, obs: Float[Tensor, "P E D"], action: Int[Tensor, "P E K"], step: Step, masks: Masks | None = None
    ) -> None:
        ended = step.terminated | step.truncated
        super().store(obs, action, step, masks)
        self.exploration.renew_(ended)
        self.memory.copy_(self.memory_after * (step.valid & ~ended).unsqueeze(-1))

    def update(self, progress: Float[Tensor, ""]) -> dict[str, Float[Tensor, " P"]]:
        """One step of critics, actor and alpha together, on a batch from the replay."""
        batch, masks = self.sample_sequences_(progress) if self.memory_size else self.sample_(progress)
        return self.learn(batch, masks, self.noise_(), progress)

    def learn(
        self, batch: Batch | SequenceBatch, masks: Masks | None, noise: UpdateNoise, progress: Float[Tensor, ""]
    ) -> dict[str, Float[Tensor, " P"]]:
        """An update on a given batch with given noise."""
        learning_rate, tau, target_entropy = self.schedules(progress)
        mask, next_mask = masks or (None, None)
        weight = batch.weight if isinstance(batch, SequenceBatch) else None
        target_entropy = target_entropy * self.actions.max_entropy(mask, weight)
        alpha = self.log_alpha.squeeze(-1).exp()

        def loss(
            critic_parameters: Parameters,
            actor_parameters: Parameters,
            *more: Any,
        ) -> tuple[Tensor, tuple[Tensor, ...]]:
            """The sum of three losses. The critics' trains critics and encoder, the other two the actor and alpha."""
            *encoder_parameters, log_alpha = more
            features, next_features = self.features(batch, *encoder_parameters)
            target = losses.td_target(
                batch.reward, batch.discount, self.next_value(next_features, next_mask, alpha, noise.target)
            )
            critic_loss, q_a, encoded = self.critic_loss(critic_parameters, features, batch.action, target, weight)
            q = CriticsAt(self.critics, encoded.detach(), self.reduce)  # one forward pass serves critics and actor
            actor_loss, entropy = self.actor_loss(
                actor_parameters, features.detach(), mask, q, tau, alpha, noise.estimator, weight
            )
            alpha_loss = losses.alpha_loss(log_alpha.squeeze(-1), entropy.detach(), target_entropy, weight)
            return critic_loss + actor_loss + alpha_loss, (critic_loss, q_a, target, actor_loss, entropy)

        found, (critic_loss, q_a, target, actor_loss, entropy) = gradients(loss, *self.trained, self.log_alpha)
        found = self.data.pooled(found, self.num_members, weight)
        critic_gradient, actor_gradient, *_ = found
        critic_norm = clip_grad_norm_(critic_gradient, self.num_members, self.config.max_grad_norm)
        actor_norm = clip_grad_norm_(actor_gradient, self.num_members, self.config.max_grad_norm)
        rate = learning_rate.unsqueeze(-1)
        rates = [rate.repeat(NUM_CRITICS, 1), rate, self.alpha_learning_rate]
        if self.encoder is not None:
            clip_grad_norm_(found[2], self.num_members, self.config.max_grad_norm)
            rates.insert(2, rate)
        self.optimizer.step(found, rates)
        self.log_alpha.clamp_(math.log(self.config.alpha.min), math.log(self.config.alpha.max))
        self.target_critics.network.lerp_(self.critics.network, self.config.target_update_rate)
        self.evaluated_actor.lerp_(self.actor, self.config.policy_average_rate)
        values = (
            critic_loss, losses.mean(q_a.mean(0), weight), losses.mean(target, weight), critic_norm,
            actor_loss, losses.mean(entropy, weight), actor_norm, alpha, tau,
        )  # fmt: skip
        return dict(zip(self.metrics, values, strict=True))

    def features(
        self, batch: Batch | SequenceBatch, parameters: Parameters | None = None
    ) -> tuple[Float[Tensor, "P B F"], Float[Tensor, "P B F"]]:
        """What actor and critics read at obs and, without a gradient, at next_obs: the encoder's, or these themselves.

        The target critics read the encoder as it is, as DrQ-v2's do (Yarats et al. 2022).
        """
        if isinstance(batch, SequenceBatch):
            return self.features_in_sequence(batch, parameters)
        if self.encoder is None:
            return batch.obs, batch.next_obs
        with torch.no_grad():
            next_features = self.encoder(batch.next_obs)
        return self.encoder(batch.obs, parameters), next_features

    def features_in_sequence(
        self, batch: SequenceBatch, parameters: Parameters | None
    ) -> tuple[Float[Tensor, "P R F"], Float[Tensor, "P R F"]]:
        """The same with a memory. Its stored state is brought up to date first: burn-in (Kapturowski et al. 2019)."""
        assert self.encoder is not None
        state, begin = batch.state, self.burn_in
        if begin:
            with torch.no_grad():
                warm = self.encoder.unroll(batch.obs[:, :, :begin], state, batch.starts[..., :begin])
            state = warm[..., -1, -self.memory_size :]
        unrolled = self.encoder.unroll(batch.obs[:, :, begin:], state, batch.starts[..., begin:], parameters)
        place = (batch.next_at - begin).unsqueeze(-1).expand(-1, -1, -1, unrolled.shape[-1])
        next_features = unrolled.detach().gather(2, place)
        return unrolled[:, :, : self.num_learned].flatten(1, 2), next_features.flatten(1, 2)

    def critic_loss(
        self,
        parameters: Parameters,
        features: Float[Tensor, "P B F"],
        action: Int[Tensor, "P B K"],
        target: Float[Tensor, "P B"],
        weight: Float[Tensor, "P B"] | None,
    ) -> tuple[Float[Tensor, " P"], Float[Tensor, "C P B"], Tensor]:
        """mean_B sum_C (Q_c(s, a) - z)^2; also Q_c(s, a), and the critics' encoding of s."""
        encoded = self.critics.encode(features, parameters)
        q_a = self.critics.evaluate(encoded, self.actions.one_hot(action), parameters)
        return losses.critic_loss(q_a, target, weight), q_a, encoded

    def actor_loss(
        self,
        parameters: Parameters,
        features: Float[Tensor, "P B F"],
        mask: Bool[Tensor, "P B K N"] | None,
        q: CriticsAt,
        tau: Float[Tensor, " P"],
        alpha: Float[Tensor, " P"],
        noise: Noise,
        weight: Float[Tensor, "P B"] | None,
    ) -> tuple[Float[Tensor, " P"], Float[Tensor, "P B"]]:
        """-mean_B (Q(s, a~) + alpha H(pi(.|s))); also H."""
        logits = self.actor(features, mask, parameters)
        entropy = losses.entropy(logits)
        objective = self.estimator.surrogate(logits, tau.view(-1, 1, 1, 1), noise, q)
        return losses.actor_loss(objective, entropy, alpha, weight), entropy

    @torch.no_grad()
    def next_value(
        self,
        next_features: Float[Tensor, "P B F"],
        mask: Bool[Tensor, "P B K N"] | None,
        alpha: Float[Tensor, " P"],
        noise: Float[Tensor, "P B K N"] | None,
    ) -> Float[Tensor, "P B"]:
        """V(s') under the target critics: the exact expectation where they are multilinear, else Q at a hard sample."""
        logits = self.actor(next_features, mask)
        if self.critics.is_multilinear:
            action = logits.softmax(-1)
        else:
            assert noise is not None, "a joint critic needs a hard sample"
            action = hard_sample(logits, noise)
        value = CriticsAt(self.target_critics, self.target_critics.encode(next_features), self.reduce)(action)
        if self.config.critic.entropy_in_target:
            value = value + alpha.unsqueeze(-1) * losses.entropy(logits)
        return value

    def noise_(self) -> UpdateNoise:
        """The next noise of the streams."""
        num_targets = 0 if self.critics.is_multilinear else 1
        num_samples = num_targets + self.estimator.num_samples
        uniform = self.streams.uniform(num_samples, self.batch_rows, *self.actions.shape)
        target = gumbel(uniform[:, 0]) if num_targets else None
        return UpdateNoise(target, self.estimator.noise(uniform[:, num_targets:]))

    def inspect_gradients(self, progress: Float[Tensor, ""], streams: RandomStreams) -> dict[str, Float[Tensor, " P"]]:
        """Measures the estimator against an unbiased one; an adaptive tau moves."""
        return inspect(self, progress, streams, self.num_inspected_states)

    def are_finite(self) -> Bool[Tensor, " P"]:
        populations = (*self.actor.populations().values(), *self.evaluated_actor.populations().values())
        return all_finite(self.num_members, *populations, self.critics.network)

    def weights_to_save(self) -> dict[str, dict[str, Tensor]]:
        encoder = {} if self.encoder is None else self.encoder.network.tensors()
        named_encoder = {f"encoder.{name}": tensor for name, tensor in encoder.items()}
        critics = {name: members_first(x, self.num_members) for name, x in self.critics.network.tensors().items()}
        return {CRITICS_FILE: {**critics, **named_encoder}}

    def learned(self) -> State:
        return {
            **self.actor.state(),
            **{f"evaluated_{name}": flat for name, flat in self.evaluated_actor.state().items()},
            "critics": members_first(self.critics.network.flat, self.num_members),
            "target_critics": members_first(self.target_critics.network.flat, self.num_members),
            "log_alpha": self.log_alpha,
            **named("optimizer", self.optimizer.state(self.num_members)),
        }

    def tunable(self) -> dict[str, Tensor]:
        return {**self.schedules.rows(), "noise_persistence": self.exploration.rho}

    def state(self) -> State:
        return {
            **super().state(),
            **self.learned(),
            "noise": self.exploration.noise,
            **({"memory": self.memory, "memory_after": self.memory_after} if self.memory_size else {}),
            **named("schedules", self.schedules.state()),
        }
