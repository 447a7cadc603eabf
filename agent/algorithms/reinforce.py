"""REINFORCE: Monte-Carlo policy gradient over whole episodes, the baseline of every comparison.

    policy    grad = mean_t (G_t - b(s_t)) grad log pi(a_t|s_t) + c grad H(pi(.|s_t))    Williams 1992, eq. 4
    baseline  b moves towards G_t by least squares

Every step of an episode is used once, in the first update after the episode ended. An episode that runs across an
update is finished under the newer policy; its earlier steps are at most a few small updates old.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from agent import losses
from agent.algorithms.base import Algorithm, Task
from agent.config import Config
from agent.config_fields import ConfigError
from agent.estimators import gumbel
from agent.memory import require_memory
from agent.metrics import METRICS
from agent.networks.heads import make_actor, with_head
from agent.networks.modules import build_network, network_spec
from agent.networks.population import Parameters, Population, all_finite
from agent.optimizer import PopulationAdam, clip_grad_norm_
from agent.seeding import member_seeds
from agent.state import State, named
from envs.masks import Masks
from envs.random_streams import RandomStreams
from envs.vector_environment import Step


class Rollout(NamedTuple):
    """The usable steps of each member as rows; weight 0 where a member has fewer than the most."""

    obs: Float[Tensor, "P B D"]
    action: Int[Tensor, "P B K"]
    mask: Bool[Tensor, "P B K N"] | None
    returns: Float[Tensor, "P B"]
    weight: Float[Tensor, "P B"]


class Reinforce(Algorithm):
    """All members' policies and baselines, the episodes not yet used, and the update."""

    is_static = False  # the number of steps in an update varies
    metrics = {
        name: METRICS[name]
        for name in ("actor/loss", "actor/entropy", "actor/grad_norm", "baseline/loss", "baseline/return")
    }

    def __init__(self, config: Config, task: Task) -> None:
        self.config, self.settings, self.actions, self.normalizer = (
            config, config.reinforce, task.actions, task.normalizer,
        )  # fmt: skip
        device, seeds = task.device, [member.seed for member in config.members()]
        self.num_members, self.num_envs = len(seeds), config.env.num_envs
        self.streams = RandomStreams(member_seeds(seeds, "learner"), device)
        self.actor = self.evaluated_actor = make_actor(config, task.obs_parts, self.actions, device)
        spec = network_spec(config, task.obs_parts, layer_norm=False)

        def make_baseline() -> nn.Module:
            return with_head(build_network(spec, task.obs_parts), 1, gain=0.01)

        self.baseline = Population(make_baseline, member_seeds(seeds, "parameters", 1), device)
        self.actor_optimizer = PopulationAdam([self.actor.network.flat])
        self.baseline_optimizer = PopulationAdam([self.baseline.flat])

        def per_member(key: str) -> Float[Tensor, "P 1"]:
            return torch.tensor(config.per_member(key), dtype=torch.float32, device=device).unsqueeze(-1)

        self.gamma = per_member("gamma")
        self.learning_rate = per_member("reinforce.learning_rate")
        self.entropy_coefficient = per_member("reinforce.entropy_coefficient")

        self.update_every = max(1, self.settings.rollout_steps // self.num_envs)  # vector steps
        shape = (self.update_every + self.settings.max_episode_steps, self.num_members, self.num_envs)
        require_memory(
            math.prod(shape) * num_bytes_of_step(task) * (1 if config.checkpoint.every_env_steps is None else 2),
            device,
            "the buffer of REINFORCE for episodes not yet learned from, with its copy in a checkpoint,",
            "lower reinforce.max_episode_steps, train fewer members, or make observations smaller with a wrapper",
        )
        self.obs = torch.zeros((*shape, task.obs_size), dtype=task.obs_dtype, device=device)
        self.action = torch.zeros((*shape, self.actions.num_factors), dtype=torch.int64, device=device)
        self.mask: Bool[Tensor, "L P E K N"] | None = None
        if task.has_masks:
            self.mask = torch.ones((*shape, *self.actions.shape), dtype=torch.bool, device=device)
        self.reward = torch.zeros(shape, device=device)  # with the discounted value of the state a time limit cut off
        self.ends = torch.zeros(shape, dtype=torch.bool, device=device)
        self.unused = torch.zeros(shape, dtype=torch.bool, device=device)
        self.num_steps = torch.zeros((), dtype=torch.int64)  # of each environment
        self.return_scale = torch.ones((self.num_members, 1), device=device)

    @classmethod
    def require_updates(cls, config: Config) -> None:
        steps, total = config.reinforce.rollout_steps, config.total_env_steps
        if config.last_env_step < steps // config.env.num_envs * config.env.num_envs:
            raise ConfigError(
                f"reinforce.rollout_steps: got {steps}, must not be above total_env_steps={total}, or the run ends "
                "before its first update; lower reinforce.rollout_steps or raise total_env_steps"
            )

    def updates_due(self, env_steps: int) -> int:
        num_steps = env_steps // self.num_envs
        return int(num_steps > 0 and num_steps % self.update_every == 0)

    def act(
        self, obs: Float[Tensor, "P E D"], mask: Bool[Tensor, "P E K N"] | None = None, *, uniform: bool = False
    ) -> Int[Tensor, "P E K"]:
        noise = gumbel(self.streams.uniform(self.num_envs, *self.actions.shape))
        return (self.actor(self.normalizer(obs), mask) + noise).argmax(-1)

    def store(
        self, obs: Float[Tensor, "P E D"], action: Int[Tensor, "P E K"], step: Step, masks: Masks | None = None
    ) -> None:
        slot = int(self.num_steps) % len(self.reward)
        self.obs[slot], self.action[slot] = obs, action
        if self.mask is not None and masks is not None:
            self.mask[slot] = masks.obs
        self.reward[slot] = step.reward + self.value_beyond(step.next_obs) * (step.truncated & ~step.terminated)
        self.ends[slot] = (step.terminated | step.truncated) & step.valid
        self.unused[slot] = step.valid
        self.num_steps += 1

    def value_beyond(self, obs: Float[Tensor, "P E D"]) -> Float[Tensor, "P E"]:
        """gamma b(s'): what continues a return where a time limit truncated the episode."""
        if not self.settings.baseline:
            return torch.zeros(obs.shape[:2], device=obs.device)
        return self.gamma * self.baseline(self.normalizer(obs)).squeeze(-1) * self.return_scale

    def are_finite(self) -> Bool[Tensor, " P"]:
        return all_finite(self.num_members, self.actor.network, self.baseline)

    def state(self) -> State:
        names = ("obs", "action", "reward", "ends", "unused", "return_scale", "num_steps")
        masks: State = {} if self.mask is None else {"mask": self.mask}
        return {
            "actor": self.actor.network.flat,
            "baseline": self.baseline.flat,
            **{name: getattr(self, name) for name in names},
            **masks,
            **named("streams", self.streams.state()),
            **named("actor_optimizer", self.actor_optimizer.state()),
            **named("baseline_optimizer", self.baseline_optimizer.state()),
        }

    def update(self, progress: Float[Tensor, ""]) -> dict[str, Float[Tensor, " P"]]:
        """One step of the policy and a few of the baseline, on the episodes that ended since the last update."""
        rollout = self.gather(*self.monte_carlo_returns_())
        has_data = rollout.weight.sum(-1) > 0  # else nothing moves, not even by momentum
        learning_rate = self.learning_rate * (1 - progress * (1 - self.config.learning_rate_end))
        learning_rate = learning_rate * has_data.unsqueeze(-1)

        advantage, baseline_loss = self.advantage_(rollout, learning_rate)
        gradient, loss, entropy = self.actor.network.gradient(
            lambda parameters: self.actor_loss(parameters, rollout, advantage)
        )
        norm = clip_grad_norm_(gradient, self.num_members, self.config.max_grad_norm)
        self.actor_optimizer.step([gradient], [learning_rate])
        values = (
            loss,
            weighted_mean(entropy, rollout.weight),
            norm,
            baseline_loss,
            weighted_mean(rollout.returns, rollout.weight),
        )
        return dict(zip(self.metrics, (value.masked_fill(~has_data, torch.nan) for value in values), strict=True))

    def actor_loss(
        self, parameters: Parameters, rollout: Rollout, advantage: Float[Tensor, "P B"]
    ) -> tuple[Float[Tensor, " P"], Float[Tensor, "P B"]]:
        """-mean_t (log pi(a_t|s_t) A_t + c H(pi(.|s_t))); also H."""
        logits = self.actor(rollout.obs, rollout.mask, parameters)
        log_pi = (self.actions.one_hot(rollout.action) * logits.log_softmax(-1)).sum((-2, -1))
        entropy = losses.entropy(logits)
        return weighted_mean(-log_pi * advantage - self.entropy_coefficient * entropy, rollout.weight), entropy

    def baseline_loss(self, parameters: Parameters, rollout: Rollout) -> tuple[Float[Tensor, " P"], None]:
        """mean_t (b(s_t) - G_t / scale)^2."""
        error = self.baseline(rollout.obs, parameters).squeeze(-1) - rollout.returns / self.return_scale
        return weighted_mean(error.square(), rollout.weight), None

    def monte_carlo_returns_(self) -> tuple[Float[Tensor, "L P E"], Bool[Tensor, "L P E"]]:
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

    def gather(self, returns: Float[Tensor, "L P E"], usable: Bool[Tensor, "L P E"]) -> Rollout:
        by_member = usable.transpose(0, 1).flatten(1)
        num_rows = max(1, int(by_member.sum(1).max()))
        weight, index = by_member.float().sort(dim=1, descending=True, stable=True)
        weight, index = weight[:, :num_rows], index[:, :num_rows]

        def rows(x: Tensor) -> Tensor:
            x = x.transpose(0, 1).flatten(1, 2)
            return x.take_along_dim(index.view(*index.shape, *[1] * (x.ndim - 2)), 1)

        mask = None if self.mask is None else rows(self.mask)
        return Rollout(self.normalizer(rows(self.obs).float()), rows(self.action), mask, rows(returns), weight)

    def advantage_(
        self, rollout: Rollout, learning_rate: Float[Tensor, "P 1"]
    ) -> tuple[Float[Tensor, "P B"], Float[Tensor, " P"]]:
        """G - b(s) with the baseline as it was before it saw these returns; then moves the baseline towards them.

        The baseline predicts G / scale, scale a running root mean square of the returns.
        """
        returns, weight = rollout.returns, rollout.weight
        loss = torch.zeros_like(returns[:, 0])
        if not self.settings.baseline:
            return self.normalized(returns - weighted_mean(returns, weight).unsqueeze(-1), weight), loss
        advantage = returns - self.baseline(rollout.obs).squeeze(-1) * self.return_scale
        rms = weighted_mean(returns.square(), weight).sqrt().unsqueeze(-1)
        self.return_scale.copy_(torch.where(rms > 0, torch.maximum(self.return_scale, rms), self.return_scale))
        for _ in range(self.settings.baseline_updates):
            gradient, loss, _ = self.baseline.gradient(lambda parameters: self.baseline_loss(parameters, rollout))
            clip_grad_norm_(gradient, self.num_members, self.config.max_grad_norm)
            self.baseline_optimizer.step([gradient], [learning_rate])
        return self.normalized(advantage, weight), loss

    def normalized(self, advantage: Float[Tensor, "P B"], weight: Tensor) -> Float[Tensor, "P B"]:
        if not self.settings.normalize_returns:
            return advantage
        mean = weighted_mean(advantage, weight).unsqueeze(-1)
        std = weighted_mean((advantage - mean).square(), weight).sqrt().unsqueeze(-1)
        return advantage / (std + 1e-8)


def num_bytes_of_step(task: Task) -> int:
    """That one step of an environment takes in the buffer."""
    mask = math.prod(task.actions.shape) if task.has_masks else 0
    return task.obs_size * task.obs_dtype.itemsize + 8 * task.actions.num_factors + mask + 6


def weighted_mean(x: Float[Tensor, "P B"], weight: Float[Tensor, "P B"]) -> Float[Tensor, " P"]:
    return (x * weight).sum(-1) / weight.sum(-1).clamp(min=1)
