"""REINFORCE: Monte-Carlo policy gradient over whole episodes, the baseline of every comparison.

    policy    grad = mean_t (G_t - b(s_t)) grad log pi(a_t|s_t) + c grad H(pi(.|s_t))    Williams 1992, eq. 4
    baseline  b moves towards G_t by least squares

Every step of an episode is used once, in the first update after the episode ended. An episode that runs across an
update is finished under the newer policy; its earlier steps are at most a few small updates old.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Generator, Tensor

from agent import losses
from agent.action_space import ActionSpace
from agent.config import Config
from agent.exploration import PersistentGumbelNoise
from agent.networks import Actor, PopulationMLP, all_finite, member_generators
from agent.normalizer import ObservationNormalizer
from agent.optimizer import PopulationAdam, clip_grad_norm
from agent.state import State, named
from envs.gymnasium_adapter import Step
from envs.masks import Masks


class Reinforce:
    """All members' policies and baselines, the episodes not yet used, and the update."""

    is_static = False  # the number of steps in an update varies
    metric_names = ("actor/loss", "actor/entropy", "actor/grad_norm", "baseline/loss", "baseline/return")

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
        self.config, self.settings, self.actions, self.normalizer = config, config.reinforce, actions, normalizer
        seeds = [member.seed for member in config.members()]
        self.num_members, num_envs = len(seeds), config.env.num_envs
        generators = member_generators(seeds, 0)
        self.actor = Actor(
            obs_size, actions, config.hidden_sizes, generators, device, layer_norm=config.actor.layer_norm
        )
        sizes = [obs_size, *config.hidden_sizes, 1]
        self.baseline = PopulationMLP(sizes, member_generators(seeds, 1), device, last_gain=0.01)
        self.actor_optimizer = PopulationAdam([self.actor.mlp.flat])
        self.baseline_optimizer = PopulationAdam([self.baseline.flat])
        self.per_member: Callable[[str], Tensor] = lambda key: torch.tensor(config.per_member(key), device=device)
        self.gamma = self.per_member("gamma").unsqueeze(-1)
        self.learning_rate = self.per_member("reinforce.learning_rate").unsqueeze(-1)
        self.entropy_coefficient = self.per_member("reinforce.entropy_coefficient")

        self.update_every = max(1, self.settings.rollout_steps // num_envs)  # vector steps
        length = self.update_every + self.settings.max_episode_steps
        shape = (length, self.num_members, num_envs)
        self.obs = torch.zeros((*shape, obs_size), dtype=obs_dtype, device=device)
        self.action = torch.zeros((*shape, actions.num_factors), dtype=torch.int64, device=device)
        self.mask: Bool[Tensor, "L P E K N"] | None = None
        if has_masks:
            self.mask = torch.ones((*shape, actions.num_factors, actions.width), dtype=torch.bool, device=device)
        self.reward = torch.zeros(shape, device=device)  # with the discounted value of the state a time limit cut off
        self.ends = torch.zeros(shape, dtype=torch.bool, device=device)
        self.unused = torch.zeros(shape, dtype=torch.bool, device=device)
        self.exploration = PersistentGumbelNoise(
            (self.num_members, num_envs, actions.num_factors, actions.width),
            torch.zeros((self.num_members, 1), device=device),
            generator,
        )
        self.num_steps = torch.zeros((), dtype=torch.int64)  # of each environment
        self.return_scale = torch.ones((self.num_members, 1), device=device)

    @property
    def evaluated_actor(self) -> Actor:
        """The policy that is evaluated and saved: the trained one."""
        return self.actor

    def is_warming_up(self, env_steps: int) -> bool:
        """Never: the policy explores from the first step."""
        return False

    def updates_due(self, env_steps: int) -> int:
        """How many updates follow the step that made it so many."""
        num_steps = env_steps // self.config.env.num_envs
        return int(num_steps > 0 and num_steps % self.update_every == 0)

    def draw_exploration(self) -> Float64[Tensor, "P E U"]:
        """The randomness of one choice of actions."""
        return self.exploration.draw()

    def draw_update(self) -> None:
        """An update draws nothing."""

    def explore(
        self,
        obs: Float[Tensor, "P E D"],
        draw: Float64[Tensor, "P E U"],
        *,
        uniform: bool,
        mask: Bool[Tensor, "P E K N"] | None = None,
    ) -> Int[Tensor, "P E K"]:
        """Draws the action from the policy."""
        return (self.actor(self.normalizer(obs), mask) + self.exploration.next(draw)).argmax(-1)

    def observe(
        self, obs: Float[Tensor, "P E D"], action: Int[Tensor, "P E K"], step: Step, masks: Masks | None = None
    ) -> None:
        """Takes in one step of every environment; `masks` are of obs and of the step's next_obs."""
        slot = int(self.num_steps) % len(self.reward)
        self.obs[slot], self.action[slot] = obs, action
        if self.mask is not None and masks is not None:
            self.mask[slot] = masks.obs
        self.reward[slot] = step.reward + self.value_beyond(step.next_obs) * (step.truncated & ~step.terminated)
        self.ends[slot] = (step.terminated | step.truncated) & step.valid
        self.unused[slot] = step.valid
        self.num_steps += 1

    def value_beyond(self, obs: Float[Tensor, "P E D"]) -> Float[Tensor, "P E"]:
        """gamma b(s'): what a return goes on with where a time limit, not the task, ended the episode."""
        if not self.settings.baseline:
            return torch.zeros(obs.shape[:2], device=obs.device)
        return self.gamma * self.baseline(self.normalizer(obs)).squeeze(-1) * self.return_scale

    def end_episodes(self, obs: Float[Tensor, "P E D"]) -> None:
        """Ends those under way in `obs` as a time limit would."""
        slot = (int(self.num_steps) - 1) % len(self.reward)
        is_cut = self.unused[slot] & ~self.ends[slot]
        self.reward[slot] += self.value_beyond(obs) * is_cut
        self.ends[slot] |= is_cut

    def are_finite(self) -> Bool[Tensor, " P"]:
        """Which members' parameters are numbers."""
        return all_finite(self.num_members, self.actor.mlp.flat, self.baseline.flat)

    def state(self) -> State:
        """All that changes."""
        names = ("obs", "action", "reward", "ends", "unused", "return_scale", "num_steps")
        masks: State = {} if self.mask is None else {"mask": self.mask}
        return {
            "actor": self.actor.mlp.flat,
            "baseline": self.baseline.flat,
            "noise": self.exploration.noise,
            **{name: getattr(self, name) for name in names},
            **masks,
            **named("actor_optimizer", self.actor_optimizer.state()),
            **named("baseline_optimizer", self.baseline_optimizer.state()),
        }

    def inspect_gradients(self, progress: Float[Tensor, ""], generator: Generator) -> dict[str, Tensor]:
        """Nothing: there is no critic whose gradient could be exact."""
        return {}

    def learn(self, progress: Float[Tensor, ""], draw: None) -> dict[str, Float[Tensor, " P"]]:
        """Updates from the episodes that ended since the last update."""
        return self.update(progress)

    def update(self, progress: Tensor) -> dict[str, Float[Tensor, " P"]]:
        """One policy step and a few of the baseline."""
        returns, usable = self.monte_carlo_returns()
        obs, action, mask, returns, weight = self.gather(returns, usable)
        obs = self.normalizer(obs)
        has_data = weight.sum(-1) > 0  # else nothing moves, not even by momentum
        learning_rate = self.learning_rate * (1 - progress * (1 - self.config.learning_rate_end))
        learning_rate = learning_rate * has_data.unsqueeze(-1)

        advantage, baseline_loss = self.advantage(obs, returns, weight, learning_rate)
        saved = self.actor.mlp.forward(obs)
        logits = self.actor.logits(saved, mask)
        taken = self.actions.one_hot(action)
        log_pi = (taken * logits.log_softmax(-1)).sum((-2, -1))
        entropy, entropy_gradient = losses.entropy_and_gradient(logits)
        coefficient = self.entropy_coefficient.unsqueeze(-1)
        loss = weighted_mean(-log_pi * advantage - coefficient * entropy, weight)
        # d log pi(a) / d logits = a - pi, a one-hot
        score = advantage[..., None, None] * (taken - logits.softmax(-1))
        per_row = -(score + coefficient[..., None, None] * entropy_gradient)
        share = weight / weight.sum(-1, keepdim=True).clamp(min=1)
        gradient = self.actor.parameter_gradient(saved, per_row * share[..., None, None])
        norm = clip_grad_norm(gradient, self.num_members, self.config.max_grad_norm)
        self.actor_optimizer.step([gradient], [learning_rate])
        metrics = {
            "actor/loss": loss,
            "actor/entropy": weighted_mean(entropy, weight),
            "actor/grad_norm": norm,
            "baseline/loss": baseline_loss,
            "baseline/return": weighted_mean(returns, weight),
        }
        return {name: value.masked_fill(~has_data, torch.nan) for name, value in metrics.items()}

    def monte_carlo_returns(self) -> tuple[Float[Tensor, "L P E"], Bool[Tensor, "L P E"]]:
        """G_t = r_t + gamma G_{t+1} within an episode, and which steps belong to an ended episode not used before.

        A filler step inside the ring is never unused and its reward is 0; it stands only between episodes.
        """
        length = len(self.reward)
        returns, usable = torch.zeros_like(self.reward), torch.zeros_like(self.unused)
        following = torch.zeros_like(self.reward[0])
        complete = torch.zeros_like(self.unused[0])
        num_steps = int(self.num_steps)
        for age in range(min(length, num_steps)):
            slot = (num_steps - 1 - age) % length
            ends = self.ends[slot]
            following = self.reward[slot] + self.gamma * following * ~ends
            complete = complete | ends
            returns[slot], usable[slot] = following, complete & self.unused[slot]
        self.unused &= ~usable
        return returns, usable

    def gather(self, returns: Tensor, usable: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        """The usable steps of each member as rows [P, B, ...]; weight 0 where a member has fewer than the most."""
        by_member = usable.transpose(0, 1).flatten(1)
        num_rows = max(1, int(by_member.sum(1).max()))
        weight, index = by_member.float().sort(dim=1, descending=True, stable=True)
        weight, index = weight[:, :num_rows], index[:, :num_rows]
        obs, action = (x.transpose(0, 1).flatten(1, 2) for x in (self.obs, self.action))
        rows = index.unsqueeze(-1)
        mask = self.mask
        if mask is not None:
            mask = mask.transpose(0, 1).flatten(1, 2).take_along_dim(rows.unsqueeze(-1), 1)
        return (
            obs.gather(1, rows.expand(-1, -1, obs.shape[-1])).float(),
            action.gather(1, rows.expand(-1, -1, action.shape[-1])),
            mask,
            returns.transpose(0, 1).flatten(1).gather(1, index),
            weight,
        )

    def advantage(
        self, obs: Tensor, returns: Float[Tensor, "P B"], weight: Tensor, learning_rate: Tensor
    ) -> tuple[Float[Tensor, "P B"], Float[Tensor, " P"]]:
        """G - b(s) with the baseline as it was before it saw these returns; then moves the baseline towards them.

        The baseline predicts G / scale, scale a running root mean square of the returns.
        """
        if not self.settings.baseline:
            advantage = returns - weighted_mean(returns, weight).unsqueeze(-1)
            return self.normalized(advantage, weight), torch.zeros_like(returns[:, 0])
        advantage = returns - self.baseline(obs).squeeze(-1) * self.return_scale
        rms = weighted_mean(returns.square(), weight).sqrt().unsqueeze(-1)
        self.return_scale.copy_(torch.where(rms > 0, torch.maximum(self.return_scale, rms), self.return_scale))
        loss = torch.zeros_like(returns[:, 0])
        share = weight / weight.sum(-1, keepdim=True).clamp(min=1)
        for _ in range(self.settings.baseline_updates):
            saved = self.baseline.forward(obs)
            error = saved[-1].squeeze(-1) - returns / self.return_scale
            loss = weighted_mean(error.square(), weight)
            gradient = self.baseline.parameter_gradient(saved, (2 * error * share).unsqueeze(-1))
            clip_grad_norm(gradient, self.num_members, self.config.max_grad_norm)
            self.baseline_optimizer.step([gradient], [learning_rate])
        return self.normalized(advantage, weight), loss

    def normalized(self, advantage: Float[Tensor, "P B"], weight: Tensor) -> Float[Tensor, "P B"]:
        if not self.settings.normalize_returns:
            return advantage
        mean = weighted_mean(advantage, weight).unsqueeze(-1)
        std = weighted_mean((advantage - mean).square(), weight).sqrt().unsqueeze(-1)
        return advantage / (std + 1e-8)


def weighted_mean(x: Float[Tensor, "P B"], weight: Float[Tensor, "P B"]) -> Float[Tensor, " P"]:
    return (x * weight).sum(-1) / weight.sum(-1).clamp(min=1)
