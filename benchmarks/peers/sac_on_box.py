"""SAC of Stable-Baselines3, or of its JAX version SBX, on a task of continuous actions; prints JSON.

Run by ../suite.py: LIBRARY ENV SEED STEPS EPISODES, LIBRARY being stable_baselines3 or sbx. All settings are the
library's defaults (two layers of 256, batches of 256, an update per step). Twelve greedy evaluations on the way, the
last at the end.
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
    seed, steps, episodes = map(int, sys.argv[3:6])
    model = importlib.import_module(library).SAC("MlpPolicy", gym.make(env_id), seed=seed, device="cpu")
    env = Monitor(gym.make(env_id))
    env.reset(seed=seed)
    curve, started = [], time.perf_counter()
    for i in range(EVALUATIONS):
        model.learn(steps * (i + 1) // EVALUATIONS - model.num_timesteps, reset_num_timesteps=False)
        curve.append((model.num_timesteps, float(evaluate_policy(model, env, episodes)[0])))
        print(curve[-1], file=sys.stderr, flush=True)
    version = f"{PACKAGES[library]} {importlib.metadata.version(PACKAGES[library])}"
    print(json.dumps({"curve": curve, "seconds": time.perf_counter() - started, "version": version}))


if __name__ == "__main__":
    main()
