"""What a run is made of before it begins: random streams, device, environments."""

import os
import shutil

import numpy as np
import torch

import envs
from agent.config import Config, ConfigError
from envs import VectorEnvironment


def seed_streams(config: Config) -> dict[str, int]:
    """Disjoint seeds, all from the run's one; inspection is that of the gradients, learner noise and replay."""
    names = ("learner", "environments", "evaluation", "inspection")
    states = np.random.SeedSequence(config.seed).spawn(len(names))
    return {name: int(s.generate_state(1)[0] >> 1) for name, s in zip(names, states, strict=True)}


def derived_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 1)


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
    env = config.env
    return envs.make(
        env.id,
        num_envs,
        kwargs=env.kwargs,
        action_bins=env.action_bins,
        vectorization_mode=env.vectorization_mode,
        device=device,
        action_mask_key=env.action_mask_key,
        on_error=env.on_error,
        timeout_seconds=env.timeout_seconds,
    )
