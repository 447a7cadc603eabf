"""Functional environments as Gymnasium knows environments: NumPy in, NumPy out."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import Space
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from envs.masks import ACTION_MASK_KEY, MaskReader
from envs.random_streams import RandomStreams
from envs.tensor.functional import FunctionalEnv, TensorEnv
from envs.vector_environment import entropy_seeds


class FunctionalVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """A functional environment as Gymnasium's vector environment, with SAME_STEP autoreset.

    Args:
        make_functional: called with the number of environments and the device.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self,
        make_functional: Callable[[int, torch.device], FunctionalEnv],
        num_envs: int,
        max_episode_steps: int | None,
    ) -> None:
        self.num_envs, self.max_episode_steps, self._make_functional = num_envs, max_episode_steps, make_functional
        self._env = self.tensor_env()
        self.single_observation_space: Space = self._env.env.observation_space
        self.single_action_space: Space = self._env.env.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def tensor_env(
        self,
        device: str | torch.device = "cpu",
        action_bins: int | None = None,
        action_mask_key: str | None = ACTION_MASK_KEY,
        num_members: int = 1,
    ) -> TensorEnv:
        """Returns as many environments for each member, of the same kind and time limit, without the way over NumPy."""
        functional = self._make_functional(num_members * self.num_envs, torch.device(device))
        spec_id = self.spec.id if self.spec else ""
        return TensorEnv(functional, self.max_episode_steps, action_bins, spec_id, action_mask_key, num_members)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """`seed`: as SyncVectorEnv, one for each environment, or the first of as many consecutive ones."""
        seeds = range(seed, seed + self.num_envs) if isinstance(seed, int | np.integer) else seed
        super().reset(seed=None if seeds is None else seeds[0])
        obs, infos = self._array(self._env.start_(seeds)), dict[str, Any]()
        if self._env.masks is not None:
            self._add_masks(infos, self._env.masks.obs)
        return obs, infos

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        if not self.action_space.contains(np.asarray(actions)):
            raise ValueError(f"expected actions in {self.action_space}; got {actions!r}")
        step = self._env.advance_(torch.from_numpy(np.asarray(actions)))
        terminated, truncated = step.terminated.numpy(), step.truncated.numpy()
        next_obs, infos = self._array(step.next_obs), dict[str, Any]()
        for index in np.flatnonzero(terminated | truncated).tolist():
            infos = self._add_info(infos, {"final_obs": next_obs[index], "final_info": {}}, index)
        if (masks := self._env.masks) is not None:
            self._add_masks(infos, masks.obs)
            if "final_info" in infos:
                self._add_masks(infos["final_info"], masks.next_obs)
        return self._array(step.obs), step.reward.numpy().astype(np.float64), terminated, truncated, infos

    def _add_masks(self, infos: dict[str, Any], mask: Tensor) -> None:
        exists = MaskReader(self._env.actions).exists
        infos[ACTION_MASK_KEY] = mask.numpy()[:, exists].astype(np.int8)
        infos[f"_{ACTION_MASK_KEY}"] = np.ones(self.num_envs, dtype=np.bool_)

    def _array(self, obs: Tensor) -> np.ndarray:
        return obs.numpy().astype(self.single_observation_space.dtype, copy=False)


class FunctionalSingleEnv(gymnasium.Env[Any, Any]):
    """One functional environment as Gymnasium's Env, for those that Gymnasium does not have; its frames are arrays."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 5}

    def __init__(self, functional: FunctionalEnv, render_mode: str | None = None) -> None:
        self.functional, self.render_mode = functional, render_mode
        self.observation_space, self.action_space = functional.observation_space, functional.action_space
        self.streams = RandomStreams(entropy_seeds(1))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.streams.seed_([seed])
        self.state = self.functional.initial(self.streams)
        return self._obs(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        env, rng, batch = self.functional, self.streams, torch.from_numpy(np.asarray(action)[None])
        old, self.state = self.state, env.transition(self.state, batch, rng)
        reward = env.reward(old, batch, self.state, rng).item()
        return self._obs(), reward, bool(env.terminal(self.state, rng)), False, self._info()

    def render(self) -> Any:
        return self.functional.render_image(self.state, None)[1] if self.render_mode == "rgb_array" else None

    def _obs(self) -> Any:
        obs = self.functional.observation(self.state, self.streams)[0].numpy()
        return obs.astype(self.observation_space.dtype)[()]  # a number, not an array without axes, where it is Discrete

    def _info(self) -> dict[str, Any]:
        mask = self.functional.action_mask(self.state)
        return {} if mask is None else {ACTION_MASK_KEY: mask[0].numpy().astype(np.int8)}
