"""Any Gymnasium vector environment as tensors; the one place that knows of autoreset modes.

Axes: E environment · K action factor · D observation.
"""

import multiprocessing
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.error import DependencyNotInstalled
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from envs.errors import UserError
from envs.guard import RESTARTED
from envs.masks import ACTION_MASK_KEY, InfoMasks, Masks
from envs.spaces import FactoredActions, FlatObservations
from envs.workers import kill

NumPyMasks = tuple[np.ndarray, np.ndarray]  # Masks before they are handed over


class Step(NamedTuple):
    """What one step of all environments gave. Tensors may be shared between fields and with the next step: do not write
    to them, and copy what must outlive it.

    obs: what to act on next. next_obs: the true successor of the action, the terminal observation where the episode
    ended. valid: False for the filler step of NEXT_STEP autoreset, whose action was ignored: leave it out everywhere.
    """

    obs: Float[Tensor, "E D"]
    reward: Float[Tensor, " E"]
    terminated: Bool[Tensor, " E"]
    truncated: Bool[Tensor, " E"]
    next_obs: Float[Tensor, "E D"]
    valid: Bool[Tensor, " E"]


class GymnasiumAdapter:
    """Steps a Gymnasium vector environment with factored actions, whatever its spaces and its autoreset mode.

    masks: the legal choices after the last reset or step, shared as a Step's tensors are; None where the environment
    gives no info[action_mask_key] or that is None. The first reset decides for good.
    """

    def __init__(
        self,
        vector_env: VectorEnv,
        action_bins: int | None = None,
        device: str | torch.device = "cpu",
        action_mask_key: str | None = ACTION_MASK_KEY,
        timeout_seconds: float | None = None,
    ) -> None:
        self.vector_env, self.timeout_seconds = vector_env, timeout_seconds
        self.num_envs = vector_env.num_envs
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
        self._hand_over = _Transfer(self.num_envs, self.observations.size, self.device)
        self.restarts = np.zeros(self.num_envs, dtype=np.int64)  # how often Guard has put a new one in its place
        self._hangs = False
        self.seed: int | None = None  # of the last reset
        self.taken: list[np.ndarray] | None = None  # actions since then, each [E, K], where somebody wants them
        self.masks: Masks | None = None
        self._info_masks: InfoMasks | None = None
        if action_mask_key is not None:
            self._info_masks = InfoMasks(action_mask_key, self.num_envs, self.actions, self.spec_id)
            self._hand_over_masks = _MaskTransfer((self.num_envs, *self._info_masks.reader.exists.shape), self.device)

    def reset(self, seed: int | None = None) -> Float[Tensor, "E D"]:
        """Starts a new episode in every environment; `seed` decides all of their random numbers."""
        self.seed = seed
        if self.taken is not None:
            self.taken.clear()
        obs, info = self._ask("reset", seed=None if seed is None else self._seeds(seed))
        self._ended = np.zeros(self.num_envs, dtype=np.bool_)
        if self._info_masks is not None:
            self._info_masks.num_steps = 0
            if self._info_masks.are_in(info):
                mask = self._info_masks.read(info, self._all_valid)
                self.masks = self._hand_over_masks(mask, mask)
        return torch.from_numpy(self._flatten(obs)).to(self.device)

    def step(self, action: Int64[Tensor, "E K"]) -> Step:
        """Acts in every environment; the next episode of one that ends begins by itself."""
        choices = action.numpy(force=True)
        if self.taken is not None:
            self.taken.append(choices.astype(np.int32))
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

    def journal(self) -> dict[str, Tensor]:
        """The last reset's seed and the actions since, where they are noted: enough for `repeat`."""
        shape = (-1, self.num_envs, len(self.actions.num_choices))
        taken = np.array(self.taken or [], dtype=np.int32).reshape(shape)
        seed, restarts = torch.tensor(self.seed or 0), torch.from_numpy(self.restarts.copy())
        return {"env/seed": seed, "env/actions": torch.from_numpy(taken), "env/restarts": restarts}

    def repeat(self, journal: Mapping[str, Tensor]) -> Float[Tensor, "E D"]:
        """Brings every environment to where it was, if its seed decides all; returns what to act on next."""
        obs = self.reset(int(journal["env/seed"]))
        for action in journal["env/actions"].long():
            obs = self.step(action).obs
        self.restarts[:] = journal["env/restarts"].numpy()
        return obs

    def render(self) -> Any:
        """Returns the frames of all environments, in the render mode that the environment was made with."""
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

    def _seeds(self, seed: int) -> Any:
        """One seed for each environment where the vector environment takes them, else one for all."""
        takes_many = isinstance(self.vector_env.unwrapped, SyncVectorEnv | AsyncVectorEnv)
        seeds = np.random.SeedSequence(seed).generate_state(self.num_envs if takes_many else 1) >> 1  # < 2**31
        return seeds.tolist() if takes_many else int(seeds[0])

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


class _Transfer:
    """Steps from NumPy to the device: shared memory on a CPU, one pinned transfer into one buffer on a GPU."""

    def __init__(self, num_envs: int, obs_size: int, device: torch.device) -> None:
        self.on_cpu = device.type == "cpu"
        if not self.on_cpu:
            self.host = torch.empty((num_envs, 2 * obs_size + 4), pin_memory=device.type == "cuda")
            self.device = torch.empty(self.host.shape, device=device)
            self.flags = torch.empty((3, num_envs), dtype=torch.bool, device=device)
            self.obs, self.next_obs, self.reward, self.numbers = self.device.split([obs_size, obs_size, 1, 3], 1)

    def __call__(
        self,
        obs: np.ndarray,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_obs: np.ndarray,
        valid: np.ndarray,
    ) -> Step:
        if self.on_cpu:
            return Step(*map(torch.from_numpy, (obs, reward, terminated, truncated, next_obs, valid)))
        # The copy of the step before is over: its actions have been waited for since.
        np.concatenate([obs, next_obs, np.stack([reward, terminated, truncated, valid], 1)], 1, out=self.host.numpy())
        self.device.copy_(self.host, non_blocking=True)
        torch.ne(self.numbers.T, 0, out=self.flags)
        return Step(self.obs, self.reward[:, 0], self.flags[0], self.flags[1], self.next_obs, self.flags[2])


class _MaskTransfer:
    """Masks from NumPy to the device, as _Transfer does it."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.on_cpu = device.type == "cpu"
        if not self.on_cpu:
            self.host = torch.empty((2, *shape), dtype=torch.bool, pin_memory=device.type == "cuda")
            self.device = torch.empty(self.host.shape, dtype=torch.bool, device=device)

    def __call__(self, mask: np.ndarray, next_mask: np.ndarray) -> Masks:
        if self.on_cpu:
            return Masks(torch.from_numpy(mask), torch.from_numpy(next_mask))
        np.stack([mask, next_mask], out=self.host.numpy())
        self.device.copy_(self.host, non_blocking=True)
        return Masks(*self.device)


def _autoreset_mode(vector_env: VectorEnv, spec_id: str) -> AutoresetMode:
    mode = vector_env.metadata.get("autoreset_mode")
    if not isinstance(mode, AutoresetMode):
        raise UserError(
            f"{spec_id}: its vector environment says metadata['autoreset_mode'] = {mode!r}, so it is unknown when "
            "episodes restart; expected one of gymnasium.vector.AutoresetMode (NEXT_STEP, SAME_STEP, DISABLED)"
        )
    return mode
