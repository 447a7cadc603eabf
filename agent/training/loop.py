"""The loop that a run consists of: update, step, store, act.

Axes: P member · E environment of a member · D numbers of an observation · K action factor · N choices of the widest.
"""

import logging
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from agent.action_space import ActionSpace
from agent.algorithms.base import Algorithm, Task, make_algorithm
from agent.config import Config
from agent.config_fields import ConfigError
from agent.data_ranks import UNDIVIDED, DataRanks
from agent.normalizer import make_normalizer
from agent.seeding import member_seeds
from agent.state import State, named
from agent.training.acceleration import Compiled, CudaGraphs, Runner, pays_to_compile, run_plain
from agent.training.accumulators import EpisodeStatistics, MetricMeans
from envs import ACTION_MASK_KEY, FrameStack, Masks, VectorEnvironment, find_frame_stack
from envs.random_streams import RandomStreams
from envs.vector_environment import Step

logger = logging.getLogger(__name__)


class TrainingLoop:
    """Environments and learner of a population, and the tensors between them. What `state` lists stays in place.

    An iteration is `update` as often as it is due, `step`, `store`, `act`. The next actions are chosen before the
    updates, so that a GPU learns while environments are simulated on the CPU.
    """

    def __init__(
        self,
        config: Config,
        env: VectorEnvironment,
        device: torch.device,
        check_stop: Callable[[], None] = lambda: None,
        data: DataRanks = UNDIVIDED,
    ) -> None:
        """
        Args:
            check_stop: raises where the run is asked to stop.
            data: the ranks among which the environments of each member are divided; these are this rank's.
        """
        self.config, self.env, self.device = config, env, device
        self.seeds = [member.seed for member in config.members()]
        self.num_members, self.num_envs = len(self.seeds), config.env.num_envs
        stack = find_frame_stack(env, [0] * self.num_members)  # the same for all: a member depends on no other
        env.expect_frame_stack_(stack)
        self.data = data
        seeds = member_seeds(self.seeds, "environments", *config.streams_of_part)
        first_obs = env.reset(seeds)  # first: it tells whether there are masks
        require_masks_asked_for(config, env)
        self.normalizer = make_normalizer(
            self.num_members, env.observations, enabled=config.normalize_obs, device=device
        )
        task = Task(
            obs_parts=env.observations.parts,
            obs_dtype=torch.uint8 if env.observations.are_bytes else torch.float32,
            actions=ActionSpace(env.actions.num_choices, device),
            has_masks=env.masks is not None,
            frame_stack=stack or FrameStack(),
            normalizer=self.normalizer,
            device=device,
            data=data,
        )
        self.learner: Algorithm = make_algorithm(config, task)
        self.episodes = EpisodeStatistics(self.num_members, self.num_envs, device)
        self.metrics = MetricMeans(tuple(self.learner.metrics), self.num_members, device)
        self.env_steps = torch.zeros((), dtype=torch.int64, device=device)
        self.num_updates = 0

        self.obs = self.by_member(first_obs).clone()
        self.mask: Bool[Tensor, "P E K N"] | None = None
        if env.masks is not None:
            self.mask = self.by_member(env.masks.obs).clone()
        self.all_valid = torch.ones(self.obs.shape[:2], dtype=torch.bool, device=device)
        self.normalize_with(self.obs, self.all_valid)
        shape = (*self.obs.shape[:2], task.actions.num_factors)
        self.action: Int[Tensor, "P E K"] = torch.zeros(shape, dtype=torch.int64, device=device)
        no = torch.zeros(env.num_envs, dtype=torch.bool, device=device)
        self.advanced = Step(*(x.clone() for x in (first_obs, no.float(), no, no, first_obs, no)))
        self.check_stop = check_stop
        self.run_whole, self.run_part = self.runners()
        self.act(uniform=self.learner.is_warming_up(0))

    def runners(self) -> tuple[Runner, Runner]:
        """How to run an iteration as a whole, and how to run each of its parts."""
        if not self.learner.is_static or self.data.size > 1:  # neither program holds a sum over ranks
            return run_plain, run_plain
        if self.device.type == "cuda":
            return (CudaGraphs(), run_plain) if self.env.is_tensor_program else (run_plain, CudaGraphs())
        wanted = self.config.compile
        num_updates = round(self.config.total_env_steps * self.config.updates_per_step)
        if pays_to_compile(num_updates) if wanted is None else wanted:
            return run_plain, Compiled(self.check_stop, must=bool(wanted), guards=self.config.compile_guards)
        return run_plain, run_plain

    @property
    def compiles(self) -> bool:
        return isinstance(self.run_part, Compiled) and not self.run_part.has_failed

    @property
    def steps_in_program(self) -> bool:
        """Whether compiled programs hold the environments; masks on a CPU are checked, in Python."""
        return self.compiles and self.env.is_tensor_program and self.env.masks is None

    def run_iteration(self, env_steps: int) -> None:
        """The updates due after `env_steps` of each member, and one more step of every environment."""
        num_updates = self.learner.updates_due(env_steps)
        uniform_next = self.learner.is_warming_up(env_steps + self.num_envs)
        self.transition: Step = self.run_whole(self.iteration, num_updates, uniform_next)
        self.num_updates += num_updates

    def iteration(self, num_updates: int, uniform_next: bool) -> Step:
        """`uniform_next`: whether the actions of the next iteration are random."""
        action = self.action.flatten(0, 1)
        if not self.env.is_tensor_program:
            action = action.cpu()  # now: a copy waits for all that the device has been asked to do
        for _ in range(num_updates):
            self.run_part(self.update)
        if self.steps_in_program and not uniform_next:
            self.run_part(self.advance)
            self.transition = self.advanced
            return self.transition
        self.step(action)
        if uniform_next:  # a short phase, not worth compiling
            self.store_and_act(uniform=True)
        else:
            self.run_part(self.store_and_act)
        return self.transition

    def update(self) -> None:
        """One update of every member."""
        self.metrics.add_(self.learner.update(self.progress()))

    def step(self, action: Int[Tensor, "PE K"]) -> None:
        """Takes the actions in every environment."""
        self.transition = self.env.step(action)
        if self.learner.keeps_frames and not self.env.frame_stack_holds:
            logger.warning(
                "%s: observations look like stacked frames, but one did not repeat the frames of the one before: from "
                "here on the replay keeps whole observations",
                self.env.spec_id,
            )
            self.keep_whole_observations_()

    def keep_whole_observations_(self) -> None:
        """The replay gets other tensors, so what was compiled or captured no longer fits."""
        self.learner.unstack_()
        if self.compiles:
            torch.compiler.reset()  # frees the tensors that its programs hold
        self.run_whole, self.run_part = self.runners()

    def store(self, transition: Step) -> None:
        """Takes in what came of the actions."""
        step = Step(*(self.by_member(x) for x in transition))
        learned = step if (c := self.config.clip_reward) is None else step._replace(reward=step.reward.clamp(-c, c))
        if self.mask is None or self.env.masks is None:
            self.learner.store(self.obs, self.action, learned)
        else:
            masks = Masks(self.mask, self.by_member(self.env.masks.next_obs))
            self.learner.store(self.obs, self.action, learned, masks)
            self.mask.copy_(self.by_member(self.env.masks.obs))
        self.normalize_with(step.obs, step.valid)
        self.episodes.update_(step)
        self.obs.copy_(step.obs)
        self.env_steps.add_(self.num_envs)

    def normalize_with(self, obs: Float[Tensor, "P E D"], valid: Bool[Tensor, "P E"]) -> None:
        """Has the normalizer take in the observations of all ranks that share the members."""
        if self.normalizer.any_running:
            self.normalizer.update_(self.data.gathered(obs), self.data.gathered(valid))

    def act(self, uniform: bool = False) -> None:
        """Chooses the next actions."""
        self.action.copy_(self.learner.act(self.obs, self.mask, uniform=uniform))

    def store_and_act(self, uniform: bool = False) -> None:
        """Together, as two programs take longer to compile than one."""
        self.store(self.transition)
        self.act(uniform)

    def advance(self) -> None:
        """Steps, stores and acts, where the environments can be part of the program too."""
        for place, value in zip(self.advanced, self.env.step(self.action.flatten(0, 1)), strict=True):
            place.copy_(value)
        self.store(self.advanced)
        self.act()

    def conclude(self, env_steps: int) -> None:
        """The updates due after the last step."""
        num_updates = self.learner.updates_due(env_steps)
        for _ in range(num_updates):
            self.update()
        self.num_updates += num_updates

    def pool_averages_(self) -> None:
        """Adds up what ranks that share the members have of episodes and metrics, before it is read."""
        for total in (self.episodes.ended, self.episodes.num_ended, self.metrics.total, self.metrics.count):
            self.data.add_up_(total)

    def progress(self) -> Float[Tensor, ""]:
        """Part of the run done."""
        return self.env_steps / self.config.total_env_steps

    def wait(self) -> None:
        """Returns once the device has done what it was asked to."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def state(self) -> State:
        """All tensors that an iteration changes, but of environments that cannot be saved."""
        state: State = {"obs": self.obs, "action": self.action, "env_steps": self.env_steps}
        if self.mask is not None:
            state["mask"] = self.mask
        return {
            **state,
            **named("env", self.env.state()),
            **named("learner", self.learner.state()),
            **named("normalizer", self.normalizer.state()),
            **named("episodes", self.episodes.state()),
            **named("metrics", self.metrics.state()),
        }

    def make_room_(self, saved: Mapping[str, Tensor]) -> None:
        """Has the tensors of `state` take the shapes of a checkpoint's, where these may differ."""
        prefix = "learner/"
        self.learner.make_room_({name.removeprefix(prefix): saved[name] for name in saved if name.startswith(prefix)})

    def inspect_gradients(self, streams: RandomStreams) -> dict[str, Tensor]:
        """How good the gradients are that the policy learns from; an adaptive tau moves."""
        return self.learner.inspect_gradients(self.progress(), streams)

    def by_member(self, x: Shaped[Tensor, " PE *rest"]) -> Shaped[Tensor, "P E *rest"]:
        return x.unflatten(0, (self.num_members, self.num_envs))


def require_masks_asked_for(config: Config, env: VectorEnvironment) -> None:
    """ConfigError where masks are looked for under a key of the user's and there are none."""
    key = config.env.action_mask_key
    if env.masks is None and key not in (None, ACTION_MASK_KEY):
        raise ConfigError(
            f"env.action_mask_key: got '{key}', but at its reset {env.spec_id} gives neither obs['{key}'] nor "
            f"info['{key}']"
        )
