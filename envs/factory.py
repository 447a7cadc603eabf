"""The one way to get a vector environment."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any

import gymnasium
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from envs.errors import UserError
from envs.guard import Guard
from envs.gymnasium_adapter import GymnasiumAdapter
from envs.masks import ACTION_MASK_KEY
from envs.member_envs import MemberEnvs
from envs.single import SingleEnv, explained, parameters
from envs.tensor.functional_gymnasium import FunctionalVectorEnv
from envs.vector_environment import VectorEnvironment
from envs.workers import kill_at_exit, surviving_worker

MODES = ("auto", "sync", "async", "vector_entry_point")
NUMPY_PAYS_FROM = 16  # environments of a member


def make(
    env_id: str,
    num_envs: int,
    *,
    num_members: int = 1,
    kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[str | Mapping[str, Any]] = (),
    preprocessing: str = "auto",
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
        env_id: a Gymnasium id, or `module:Id` or `folder/file.py:Id` to import first what registers it.
        num_envs: of all members together.
        num_members: of the population that the environments are divided among.
        kwargs: handed to the environment's constructor; `max_episode_steps` sets the time limit.
        wrappers: of each single environment, the innermost first, as envs.wrapping.find_wrappers reads them.
        preprocessing: before the wrappers, as envs.preprocessing.preprocessing_of reads it.
        action_bins: values that each entry of a Box action space is cut into.
        vectorization_mode: "sync" (one process), "async" (a process for each environment), "vector_entry_point" (the
            environment's own vector class), or "auto": its vector class where it has one that fits, else "sync". One
            fits that takes the arguments of a single environment, no others but with the values that they have there,
            and has its spaces. The vector classes of Gymnasium's classic control fit from sixteen environments of a
            member on: NumPy costs more than a loop over fewer. With a vector class each member has an instance of its
            own. To render "vector_entry_point", a single environment is made where the class has no render_mode.
        on_error: what envs.guard.Guard does where an environment fails; for those that it can be put around.
        timeout_seconds: longest wait for a step of "async" environments.
        reward_weights: of an environment with several rewards, whose weighted sum is the reward.
        action_mask_key: where the environment gives the mask of its legal choices, if it gives any: see envs.masks.
            None: masks are ignored.

    Raises:
        UserError: such an environment cannot be made.
    """
    if num_envs < 1:
        raise UserError(f"env.num_envs must be at least 1; got {num_envs}")
    assert num_envs % num_members == 0, f"{num_envs} environments for {num_members} members"
    envs_per_member = num_envs // num_members
    with _without_noise():
        single = SingleEnv.find(env_id, kwargs or {}, wrappers, preprocessing, render_mode)
        spec = single.spec
        uses_vector_class = _uses_vector_class(single, envs_per_member, vectorization_mode)
        if not uses_vector_class:
            single.check()
    guard = partial(
        Guard,
        action_mask_key=action_mask_key,
        on_error=on_error,
        reward_weights=reward_weights,
        remake=single if on_error == "restart" else None,
        action_bins=action_bins,
    )

    def construct(count: int) -> VectorEnv:
        with _without_noise():
            if uses_vector_class:
                return _construct_vector_class(single, count)
            return _construct_from_singles(lambda: guard(single()), spec, count, vectorization_mode == "async")

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

    with ExitStack() as refused:
        vector_env = construct(envs_per_member if uses_vector_class else num_envs)
        refused.callback(vector_env.close)
        if on_error == "restart":
            _check_can_restart(vector_env, spec)
        if isinstance(vector_env, FunctionalVectorEnv):
            if reward_weights is not None:
                raise UserError(f"env.reward_weights: got {len(reward_weights)} numbers, but {spec.id} has one reward")
            env: VectorEnvironment = vector_env.tensor_env(device, action_bins, action_mask_key, num_members)
        elif uses_vector_class and num_members > 1:
            members = [adapt(vector_env, "cpu", 1)]  # one that is refused is refused here
            for _ in range(num_members - 1):
                another = construct(envs_per_member)
                refused.callback(another.close)
                members.append(adapt(another, "cpu", 1))
            env = MemberEnvs(members, device)
        else:
            env = adapt(vector_env, device, num_members)
        refused.pop_all()
        return env


def make_single(
    env_id: str,
    *,
    kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[str | Mapping[str, Any]] = (),
    preprocessing: str = "auto",
    render_mode: str | None = None,
) -> gymnasium.Env:
    """One environment with its wrappers, as `make` has many. UserError where it cannot be made."""
    with _without_noise():
        single = SingleEnv.find(env_id, kwargs or {}, wrappers, preprocessing, render_mode)
        single.check()
        return single()


def _uses_vector_class(single: SingleEnv, envs_per_member: int, mode: str) -> bool:
    spec = single.spec
    if mode not in MODES:
        raise UserError(f"env.vectorization_mode must be one of {', '.join(MODES)}; got {mode!r}")
    exists = spec.vector_entry_point is not None and not spec.additional_wrappers
    if mode == "vector_entry_point":
        if not exists:
            raise UserError(f"{spec.id} has no vector class: set env.vectorization_mode to auto, sync or async")
        if single.wrappers:
            raise UserError(
                f"{spec.id}: a vector class takes no env.wrappers, they are put around single environments; set "
                "env.vectorization_mode to auto, sync or async"
            )
        renders = single.render_mode is None or "render_mode" in parameters(single.vector_class())
        return renders or spec.entry_point is None
    if mode != "auto" or not exists or single.wrappers or single.render_mode is not None:
        return False
    if str(spec.vector_entry_point).startswith("gymnasium.envs.classic_control") and envs_per_member < NUMPY_PAYS_FROM:
        return False
    return spec.entry_point is None or _vector_class_fits(single)


def _vector_class_fits(single: SingleEnv) -> bool:
    """Whether the vector class is the same environment as a single one, as far as can be seen."""
    if single.unknown_to_vector_class():
        return False
    if str(single.spec.vector_entry_point).startswith("envs.") or single.preprocessing == "atari":
        return True  # these are tested to be the same
    if single.only_of_vector_class():
        return False
    single.check()
    with closing(single()) as one, closing(_construct_vector_class(single, 1)) as vector_env:
        if one.has_wrapper_attr("action_masks"):
            return False  # a vector class has no such method
        own = (one.observation_space, one.action_space)
        return own == (vector_env.single_observation_space, vector_env.single_action_space)


def _construct_vector_class(single: SingleEnv, num_envs: int) -> VectorEnv:
    kwargs = single.vector_kwargs()
    with explained(single.spec, single.kwargs):
        return gymnasium.make_vec(single.spec, num_envs, vectorization_mode="vector_entry_point", **kwargs)


def _construct_from_singles(
    make_one: Callable[[], gymnasium.Env], spec: EnvSpec, num_envs: int, in_processes: bool
) -> VectorEnv:
    # The adapter copies.
    settings: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "copy": False}
    with explained(spec, {}), ExitStack() as made:
        if in_processes:
            vector_env: VectorEnv = AsyncVectorEnv([make_one] * num_envs, worker=surviving_worker, **settings)
            kill_at_exit(vector_env.processes)  # type: ignore[attr-defined]
        else:
            vector_env = SyncVectorEnv([lambda: made.enter_context(closing(make_one()))] * num_envs, **settings)
        made.pop_all()
    vector_env.spec = spec
    return vector_env


def _check_can_restart(vector_env: VectorEnv, spec: EnvSpec) -> None:
    if not isinstance(vector_env, SyncVectorEnv | AsyncVectorEnv | FunctionalVectorEnv):
        instead = "" if spec.entry_point is None else "; set env.vectorization_mode=sync"
        raise UserError(f"env.on_error=restart: {spec.id} has a vector class, which is one for all{instead}")


@contextmanager
def _without_noise() -> Iterator[None]:
    """Hides the warnings that a user can do nothing about."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "builtin type .* has no __module__", DeprecationWarning)  # Box2D's bindings
        warnings.filterwarnings("ignore", ".*precision lowered by casting", UserWarning)  # bounds of a Box
        warnings.filterwarnings("ignore", ".*AutoresetMode", UserWarning)  # the adapter raises an error instead
        yield
