"""The loop that a run consists of: learn, step every environment, take in what came of it, choose the next actions."""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Generator, Tensor

from agent.action_space import ActionSpace
from agent.config import Config, ConfigError
from agent.gumbel_actor_critic import GumbelActorCritic
from agent.normalizer import ObservationNormalizer
from agent.reinforce import Reinforce
from agent.state import State, named
from agent.training.acceleration import CudaGraphs, compiled, pays_to_compile
from agent.training.accumulators import EpisodeStatistics, MetricMeans
from envs import ACTION_MASK_KEY, Masks, Step, VectorEnvironment

logger = logging.getLogger(__name__)

ALGORITHMS: dict[str, type[GumbelActorCritic] | type[Reinforce]] = {
    "gumbel_actor_critic": GumbelActorCritic,
    "reinforce": Reinforce,
}


class TrainingLoop:
    """Environments and learner of a population, and the tensors between them. All state stays in place."""

    def __init__(
        self,
        config: Config,
        env: VectorEnvironment,
        device: torch.device,
        env_seed: int = 0,
        learner_seed: int = 0,
    ) -> None:
        self.config, self.env, self.device = config, env, device
        self.num_members, self.num_envs = len(config.members()), config.env.num_envs
        binary = torch.from_numpy(env.observations.binary)
        self.normalizer = ObservationNormalizer(self.num_members, binary, enabled=config.normalize_obs, device=device)
        self.generator = Generator(device).manual_seed(learner_seed)
        first_obs = env.reset([env_seed])  # first, as it tells whether the environment gives masks
        require_masks_asked_for(config, env)
        self.learner = ALGORITHMS[config.algorithm](
            config,
            env.observations.size,
            ActionSpace(env.actions.num_choices, device),
            self.normalizer,
            device,
            self.generator,
            obs_dtype=torch.uint8 if env.observations.are_bytes else torch.float32,
            has_masks=env.masks is not None,
        )
        self.episodes = EpisodeStatistics(self.num_members, self.num_envs, device)
        self.metrics = MetricMeans(self.learner.metric_names, self.num_members, device)
        self.env_steps = torch.zeros((), dtype=torch.int64, device=device)
        self.num_updates = 0

        self.obs = self.by_member(first_obs).clone()
        self.mask: Bool[Tensor, "P E K N"] | None = None
        if env.masks is not None:
            self.mask = self.by_member(env.masks.obs).clone()
        self.all_valid = torch.ones(self.obs.shape[:2], dtype=torch.bool, device=device)
        self.normalizer.update(self.obs, self.all_valid)
        self.action: Int[Tensor, "P E K"] = self.learner.explore(
            self.obs, self.learner.draw_exploration(), uniform=self.learner.is_warming_up(0), mask=self.mask
        )
        self.steady_updates = math.ceil(config.updates_per_step * self.num_envs)  # of most iterations that learn
        self.take_steady_turn: Callable[..., None] = self.take_turn
        self.graphs: CudaGraphs | None = None
        self.compiles = False
        if self.learner.is_static:
            self.accelerate()

    def accelerate(self) -> None:
        """Where the learner is one static tensor program: CUDA graphs, or C++ where it pays."""
        if self.device.type == "cuda":
            self.graphs = CudaGraphs([self.generator])
            return
        num_updates = round(self.config.total_env_steps * self.config.updates_per_step)
        wanted = self.config.compile
        self.compiles = pays_to_compile(num_updates) if wanted is None else wanted
        if self.compiles:
            self.take_steady_turn = self.compile_and_take_turn

    def iterate(self, env_steps: int) -> None:
        """The updates due after `env_steps` of each member, and one more step of every environment."""
        num_updates = self.learner.updates_due(env_steps)
        uniform = self.learner.is_warming_up(env_steps + self.num_envs)
        if self.graphs is None:
            self.turn(num_updates, uniform)
        elif self.env.is_tensor_program:
            self.graphs(self.turn, num_updates, uniform)
        else:  # the device learns while the environments are simulated
            action = self.action.flatten(0, 1).cpu()  # before: a copy waits for what the device has to do
            self.graphs(self.draw_and_learn, num_updates)
            self.step = self.env.step(action)
            self.graphs(self.draw_and_take_in, uniform)
        self.num_updates += num_updates

    def conclude(self, env_steps: int) -> None:
        """The updates due after the last step."""
        self.draw_and_learn(self.learner.updates_due(env_steps))

    def wait(self) -> None:
        """Returns once the device has done what it was asked to."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def begin_episodes(self, env_steps: int, seed: int) -> None:
        """Has every environment begin anew. Episodes under way end as by a time limit and count in no statistics."""
        self.wait()  # the environment writes to memory that copies to the device may still be read from
        self.learner.end_episodes(self.obs)
        self.episodes.running.zero_()
        self.obs.copy_(self.by_member(self.env.reset([seed])))
        if self.mask is not None and self.env.masks is not None:
            self.mask.copy_(self.by_member(self.env.masks.obs))
        self.normalizer.update(self.obs, self.all_valid)
        uniform = self.learner.is_warming_up(env_steps)
        draw = self.learner.draw_exploration()
        self.action.copy_(self.learner.explore(self.obs, draw, uniform=uniform, mask=self.mask))

    def state(self) -> State:
        """All tensors that an iteration changes, but of environments that cannot be saved."""
        state: State = {"obs": self.obs, "action": self.action, "env_steps": self.env_steps, "random": self.generator}
        if self.mask is not None:
            state["mask"] = self.mask
        state |= named("env", self.env.state())
        parts = {"learner": self.learner, "normalizer": self.normalizer, "episodes": self.episodes}
        for name, part in {**parts, "metrics": self.metrics}.items():
            state |= named(name, part.state())
        return state

    def inspect_gradients(self, generator: Generator) -> dict[str, Tensor]:
        """How good the gradients are that the policy learns from; an adaptive tau moves."""
        return self.learner.inspect_gradients(self.env_steps / self.config.total_env_steps, generator)

    def turn(self, num_updates: int, uniform: bool) -> None:
        draws = [self.learner.draw_update() for _ in range(num_updates)]
        draw = self.learner.draw_exploration()
        step = self.env.step(self.action.flatten(0, 1))
        if uniform or num_updates != self.steady_updates:
            self.take_turn(draws, step, self.env.masks, draw, uniform)
        else:
            self.take_steady_turn(draws, step, self.env.masks, draw, uniform)

    def take_turn(self, update_draws: list[Any], step: Step, masks: Masks | None, draw: Any, uniform: bool) -> None:
        """Everything of an iteration but random draws and environments.

        No update reads what this call writes: compiled, no buffer need be copied.
        """
        self.learn(update_draws)
        self.take_in(step, masks, draw, uniform)

    def compile_and_take_turn(self, *args: Any) -> None:
        """The first steady turn. Where compilation fails and nobody asked for it, the run goes on without."""
        program = compiled(self.take_turn)
        try:
            program(*args)
        except Exception as error:  # whatever a compiler can fail with; nothing was run
            reason = str(error).strip().splitlines()[0]
            if self.config.compile:
                raise ConfigError(f"compile: got true, but that fails here: {reason}") from error
            logger.warning("the run goes on uncompiled, and slower (compile=false spares the attempt): %s", reason)
            self.compiles, self.take_steady_turn = False, self.take_turn
            self.take_turn(*args)
        else:
            self.take_steady_turn = program

    def draw_and_learn(self, num_updates: int) -> None:
        self.learn([self.learner.draw_update() for _ in range(num_updates)])

    def draw_and_take_in(self, uniform: bool) -> None:
        self.take_in(self.step, self.env.masks, self.learner.draw_exploration(), uniform)

    def learn(self, update_draws: list[Any]) -> None:
        progress = self.env_steps / self.config.total_env_steps
        for draw in update_draws:
            self.metrics.add(self.learner.learn(progress, draw))

    def take_in(self, step: Step, masks: Masks | None, draw: Any, uniform: bool) -> None:
        """Takes in one step of every environment and chooses the next actions."""
        step = Step(*(self.by_member(x) for x in step))
        if self.mask is None or masks is None:
            self.learner.observe(self.obs, self.action, step)
        else:
            self.learner.observe(self.obs, self.action, step, Masks(self.mask, self.by_member(masks.next_obs)))
            self.mask.copy_(self.by_member(masks.obs))
        self.normalizer.update(step.obs, step.valid)
        self.episodes.update(step)
        self.obs.copy_(step.obs)
        self.env_steps.add_(self.num_envs)
        self.action.copy_(self.learner.explore(self.obs, draw, uniform=uniform, mask=self.mask))

    def by_member(self, x: Shaped[Tensor, " PE *rest"]) -> Shaped[Tensor, "P E *rest"]:
        return x.unflatten(0, (self.num_members, self.num_envs))


def require_masks_asked_for(config: Config, env: VectorEnvironment) -> None:
    """ConfigError where masks are looked for under a key of the user's and there are none."""
    key = config.env.action_mask_key
    if env.masks is None and key not in (None, ACTION_MASK_KEY):
        raise ConfigError(f"env.action_mask_key: got '{key}', but {env.spec_id} gives no info['{key}'] at its reset")
