"""Any Gymnasium vector environment as tensors; the one place that knows of autoreset modes.

Axes: P population member · E environment · K action factor · D observation.
"""

import contextlib
import functools
import logging
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from gymnasium import logger as gymnasium_logger
from gymnasium.error import DependencyNotInstalled
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from jaxtyping import Float, Int64
from torch import Tensor

from envs.errors import UserError
from envs.frame_stack import FrameStack
from envs.guard import RESTARTED, Segment, fault
from envs.masks import ACTION_MASK_KEY, InfoMasks, Masks
from envs.spaces import FactoredActions, FlatObservations
from envs.transfer import MaskTransfer, StepTransfer
from envs.values import Misfit, as_tuple, describe, fitting_flags, fitting_rewards, immoderate
from envs.vector_environment import Step, environment_seeds, segment_seed
from envs.workers import abandon

NumPyMasks = tuple[np.ndarray, np.ndarray]  # Masks before they are handed over
CLASS_SEGMENT_STEPS = 100_000  # see GymnasiumAdapter
TRIM_STEPS = 1000  # of actions that are kept though nothing needs them

logger = logging.getLogger(__name__)


class GymnasiumAdapter:
    """A Gymnasium vector environment as a VectorEnvironment, whatever its spaces and its autoreset mode.

    Several members can share a SyncVectorEnv or an AsyncVectorEnv of guarded environments, which seed each by itself.
    There are masks where observations have the key action_mask_key, or where the first reset gives
    info[action_mask_key]: see envs.masks.

    A vector class is seeded as a whole: all its environments draw from one stream of random numbers. To be repeatable,
    it is reseeded: after CLASS_SEGMENT_STEPS steps each environment waits once its episode ends, with steps that are
    not valid, until the episodes of all have ended; then all are reset with a new seed. After as many steps again an
    episode that has not ended is truncated. Guarded environments do this one by one: see envs.guard.
    """

    is_tensor_program = False
    has_state = False

    def __init__(
        self,
        vector_env: VectorEnv,
        action_bins: int | None = None,
        device: str | torch.device = "cpu",
        action_mask_key: str | None = ACTION_MASK_KEY,
        timeout_seconds: float | None = None,
        num_members: int = 1,
        reward_weights: Sequence[float] | None = None,
        guarded: bool = False,
    ) -> None:
        """
        Args:
            guarded: whether each environment is in a Guard.
            reward_weights: of a vector class whose environments have several rewards.
        """
        assert num_members == 1 or guarded, "a vector class has one random stream: envs.MemberEnvs"
        self.vector_env, self.timeout_seconds = vector_env, timeout_seconds
        self.num_envs, self.num_members = vector_env.num_envs, num_members
        self.reward_weights = None if guarded else reward_weights
        self._guards = cast(SyncVectorEnv | AsyncVectorEnv, vector_env) if guarded else None
        self.device = torch.device(device)
        self.spec_id = vector_env.spec.id if vector_env.spec else type(vector_env.unwrapped).__name__
        self.render_fps = vector_env.metadata.get("render_fps", 30)
        self._autoreset = _autoreset_mode(vector_env, self.spec_id)
        try:
            self.observations = FlatObservations(vector_env.single_observation_space, action_mask_key)
            self.actions = FactoredActions(vector_env.single_action_space, action_bins)
        except UserError as error:
            raise UserError(f"{self.spec_id} has {error}") from None
        left_out = self._guards.get_attr("left_out")[0] if self._guards else self.observations.left_out
        _name_left_out(self.spec_id, left_out)
        self._ended = np.zeros(self.num_envs, dtype=np.bool_)
        self._all_valid = np.ones(self.num_envs, dtype=np.bool_)
        self._hand_over = StepTransfer(self.num_envs, self.observations.size, self.device)
        self.restarts = np.zeros(self.num_envs, dtype=np.int64)  # how often Guard has put a new one in its place
        self.broken_off = np.zeros(self.num_envs, dtype=np.bool_)
        self._hangs = False
        self._steps_in_reset = 0  # that the next reset takes in each environment
        self._seeds: list[int] | None = None  # of the last reset from outside, one for each member
        self._taken: list[np.ndarray] | None = None  # the actions since, each [E, K], where they are recorded
        self._trim_at = TRIM_STEPS
        self._segment, self._num_steps = 0, 0  # of a vector class: number, and steps since it was last seeded
        self._waits = np.zeros(self.num_envs, dtype=np.bool_)  # for the end of the segment
        self._frame_stack: FrameStack | None = None
        self._acted_on: np.ndarray | None = None  # the observations that the next actions are chosen from
        self.frame_stack_holds = True
        self.masks: Masks | None = None
        self._info_masks: InfoMasks | None = None
        if action_mask_key is not None:
            space = vector_env.single_observation_space
            self._info_masks = InfoMasks(action_mask_key, self.num_envs, self.actions, self.spec_id, space, guarded)
            self._hand_over_masks = MaskTransfer((self.num_envs, *self._info_masks.reader.exists.shape), self.device)

    def reset(self, seeds: Sequence[int] | None = None) -> Float[Tensor, "E D"]:
        self._seeds = None if seeds is None else list(seeds)
        self.restarts[:] = 0
        assert seeds is None or len(seeds) == self.num_members, f"{len(seeds)} seeds for {self.num_members} members"
        return self._start(0)

    def step(self, action: Int64[Tensor, "E K"]) -> Step:
        choices = action.numpy(force=True)
        if self._taken is not None:
            if len(self._taken) >= self._trim_at:
                self._forget_all_but(int(self._steps_since_seeded().max()))
                self._trim_at = 2 * len(self._taken) + TRIM_STEPS
            self._taken.append(choices.astype(np.int32))
        self._num_steps += 1
        batched_obs, *answer, info = self._ask("step", self.actions.decode(choices))
        obs = next_obs = self._flatten(batched_obs)
        reward, terminated, truncated = self._fitting(*answer)
        self._count_restarts(info)

        valid = ~self._waits
        if self._autoreset is AutoresetMode.NEXT_STEP and self._ended.any():
            valid &= ~self._ended
            for values in (reward, terminated, truncated):
                values[self._ended] = 0
        self._check_moderate(reward, "a reward")
        self._ended = terminated | truncated
        masks = self._read_masks(batched_obs, info, terminated)
        if self._autoreset is not AutoresetMode.NEXT_STEP and self._ended.any():
            if self._autoreset is AutoresetMode.SAME_STEP:
                next_obs = self._with_final_obs(obs, info)
            else:
                obs, masks = self._reset_ended(obs, masks)
        if self._frame_stack is not None and self._acted_on is not None:
            repeats = self._frame_stack.repeats(self._acted_on, next_obs) | ~valid | self.broken_off
            self.frame_stack_holds &= bool(repeats.all())
        if self._is_segment_over():
            truncated |= ~self._waits
            obs, first_mask = self._reset_all(self._segment + 1)
            masks = None if masks is None or first_mask is None else (first_mask, masks[1])
        if masks is not None:
            self.masks = self._hand_over_masks(*masks)
        reward, self._acted_on = np.where(valid, reward, 0), obs
        return self._hand_over(obs, reward, terminated & valid, truncated & valid, next_obs, valid)

    def state(self) -> dict[str, Tensor]:
        return {}

    def expect_frame_stack_(self, stack: FrameStack | None) -> None:
        self._frame_stack, self.frame_stack_holds = stack, True

    def make_repeatable_(self) -> None:
        self._taken = []

    def journal(self) -> dict[str, Tensor]:
        assert self._seeds is not None, "only what follows a reset with seeds can be repeated"
        num_steps = self._steps_since_seeded()
        segments = np.full(self.num_envs, self._segment)
        if self._guards is not None:
            segments = np.array(self._guards.get_attr("segment"))
        length = int(num_steps.max())
        assert self._taken is not None, "make_repeatable_ comes before the reset"
        self._forget_all_but(length)
        num_factors = len(self.actions.num_choices)
        taken = np.array(self._taken, dtype=np.int32).reshape(length, self.num_envs, num_factors)
        actions = np.zeros((self.num_envs, length, num_factors), dtype=np.int32)
        for i, count in enumerate(num_steps):
            actions[i, :count] = taken[length - count :, i]
        return {
            "env/seeds": torch.tensor(self._seeds, dtype=torch.int64),
            "env/segments": torch.from_numpy(segments),
            "env/num_steps": torch.from_numpy(num_steps),
            "env/actions": torch.from_numpy(actions),
            "env/restarts": torch.from_numpy(self.restarts.copy()),
        }

    def _by_step(self, actions: Int64[np.ndarray, "E T K"], num_steps: Sequence[int]) -> list[np.ndarray]:
        """The actions of a journal as they were taken: each step's, the last of all environments together."""
        taken = np.zeros((max(num_steps), self.num_envs, actions.shape[2]), dtype=np.int32)
        for i, count in enumerate(num_steps):
            taken[len(taken) - count :, i] = actions[i, :count]
        return list(taken)

    def _steps_since_seeded(self) -> Int64[np.ndarray, " E"]:
        if self._guards is None:
            return np.full(self.num_envs, self._num_steps)
        return np.array(self._guards.get_attr("num_steps"))

    def _forget_all_but(self, num_steps: int) -> None:
        """Of the actions taken, keeps the last."""
        assert self._taken is not None and len(self._taken) >= num_steps, "make_repeatable_ comes before the reset"
        del self._taken[: len(self._taken) - num_steps]

    def repeat(self, journal: Mapping[str, Tensor]) -> Float[Tensor, "E D"]:
        self._seeds = journal["env/seeds"].tolist()
        segments, num_steps = journal["env/segments"].tolist(), journal["env/num_steps"].tolist()
        actions = journal["env/actions"].numpy().astype(np.int64)
        if self._guards is not None:
            own = [self.actions.decode_each(actions[i, :n]) for i, n in enumerate(num_steps)]
            places = [Segment(*place) for place in zip(self._environment_seeds(), segments, own, strict=True)]
            self._guards.set_attr("to_repeat", places)
            self._steps_in_reset = max(num_steps)
        obs = self._start(segments[0])
        self._steps_in_reset = 0
        if self._guards is not None and self._taken is not None:
            self._taken += self._by_step(actions, num_steps)
        elif self._guards is None:
            for action in torch.from_numpy(actions[:, : num_steps[0]]).unbind(1):
                obs = self.step(action).obs
        self.restarts[:] = journal["env/restarts"].numpy()
        return obs

    def render(self) -> Any:
        try:
            return self.vector_env.render()
        except DependencyNotInstalled as error:
            raise UserError(f"{self.spec_id} cannot be rendered: {error}") from error
        except (Exception, SystemExit) as error:
            raise UserError(f"{self.spec_id} cannot be rendered: render {fault(error)}") from error

    def close(self) -> None:
        if self._hangs and isinstance(self.vector_env, AsyncVectorEnv):
            abandon(self.vector_env)
        else:
            try:
                self.vector_env.close()
            except (Exception, SystemExit) as error:
                logger.warning("%s: close %s", self.spec_id, fault(error))

    def _start(self, segment: int) -> Float[Tensor, "E D"]:
        """Resets all environments and hands over their masks, as at the beginning of a segment."""
        obs, mask = self._reset_all(segment)
        if mask is not None:
            self.masks = self._hand_over_masks(mask, mask)
        return torch.from_numpy(obs).to(self.device)

    def _reset_all(self, segment: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The first observations of a segment, and their masks where there are any."""
        self._segment, self._num_steps = segment, 0
        self._ended, self._waits = np.zeros((2, self.num_envs), dtype=np.bool_)
        if self._taken is not None:
            self._taken.clear()
        seed: int | list[int] | None = None
        if self._seeds is not None:
            seed = self._environment_seeds() if self._guards else segment_seed(self._environment_seeds()[0], segment)
        batched_obs, info = self._ask("reset", seed=seed)
        self._count_restarts(info)
        obs = self._acted_on = self._flatten(batched_obs)
        if self._info_masks is None:
            return obs, None
        self._info_masks.num_steps = 0
        info = self._info_masks.found(batched_obs, info)
        return obs, self._info_masks.read(info, self._all_valid) if self._info_masks.are_in(info) else None

    def _environment_seeds(self) -> list[int]:
        """A seed for each environment; of a vector class the first is for all."""
        assert self._seeds is not None
        return environment_seeds(self._seeds, self.num_envs // self.num_members)

    def _is_segment_over(self) -> bool:
        """Whether a vector class is to be reset: its segment is long enough and all episodes ended, or is too long."""
        if self._guards or self._taken is None or self._seeds is None or self._num_steps < CLASS_SEGMENT_STEPS:
            return False
        self._waits = self._waits | self._ended
        return bool(self._waits.all()) or self._num_steps >= 2 * CLASS_SEGMENT_STEPS

    def _ask(self, call: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Resets or steps the vector environment, with a limit on the wait for processes of their own."""
        try:
            if isinstance(self.vector_env, AsyncVectorEnv):
                getattr(self.vector_env, f"{call}_async")(*args, **kwargs)
                timeout = self.timeout_seconds
                if timeout is not None:
                    timeout *= 1 + self._steps_in_reset
                with _without_tracebacks():
                    answer = getattr(self.vector_env, f"{call}_wait")(timeout=timeout)
            else:
                answer = getattr(self.vector_env, call)(*args, **kwargs)
            answer = as_tuple(answer, call)
        except UserError:
            raise
        except multiprocessing.TimeoutError:
            self._hangs = True
            raise UserError(
                f"{self.spec_id}: an environment has not answered a {call} within {self.timeout_seconds:g} s "
                "(env.timeout_seconds)"
            ) from None
        except (EOFError, ConnectionError):
            self._hangs = True
            raise UserError(f"{self.spec_id}: the process of an environment has ended in a {call}") from None
        except (Exception, SystemExit) as error:
            raise UserError(f"{self.spec_id}: {call} {fault(error)}") from error
        info = answer[-1]
        if not isinstance(info, dict) or not isinstance(info.get("final_info", {}), dict):
            wrong = info["final_info"] if isinstance(info, dict) else info
            raise UserError(f"{self.spec_id}: {call} returned an info that is {describe(wrong)}; expected a dict")
        return answer

    def _count_restarts(self, info: dict[str, Any]) -> None:
        """Which environments are new ones since this call; one that failed in a step says so in final_info."""
        key = f"_{RESTARTED}"
        self.broken_off[:] = info.get("final_info", {}).get(key, False)
        if "final_info" in info:
            self.restarts += self.broken_off
        if key in info:
            self.restarts += info[key]

    def _fitting(self, rewards: Any, terminations: Any, truncations: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As arrays [E] that may be written to."""
        try:
            reward = fitting_rewards(rewards, self.num_envs, self.reward_weights)
            terminated = fitting_flags(terminations, "terminated", self.num_envs)
            truncated = fitting_flags(truncations, "truncated", self.num_envs)
        except Misfit as error:
            raise UserError(f"{self.spec_id}: step returned {error}") from error
        return reward, terminated, truncated

    def _with_final_obs(self, obs: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """SAME_STEP: `obs` is of the new episode already, the last one of the old episode is in `info`."""
        final_obs = info.get("final_obs")
        if final_obs is None:
            raise UserError(f"{self.spec_id}: an episode ended with SAME_STEP autoreset but without info['final_obs']")
        next_obs = obs.copy()
        with self._fitting_obs("info['final_obs']"):
            if isinstance(final_obs, np.ndarray) and final_obs.dtype == object:  # one observation each, None elsewhere
                next_obs[self._ended] = self.observations.flatten_each(list(final_obs[self._ended]))
            else:
                next_obs[self._ended] = self.observations.flatten(final_obs)[self._ended]
        self._check_moderate(next_obs, "an observation")
        return next_obs

    def _reset_ended(self, obs: np.ndarray, masks: NumPyMasks | None) -> tuple[np.ndarray, NumPyMasks | None]:
        """DISABLED: resets the environments that ended."""
        ended = self._ended
        reset_obs, info = self._ask("reset", options={"reset_mask": ended.copy()})
        if masks is not None and self._info_masks is not None:
            mask, next_mask = masks
            info = self._info_masks.found(reset_obs, info)
            masks = np.where(ended[:, None, None], self._info_masks.read(info, ended), mask), next_mask
        return np.where(ended[:, None], self._flatten(reset_obs), obs), masks

    def _read_masks(self, obs: Any, info: dict[str, Any], terminated: np.ndarray) -> NumPyMasks | None:
        """The masks at obs and at next_obs after a step, where there are masks. A terminal state needs none."""
        if self._info_masks is None:
            return None
        self._info_masks.num_steps += 1
        info = self._info_masks.found(obs, info)
        if not self._info_masks.are_in(info):
            return None
        is_new = self._ended if self._autoreset is AutoresetMode.SAME_STEP else np.zeros_like(self._ended)
        mask = self._info_masks.read(info, ~terminated | is_new)
        if not is_new.any():
            return mask, mask
        final_mask = self._info_masks.read(info.get("final_info", {}), is_new & ~terminated)
        return mask, np.where(is_new[:, None, None], final_mask, mask)

    def _flatten(self, batched_obs: Any) -> np.ndarray:
        with self._fitting_obs("observations"):
            obs = self.observations.flatten(batched_obs)
            if len(obs) != self.num_envs:
                raise ValueError(f"{len(obs)} of them")
        self._check_moderate(obs, "an observation")
        return obs

    @contextlib.contextmanager
    def _fitting_obs(self, what: str) -> Iterator[None]:
        """UserError where a batch of observations cannot be flattened."""
        try:
            yield
        except UserError as error:
            raise UserError(f"{self.spec_id}: returned {error}") from error
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            space = self.vector_env.observation_space
            raise UserError(f"{self.spec_id}: returned {what} that do not fit {space}: {error}") from error

    def _check_moderate(self, values: np.ndarray, name: str) -> None:
        if immoderate(values) is not None:
            index, what = next((i, what) for i, value in enumerate(values) if (what := immoderate(value)) is not None)
            raise UserError(f"{self.spec_id}: environment {index} gave {name} that is {what}")


@contextlib.contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Gymnasium prints the traceback of an error in a process of its own before it raises it here."""
    level, gymnasium_logger.min_level = gymnasium_logger.min_level, gymnasium_logger.ERROR + 1
    try:
        yield
    finally:
        gymnasium_logger.min_level = level


@functools.cache  # once, however many such environments there are
def _name_left_out(spec_id: str, left_out: tuple[str, ...]) -> None:
    if left_out:
        logger.warning(
            "%s: left out of the observations, because it is not numeric: %s; a wrapper can encode it (env.wrappers)",
            spec_id,
            ", ".join(left_out),
        )


def _autoreset_mode(vector_env: VectorEnv, spec_id: str) -> AutoresetMode:
    mode = vector_env.metadata.get("autoreset_mode")
    if not isinstance(mode, AutoresetMode):
        raise UserError(
            f"{spec_id}: its vector environment says metadata['autoreset_mode'] = {mode!r}, so it is unknown when "
            "episodes restart; expected one of gymnasium.vector.AutoresetMode (NEXT_STEP, SAME_STEP, DISABLED)"
        )
    return mode
