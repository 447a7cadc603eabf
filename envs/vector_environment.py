"""The interface of all vector environments, and how their random numbers are seeded.

Axes: P population member · E environment · K action factor · D observation · T step.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from envs.frame_stack import FrameStack
from envs.masks import Masks
from envs.spaces import FactoredActions, FlatObservations


class Step(NamedTuple):
    """What one step of all environments gave. Tensors may be shared between fields, and the next step may overwrite
    them: do not write to them, and copy what must outlive it.

    obs: what to act on next. next_obs: the true successor of the action, the terminal observation where the episode
    ended. valid: False for the filler step of NEXT_STEP autoreset, whose action was ignored: leave it out everywhere.
    """

    obs: Float[Tensor, "E D"]
    reward: Float[Tensor, " E"]
    terminated: Bool[Tensor, " E"]
    truncated: Bool[Tensor, " E"]
    next_obs: Float[Tensor, "E D"]
    valid: Bool[Tensor, " E"]


@runtime_checkable
class VectorEnvironment(Protocol):
    """Environments of all members of a population, stepped together as tensors.

    Each member has `num_envs // num_members` of them; those of one member follow one another, member 0 first. What a
    member's environments do depends on its own seed and actions alone: not on the number of members, nor on its place
    among them.

    num_envs: of all members. device: where the tensors lie. spec_id: the id that errors name.
    observations, actions: how the spaces of one environment become tensors.
    masks: the legal choices after the last reset or step, shared as a Step's tensors are; None where there are none.
        The first reset decides for good whether there are any.
    render_fps: frames a second at which an episode looks natural.
    is_tensor_program: whether `step` is a static program of tensor operations, which a CUDA graph can hold.
    has_state: whether `state` holds all that changes, so that a checkpoint can hold it. Environments without state are
        brought back by a seeded reset and by repeating the actions since: see `journal`. So that these stay few, they
        are reset with a new seed from time to time, each at the end of an episode: no episode is cut for it.
    """

    num_envs: int
    num_members: int
    device: torch.device
    spec_id: str
    observations: FlatObservations
    actions: FactoredActions
    masks: Masks | None
    render_fps: int
    is_tensor_program: bool
    has_state: bool

    @property
    def restarts(self) -> np.ndarray:
        """How often each environment failed and was replaced, [E]."""

    @property
    def broken_off(self) -> np.ndarray:
        """Whose episode the last step broke off, as the environment failed, [E]."""

    def reset(self, seeds: Sequence[int] | None = None) -> Float[Tensor, "E D"]:
        """Starts a new episode in every environment.

        Args:
            seeds: one for each member, from which all random numbers of its environments follow. None: each
                environment continues its random numbers; new environments are seeded from the system's entropy.
        """

    def step(self, action: Int64[Tensor, "E K"]) -> Step:
        """Acts in every environment. One whose episode ends is reset by itself."""

    def render(self) -> Any:
        """Returns a frame of each environment, in the render mode that they were made with."""

    def close(self) -> None:
        """Releases what the environments hold. They cannot be used afterwards."""

    def state(self) -> dict[str, Tensor]:
        """All that changes, live: written back in place, the environments continue from there. Empty without state.

        Each tensor has the environments along its first axis; what they share has no axis.
        """

    def expect_frame_stack_(self, stack: FrameStack | None) -> None:
        """From the next reset on, holds every observation against the frames that it is said to repeat."""

    @property
    def frame_stack_holds(self) -> bool:
        """Whether every observation since has repeated the frames expected of it."""

    def make_repeatable_(self) -> None:
        """From the next reset on, records the actions for the journal, and reseeds vector classes now and then.

        No effect where there is a state.
        """

    def journal(self) -> dict[str, Tensor]:
        """Each environment's last seeded reset and the actions since, enough for `repeat`. Empty where there is state.

        env/seeds: int64 [P], of the last `reset`. env/segments: int64 [E], how often it was reseeded since.
        env/num_steps: int64 [E], since it was last seeded. env/actions: int32 [E, T, K], of an environment's row the
        first num_steps count. env/restarts: int64 [E].
        """

    def repeat(self, journal: Mapping[str, Tensor]) -> Float[Tensor, "E D"]:
        """Brings every environment to where the journal was written; returns what to act on next.

        Without state: resets and takes the actions again. This leads to the same place if the environment is
        deterministic given its seed. With a state there is nothing to repeat, once the state has been written back.
        """


def environment_seeds(seeds: Sequence[int], envs_per_member: int) -> list[int]:
    """A seed below 2^31 for each environment; those of a member follow from the member's own seed alone."""
    states = [np.random.SeedSequence(seed).generate_state(envs_per_member) for seed in seeds]
    return [int(state >> 1) for of_member in states for state in of_member]


def segment_seed(seed: int, number: int) -> int:
    """The seed of an environment's segment, the first of which has number 0; below 2^31."""
    return seed if number == 0 else int(np.random.SeedSequence([seed, number]).generate_state(1)[0] >> 1)


def entropy_seeds(count: int) -> list[int]:
    """Seeds that differ from call to call."""
    return np.random.SeedSequence().generate_state(count).tolist()
