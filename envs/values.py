"""What environments return, made to fit: a value with one meaning is accepted, any other is a Misfit that names it.

Axes: E environment · R reward of an environment that gives several.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Float32

LARGEST = 1e18  # the squares of larger numbers overflow float32
TUPLES = {  # Gymnasium's interface, by the call
    "reset": "(obs, info)",
    "step": "(obs, reward, terminated, truncated, info)",
}


class Misfit(ValueError):
    """A value that does not fit; the text is what an environment returned, and what was expected."""

    may_pass = False  # whether the environment may return what fits another time


def as_tuple(answer: Any, call: str) -> tuple[Any, ...]:
    """What a call of an environment returned, if that is as many values as Gymnasium's interface has."""
    length = 2 if call == "reset" else 5
    if not isinstance(answer, tuple | list) or len(answer) != length:
        got = f"{len(answer)} values" if isinstance(answer, tuple) else describe(answer)
        raise Misfit(f"{got}; expected {TUPLES[call]}, as Gymnasium's interface has it since version 0.26")
    return tuple(answer)


def fitting_obs(obs: Any, space: spaces.Space) -> Any:
    """The observation of one environment in the shape of its space. Spaces without numbers are left alone."""
    match space:
        case spaces.Box():
            if type(obs) is np.ndarray and obs.shape == space.shape and obs.dtype == space.dtype:
                return obs
            return fitting_array(obs, space)
        case spaces.MultiBinary() | spaces.MultiDiscrete():
            array = fitting_array(obs, space)
            if not space.contains(array):
                raise Misfit(f"an observation outside of its space {space}: {describe(obs)}")
            return array
        case spaces.Discrete():
            return fitting_integer(obs, space)
        case spaces.Dict():
            if not isinstance(obs, dict) or (missing := [key for key in space.spaces if key not in obs]):
                lacking = f" without {missing[0]!r}" if isinstance(obs, dict) else ""
                raise Misfit(f"an observation{lacking} that is {describe(obs)}; its space is {space}")
            return {key: fitting_obs(obs[key], part) for key, part in space.spaces.items()}
        case spaces.Tuple(spaces=()):  # in the place of a part that is left out
            return ()
        case spaces.Tuple():
            if not isinstance(obs, tuple | list) or len(obs) != len(space.spaces):
                raise Misfit(f"an observation that is {describe(obs)}; its space is {space}")
            return tuple(fitting_obs(value, part) for value, part in zip(obs, space.spaces, strict=True))
    return obs


def fitting_array(obs: Any, space: spaces.Box | spaces.MultiBinary | spaces.MultiDiscrete) -> np.ndarray:
    array = numbers(obs, "an observation")
    if array.shape != space.shape:
        if without_ones(array.shape) != without_ones(space.shape):
            raise Misfit(f"an observation of shape {array.shape}, its space has {space.shape}")
        array = array.reshape(space.shape)
    if space.dtype.kind == "f" or array.dtype == space.dtype:
        return array
    with np.errstate(invalid="ignore"):
        cast = array.astype(space.dtype)
    if not np.array_equal(cast, array):  # in an array of integers 0.5 would become 0, of bytes 300 would become 44
        raise Misfit(f"an observation of type {array.dtype}, its space has {space.dtype}: {describe(obs)}")
    return cast


def fitting_integer(obs: Any, space: spaces.Discrete) -> np.integer:
    array = numbers(obs, "an observation")
    value = array.item() if array.size == 1 else None
    if value is None or value != np.floor(value) or not 0 <= value - int(space.start) < int(space.n):
        raise Misfit(f"an observation outside of its space {space}: {describe(obs)}")
    return space.dtype.type(value)


def fitting_reward(reward: Any, weights: Sequence[float] | None) -> float:
    """The reward of one environment as one number; of several, their weighted sum."""
    if type(reward) is float and weights is None:
        return reward
    return float(fitting_rewards(numbers(reward, "a reward")[None], 1, weights)[0])


def fitting_rewards(rewards: Any, num_envs: int, weights: Sequence[float] | None) -> Float32[np.ndarray, " E"]:
    """The rewards of all environments, [E] or [E, R], as one number each."""
    array = numbers(rewards, "a reward")
    of_each = array.shape[1:]
    if len(array.shape) == 0 or len(array) != num_envs:
        raise Misfit(f"rewards of shape {array.shape}; expected ({num_envs},), one for each environment")
    if weights is None:
        if array.size == num_envs:
            return as_float32(array.reshape(num_envs))
        example = [1.0, *[0.0] * (array[0].size - 1)]
        raise Misfit(
            f"a reward of shape {of_each}, {array[0].tolist()}; expected one number: env.reward_weights={example} "
            "makes one of several, their weighted sum"
        )
    if of_each != (len(weights),):
        got = "one number" if array.size == num_envs else f"shape {of_each}"
        raise Misfit(f"a reward of {got}, {array[0].tolist()}; env.reward_weights has {len(weights)} numbers")
    return as_float32(array @ np.array(weights))


def as_float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # infinity is told of
        return array.astype(np.float32)


def fitting_flag(value: Any, name: str) -> bool:
    """terminated or truncated of one environment."""
    if type(value) is bool:
        return value
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf" or array.item() not in (0, 1):
        raise Misfit(f"{name} that is {describe(value)}; expected True or False")
    return bool(array.item())


def fitting_flags(values: Any, name: str, num_envs: int) -> np.ndarray:
    """terminated or truncated of all environments."""
    array = np.asarray(values)
    if array.size != num_envs or array.dtype.kind not in "biuf":
        raise Misfit(f"{name} of shape {array.shape} and type {array.dtype}; expected ({num_envs},) of bool")
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise Misfit(f"{name} that is {describe(values)}; expected True or False")
    return array.reshape(num_envs).astype(np.bool_)


def leaves(obs: Any) -> Iterator[np.ndarray]:
    """All arrays of an observation that fits its space."""
    match obs:
        case np.ndarray():
            yield obs
        case dict():
            for part in obs.values():
                yield from leaves(part)
        case tuple():
            for part in obs:
                yield from leaves(part)


def numbers(value: Any, what: str) -> np.ndarray:
    """The value as an array of real numbers."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        array = np.empty((), dtype=object)
    if array.dtype.kind not in "biuf":
        raise Misfit(f"{what} that is {describe(value)}; expected numbers")
    return array


def immoderate(values: np.ndarray) -> str | None:
    """What is wrong with numbers that are not finite, or too large to be learned from."""
    if values.dtype == np.float32 and np.vdot(values, values) <= LARGEST**2:  # all are, in a single pass
        return None
    if (np.abs(values) <= LARGEST).all():
        return None
    shown = " ".join(str(values).split())
    if not np.isfinite(values).all():
        return f"not finite: {shown}"
    return f"beyond {LARGEST:g}, too large for float32; scale it by a wrapper: {shown}"


def describe(value: Any) -> str:
    """A value for a message, in at most a line."""
    text = " ".join(repr(value).split())
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"


def without_ones(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]
