"""Masks of legal choices: where they come from, in any form that users give them, as booleans padded to the widest.

The mask of an environment comes from the first of these that exists:

    obs[key]              the observation is a Dict with this key (PettingZoo's convention); it is then no feature
    info[key]             Gymnasium's convention
    env.action_masks()    sb3-contrib's method, of the environment or one of its wrappers; not asked for another key

`key` is env.action_mask_key. MaskSource looks it up and reads it, in the Guard of each environment. What a vector class
gives, InfoMasks reads.

Axes: E environment · K action factor · N choices of the widest factor · A all choices, those of factor 0 first.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import Space, spaces
from jaxtyping import Bool
from torch import Tensor

from envs.errors import UserError
from envs.spaces import FactoredActions, has_mask
from envs.values import Misfit

ACTION_MASK_KEY = "action_mask"  # as Gymnasium's own environments and PettingZoo's have it


class Masks(NamedTuple):
    """Which choices are legal in two states, False where a factor has no such choice.

    obs: at the observations to act on. next_obs: at the true successors; terminal ones, where nobody acts, have all.
    """

    obs: Bool[Tensor, "*batch K N"]
    next_obs: Bool[Tensor, "*batch K N"]


class MaskSource:
    """Finds and reads the mask of one environment."""

    def __init__(self, env: gymnasium.Env, key: str | None, actions: FactoredActions) -> None:
        self.key, self.reader = key, MaskReader(actions)
        self.is_in_obs = has_mask(env.observation_space, key)
        has_method = env.has_wrapper_attr("action_masks") and callable(env.get_wrapper_attr("action_masks"))
        self.has_method = has_method and key == ACTION_MASK_KEY

    def kept(self, env: gymnasium.Env, obs: Any, info: Any, is_terminal: bool = False) -> dict[str, Any]:
        """An info with the mask, [K, N], and nothing else; empty where there is none, and in a terminal state.

        Misfit where it does not fit the actions, or leaves no choice.
        """
        if self.key is None or is_terminal:
            return {}
        if self.is_in_obs:
            if not isinstance(obs, dict) or self.key not in obs:
                raise Misfit(f"an observation without {self.key!r}, which is in its space")
            mask = obs[self.key]
        elif isinstance(info, dict) and self.key in info:
            mask = info[self.key]
        elif self.has_method:
            mask = env.get_wrapper_attr("action_masks")()
        else:
            return {}
        try:
            read = self.reader.read(mask)
        except UserError as error:
            raise Misfit(f"{error}{without_masks(self.is_in_obs)}") from None
        if not read.any(-1).all():
            factor = int(np.argmin(read.any(-1)))
            misfit = Misfit(f"an action mask without a legal choice for action factor {factor}: it is all 0 there")
            misfit.may_pass = True
            raise misfit
        return {self.key: read}


class MaskReader:
    """Reads masks of an action space in the forms that users have; 1 is legal: bool, or any numbers 0 and 1.

    One array, the factors one after the other: [n] for Discrete(n), [sum_k n_k] for MultiDiscrete, [2n] for
    MultiBinary(n) (sb3-contrib's form), the parts one after the other for Tuple and Dict. Or an array [n_k] for each
    factor in a tuple or list (Gymnasium's form for MultiDiscrete). Or, where every factor has n choices, one array
    shaped as the actions with n last: [n, 2] for MultiBinary(n). For Tuple and Dict a tuple or dict with a mask for
    each part, None where all of the part's choices are legal.
    """

    def __init__(self, actions: FactoredActions, name: str = "") -> None:
        """`name`: of a part, for errors."""
        counts = self.num_choices = actions.num_choices
        self.space, self.name = actions.space, name
        self.parts = {key: MaskReader(part, f"{name}[{key!r}]") for key, part in actions.parts.items()}
        self.exists: Bool[np.ndarray, "K N"] = np.arange(max(counts)) < np.array(counts)[:, None]
        self.is_ragged = not self.exists.all()
        self.shapes: set[tuple[int, ...]] = {(sum(counts),)}
        if not self.is_ragged and not self.parts:
            self.shapes |= {(*(actions.space.shape or ()), counts[0])}

    def read(self, mask: Any) -> Bool[np.ndarray, "K N"]:
        """The mask of one environment."""
        return self.read_each([mask])[0]

    def read_each(self, masks: np.ndarray | Sequence[Any]) -> Bool[np.ndarray, "E K N"]:
        """Masks stacked in one array, or one after the other. The result is a copy: it never aliases its argument."""
        if isinstance(masks, np.ndarray) and masks.dtype != object:
            return self._padded(self._legal(masks))
        return self._padded(self._flat_each(masks))

    def read_batch(self, masks: Any) -> Bool[np.ndarray, "E K N"]:
        """Masks in a tuple or dict of arrays, each with a first axis of environments."""
        return self._padded(self._flat(masks, is_batch=True))

    def is_batch(self, masks: Any) -> bool:
        """Whether masks of several environments are for `read_batch` rather than for `read_each`."""
        return isinstance(masks, dict) or (isinstance(masks, tuple) and isinstance(self.space, spaces.Tuple))

    def _flat_each(self, masks: np.ndarray | Sequence[Any]) -> Bool[np.ndarray, "E A"]:
        return np.concatenate([self._flat(mask, is_batch=False) for mask in masks])

    def _flat(self, masks: Any, is_batch: bool) -> Bool[np.ndarray, "E A"]:
        """`is_batch`: whether arrays have a first axis of environments already."""
        if is_batch and isinstance(masks, np.ndarray) and masks.dtype == object:  # as Gymnasium merges infos
            return self._flat_each(masks)
        masks = in_order(masks, self.space)
        if self.parts and _is_nested(masks):
            if len(masks) != len(self.parts):
                raise self._wrong_shape(f"{len(masks)} parts")
            columns = [part._flat(own, is_batch) for part, own in zip(self.parts.values(), masks, strict=True)]
            num_envs = max(len(own) for own in columns)  # 1 where all is legal
            return np.concatenate([np.broadcast_to(own, (num_envs, own.shape[1])) for own in columns], axis=1)
        if masks is None and self.name:
            return np.ones((1, sum(self.num_choices)), dtype=np.bool_)
        arrays = [array if is_batch else array[None] for array in _arrays(masks)]
        if len(arrays) == 1:
            return self._legal(arrays[0])
        if [array.shape for array in arrays] != [(*arrays[0].shape[:1], n) for n in self.num_choices]:
            shapes = ", ".join(str(list(array.shape[1:])) for array in arrays)
            raise self._wrong_shape(f"{len(arrays)} arrays {shapes}")
        return self._legal(np.concatenate(arrays, axis=1))

    def _legal(self, masks: np.ndarray) -> Bool[np.ndarray, "E A"]:
        if masks.shape[1:] not in self.shapes:
            raise self._wrong_shape(list(masks.shape[1:]))
        if masks.dtype != np.bool_ and (masks.dtype.kind not in "iuf" or ((masks != 0) & (masks != 1)).any()):
            values = f"{masks.dtype}, {masks[0].tolist()}"
            raise UserError(f"an action mask{self.name} of {values}; expected bool, or numbers 0 and 1")
        return masks.reshape(len(masks), -1).astype(np.bool_)

    def _padded(self, flat: Bool[np.ndarray, "E A"]) -> Bool[np.ndarray, "E K N"]:
        if not self.is_ragged:
            return flat.reshape(-1, *self.exists.shape)
        padded = np.zeros((len(flat), *self.exists.shape), dtype=np.bool_)
        padded[:, self.exists] = flat
        return padded

    def _wrong_shape(self, got: Any) -> UserError:
        shapes = [str(list(shape)) for shape in sorted(self.shapes, key=len)]
        if self.parts:
            shapes.append(self._structure())
        elif len(self.num_choices) > 1:
            shapes.append(f"{len(self.num_choices)} arrays {', '.join(f'[{n}]' for n in self.num_choices)}")
        return UserError(f"an action mask{self.name} of shape {got}; expected {' or '.join(shapes)}")

    def _structure(self) -> str:
        """The shapes of the parts' masks in the form of the action space."""
        if isinstance(self.space, spaces.Dict):
            return f"{{{', '.join(f'{key!r}: {part._structure()}' for key, part in self.parts.items())}}}"
        if isinstance(self.space, spaces.Tuple):
            return f"({', '.join(part._structure() for part in self.parts.values())})"
        return f"[{sum(self.num_choices)}]"


class InfoMasks:
    """The masks in the infos or observations of a vector environment. The first reset decides whether there are any."""

    def __init__(
        self, key: str, num_envs: int, actions: FactoredActions, spec_id: str, observation_space: Space, guarded: bool
    ) -> None:
        """
        Args:
            observation_space: of one environment; where it has the key, masks are there and nowhere else.
            guarded: whether a Guard has read each mask.
        """
        self.key, self.num_envs, self.spec_id, self.are_read = key, num_envs, spec_id, guarded
        self.are_in_obs = has_mask(observation_space, key)
        self.reader = MaskReader(actions)
        self.are_given: bool | None = None
        self.num_steps = 0  # since the reset

    def found(self, obs: Any, info: dict[str, Any]) -> dict[str, Any]:
        """The info of a reset or step, with the masks in it that came with the observations."""
        if not self.are_in_obs:
            return info
        final_obs = info.get("final_obs")
        if isinstance(final_obs, np.ndarray):  # one observation each, None elsewhere
            masks, given = np.full(self.num_envs, None, dtype=object), np.zeros(self.num_envs, dtype=np.bool_)
            for index, own in enumerate(final_obs):
                if own is not None:
                    masks[index], given[index] = self._of_obs(own), True
            info = info | {"final_info": {self.key: masks, f"_{self.key}": given}}
        elif final_obs is not None:
            info = info | {"final_info": {self.key: self._of_obs(final_obs)}}
        return info | {self.key: self._of_obs(obs), f"_{self.key}": True}

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
        if needed.any() and self.are_read:
            masks[needed] = info[self.key][needed]
        elif needed.any():
            try:
                rows = self._rows(info[self.key], needed)
                is_structure = isinstance(rows, dict | tuple)
                masks[needed] = self.reader.read_batch(rows) if is_structure else self.reader.read_each(rows)
            except UserError as error:
                raise UserError(f"{self.spec_id} gave {error}{without_masks(self.are_in_obs)}") from None
        require_legal_choice(masks, self.spec_id, self.num_steps)
        return masks

    def _of_obs(self, obs: Any) -> Any:
        if not isinstance(obs, dict) or self.key not in obs:
            raise UserError(f"{self.spec_id} gave an observation without {self.key!r}, which is in its space")
        return obs[self.key]

    def _rows(self, masks: Any, needed: Bool[np.ndarray, " E"], is_part: bool = False) -> Any:
        """The masks of some environments, in every array of a tuple or dict."""
        match masks:
            case dict():
                return {key: self._rows(part, needed, True) for key, part in masks.items()}
            case tuple():
                return tuple(self._rows(part, needed, True) for part in masks)
            case None if is_part:
                return None
        masks = np.asarray(masks)
        if masks.shape[:1] != (self.num_envs,):
            raise UserError(f"action masks of shape {list(masks.shape)}, not one per environment")
        return masks[needed]


def without_masks(are_in_obs: bool) -> str:
    """Of an error, how to do without masks."""
    return f"; env.action_mask_key=null {'takes it for a feature' if are_in_obs else 'ignores masks'}"


def require_legal_choice(masks: Bool[np.ndarray, "E K N"], spec_id: str, step: int) -> None:
    has_choice = masks.any(-1)
    if not has_choice.all():
        env, factor = np.argwhere(~has_choice)[0]
        raise UserError(
            f"{spec_id}: environment {env} has no legal choice for action factor {factor} at step {step} since the "
            "reset: its action mask is all 0 there"
        )


def in_order(mask: Any, action_space: Space) -> Any:
    """A mask that is a dict, or has dicts in it, with tuples in their place, in the order of the action space."""
    parts: tuple[Space, ...] = ()
    if isinstance(mask, dict):
        if not isinstance(action_space, spaces.Dict):
            raise UserError(f"an action mask that is a dict; the action space is {action_space}")
        keys = list(action_space.spaces)
        marks = [f"_{key}" for key in keys]  # in merged infos: which environments have the key
        wrong = [key for key in keys if key not in mask] or [key for key in mask if key not in [*keys, *marks]]
        if wrong:
            what = "without" if wrong[0] in keys else "with"
            raise UserError(f"an action mask {what} the key {wrong[0]!r}; expected {', '.join(map(repr, keys))}")
        mask = tuple(mask[key] for key in keys)
    match action_space:
        case spaces.Dict():
            parts = tuple(action_space.spaces.values())
        case spaces.Tuple():
            parts = action_space.spaces
    if not (isinstance(mask, tuple | list) and _is_nested(mask) and len(mask) == len(parts)):
        return mask
    return tuple(in_order(own, part) for own, part in zip(mask, parts, strict=True))


def _is_nested(mask: Any) -> bool:
    """Whether a mask is a sequence of masks."""
    if isinstance(mask, np.ndarray):
        return mask.dtype == object and mask.ndim > 0
    return isinstance(mask, tuple | list) and any(
        part is None or isinstance(part, dict | tuple | list | np.ndarray) for part in mask
    )


def _arrays(mask: Any) -> Iterator[np.ndarray]:
    """The arrays of a mask, however they are nested in tuples and lists."""
    if _is_nested(mask):
        for part in mask:
            yield from _arrays(part)
    else:
        yield np.asarray(mask)
