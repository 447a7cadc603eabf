"""Stable-Baselines3's PPO on a continuous task cut into bins; prints JSON.

Run by ../bins.py: ENV BINS SEEDS STEPS EPISODES. Its settings are the defaults.
"""

import json
import sys
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy


class Bins(gym.ActionWrapper):
    """Each entry of a Box action one of so many values, the ends included, as env.action_bins has it."""

    def __init__(self, env: gym.Env, bins: int) -> None:
        super().__init__(env)
        assert isinstance(env.action_space, gym.spaces.Box)
        self.values = np.linspace(env.action_space.low, env.action_space.high, bins)
        self.action_space = gym.spaces.MultiDiscrete([bins] * env.action_space.shape[0])

    def action(self, action: Any) -> Any:
        return self.values[action, np.arange(len(action))]


def main() -> None:
    env_id, (bins, seeds, steps, episodes) = sys.argv[1], map(int, sys.argv[2:6])
    returns = []
    for seed in range(seeds):
        model = PPO("MlpPolicy", Bins(gym.make(env_id), bins), seed=seed, device="cpu")
        model.learn(steps)
        returns.append(float(evaluate_policy(model, Bins(gym.make(env_id), bins), episodes, warn=False)[0]))
    print(json.dumps({"returns": returns}))


if __name__ == "__main__":
    main()
