"""One update of the actor-critic with every derivative by hand."""

import math
from typing import Any

from torch import Tensor

from agent.algorithms.gumbel_actor_critic import GumbelActorCritic, UpdateNoise
from agent.networks.population import Population
from agent.optimizer import PopulationAdam, clip_grad_norm_
from agent.replay import Batch
from envs.masks import Masks
from oracles import losses
from oracles.critics import Critics, ReducedQ, make_critics
from oracles.estimators import closed_form, hard_sample
from oracles.networks import Actor, PopulationMLP


class UpdateByHand:
    """The same networks, optimizer and entropy coefficients as a learner's, as they are when this is made."""

    def __init__(self, learner: GumbelActorCritic, obs_size: int) -> None:
        config, actions, members = learner.config, learner.actions, learner.num_members
        self.learner, self.config, self.actions = learner, config, actions

        def actor(of: Population) -> Actor:
            made = Actor(obs_size, actions, config.hidden_sizes, members, layer_norm=config.actor.layer_norm)
            return copied(made, made.mlp, of)

        def critics(of: Population) -> Critics:
            made = make_critics(config.critic, obs_size, actions, config.hidden_sizes, 2 * members, 2)
            return copied(made, made.mlp, of)

        self.actor, self.evaluated_actor = actor(learner.actor.network), actor(learner.evaluated_actor.network)
        self.critics, self.target_critics = (
            critics(learner.critics.network), critics(learner.target_critics.network),
        )  # fmt: skip
        self.log_alpha = learner.log_alpha.clone()
        self.optimizer = PopulationAdam([self.critics.mlp.flat, self.actor.mlp.flat, self.log_alpha])

    def learn(self, batch: Batch, masks: Masks | None, noise: UpdateNoise, progress: Tensor) -> dict[str, Tensor]:
        """One update; some of its metrics."""
        alpha = self.log_alpha.squeeze(-1).exp()
        learning_rate, tau, target_entropy = self.learner.schedules(progress)
        mask, next_mask = (None, None) if masks is None else masks
        if mask is None:
            target_entropy = target_entropy * sum(math.log(n) for n in self.actions.num_choices)
        else:
            target_entropy = target_entropy * mask.sum(-1).log().sum(-1).mean(-1)
        next_logits = self.actor(batch.next_obs, next_mask)
        linear = self.target_critics.is_multilinear
        next_action = next_logits.softmax(-1) if linear else hard_sample(next_logits, noise.target)
        encoded = self.target_critics.encode(batch.next_obs)
        next_value = ReducedQ(self.target_critics, encoded, self.learner.reduce).value(next_action)
        if self.config.critic.entropy_in_target:
            next_value = next_value + alpha.unsqueeze(-1) * losses.entropy(next_logits)
        target = losses.td_target(batch.reward, batch.discount, next_value)

        encoded = self.critics.encode(batch.obs)
        taken = self.critics.evaluate(encoded, self.actions.one_hot(batch.action))
        critic_gradient = self.critics.parameter_gradient(taken, losses.critic_loss_gradient(taken.q, target))
        saved = self.actor.mlp.forward(batch.obs)
        logits = self.actor.logits(saved, mask)
        q = ReducedQ(self.critics, encoded, self.learner.reduce)
        estimate = closed_form(self.config.estimator)(logits, tau.view(-1, 1, 1, 1), noise.estimator, q)
        entropy, entropy_gradient = losses.entropy_and_gradient(logits)
        logits_gradient = losses.actor_loss_gradient(estimate.gradient, entropy_gradient, alpha)
        actor_gradient = self.actor.parameter_gradient(saved, logits_gradient)
        alpha_gradient = losses.log_alpha_gradient(entropy.mean(-1), target_entropy)

        critic_norm, actor_norm = (
            clip_grad_norm_(gradient, self.learner.num_members, self.config.max_grad_norm)
            for gradient in (critic_gradient, actor_gradient)
        )
        rates = [learning_rate.repeat(2).unsqueeze(-1), learning_rate.unsqueeze(-1), self.learner.alpha_learning_rate]
        self.optimizer.step([critic_gradient, actor_gradient, alpha_gradient.unsqueeze(-1)], rates)
        self.log_alpha.clamp_(math.log(self.config.alpha.min), math.log(self.config.alpha.max))
        self.target_critics.mlp.move_towards(self.critics.mlp, self.config.target_update_rate)
        self.evaluated_actor.mlp.move_towards(self.actor.mlp, self.config.policy_average_rate)
        return {
            "critic/loss": losses.critic_loss(taken.q, target),
            "critic/grad_norm": critic_norm,
            "actor/loss": losses.actor_loss(estimate.value, entropy, alpha),
            "actor/grad_norm": actor_norm,
        }


def copied(made: Any, mlp: PopulationMLP, of: Population) -> Any:
    """With the parameters of a population, whose built-in networks lie in its buffer in the same order."""
    mlp.flat.copy_(of.flat)
    return made
