"""SAC of Stable-Baselines3, or of its JAX version SBX, on a task of continuous actions; prints JSON.

Run by ../suite.py: LIBRARY ENV SEED STEPS EPISODES FINAL_EPISODES, LIBRARY being stable_baselines3 or sbx. All settings
are the library's defaults (two layers of 256, batches of 256, an update per step). Twelve greedy evaluations over so
many episodes on the way, the last at the end, and one over FINAL_EPISODES then.
"""

import importlib
import importlib.metadata
import json
import os
import sys
import time

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import gymnasium as gym
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

EVALUATIONS = 12
PACKAGES = {"stable_baselines3": "stable-baselines3", "sbx": "sbx-rl"}


def main() -> None:
    library, env_id = sys.argv[1:3]
    seed, steps, episodes, final_episodes = map(int, sys.argv[3:7])
    model = importlib.import_module(library).SAC("MlpPolicy", gym.make(env_id), seed=seed, device="cpu")
    env = Monitor(gym.make(env_id))
    env.reset(seed=seed)

    def greedy_return(episodes: int) -> float:
        return float(evaluate_policy(model, env, episodes)[0])

    curve, started = [], time.perf_counter()
    for i in range(EVALUATIONS):
        model.learn(steps * (i + 1) // EVALUATIONS - model.num_timesteps, reset_num_timesteps=False)
        curve.append((model.num_timesteps, greedy_return(episodes)))
        print(curve[-1], file=sys.stderr, flush=True)
    version = f"{PACKAGES[library]} {importlib.metadata.version(PACKAGES[library])}"
    seconds = time.perf_counter() - started
    final = greedy_return(final_episodes)
    print(json.dumps({"curve": curve, "final": final, "seconds": seconds, "version": version}))


if __name__ == "__main__":
    main()
