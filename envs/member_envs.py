"""Vector environments of a population, one for each member, behind one interface.

Axes: P population member · E environment · K action factor · D observation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import pad

from envs.frame_stack import FrameStack
from envs.gymnasium_adapter import GymnasiumAdapter
from envs.masks import MaskReader, Masks
from envs.transfer import MaskTransfer, StepTransfer
from envs.vector_environment import Step


class MemberEnvs:
    """A vector environment for each member, together one VectorEnvironment.

    For vector classes, whose environments all draw from one stream of random numbers: with one stream for the whole
    population, the numbers of a member would depend on the other members.
    """

    is_tensor_program = False
    has_state = False

    def __init__(self, members: Sequence[GymnasiumAdapter], device: str | torch.device = "cpu") -> None:
        """`members`: alike, on the CPU; what they give goes to `device` in one transfer."""
        first = members[0]
        self.members, self.num_members = members, len(members)
        self.num_envs = first.num_envs * len(members)
        self.device = torch.device(device)
        self.spec_id, self.render_fps = first.spec_id, first.render_fps
        self.observations, self.actions = first.observations, first.actions
        self.masks: Masks | None = None
        self._hand_over = StepTransfer(self.num_envs, self.observations.size, self.device)
        self._hand_over_masks = MaskTransfer((self.num_envs, *MaskReader(self.actions).exists.shape), self.device)

    @property
    def restarts(self) -> np.ndarray:
        return np.concatenate([member.restarts for member in self.members])

    @property
    def broken_off(self) -> np.ndarray:
        return np.concatenate([member.broken_off for member in self.members])

    def reset(self, seeds: Sequence[int] | None = None) -> Float[Tensor, "E D"]:
        seeds_of = [None] * self.num_members if seeds is None else [[seed] for seed in seeds]
        return self._gather([member.reset(own) for member, own in zip(self.members, seeds_of, strict=True)])

    def step(self, action: Int64[Tensor, "E K"]) -> Step:
        actions = action.cpu().chunk(self.num_members)
        steps = [member.step(own) for member, own in zip(self.members, actions, strict=True)]
        self._gather_masks()
        return self._hand_over(*(torch.cat(values).numpy() for values in zip(*steps, strict=True)))

    def render(self) -> Any:
        return tuple(frame for member in self.members for frame in member.render())

    def close(self) -> None:
        for member in self.members:
            member.close()

    def state(self) -> dict[str, Tensor]:
        return {}

    def expect_frame_stack_(self, stack: FrameStack | None) -> None:
        for member in self.members:
            member.expect_frame_stack_(stack)

    @property
    def frame_stack_holds(self) -> bool:
        return all(member.frame_stack_holds for member in self.members)

    def make_repeatable_(self) -> None:
        for member in self.members:
            member.make_repeatable_()

    def journal(self) -> dict[str, Tensor]:
        journals = [member.journal() for member in self.members]
        length = max(own["env/actions"].shape[1] for own in journals)
        for own in journals:
            own["env/actions"] = pad(own["env/actions"], (0, 0, 0, length - own["env/actions"].shape[1]))
        return {name: torch.cat([own[name] for own in journals]) for name in journals[0]}

    def repeat(self, journal: Mapping[str, Tensor]) -> Float[Tensor, "E D"]:
        parts = {name: rows.chunk(self.num_members) for name, rows in journal.items() if name.startswith("env/")}
        observations = []
        for index, member in enumerate(self.members):
            observations.append(member.repeat({name: part[index] for name, part in parts.items()}))
        return self._gather(observations)

    def _gather(self, observations: list[Tensor]) -> Float[Tensor, "E D"]:
        self._gather_masks()
        return torch.cat(observations).to(self.device)

    def _gather_masks(self) -> None:
        masks = [member.masks for member in self.members if member.masks is not None]
        if masks:
            self.masks = self._hand_over_masks(*(torch.cat(values).numpy() for values in zip(*masks, strict=True)))
