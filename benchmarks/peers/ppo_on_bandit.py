"""Stable-Baselines3's PPO on ChainBandit; prints JSON. Run by ../factored.py: KWARGS SEEDS STEPS EVERY."""

import json
import sys

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO

import envs  # noqa: F401  registers the environment
from envs.tensor.chain_bandit import ChainBandit


def greedy_return(model: PPO, bandit: ChainBandit) -> float:
    """Mean over contexts of the reward of the most probable action."""
    contexts = torch.arange(bandit.num_contexts)
    action, _ = model.predict(contexts.numpy(), deterministic=True)
    return bandit.reward(contexts, torch.as_tensor(np.array(action)), contexts, None).mean().item()


def main() -> None:
    kwargs, (seeds, steps, every) = json.loads(sys.argv[1]), map(int, sys.argv[2:5])
    bandit = ChainBandit(1, **kwargs)
    returns = []
    for seed in range(seeds):
        env = gym.make("Tensor/ChainBandit-v0", **kwargs)
        # Rollouts of 250 instead of 2048, which would leave ten updates in all; the other settings are the defaults.
        model = PPO("MlpPolicy", env, n_steps=250, batch_size=50, seed=seed, device="cpu")
        curve = []
        for end in range(every, steps + 1, every):
            model.learn(every, reset_num_timesteps=end == every)
            curve.append(greedy_return(model, bandit))
        returns.append(curve)
    print(json.dumps({"env_steps": list(range(every, steps + 1, every)), "returns": returns}))


if __name__ == "__main__":
    main()
