"""An agent of Stable-Baselines3, or of its JAX version SBX, on one task with one seed; prints JSON.

Run by ../suite.py and ../half_cheetah.py with the task as JSON (`Task`). All settings are the library's defaults.
Twelve greedy evaluations on the way and one at the end; where states are listed, also the greedy actions there. PPO's
steps are rounded up to whole rollouts of 2,048. Masks of legal actions are not read.
"""

import importlib
import importlib.metadata
import json
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

import envs  # noqa: F401  registers Tensor/…

EVALUATIONS = 12
PACKAGES = {"stable_baselines3": "stable-baselines3", "sbx": "sbx-rl"}


@dataclass
class Task:
    library: str  # of PACKAGES
    agent: str  # a class of it
    env_id: str
    kwargs: dict[str, Any]  # of the environment
    bins: int | None  # of each entry of a Box action; None: as it is
    seed: int
    env_steps: int
    episodes: int  # of an evaluation on the way
    final_episodes: int
    states: list[Any] | None = None  # observations


class Bins(gym.ActionWrapper):
    """Each entry of a Box action one of so many values, the ends included, as env.action_bins has it."""

    def __init__(self, env: gym.Env, bins: int) -> None:
        super().__init__(env)
        assert isinstance(env.action_space, gym.spaces.Box)
        self.values = np.linspace(env.action_space.low, env.action_space.high, bins)
        self.action_space = gym.spaces.MultiDiscrete([bins] * env.action_space.shape[0])

    def action(self, action: Any) -> Any:
        return self.values[action, np.arange(len(action))]


class Curve(BaseCallback):
    """Greedy evaluations, evenly spaced."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task, self.points = task, []
        self.env = make_env(task)
        self.env.reset(seed=task.seed)

    def _on_step(self) -> bool:
        due = self.task.env_steps * (len(self.points) + 1) // EVALUATIONS
        if self.num_timesteps >= due and len(self.points) < EVALUATIONS:
            self.points.append((self.num_timesteps, self.greedy_return(self.task.episodes)))
            print(self.points[-1], file=sys.stderr, flush=True)
        return True

    def greedy_return(self, episodes: int) -> float:
        return float(evaluate_policy(self.model, self.env, episodes)[0])


def make_env(task: Task) -> gym.Env:
    env = gym.make(task.env_id, **task.kwargs)
    if task.bins:
        env = Bins(env, task.bins)
    if isinstance(env.observation_space, gym.spaces.Tuple):
        env = gym.wrappers.FlattenObservation(env)
    return Monitor(env)


def greedy_actions(model: Any, task: Task, states: list[Any]) -> list[Any]:
    space = gym.make(task.env_id, **task.kwargs).observation_space
    flat = [gym.spaces.flatten(space, tuple(state)) if isinstance(state, list) else state for state in states]
    return model.predict(np.array(flat), deterministic=True)[0].tolist()


def main() -> None:
    task = Task(**json.loads(sys.argv[1]))
    make_agent = getattr(importlib.import_module(task.library), task.agent)
    model, curve = make_agent("MlpPolicy", make_env(task), seed=task.seed, device="cpu"), Curve(task)
    started = time.perf_counter()
    model.learn(task.env_steps, callback=curve)
    result = {
        "version": f"{PACKAGES[task.library]} {importlib.metadata.version(PACKAGES[task.library])}",
        "seconds": time.perf_counter() - started,
        "curve": curve.points,
        "final": curve.greedy_return(task.final_episodes),
    }
    if task.states is not None:
        result["actions"] = greedy_actions(model, task, task.states)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
