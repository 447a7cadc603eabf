"""What off-policy algorithms share: warm-up, a replay of n-step windows, and how many updates are due."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from agent import losses
from agent.algorithms.base import Algorithm, Task
from agent.config import Config
from agent.config_fields import ConfigError
from agent.replay import Batch, Replay, SequenceBatch, Window
from agent.seeding import member_seeds
from agent.state import State, named
from envs.masks import Masks
from envs.random_streams import RandomStreams
from envs.vector_environment import Step


class OffPolicy(Algorithm):
    """Learns from a replay; the algorithm adds `act` and `update`. All its random numbers come from `streams`."""

    is_static = True
    reads_sequences: ClassVar[bool] = False  # whether it can have a memory

    def __init__(self, config: Config, task: Task) -> None:
        if config.network.memory != "none" and not self.reads_sequences:
            raise ConfigError(
                f"network.memory: got '{config.network.memory}', but {config.algorithm} does not learn from sequences; "
                "use none (a class that does has reads_sequences = True)"
            )
        self.config, self.actions, self.normalizer, self.device = config, task.actions, task.normalizer, task.device
        self.seeds = [member.seed for member in config.members()]
        self.num_members, self.num_envs = len(self.seeds), config.env.num_envs
        self.data = task.data
        self.streams = RandomStreams(member_seeds(self.seeds, "learner", *config.streams_of_part), self.device)
        self.learns_from = torch.tensor(learns_from(config))  # on the CPU: later where a replay is filled again
        self.first_n, self.last_n = self.tensor(config.per_member_pairs("n_step")).unbind(1)  # of the run
        of_all = self.tensor(config.whole().per_member_pairs("n_step"))  # members may move to another process
        self.largest_n = int(of_all.max())
        self.counts_all_steps = bool((of_all == self.largest_n).all())
        self.memory_size = config.network.state_size
        memory_shape = (self.num_members, self.num_envs, self.memory_size)
        self.memory = torch.zeros(memory_shape, device=self.device)  # before the last obs that was acted on
        self.burn_in, self.num_learned = config.burn_in, config.sequence_length
        self.num_sequences = config.batch_size // self.num_learned
        self.batch_rows = self.num_sequences * self.num_learned if self.memory_size else config.batch_size
        self.replay = Replay(
            self.num_members,
            self.num_envs,
            config.replay_capacity,
            task.obs_size,
            task.actions.num_factors,
            self.largest_n,
            self.per_member("gamma"),
            max_steps=config.total_env_steps,
            frame_stack=task.frame_stack,
            checkpoint_bytes=int(config.checkpoint.replay_gib * 2**30) if config.checkpoint.every_env_steps else 0,
            obs_dtype=task.obs_dtype,
            mask_shape=(task.actions.num_factors, task.actions.width) if task.has_masks else None,
            state_size=self.memory_size,
            longest_sequence=self.burn_in + self.num_learned + 1 if self.memory_size else 1,
            device=self.device,
        )
        self.replay_bytes = self.replay.num_bytes

    @classmethod
    def require_updates(cls, config: Config) -> None:
        starts, total = config.learning_starts, config.total_env_steps
        if starts >= total:
            raise ConfigError(
                f"learning_starts: got {starts}, must be below total_env_steps={total}, or the run ends before its "
                "first update; lower learning_starts or raise total_env_steps"
            )
        if not num_updates(config):
            raise ConfigError(
                f"updates_per_step: got {config.updates_per_step:g}, which makes no update in the steps between "
                f"learning_starts={starts} and total_env_steps={total}; raise updates_per_step or total_env_steps"
            )

    def tensor(self, values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def per_member(self, key: str) -> Float[Tensor, " P"]:
        """The value of a setting for each member, swept or not."""
        return self.tensor(self.config.per_member(key))

    def is_warming_up(self, env_steps: int) -> bool:
        return env_steps < self.config.learning_starts

    def updates_due(self, env_steps: int) -> int:
        since = env_steps - int(self.learns_from)
        return updates_until(self.config, since) - updates_until(self.config, since - self.num_envs)

    def store(
        self, obs: Float[Tensor, "P E D"], action: Int[Tensor, "P E K"], step: Step, masks: Masks | None = None
    ) -> None:
        state = self.memory if self.memory_size else None
        self.replay.add_(
            obs, action, step.reward, step.terminated, step.truncated, step.next_obs, step.valid, masks, state
        )

    def sample_(self, progress: Float[Tensor, ""]) -> tuple[Batch, Masks | None]:
        """The next batch of the replay, observations normalized; and the masks at its obs and next_obs."""
        environment, transition, part = self.streams.uniform(3, self.config.batch_size).unbind(1)
        window = self.replay.sample(environment, transition)
        length = self.steps_counted(window, progress, part)
        batch = self.replay.batch(window, length)
        obs, next_obs = self.normalizer(batch.obs), self.normalizer(batch.next_obs)
        return batch._replace(obs=obs, next_obs=next_obs), self.replay.masks(window, length)

    def sample_sequences_(self, progress: Float[Tensor, ""]) -> tuple[SequenceBatch, Masks | None]:
        """The same for a network with memory, of steps in a row."""
        part = self.streams.uniform(self.batch_rows)
        environment, transition = self.streams.uniform(2, self.num_sequences).unbind(1)
        sequences = self.replay.sequences(environment, transition, self.burn_in, self.num_learned)
        length = self.steps_counted(sequences.window, progress, part)
        batch = self.replay.sequence_batch(sequences, length, self.burn_in)
        masks = self.replay.masks(sequences.window, length)
        if masks is not None:  # where there is no transition all is legal
            none = (batch.weight == 0)[..., None, None]
            masks = Masks(masks.obs | none, masks.next_obs | none)
        obs = self.normalizer(batch.obs.flatten(1, 2)).view_as(batch.obs)
        return batch._replace(obs=obs), masks

    def steps_counted(
        self, window: Window, progress: Float[Tensor, ""], part: Float64[Tensor, "P B"]
    ) -> Int[Tensor, "P B"]:
        """How many of each window's steps its target sums."""
        if self.counts_all_steps:
            return window.length
        return losses.steps_counted(window.length, self.first_n, self.last_n, progress, part)

    @property
    def keeps_frames(self) -> bool:
        return self.replay.frame_stack.num_frames > 1

    def unstack_(self) -> None:
        self.replay.unstack_()

    def make_room_(self, saved: Mapping[str, Tensor]) -> None:
        self.replay.make_room_({name.removeprefix("replay/"): saved[name] for name in saved if "replay/" in name})

    def refill_replay_(self, env_steps: int) -> None:
        self.learns_from.fill_(learns_from(self.config) + env_steps)

    def state(self) -> State:
        state: State = {"learns_from": self.learns_from}
        return {**state, **named("replay", self.replay.state()), **named("streams", self.streams.state())}


def learns_from(config: Config) -> int:
    """The environment steps of a member after which updates begin to be due."""
    return config.learning_starts // config.env.num_envs * config.env.num_envs


def updates_until(config: Config, env_steps: int) -> int:
    """How many are due by then, `env_steps` counted from where updates begin."""
    return math.floor(config.updates_per_step * max(0, env_steps) + 1e-6)


def num_updates(config: Config) -> int:
    """Of a whole run that is never resumed with an empty replay."""
    return updates_until(config, config.last_env_step - learns_from(config))
