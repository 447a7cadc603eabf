"""Masks of legal choices: in any form that users give them, and as booleans padded to the widest factor.

Axes: E environment · K action factor · N choices of the widest factor.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from envs.errors import UserError
from envs.spaces import FactoredActions

ACTION_MASK_KEY = "action_mask"  # of info, as Gymnasium's own environments have it


class Masks(NamedTuple):
    """Which choices are legal in two states, False where a factor has no such choice.

    obs: at the observations to act on. next_obs: at the true successors; terminal ones, where nobody acts, have all.
    """

    obs: Bool[Tensor, "*batch K N"]
    next_obs: Bool[Tensor, "*batch K N"]


class MaskReader:
    """Reads masks of an action space in the forms that users have; true is legal, in bool or in integers 0 and 1.

    One array, the factors one after the other: [n] for Discrete(n), [sum_k n_k] for MultiDiscrete, [2n] for
    MultiBinary(n) (sb3-contrib's form). Or an array [n_k] for each factor in a tuple or list (Gymnasium's form for
    MultiDiscrete). Or, where every factor has n choices, one array shaped as the actions with n last: [n, 2] for
    MultiBinary(n).
    """

    def __init__(self, actions: FactoredActions) -> None:
        counts = self.num_choices = actions.num_choices
        self.exists: Bool[np.ndarray, "K N"] = np.arange(max(counts)) < np.array(counts)[:, None]
        self.is_ragged = not self.exists.all()
        self.shapes: set[tuple[int, ...]] = {(sum(counts),)}
        if not self.is_ragged:
            self.shapes |= {(*(actions.space.shape or ()), counts[0])}

    def read(self, mask: Any) -> Bool[np.ndarray, "K N"]:
        """The mask of one environment."""
        return self.read_each([mask])[0]

    def read_each(self, masks: np.ndarray | Sequence[Any]) -> Bool[np.ndarray, "E K N"]:
        """Masks stacked in one array, or one after the other. The result is a copy: it never aliases its argument."""
        if isinstance(masks, np.ndarray) and masks.dtype != object:
            flat = self._flat(masks)
        else:
            flat = np.concatenate([self._flat(self._array(mask)[None]) for mask in masks])
        if not self.is_ragged:
            return flat.reshape(-1, *self.exists.shape)
        padded = np.zeros((len(flat), *self.exists.shape), dtype=np.bool_)
        padded[:, self.exists] = flat
        return padded

    def _flat(self, masks: np.ndarray) -> Bool[np.ndarray, "E A"]:
        if masks.shape[1:] not in self.shapes:
            raise self._wrong_shape(list(masks.shape[1:]))
        if masks.dtype != np.bool_ and (masks.dtype.kind not in "iu" or ((masks != 0) & (masks != 1)).any()):
            raise UserError(f"an action mask of {masks.dtype}, {masks[0].tolist()}; expected bool, or int8 of 0 and 1")
        return masks.reshape(len(masks), -1).astype(np.bool_)

    def _array(self, mask: Any) -> np.ndarray:
        """One mask as one array, its factors' arrays joined."""
        parts = list(_parts(mask))
        if len(parts) == 1:
            return parts[0]
        if [part.shape for part in parts] != [(n,) for n in self.num_choices]:
            raise self._wrong_shape(f"{len(parts)} arrays {', '.join(str(list(part.shape)) for part in parts)}")
        return np.concatenate(parts)

    def _wrong_shape(self, got: Any) -> UserError:
        shapes = [str(list(shape)) for shape in sorted(self.shapes, key=len)]
        if len(self.num_choices) > 1:
            shapes.append(f"{len(self.num_choices)} arrays {', '.join(f'[{n}]' for n in self.num_choices)}")
        return UserError(f"an action mask of shape {got}; expected {' or '.join(shapes)}")


class InfoMasks:
    """The masks in the infos of a vector environment. The first reset decides whether there are any."""

    def __init__(self, key: str, num_envs: int, actions: FactoredActions, spec_id: str) -> None:
        self.key, self.num_envs, self.spec_id = key, num_envs, spec_id
        self.reader = MaskReader(actions)
        self.are_given: bool | None = None
        self.num_steps = 0  # since the reset

    def are_in(self, info: dict[str, Any]) -> bool:
        """Whether there are masks to read. UserError where this info has some and that of the first reset had none."""
        if self.are_given is None:
            self.are_given = self.key in info
        if self.key in info and not self.are_given:
            raise UserError(
                f"{self.spec_id} gave info['{self.key}'] at step {self.num_steps}, but not at the first reset: "
                "a mask must come with every observation, or set env.action_mask_key=null to ignore it"
            )
        return self.are_given

    def read(self, info: dict[str, Any], needed: Bool[np.ndarray, " E"]) -> Bool[np.ndarray, "E K N"]:
        """The masks of the environments where they are needed, all choices in the others.

        UserError where one is missing, does not fit or leaves no choice.
        """
        given = info.get(f"_{self.key}", self.key in info)
        missing = np.flatnonzero(needed & ~np.broadcast_to(given, self.num_envs).astype(np.bool_))
        if len(missing):
            raise UserError(
                f"{self.spec_id}: environment {missing[0]} gave no info['{self.key}'] at step {self.num_steps}: where "
                "there are masks, one must come with every observation, the last of an episode included"
            )
        masks = np.broadcast_to(self.reader.exists, (self.num_envs, *self.reader.exists.shape)).copy()
        if needed.any():
            try:
                if np.shape(info[self.key])[:1] != (self.num_envs,):
                    raise UserError(f"action masks of shape {list(np.shape(info[self.key]))}, not one per environment")
                masks[needed] = self.reader.read_each(info[self.key][needed])
            except UserError as error:
                raise UserError(f"{self.spec_id} gave {error}") from None
        require_legal_choice(masks, self.spec_id, self.num_steps)
        return masks


def require_legal_choice(masks: Bool[np.ndarray, "E K N"], spec_id: str, step: int) -> None:
    has_choice = masks.any(-1)
    if not has_choice.all():
        env, factor = np.argwhere(~has_choice)[0]
        raise UserError(
            f"{spec_id}: environment {env} has no legal choice for action factor {factor} at step {step} since the "
            "reset: its action mask is all 0 there"
        )


def _parts(mask: Any) -> Iterator[np.ndarray]:
    """The arrays of a mask, however they are nested in tuples and lists."""
    is_nested = isinstance(mask, tuple | list) and any(isinstance(part, tuple | list | np.ndarray) for part in mask)
    if is_nested or (isinstance(mask, np.ndarray) and mask.dtype == object and mask.ndim > 0):
        for part in mask:
            yield from _parts(part)
    else:
        yield np.asarray(mask)
