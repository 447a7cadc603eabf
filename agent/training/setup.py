"""What a run is made of before it begins: device, environments."""

import os
import shutil

import torch

import envs
from agent.config import Config
from agent.config_fields import ConfigError
from agent.ranks import local_rank
from envs import VectorEnvironment
from envs.preprocessing import preprocessing_in_force


def select_device(config: Config) -> torch.device:
    """Where the run takes place, and whether what it asks of that place is there; on a machine each rank has a GPU."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: got 'cuda', but torch finds no CUDA device; use device=cpu or device=auto")
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and (number := local_rank()) is not None:
        if number >= (count := torch.cuda.device_count()):
            raise ConfigError(
                f"device: rank {number} of this machine has none, as there are {count} CUDA devices; start {count} "
                f"ranks here (torchrun --nproc-per-node={count}) or use device=cpu"
            )
        torch.cuda.set_device(number)
    if config.compile:
        if device.type == "cuda":
            raise ConfigError("compile: got true, but that is for CPUs: on a GPU the run is a CUDA graph already")
        if shutil.which(os.environ.get("CXX") or "g++") is None:
            raise ConfigError("compile: got true, but there is no C++ compiler here; install g++ or leave it out")
    return device


def make_env(config: Config, num_envs: int, device: torch.device) -> VectorEnvironment:
    """`num_envs` environments for each member."""
    num_members = len(config.members())
    return envs.make(num_envs=num_members * num_envs, num_members=num_members, device=device, **config.env.for_make())


def in_force(config: Config) -> tuple[Config, str]:
    """The config with the preprocessing that `auto` stands for; and what it does, for people: empty for nothing."""
    env, clip = config.env, config.clip_reward
    found, done = preprocessing_in_force(env.id, env.kwargs, env.preprocessing)
    learned = "" if clip is None else f"rewards clipped to [-{clip:g}, {clip:g}] for the learner, not in returns"
    resolved = config.model_copy(update={"env": env.model_copy(update={"preprocessing": found})})
    return resolved, "; ".join(filter(None, [done, learned]))
