"""Any Gymnasium vector environment as tensors; the one place that knows of autoreset modes.

Axes: E environment · K action factor · D observation.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.error import DependencyNotInstalled
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from envs.errors import UserError
from envs.spaces import FactoredActions, FlatObservations


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
    """Steps a Gymnasium vector environment with factored actions, whatever its spaces and its autoreset mode."""

    def __init__(
        self, vector_env: VectorEnv, action_bins: int | None = None, device: str | torch.device = "cpu"
    ) -> None:
        self.vector_env = vector_env
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

    def reset(self, seed: int | None = None) -> Float[Tensor, "E D"]:
        """Starts a new episode in every environment; `seed` decides all of their random numbers."""
        obs, _ = self.vector_env.reset(seed=None if seed is None else self._seeds(seed))
        self._ended = np.zeros(self.num_envs, dtype=np.bool_)
        return torch.from_numpy(self._flatten(obs)).to(self.device)

    def step(self, action: Int64[Tensor, "E K"]) -> Step:
        """Acts in every environment; the next episode of one that ends begins by itself."""
        batched_obs, rewards, terminations, truncations, info = self.vector_env.step(
            self.actions.decode(action.numpy(force=True))
        )
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
        if self._autoreset is not AutoresetMode.NEXT_STEP and self._ended.any():
            if self._autoreset is AutoresetMode.SAME_STEP:
                next_obs = self._with_final_obs(obs, info)
            else:
                obs = self._reset_ended(obs)

        return self._hand_over(obs, reward, terminated, truncated, next_obs, valid)

    def render(self) -> Any:
        """Returns the frames of all environments, in the render mode that the environment was made with."""
        try:
            return self.vector_env.render()
        except DependencyNotInstalled as error:
            raise UserError(f"{self.spec_id} cannot be rendered: {error}") from error

    def close(self) -> None:
        self.vector_env.close()

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

    def _reset_ended(self, obs: np.ndarray) -> np.ndarray:
        """DISABLED: resets the environments that ended."""
        reset_obs, _ = self.vector_env.reset(options={"reset_mask": self._ended.copy()})
        return np.where(self._ended[:, None], self._flatten(reset_obs), obs)

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


def _autoreset_mode(vector_env: VectorEnv, spec_id: str) -> AutoresetMode:
    mode = vector_env.metadata.get("autoreset_mode")
    if not isinstance(mode, AutoresetMode):
        raise UserError(
            f"{spec_id}: its vector environment says metadata['autoreset_mode'] = {mode!r}, so it is unknown when "
            "episodes restart; expected one of gymnasium.vector.AutoresetMode (NEXT_STEP, SAME_STEP, DISABLED)"
        )
    return mode
