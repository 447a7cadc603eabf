"""The one way to get a vector environment."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import torch
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.error import DependencyNotInstalled
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from envs.errors import UserError
from envs.guard import Guard
from envs.gymnasium_adapter import GymnasiumAdapter
from envs.masks import ACTION_MASK_KEY
from envs.member_envs import MemberEnvs
from envs.registry import find_spec, newest_version
from envs.tensor.functional_gymnasium import FunctionalVectorEnv
from envs.vector_environment import VectorEnvironment
from envs.workers import kill_at_exit, surviving_worker

MODES = ("auto", "sync", "async", "vector_entry_point")
EXTRAS = {  # of gymnasium, by the package that an entry point lies in
    "box2d": "box2d",
    "classic_control": "classic-control",
    "mujoco": "mujoco",
    "phys2d": "jax",
    "tabular": "jax",
    "toy_text": "toy-text",
}
NUMPY_PAYS_FROM = 16  # environments of a member
OWN_SETTINGS = ("id", "num_envs", "vectorization_mode", "vector_kwargs", "wrappers", "render_mode")
OF_GYMNASIUM_MAKE = ("max_episode_steps", "disable_env_checker")


def make(
    env_id: str,
    num_envs: int,
    *,
    num_members: int = 1,
    kwargs: Mapping[str, Any] | None = None,
    action_bins: int | None = None,
    vectorization_mode: str = "auto",
    device: str | torch.device = "cpu",
    render_mode: str | None = None,
    action_mask_key: str | None = ACTION_MASK_KEY,
    on_error: str = "stop",
    timeout_seconds: float | None = None,
    reward_weights: Sequence[float] | None = None,
) -> VectorEnvironment:
    """Makes `num_envs` copies of a registered environment, stepped together as tensors.

    Args:
        env_id: a Gymnasium id, or `module:Id` to import the module that registers it first.
        num_envs: of all members together.
        num_members: of the population that the environments are divided among.
        kwargs: handed to the environment's constructor; `max_episode_steps` sets the time limit.
        action_bins: values that each entry of a Box action space is cut into.
        vectorization_mode: "sync" (one process), "async" (a process for each environment), "vector_entry_point" (the
            environment's own vector class), or "auto": its vector class where it has one that fits, else "sync". The
            vector classes of Gymnasium's classic control fit from sixteen environments of a member on: NumPy costs
            more than a loop over fewer. With a vector class each member has an instance of its own.
        on_error: what envs.guard.Guard does where an environment fails; for those that it can be put around.
        timeout_seconds: longest wait for a step of "async" environments.
        reward_weights: of an environment with several rewards, whose weighted sum is the reward.
        action_mask_key: of `info`, where the environment gives the mask of its legal choices, if it gives any, in one
            of the forms of envs.masks.MaskReader; None: masks are ignored.
    """
    if num_envs < 1:
        raise UserError(f"env.num_envs must be at least 1; got {num_envs}")
    assert num_envs % num_members == 0, f"{num_envs} environments for {num_members} members"
    envs_per_member = num_envs // num_members
    with _without_noise():
        spec, kwargs = find_spec(env_id), dict(kwargs or {})
        uses_vector_class = _uses_vector_class(spec, envs_per_member, kwargs, vectorization_mode, render_mode)
        _check_kwargs(spec, kwargs, uses_vector_class)
        if render_mode is not None:
            _check_render_mode(spec, render_mode)
            kwargs["render_mode"] = render_mode
    guard = partial(Guard, action_mask_key=action_mask_key, on_error=on_error, reward_weights=reward_weights)

    def construct(count: int) -> VectorEnv:
        with _without_noise():
            return _construct(spec, count, kwargs, uses_vector_class, vectorization_mode, guard)

    def adapt(vector_env: VectorEnv, device: str | torch.device, num_members: int) -> GymnasiumAdapter:
        return GymnasiumAdapter(
            vector_env,
            action_bins,
            device,
            action_mask_key,
            timeout_seconds,
            num_members,
            reward_weights,
            guarded=not uses_vector_class,
        )

    vector_env = construct(envs_per_member if uses_vector_class else num_envs)
    try:
        if on_error == "restart":
            _check_can_restart(vector_env, spec)
        if isinstance(vector_env, FunctionalVectorEnv):
            return vector_env.tensor_env(device, action_bins, action_mask_key, num_members)
        if uses_vector_class and num_members > 1:
            members = [adapt(vector_env, "cpu", 1)]  # one that is refused is refused here
            members += [adapt(construct(envs_per_member), "cpu", 1) for _ in range(num_members - 1)]
            return MemberEnvs(members, device)
        return adapt(vector_env, device, num_members)
    except UserError:
        vector_env.close()
        raise


def _uses_vector_class(
    spec: EnvSpec, envs_per_member: int, kwargs: Mapping[str, Any], mode: str, render_mode: str | None
) -> bool:
    if mode not in MODES:
        raise UserError(f"env.vectorization_mode must be one of {', '.join(MODES)}; got {mode!r}")
    exists = spec.vector_entry_point is not None and not spec.additional_wrappers
    if mode == "vector_entry_point" and not exists:
        raise UserError(f"{spec.id} has no vector class: set env.vectorization_mode to auto, sync or async")
    if mode != "auto":
        return mode == "vector_entry_point"
    if str(spec.vector_entry_point).startswith("gymnasium.envs.classic_control") and envs_per_member < NUMPY_PAYS_FROM:
        return False
    return exists and render_mode is None and not _unknown_kwargs(spec, {**spec.kwargs, **kwargs}, vector_class=True)


def _construct(
    spec: EnvSpec, num_envs: int, kwargs: dict[str, Any], vector_class: bool, mode: str, guard: Callable[[Any], Guard]
) -> VectorEnv:
    if vector_class:
        arguments: dict[str, Any] = {"vectorization_mode": "vector_entry_point"}
    else:
        arguments = {
            "vectorization_mode": "async" if mode == "async" else "sync",
            "vector_kwargs": {"autoreset_mode": AutoresetMode.SAME_STEP, "copy": False},  # the adapter copies
            "wrappers": [guard],
        }
        if mode == "async":
            arguments["vector_kwargs"]["worker"] = surviving_worker
    try:
        # Its checks at every step cost as much as a step of CartPole; the adapter has its own.
        vector_env = gymnasium.make_vec(replace(spec, disable_env_checker=True), num_envs, **arguments, **kwargs)
    except (ImportError, DependencyNotInstalled) as error:
        raise _missing_dependency(spec, error) from error
    except Exception as error:
        if not kwargs:
            raise
        raise UserError(
            f"{spec.id} cannot be made with env.kwargs={kwargs}: {type(error).__name__}: {error}"
        ) from error
    if isinstance(vector_env, AsyncVectorEnv):
        kill_at_exit(vector_env.processes)
    return vector_env


def _check_can_restart(vector_env: VectorEnv, spec: EnvSpec) -> None:
    if not isinstance(vector_env, SyncVectorEnv | AsyncVectorEnv | FunctionalVectorEnv):
        instead = "" if spec.entry_point is None else "; set env.vectorization_mode=sync"
        raise UserError(f"env.on_error=restart: {spec.id} has a vector class, which is one for all{instead}")


def _check_kwargs(spec: EnvSpec, kwargs: Mapping[str, Any], vector_class: bool) -> None:
    own = [name for name in kwargs if name in OWN_SETTINGS]
    if own:
        raise UserError(f"env.kwargs must not contain {', '.join(own)}: it is for the environment's constructor")
    unknown = _unknown_kwargs(spec, kwargs, vector_class)
    if unknown:
        known = ", ".join(name for name in _parameters(spec, vector_class) if name not in OWN_SETTINGS) or "none"
        raise UserError(f"{spec.id} does not know env.kwargs {', '.join(unknown)}; it takes: {known}")


def _check_render_mode(spec: EnvSpec, render_mode: str) -> None:
    if _unknown_kwargs(spec, ["render_mode"], vector_class=False):
        raise UserError(f"{spec.id} cannot be rendered: it has no frames")
    modes = getattr(_creator(spec, vector_class=False), "metadata", {}).get("render_modes") or []
    if modes and render_mode not in modes:
        raise UserError(f"{spec.id} cannot be rendered as {render_mode}; it offers {', '.join(modes)}")


def _unknown_kwargs(spec: EnvSpec, kwargs: Iterable[str], vector_class: bool) -> list[str]:
    parameters = _parameters(spec, vector_class)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return []
    return [name for name in kwargs if name not in parameters and (vector_class or name not in OF_GYMNASIUM_MAKE)]


def _parameters(spec: EnvSpec, vector_class: bool) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(_creator(spec, vector_class)).parameters


def _creator(spec: EnvSpec, vector_class: bool) -> Callable[..., Any]:
    entry_point = spec.vector_entry_point if vector_class else spec.entry_point
    if entry_point is None:
        raise UserError(f"{spec.id} has only a vector class: env.kwargs must fit it, and it cannot be rendered")
    if not isinstance(entry_point, str):
        return entry_point
    try:
        return load_env_creator(entry_point)
    except (ImportError, DependencyNotInstalled) as error:
        raise _missing_dependency(spec, error) from error


def _missing_dependency(spec: EnvSpec, error: Exception) -> UserError:
    """Says what to install, or which version of the environment to use instead."""
    newest = newest_version(spec)
    if newest != spec.id and not isinstance(error, ModuleNotFoundError | DependencyNotInstalled):
        return UserError(f"{spec.id} cannot be made, use {newest} ({error})")
    package = str(spec.entry_point).removeprefix("gymnasium.envs.").split(".")[0].split(":")[0]
    install = f': pip install "gymnasium[{EXTRAS[package]}]"' if package in EXTRAS else ""
    return UserError(f"{spec.id} needs a package that is not installed{install} ({error})")


@contextmanager
def _without_noise() -> Iterator[None]:
    """Hides the warnings that a user can do nothing about."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "builtin type .* has no __module__", DeprecationWarning)  # Box2D's bindings
        warnings.filterwarnings("ignore", ".*precision lowered by casting", UserWarning)  # bounds of a Box
        warnings.filterwarnings("ignore", ".*AutoresetMode", UserWarning)  # the adapter raises an error instead
        yield
