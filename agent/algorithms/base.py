"""What an algorithm offers to the loop, the checkpoints, the policy files and the metrics.

Axes: P member · E environment of a member · D numbers of an observation · K action factor · N choices of the widest.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from pydantic import ValidationError
from torch import Tensor

from agent.action_space import ActionSpace
from agent.config import Config
from agent.config_fields import ConfigError, Section, imported
from agent.data_ranks import UNDIVIDED, DataRanks
from agent.metrics import Metric
from agent.networks.heads import Actor
from agent.normalizer import ObservationNormalizer
from agent.state import State
from envs.frame_stack import FrameStack
from envs.masks import Masks
from envs.random_streams import RandomStreams
from envs.spaces import ObsPart
from envs.vector_environment import Step

CLASSES = {  # of the built-in algorithms
    "gumbel_actor_critic": "agent.algorithms.gumbel_actor_critic:GumbelActorCritic",
    "reinforce": "agent.algorithms.reinforce:Reinforce",
}


class Task(NamedTuple):
    """What a population acts on. `normalizer` is kept up to date by the loop."""

    obs_parts: tuple[ObsPart, ...]  # of an observation, one after the other
    obs_dtype: torch.dtype  # to keep observations in
    actions: ActionSpace
    has_masks: bool
    normalizer: ObservationNormalizer
    device: torch.device
    frame_stack: FrameStack = FrameStack()  # how observations stack frames, if they do
    data: DataRanks = UNDIVIDED  # the ranks that share the data of each member: pool gradients and means over them

    @property
    def obs_size(self) -> int:
        return sum(part.size for part in self.obs_parts)


@runtime_checkable
class Algorithm(Protocol):
    """All members of a population and how they learn. Members lie along the first axis of everything and never mix.

    Every tensor stays in place after `__init__`. Where `is_static`, no method branches on a tensor's value either, so
    that act, store and update can be compiled or captured.
    """

    is_static: ClassVar[bool]
    metrics: ClassVar[Mapping[str, Metric]]  # that `update` returns
    Settings: ClassVar[type[Section]] = Section  # the settings of its own, given as algorithm_kwargs
    pools_data: ClassVar[bool] = False  # whether `update` pools gradients and means by `task.data` (parallel.data)
    num_inspections: int = 50  # of gradients, evenly over the run
    actor: Actor  # the policy that acts
    evaluated_actor: Actor  # the policy that is evaluated and saved; may be the same
    replay_bytes: int = 0  # of memory that a replay takes

    def __init__(self, config: Config, task: Task) -> None: ...

    @classmethod
    def require_updates(cls, config: Config) -> None:
        """ConfigError where a run would end without an update, by the settings that the algorithm reads."""

    def is_warming_up(self, env_steps: int) -> bool:
        """Whether actions are uniform after so many environment steps of a member."""
        return False

    def updates_due(self, env_steps: int) -> int:
        """How many updates follow the step that made it so many."""
        ...

    def act(
        self, obs: Float[Tensor, "P E D"], mask: Bool[Tensor, "P E K N"] | None = None, *, uniform: bool = False
    ) -> Int[Tensor, "P E K"]:
        """The actions to take next while training; uniform: random ones.

        Called once before the first step and after each `store`. The actions that `store` gets are those of the last
        call; a call may be repeated before, where environments are reset.
        """
        ...

    def store(
        self, obs: Float[Tensor, "P E D"], action: Int[Tensor, "P E K"], step: Step, masks: Masks | None = None
    ) -> None:
        """Takes in one step of every environment, in copies: the next step overwrites the tensors of this one.

        `masks` are of obs and of the step's next_obs.
        """
        ...

    def update(self, progress: Float[Tensor, ""]) -> dict[str, Float[Tensor, " P"]]:
        """One update of every member; its metrics, NaN where a member has none.  `progress`: part of the run done."""
        ...

    def are_finite(self) -> Bool[Tensor, " P"]:
        """Which members' parameters are all finite."""
        ...

    def state(self) -> State:
        """All tensors that change, by name; those of a replay under "replay/".

        Each has the members along its first axis; what all members share has no axis.
        """
        ...

    def learned(self) -> State:
        """Of `state` what a member has learned, for population-based training: parameters, averages, moments."""
        return {}

    def tunable(self) -> dict[str, Tensor]:
        """Settings that may be changed in place while the run is under way, members along the first axis."""
        return {}

    @property
    def keeps_frames(self) -> bool:
        """Whether a replay keeps each frame of a stack once, and relies on the next observation to repeat it."""
        return False

    def unstack_(self) -> None:
        """Observations do not stack frames after all. The one call that tensors need not outlive in place."""

    def make_room_(self, saved: Mapping[str, Tensor]) -> None:
        """Has the tensors of `state` take the shapes of a checkpoint's."""

    def refill_replay_(self, env_steps: int) -> None:
        """The run resumes after so many steps with an empty replay."""

    def inspect_gradients(self, progress: Float[Tensor, ""], streams: RandomStreams) -> dict[str, Float[Tensor, " P"]]:
        """Further metrics, measured `num_inspections` times in a run.

        Random numbers come from `streams`, a row a member.
        """
        return {}

    def weights_to_save(self) -> dict[str, dict[str, Tensor]]:
        """Files of weights to write beside the policies at the end of a run: names and tensors, members first."""
        return {}


def make_algorithm(config: Config, task: Task) -> Algorithm:
    """The algorithm that a config names, with its settings."""
    found = algorithm_class(config.algorithm)
    own_settings(getattr(found, "Settings", Section), config.algorithm_kwargs)
    if task.data.size > 1 and not getattr(found, "pools_data", False):
        raise ConfigError(
            f"parallel.data: got true, but {config.algorithm} does not pool the gradients of several ranks (a class "
            "that does has pools_data = True); leave it out"
        )
    return found(config, task)


def require_updates(config: Config) -> None:
    """ConfigError where a run of this config would end without an update, or without the algorithm that it names."""
    check = getattr(algorithm_class(config.algorithm), "require_updates", None)
    if check is not None:
        check(config)


def algorithm_class(name: str) -> Any:
    """The class that a setting names.  Imports the module of "module:Class"; ConfigError where it is not there."""
    found = imported("algorithm", CLASSES.get(name, name))
    needed = ("metrics", "is_static", "act", "store", "update", "updates_due", "are_finite", "state")
    missing = [key for key in needed if getattr(found, key, None) in (None, getattr(Algorithm, key, None))]
    if missing:
        raise ConfigError(
            f"algorithm: got '{name}', which lacks {', '.join(missing)}; see agent/algorithms/base.py: Algorithm"
        )
    return found


def own_settings(declared: type[Section], kwargs: Mapping[str, Any]) -> Any:
    """algorithm_kwargs as a class declares them in `Settings`.  ConfigError with every fault."""
    try:
        return declared.model_validate(dict(kwargs))
    except ValidationError as error:
        known = ", ".join(declared.model_fields) or "none"
        faults = [
            f"algorithm_kwargs.{'.'.join(map(str, f['loc']))}: {f['msg'].removeprefix('Value error, ')}"
            for f in error.errors()
        ]
        raise ConfigError("\n".join([*faults, f"this algorithm has the settings: {known}"])) from None
