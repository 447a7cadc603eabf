"""From NumPy to the device: copies on a CPU, one pinned transfer into one buffer on a GPU.

The tensors stay in place: the next call overwrites them.
"""

import numpy as np
import torch

from envs.masks import Masks
from envs.vector_environment import Step


class StepTransfer:
    """Steps of all environments."""

    def __init__(self, num_envs: int, obs_size: int, device: torch.device) -> None:
        self.on_cpu = device.type == "cpu"
        if self.on_cpu:
            obs, next_obs = np.zeros((2, num_envs, obs_size), dtype=np.float32)
            reward, flags = np.zeros(num_envs, dtype=np.float32), np.zeros((3, num_envs), dtype=np.bool_)
            self.arrays = (obs, reward, flags[0], flags[1], next_obs, flags[2])
            self.step = Step(*map(torch.from_numpy, self.arrays))
        else:
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
            for array, values in zip(self.arrays, (obs, reward, terminated, truncated, next_obs, valid), strict=True):
                array[...] = values
            return self.step
        # The copy of the step before is over: its actions have been waited for since.
        np.concatenate([obs, next_obs, np.stack([reward, terminated, truncated, valid], 1)], 1, out=self.host.numpy())
        self.device.copy_(self.host, non_blocking=True)
        torch.ne(self.numbers.T, 0, out=self.flags)
        return Step(self.obs, self.reward[:, 0], self.flags[0], self.flags[1], self.next_obs, self.flags[2])


class MaskTransfer:
    """Masks of all environments. `shape`: [E, K, N]."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.on_cpu = device.type == "cpu"
        if self.on_cpu:
            self.arrays = np.zeros((2, *shape), dtype=np.bool_)
            self.masks = Masks(*torch.from_numpy(self.arrays))
        else:
            self.host = torch.empty((2, *shape), dtype=torch.bool, pin_memory=device.type == "cuda")
            self.device = torch.empty(self.host.shape, dtype=torch.bool, device=device)

    def __call__(self, mask: np.ndarray, next_mask: np.ndarray) -> Masks:
        if self.on_cpu:
            self.arrays[0], self.arrays[1] = mask, next_mask
            return self.masks
        np.stack([mask, next_mask], out=self.host.numpy())
        self.device.copy_(self.host, non_blocking=True)
        return Masks(*self.device)
