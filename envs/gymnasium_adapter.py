"""Any Gymnasium vector environment as tensors; the one place that knows of autoreset modes.

Axes: P population member · E environment · K action factor · D observation.
"""

import multiprocessing
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.error import DependencyNotInstalled
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from jaxtyping import Float, Int64
from torch import Tensor

from envs.errors import UserError
from envs.guard import RESTARTED
from envs.masks import ACTION_MASK_KEY, InfoMasks, Masks
from envs.spaces import FactoredActions, FlatObservations
from envs.transfer import MaskTransfer, StepTransfer
from envs.vector_environment import Step, environment_seeds
from envs.workers import kill

NumPyMasks = tuple[np.ndarray, np.ndarray]  # Masks before they are handed over


class GymnasiumAdapter:
    """A Gymnasium vector environment as a VectorEnvironment, whatever its spaces and its autoreset mode.

    Several members can share a SyncVectorEnv or an AsyncVectorEnv, which seed each environment by itself. There are
    masks where the first reset gives info[action_mask_key].
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
    ) -> None:
        self.vector_env, self.timeout_seconds = vector_env, timeout_seconds
        self.num_envs, self.num_members = vector_env.num_envs, num_members
        self._seeds_each = isinstance(vector_env.unwrapped, SyncVectorEnv | AsyncVectorEnv)
        assert num_members == 1 or self._seeds_each, "a vector class has one random stream: envs.MemberEnvs"
        self.device = torch.device(device)
        self.spec_id = vector_env.spec.id if vector_env.spec else type(vector_env.unwrapped).__name__
        self.render_fps = vector_env.metadata.get("render_fps", 30)
        self._autoreset = _autoreset_mode(vector_env, self.spec_id)
        try:
            self.observations = FlatObservations(vector_env.single_observation_space)
            self.actions = FactoredActions(vector_env.single_action_space, action_bins)
        except UserError as error:
            raise UserError(f"{self.spec_id} has {error}") from None
        self._ended = np.zeros(self.num_envs, dtype=np.bool_)
        self._all_valid = np.ones(self.num_envs, dtype=np.bool_)
        self._hand_over = StepTransfer(self.num_envs, self.observations.size, self.device)
        self.restarts = np.zeros(self.num_envs, dtype=np.int64)  # how often Guard has put a new one in its place
        self._hangs = False
        self._seeds: list[int] | None = None  # of the last reset, one for each member
        self._taken: list[np.ndarray] | None = None  # actions since then, each [E, K], where they are recorded
        self.masks: Masks | None = None
        self._info_masks: InfoMasks | None = None
        if action_mask_key is not None:
            self._info_masks = InfoMasks(action_mask_key, self.num_envs, self.actions, self.spec_id)
            self._hand_over_masks = MaskTransfer((self.num_envs, *self._info_masks.reader.exists.shape), self.device)

    def reset(self, seeds: Sequence[int] | None = None) -> Float[Tensor, "E D"]:
        self._seeds = None if seeds is None else list(seeds)
        if self._taken is not None:
            self._taken.clear()
        obs, info = self._ask("reset", seed=None if seeds is None else self._gymnasium_seed(seeds))
        self._ended = np.zeros(self.num_envs, dtype=np.bool_)
        if self._info_masks is not None:
            self._info_masks.num_steps = 0
            if self._info_masks.are_in(info):
                mask = self._info_masks.read(info, self._all_valid)
                self.masks = self._hand_over_masks(mask, mask)
        return torch.from_numpy(self._flatten(obs)).to(self.device)

    def step(self, action: Int64[Tensor, "E K"]) -> Step:
        choices = action.numpy(force=True)
        if self._taken is not None:
            self._taken.append(choices.astype(np.int32))
        batched_obs, rewards, terminations, truncations, info = self._ask("step", self.actions.decode(choices))
        obs = next_obs = self._flatten(batched_obs)
        reward = np.array(rewards, dtype=np.float32)
        terminated, truncated = np.array(terminations, dtype=np.bool_), np.array(truncations, dtype=np.bool_)
        valid = self._all_valid

        if self._autoreset is AutoresetMode.NEXT_STEP and self._ended.any():
            for values in (reward, terminated, truncated):
                values[self._ended] = 0
            valid = ~self._ended
        self._check_finite(reward, "a reward")
        self._ended = terminated | truncated
        masks = self._read_masks(info, terminated)
        if self._autoreset is not AutoresetMode.NEXT_STEP and self._ended.any():
            if self._autoreset is AutoresetMode.SAME_STEP:
                next_obs = self._with_final_obs(obs, info)
            else:
                obs, masks = self._reset_ended(obs, masks)
        if masks is not None:
            self.masks = self._hand_over_masks(*masks)
        return self._hand_over(obs, reward, terminated, truncated, next_obs, valid)

    def state(self) -> dict[str, Tensor]:
        return {}

    def record_actions_(self) -> None:
        self._taken = []

    def journal(self) -> dict[str, Tensor]:
        assert self._seeds is not None, "only what follows a reset with seeds can be repeated"
        shape = (-1, self.num_envs, len(self.actions.num_choices))
        taken = np.array(self._taken or [], dtype=np.int32).reshape(shape)
        return {
            "env/seeds": torch.tensor(self._seeds, dtype=torch.int64),
            "env/actions": torch.from_numpy(taken),
            "env/restarts": torch.from_numpy(self.restarts.copy()),
        }

    def repeat(self, journal: Mapping[str, Tensor]) -> Float[Tensor, "E D"]:
        obs = self.reset(journal["env/seeds"].tolist())
        for action in journal["env/actions"].long():
            obs = self.step(action).obs
        self.restarts[:] = journal["env/restarts"].numpy()
        return obs

    def render(self) -> Any:
        try:
            return self.vector_env.render()
        except DependencyNotInstalled as error:
            raise UserError(f"{self.spec_id} cannot be rendered: {error}") from error

    def close(self) -> None:
        if self._hangs and isinstance(self.vector_env, AsyncVectorEnv):
            kill(self.vector_env.processes)
            self.vector_env.close(terminate=True)
        else:
            self.vector_env.close()

    def _ask(self, call: str, *args: Any, **kwargs: Any) -> Any:
        """Resets or steps the vector environment, with a limit on the wait for processes of their own."""
        if isinstance(self.vector_env, AsyncVectorEnv):
            getattr(self.vector_env, f"{call}_async")(*args, **kwargs)
            try:
                answer = getattr(self.vector_env, f"{call}_wait")(timeout=self.timeout_seconds)
            except multiprocessing.TimeoutError:
                self._hangs = True
                raise RuntimeError(
                    f"{self.spec_id}: an environment has not answered a {call} within {self.timeout_seconds:g} s "
                    "(env.timeout_seconds)"
                ) from None
            except (EOFError, ConnectionError) as error:
                raise RuntimeError(f"{self.spec_id}: the process of an environment has ended: {error}") from error
        else:
            try:
                answer = getattr(self.vector_env, call)(*args, **kwargs)
            except OSError as error:  # for whoever calls, one of the environment's, not of its own files
                raise RuntimeError(f"{self.spec_id}: {call} failed: {type(error).__name__}: {error}") from error
        for info in (answer[-1], answer[-1].get("final_info", {})):
            self.restarts += info.get(f"_{RESTARTED}", 0)
        return answer

    def _gymnasium_seed(self, seeds: Sequence[int]) -> int | list[int]:
        """One seed for each environment where the vector environment takes them, else one for all."""
        assert len(seeds) == self.num_members, f"{len(seeds)} seeds for {self.num_members} members"
        if self._seeds_each:
            return environment_seeds(seeds, self.num_envs // self.num_members)
        (seed,) = environment_seeds(seeds, 1)
        return seed

    def _with_final_obs(self, obs: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """SAME_STEP: `obs` is of the new episode already, the last one of the old episode is in `info`."""
        final_obs = info.get("final_obs")
        if final_obs is None:
            raise RuntimeError(
                f"{self.spec_id}: an episode ended with SAME_STEP autoreset but without info['final_obs']"
            )
        next_obs = obs.copy()
        if isinstance(final_obs, np.ndarray) and final_obs.dtype == object:  # one observation each, None elsewhere
            next_obs[self._ended] = self.observations.flatten_each(list(final_obs[self._ended]))
        else:
            next_obs[self._ended] = self.observations.flatten(final_obs)[self._ended]
        self._check_finite(next_obs, "an observation")
        return next_obs

    def _reset_ended(self, obs: np.ndarray, masks: NumPyMasks | None) -> tuple[np.ndarray, NumPyMasks | None]:
        """DISABLED: resets the environments that ended."""
        ended = self._ended
        reset_obs, info = self.vector_env.reset(options={"reset_mask": ended.copy()})
        if masks is not None and self._info_masks is not None:
            mask, next_mask = masks
            masks = np.where(ended[:, None, None], self._info_masks.read(info, ended), mask), next_mask
        return np.where(ended[:, None], self._flatten(reset_obs), obs), masks

    def _read_masks(self, info: dict[str, Any], terminated: np.ndarray) -> NumPyMasks | None:
        """The masks at obs and at next_obs after a step, where there are masks. A terminal state needs none."""
        if self._info_masks is None:
            return None
        self._info_masks.num_steps += 1
        if not self._info_masks.are_in(info):
            return None
        is_new = self._ended if self._autoreset is AutoresetMode.SAME_STEP else np.zeros_like(self._ended)
        mask = self._info_masks.read(info, ~terminated | is_new)
        if not is_new.any():
            return mask, mask
        final_mask = self._info_masks.read(info.get("final_info", {}), is_new & ~terminated)
        return mask, np.where(is_new[:, None, None], final_mask, mask)

    def _flatten(self, batched_obs: Any) -> np.ndarray:
        obs = self.observations.flatten(batched_obs)
        self._check_finite(obs, "an observation")
        return obs

    def _check_finite(self, values: np.ndarray, name: str) -> None:
        finite = np.isfinite(values)
        if not finite.all():
            index = int(np.argwhere(~finite)[0, 0])
            raise RuntimeError(f"{self.spec_id}: environment {index} gave {name} that is not finite: {values[index]}")


def _autoreset_mode(vector_env: VectorEnv, spec_id: str) -> AutoresetMode:
    mode = vector_env.metadata.get("autoreset_mode")
    if not isinstance(mode, AutoresetMode):
        raise UserError(
            f"{spec_id}: its vector environment says metadata['autoreset_mode'] = {mode!r}, so it is unknown when "
            "episodes restart; expected one of gymnasium.vector.AutoresetMode (NEXT_STEP, SAME_STEP, DISABLED)"
        )
    return mode
