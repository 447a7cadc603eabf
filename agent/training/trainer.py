"""The run: collect, learn, evaluate, log, save."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import envs
from agent.analysis.evaluation import MODES, evaluate_members, num_parallel_envs
from agent.analysis.gradients import CRITICS_FILE, save_critics
from agent.config import Config, ConfigError
from agent.gumbel_actor_critic import GumbelActorCritic
from agent.policy import MemberInfo, Policy, describe_policy
from agent.training.accumulators import Milestones
from agent.training.console import Console
from agent.training.loop import TrainingLoop
from agent.training.tracking import Tracker
from agent.versions import versions
from envs import VectorEnvironment


def train(config: Config) -> Path:
    """Trains all members of a config to the end; returns the run folder.  UserError where the config cannot be run."""
    with contextlib.ExitStack() as stack:
        trainer = Trainer(config, stack)
        trainer.run()
    return trainer.run_dir


class Trainer:
    """One run of a population. Members lie along the first axis of everything."""

    def __init__(self, config: Config, stack: contextlib.ExitStack) -> None:
        self.config = config
        self.device = select_device(config)
        torch.set_num_threads(config.num_threads)
        # Adam's moments of a parameter without gradient decay into denormals, each a hundred times slower to multiply.
        torch.set_flush_denormal(True)
        self.members = config.members()
        self.num_members, self.num_envs = len(self.members), config.env.num_envs
        self.seeds = seed_streams(config)
        env = stack.enter_context(contextlib.closing(make_env(config, len(self.members) * self.num_envs, self.device)))
        evaluation_envs = num_parallel_envs(self.num_members, config.evaluation.episodes)
        self.evaluation_env = stack.enter_context(contextlib.closing(make_env(config, evaluation_envs, self.device)))
        self.loop = TrainingLoop(config, env, self.device, self.seeds["environments"], self.seeds["learner"])
        self.run_dir = make_run_dir(config)  # only now: what cannot be run leaves no folder behind
        (self.run_dir / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        self.versions = versions(self.device)  # of the code that is running, whatever is checked out later
        self.console = stack.enter_context(Console(config))
        self.tracker = stack.enter_context(Tracker(self.run_dir, config))

        if self.loop.compiles:
            stack.callback(torch.compiler.reset)  # PyTorch keeps no more than eight programs of a function, each with its run's tensors
            self.console.message("The update is compiled once it begins: half a minute at first, seconds later on.")
        infos = [
            MemberInfo(member=i, seed=m.seed, settings=m.settings, env_steps=0, eval_return=None)
            for i, m in enumerate(self.members)
        ]
        self.policy = Policy(describe_policy(config, env, infos), self.device)
        self.best = Policy(self.policy.info, self.device)
        self.training_seconds, self.logged_at, self.logged_updates = 0.0, 0, 0
        self.gradients: dict[str, torch.Tensor] = {}  # as inspected since the last log line
        self.inspection_generator = torch.Generator(self.device).manual_seed(self.seeds["inspection"])

    def run(self) -> None:
        """Collects and learns to the end of the budget, with evaluations and log lines on their way."""
        config, started = self.config, time.perf_counter()
        log_at = Milestones(config.log_every_env_steps, config.total_env_steps, parts=100)
        evaluate_at = Milestones(config.evaluation.every_env_steps, config.total_env_steps, parts=20)
        inspect_at = Milestones(None, config.total_env_steps, parts=50)
        env_steps = 0
        while env_steps < config.total_env_steps:
            clock = time.perf_counter()
            self.loop.iterate(env_steps)
            env_steps += self.num_envs
            self.training_seconds += time.perf_counter() - clock
            if env_steps >= config.total_env_steps:
                self.loop.conclude(env_steps)
            if inspect_at.passed(env_steps) and self.loop.num_updates:
                self.gradients = self.loop.inspect_gradients(self.inspection_generator)
            if log_at.passed(env_steps):
                self.log(env_steps, started)
            if evaluate_at.passed(env_steps):
                self.evaluate(env_steps)
        self.finish(env_steps, started)

    def log(self, env_steps: int, started: float) -> None:
        """Writes the means since the last log line."""
        gradients = {name: values.cpu().numpy() for name, values in self.gradients.items()}
        columns = {**self.loop.episodes.read(), **self.loop.metrics.read(), **gradients}
        self.gradients = {}
        elapsed = max(self.training_seconds, 1e-9)
        rows: list[dict[str, float]] = []
        for i in range(self.num_members):
            row = {name: float(values[i]) for name, values in columns.items()}
            if np.isnan(row["train/episode_return"]):  # no episode ended since the last line
                del row["train/episode_return"], row["train/episode_length"]
            row["time/env_steps_per_second"] = (env_steps - self.logged_at) / elapsed
            row["time/updates_per_second"] = (self.loop.num_updates - self.logged_updates) / elapsed
            row["time/elapsed_seconds"] = time.perf_counter() - started
            rows.append(row)
        self.training_seconds, self.logged_at, self.logged_updates = 0.0, env_steps, self.loop.num_updates
        self.write(env_steps, rows)

    def write(self, env_steps: int, rows: Sequence[dict[str, float]]) -> None:
        self.tracker.write(env_steps, rows)
        self.console.update(env_steps, rows)

    def evaluate(self, env_steps: int) -> None:
        """Greedy and sampled returns of the averaged policies; keeps each member's best weights."""
        members = self.evaluate_policy(self.evaluation_env, self.config.evaluation.episodes, env_steps)
        rows = [
            {f"eval/return_{mode}": member[mode]["mean"] for mode in MODES}
            | {f"eval/length_{mode}": float(np.mean(member[mode]["lengths"])) for mode in MODES}
            for member in members
        ]
        self.write(env_steps, rows)
        improved = [
            i
            for i, (new, old) in enumerate(zip(self.policy.info.members, self.best.info.members, strict=True))
            if old.eval_return is None or float(new.eval_return or 0.0) >= old.eval_return
        ]
        if improved:
            self.best.take_members(self.policy, improved)
            self.best.save(self.run_dir / "policy" / "best")

    def evaluate_policy(self, env: VectorEnvironment, num_episodes: int, env_steps: int) -> list[dict[str, Any]]:
        """Takes over the averaged policies and evaluates them on episodes of their own seeds."""
        self.policy.copy_from(self.loop.learner.evaluated_actor, self.loop.normalizer)
        seed = int(
            np.random.SeedSequence([self.seeds["evaluation"], env_steps, num_episodes]).generate_state(1)[0] >> 1
        )
        members = evaluate_members(self.policy, env, num_episodes, seed, MODES)
        self.policy.record_evaluation(env_steps, [member["greedy"]["mean"] for member in members])
        return members

    def finish(self, env_steps: int, started: float) -> None:
        """The last evaluation, on fresh environments; writes the final policy and result.json."""
        wall_seconds = time.perf_counter() - started
        num_episodes = self.config.evaluation.final_episodes
        count = num_parallel_envs(self.num_members, num_episodes)
        with contextlib.closing(make_env(self.config, count, self.device)) as env:
            members = self.evaluate_policy(env, num_episodes, env_steps)
        self.policy.save(self.run_dir / "policy" / "final")
        if isinstance(self.loop.learner, GumbelActorCritic):
            save_critics(self.loop.learner.critics, self.run_dir)
        result = {
            "env_id": self.config.env.id,
            "env_steps": env_steps,
            "wall_seconds": wall_seconds,
            "versions": self.versions,
            "members": members,
        }
        write_atomically(self.run_dir / "result.json", json.dumps(result, indent=1))
        self.console.final_table(result, self.run_dir, next_commands(self.run_dir))


def seed_streams(config: Config) -> dict[str, int]:
    """Disjoint seeds, all from the run's one; inspection is that of the gradients, learner noise and replay."""
    names = ("learner", "environments", "evaluation", "inspection")
    states = np.random.SeedSequence(config.seed).spawn(len(names))
    return {name: int(s.generate_state(1)[0] >> 1) for name, s in zip(names, states, strict=True)}


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
    )


def make_run_dir(config: Config) -> Path:
    """The folder given, or a new one under runs/ named after environment, algorithm, seed and time."""
    if config.run_dir is not None:
        path = Path(config.run_dir)
        if (path / "config.yaml").exists():
            raise ConfigError(f"run_dir: {path} already holds a run; choose another folder or remove it")
        path.mkdir(parents=True, exist_ok=True)
        return path
    env_name = config.env.id.split(":")[-1].replace("/", "-")
    stem = f"{env_name}-{config.algorithm}-s{config.seed}-{datetime.now():%Y%m%d-%H%M%S}"
    for suffix in ("", *(f"-{i}" for i in range(2, 1000))):
        path = Path("runs") / f"{stem}{suffix}"
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise RuntimeError(f"cannot make a run folder like runs/{stem}")


def next_commands(run_dir: Path) -> list[str]:
    return [
        f"python evaluate.py {run_dir}",
        f"python evaluate.py {run_dir} --video {run_dir}/videos",
        *([f"python evaluate.py {run_dir} --gradients"] if (run_dir / CRITICS_FILE).exists() else []),
        f"python compare.py {run_dir}/config.yaml --algorithms gumbel_actor_critic reinforce --seeds 10",
    ]


def write_atomically(path: Path, text: str) -> None:
    staging = path.with_name(f".{path.name}.tmp")
    staging.write_text(text, encoding="utf-8")
    os.replace(staging, path)
