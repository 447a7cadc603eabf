"""An environment that fails in the way asked for, in a step counted since it was last seeded."""

import time
from typing import Any

import gymnasium
import numpy as np

ENV_ID = "Failing-v0"


class FailingEnv(gymnasium.Env):
    """Observations count the steps; episodes of ten."""

    observation_space = gymnasium.spaces.Box(0, 1000, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, how: str = "", at: int = 25) -> None:
        self.how, self.at, self.num_steps = how, at, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.num_steps = 0
        if self.how == "reset" and self.num_steps >= self.at:
            raise OSError("no more")
        return self.obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.num_steps += 1
        obs, reward = self.obs(), float(self.np_random.random())
        if self.num_steps >= self.at:
            match self.how:
                case "raises":
                    raise ZeroDivisionError("division by zero")
                case "hangs":
                    time.sleep(60)
                case "shape":
                    obs = obs[:1]
                case "dtype":
                    obs = obs.astype(np.complex64)
                case "nan":
                    obs[1] = np.nan
                case "reward":
                    reward = float("inf")
        return obs, reward, self.num_steps % 10 == 0, False, {}

    def obs(self) -> np.ndarray:
        return np.full(3, self.num_steps, dtype=np.float32)


if ENV_ID not in gymnasium.registry:
    gymnasium.register(ENV_ID, FailingEnv)
