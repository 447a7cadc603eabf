"""What a run is made of before it begins: device, environments."""

import os
import shutil

import torch

import envs
from agent.config import Config
from agent.config_fields import ConfigError
from envs import VectorEnvironment


def select_device(config: Config) -> torch.device:
    """Where the run takes place, and whether what it asks of that place is there."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: got 'cuda', but torch finds no CUDA device; use device=cpu or device=auto")
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    if config.compile:
        if device.type == "cuda":
            raise ConfigError("compile: got true, but that is for CPUs: on a GPU the run is a CUDA graph already")
        if shutil.which(os.environ.get("CXX") or "g++") is None:
            raise ConfigError("compile: got true, but there is no C++ compiler here; install g++ or leave it out")
    return device


def make_env(config: Config, num_envs: int, device: torch.device) -> VectorEnvironment:
    """`num_envs` environments for each member."""
    env, num_members = config.env, len(config.members())
    return envs.make(
        env.id,
        num_members * num_envs,
        num_members=num_members,
        kwargs=env.kwargs,
        action_bins=env.action_bins,
        vectorization_mode=env.vectorization_mode,
        device=device,
        action_mask_key=env.action_mask_key,
        on_error=env.on_error,
        timeout_seconds=env.timeout_seconds,
        reward_weights=env.reward_weights,
    )
