"""Stable-Baselines3's PPO on a continuous task cut into bins; prints JSON.

Run by ../half_cheetah.py: ENV KWARGS BINS SEEDS STEPS EPISODES. Its settings are the defaults; steps are rounded
up to whole rollouts of 2,048.
"""

import json
import sys
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor


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
    env_id, kwargs = sys.argv[1], json.loads(sys.argv[2])
    bins, seeds, steps, episodes = map(int, sys.argv[3:7])
    returns = []
    for seed in range(seeds):
        model = PPO("MlpPolicy", Bins(gym.make(env_id, **kwargs), bins), seed=seed, device="cpu")
        model.learn(steps)
        env = Monitor(Bins(gym.make(env_id, **kwargs), bins))
        env.reset(seed=seed)
        returns.append(float(evaluate_policy(model, env, episodes)[0]))
    print(json.dumps({"returns": returns}))


if __name__ == "__main__":
    main()
