"""REINFORCE: Monte-Carlo policy gradient over whole episodes, the baseline of every comparison.

    policy    grad = mean_t (G_t - b(s_t)) grad log pi(a_t|s_t) + c grad H(pi(.|s_t))    Williams 1992, eq. 4
    baseline  b moves towards G_t by least squares

Every step of an episode is used once, in the first update after the episode ended. An episode that runs across an
update is finished under the newer policy; its earlier steps are at most a few small updates old.

With a memory, T = sequence_length steps in a row are learned from together, from the state that they began with;
without one T = 1. Where there is an encoder the policy trains it, and the baseline reads its features.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from agent import losses
from agent.algorithms.base import Algorithm, Task
from agent.config import Config
from agent.config_fields import ConfigError
from agent.estimators import gumbel
from agent.memory import require_memory
from agent.metrics import METRICS
from agent.networks.heads import make_actor, with_head
from agent.networks.modules import build_network, network_spec, stages
from agent.networks.population import Parameters, Population, all_finite, gradients
from agent.optimizer import PopulationAdam, clip_grad_norm_
from agent.seeding import member_seeds
from agent.state import State, named
from envs.masks import Masks
from envs.random_streams import RandomStreams
from envs.vector_environment import Step


class Rollout(NamedTuple):
    """All T steps in a row that hold usable steps of a member; the others have weight 0. Of them R = B T are rows."""

    obs: Float[Tensor, "P B T D"]
    state: Float[Tensor, "P B H"]  # of a memory, before the first of T steps
    starts: Bool[Tensor, "P B T"]  # where an episode begins
    action: Int[Tensor, "P R K"]
    mask: Bool[Tensor, "P R K N"] | None
    returns: Float[Tensor, "P R"]
    weight: Float[Tensor, "P R"]


class Reinforce(Algorithm):
    """All members' policies and baselines, the episodes not yet used, and the update."""

    pools_data = True
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
        self.data = task.data
        self.streams = RandomStreams(member_seeds(seeds, "learner", *config.streams_of_part), device)
        self.actor = self.evaluated_actor = make_actor(config, task.obs_parts, self.actions, device)
        self.encoder, self.memory_size = self.actor.encoder, self.actor.state_size
        _, head, parts = stages(network_spec(config, task.obs_parts, layer_norm=False), task.obs_parts)

        def make_baseline() -> nn.Module:
            return with_head(build_network(head, parts), 1, gain=0.01)

        self.baseline = Population(make_baseline, member_seeds(seeds, "parameters", 1), device)
        self.actor_optimizer = PopulationAdam(list(self.actor.state().values()))
        self.baseline_optimizer = PopulationAdam([self.baseline.flat])

        def per_member(key: str) -> Float[Tensor, "P 1"]:
            return torch.tensor(config.per_member(key), dtype=torch.float32, device=device).unsqueeze(-1)

        self.gamma = per_member("gamma")
        self.learning_rate = per_member("reinforce.learning_rate")
        self.entropy_coefficient = per_member("reinforce.entropy_coefficient")

        self.chunk = chunk_of(config)
        self.update_every = vector_steps_of_update(config)
        length = self.update_every + self.settings.max_episode_steps
        shape = (-(-length // self.chunk) * self.chunk, self.num_members, self.num_envs)
        require_memory(
            math.prod(shape)
            * num_bytes_of_step(task, self.memory_size)
            * (1 if config.checkpoint.every_env_steps is None else 2),
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
        self.states = torch.zeros((*shape, self.memory_size), device=device)
        self.starts = torch.zeros(shape, dtype=torch.bool, device=device)
        self.memory = self.actor.initial_state(self.num_members, self.num_envs)  # before the last obs acted on
        self.memory_after = self.memory.clone()
        self.begins = torch.ones(shape[1:], dtype=torch.bool, device=device)  # whether an episode does with that obs
        self.num_steps = torch.zeros((), dtype=torch.int64)  # of each environment
        self.return_scale = torch.ones((self.num_members, 1), device=device)

    @classmethod
    def require_updates(cls, config: Config) -> None:
        steps, total = config.reinforce.rollout_steps, config.total_env_steps
        if config.last_env_step < vector_steps_of_update(config) * config.env.num_envs:
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
        logits, state = self.actor.step(self.normalizer(obs), self.memory, mask)
        self.memory_after.copy_(state)
        return (logits + noise).argmax(-1)

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
        self.states[slot], self.starts[slot] = self.memory, self.begins
        self.begins.copy_(step.terminated | step.truncated | ~step.valid)
        self.memory.copy_(self.memory_after * ~self.begins.unsqueeze(-1))
        self.num_steps += 1

    def value_beyond(self, obs: Float[Tensor, "P E D"]) -> Float[Tensor, "P E"]:
        """gamma b(s'): what continues a return where a time limit truncated the episode."""
        if not self.settings.baseline:
            return torch.zeros(obs.shape[:2], device=obs.device)
        features = self.normalizer(obs)
        if self.encoder is not None:
            features, _ = self.encoder.step(features, self.memory_after)
        return self.gamma * self.baseline(features).squeeze(-1) * self.return_scale

    def are_finite(self) -> Bool[Tensor, " P"]:
        return all_finite(self.num_members, *self.actor.populations().values(), self.baseline)

    def learned(self) -> State:
        return {
            **self.actor.state(),
            "baseline": self.baseline.flat,
            "return_scale": self.return_scale,
            **named("actor_optimizer", self.actor_optimizer.state(self.num_members)),
            **named("baseline_optimizer", self.baseline_optimizer.state(self.num_members)),
        }

    def tunable(self) -> dict[str, Tensor]:
        return {"learning_rate": self.learning_rate, "entropy_coefficient": self.entropy_coefficient}

    def state(self) -> State:
        buffers = {name: getattr(self, name) for name in ("obs", "action", "reward", "ends", "unused")}
        if self.mask is not None:
            buffers["mask"] = self.mask
        names: tuple[str, ...] = ("num_steps",)
        if self.memory_size:
            buffers |= {"states": self.states, "starts": self.starts}
            names = (*names, "memory", "memory_after", "begins")
        return {
            **self.learned(),
            **{name: buffer.transpose(0, 1) for name, buffer in buffers.items()},
            **{name: getattr(self, name) for name in names},
            **named("streams", self.streams.state()),
        }

    def update(self, progress: Float[Tensor, ""]) -> dict[str, Float[Tensor, " P"]]:
        """One step of the policy and a few of the baseline, on the episodes that ended since the last update."""
        rollout = self.gather(*self.monte_carlo_returns_())
        has_data = self.data.total(rollout.weight.sum(-1)) > 0  # else nothing moves, not even by momentum
        learning_rate = self.learning_rate * (1 - progress * (1 - self.config.learning_rate_end))
        learning_rate = learning_rate * has_data.unsqueeze(-1)

        with torch.no_grad():
            features = self.features(rollout)
        advantage, baseline_loss = self.advantage_(features, rollout, learning_rate)

        def loss_of(*parameters: Parameters) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            loss, entropy = self.actor_loss(rollout, advantage, *parameters)
            return loss, (loss, entropy)

        found, (loss, entropy) = gradients(loss_of, *self.actor.populations().values())
        found = self.data.pooled(found, self.num_members, rollout.weight)
        norms = [clip_grad_norm_(gradient, self.num_members, self.config.max_grad_norm) for gradient in found]
        self.actor_optimizer.step(found, [learning_rate] * len(found))
        values = (
            loss,
            self.data.mean(entropy, rollout.weight),
            norms[0],
            baseline_loss,
            self.data.mean(rollout.returns, rollout.weight),
        )
        return dict(zip(self.metrics, (value.masked_fill(~has_data, torch.nan) for value in values), strict=True))

    def features(self, rollout: Rollout, parameters: Parameters | None = None) -> Float[Tensor, "P R F"]:
        """What policy and baseline read: the encoder's features, or the observations."""
        if self.encoder is None:
            return rollout.obs.flatten(1, 2)
        if not self.memory_size:
            return self.encoder(rollout.obs.flatten(1, 2), parameters)
        return self.encoder.unroll(rollout.obs, rollout.state, rollout.starts, parameters).flatten(1, 2)

    def actor_loss(
        self,
        rollout: Rollout,
        advantage: Float[Tensor, "P R"],
        parameters: Parameters,
        encoder_parameters: Parameters | None = None,
    ) -> tuple[Float[Tensor, " P"], Float[Tensor, "P R"]]:
        """-mean_t (log pi(a_t|s_t) A_t + c H(pi(.|s_t))); also H."""
        logits = self.actor(self.features(rollout, encoder_parameters), rollout.mask, parameters)
        log_pi = (self.actions.one_hot(rollout.action) * logits.log_softmax(-1)).sum((-2, -1))
        entropy = losses.entropy(logits)
        return losses.mean(-log_pi * advantage - self.entropy_coefficient * entropy, rollout.weight), entropy

    def baseline_loss(
        self, parameters: Parameters, features: Float[Tensor, "P R F"], rollout: Rollout
    ) -> tuple[Float[Tensor, " P"], None]:
        """mean_t (b(s_t) - G_t / scale)^2."""
        error = self.baseline(features, parameters).squeeze(-1) - rollout.returns / self.return_scale
        return losses.mean(error.square(), rollout.weight), None

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
        def in_chunks(x: Tensor) -> Shaped[Tensor, "P CE T *rest"]:
            return x.unflatten(0, (-1, self.chunk)).movedim(1, 3).transpose(0, 1).flatten(1, 2)

        holds = in_chunks(usable).any(-1)
        num_rows = max(1, int(holds.sum(1).max()))
        index = holds.float().sort(dim=1, descending=True, stable=True).indices[:, :num_rows]

        def rows(x: Tensor) -> Shaped[Tensor, "P B T *rest"]:
            x = in_chunks(x)
            return x.take_along_dim(index.view(*index.shape, *[1] * (x.ndim - 2)), 1)

        obs = rows(self.obs).float()
        return Rollout(
            self.normalizer(obs.flatten(1, 2)).view_as(obs),
            rows(self.states)[:, :, 0],
            rows(self.starts),
            rows(self.action).flatten(1, 2),
            None if self.mask is None else rows(self.mask).flatten(1, 2),
            rows(returns).flatten(1, 2),
            rows(usable).float().flatten(1, 2),
        )

    def advantage_(
        self, features: Float[Tensor, "P R F"], rollout: Rollout, learning_rate: Float[Tensor, "P 1"]
    ) -> tuple[Float[Tensor, "P R"], Float[Tensor, " P"]]:
        """G - b(s) with the baseline as it was before it saw these returns; then moves the baseline towards them.

        The baseline predicts G / scale, scale a running root mean square of the returns.
        """
        returns, weight = rollout.returns, rollout.weight
        loss = torch.zeros_like(returns[:, 0])
        if not self.settings.baseline:
            return self.normalized(returns - self.data.mean(returns, weight).unsqueeze(-1), weight), loss
        advantage = returns - self.baseline(features).squeeze(-1) * self.return_scale
        rms = self.data.mean(returns.square(), weight).sqrt().unsqueeze(-1)
        self.return_scale.copy_(torch.where(rms > 0, torch.maximum(self.return_scale, rms), self.return_scale))
        for _ in range(self.settings.baseline_updates):
            gradient, loss, _ = self.baseline.gradient(lambda given: self.baseline_loss(given, features, rollout))
            (gradient,) = self.data.pooled([gradient], self.num_members, weight)
            clip_grad_norm_(gradient, self.num_members, self.config.max_grad_norm)
            self.baseline_optimizer.step([gradient], [learning_rate])
        return self.normalized(advantage, weight), loss

    def normalized(self, advantage: Float[Tensor, "P B"], weight: Tensor) -> Float[Tensor, "P B"]:
        if not self.settings.normalize_returns:
            return advantage
        mean = self.data.mean(advantage, weight).unsqueeze(-1)
        std = self.data.mean((advantage - mean).square(), weight).sqrt().unsqueeze(-1)
        return advantage / (std + 1e-8)


def num_bytes_of_step(task: Task, state_size: int) -> int:
    """That one step of an environment takes in the buffer."""
    mask = math.prod(task.actions.shape) if task.has_masks else 0
    return task.obs_size * task.obs_dtype.itemsize + 8 * task.actions.num_factors + mask + 7 + 4 * state_size


def chunk_of(config: Config) -> int:
    """Steps in a row that are learned from together."""
    return config.sequence_length if config.network.memory != "none" else 1


def vector_steps_of_update(config: Config) -> int:
    """Between two updates, in whole chunks."""
    return max(1, config.reinforce.rollout_steps // config.env.num_envs // chunk_of(config)) * chunk_of(config)
