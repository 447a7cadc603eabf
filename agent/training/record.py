"""What a run leaves in its folder, and what it shows of itself."""

import contextlib
import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agent.config import Config, Member
from agent.evaluation import MODES
from agent.evaluation import make_env as make_env_of_policy
from agent.metrics import METRICS, Metric
from agent.networks.encoders import described
from agent.policy import MemberInfo, Policy
from agent.state import State, named, restore_
from agent.training.checkpoint import Checkpoint, CheckpointInfo, CheckpointWriter, require_fit
from agent.training.console import Console, Output
from agent.training.run_dir import next_commands, not_writable, write_atomically
from agent.training.tracking import Tracker
from agent.video import record
from agent.weights import save_weights
from envs import UserError
from envs.spaces import ObsPart

logger = logging.getLogger(__name__)


class RunRecord:
    """The policies of all members, and everything that is written or shown. Of several ranks, rank 0 has it.

    policy: weights of the last evaluation. best: of each member's best one.
    """

    console: Console
    tracker: Tracker

    def __init__(self, config: Config, run_dir: Path, policy: Policy, device: torch.device) -> None:
        self.config, self.run_dir, self.policy = config, run_dir, policy
        self.best = Policy(policy.info, device)
        self.resumed_from: Path | None = None

    def resume(self, checkpoint: Checkpoint, versions: Mapping[str, str]) -> None:
        """Brings the policies to where they were; first: a run that cannot be resumed is left as it was."""
        info = checkpoint.info
        for name in ("torch", "kernels"):
            if info.versions.get(name, versions[name]) != versions[name]:
                logger.warning(
                    "the run was computed with %s %s and resumes with %s: it continues, but not bit for bit",
                    name,
                    info.versions[name],
                    versions[name],
                )
        require_fit(checkpoint.folder, checkpoint.tensors, self.policies())
        restore_(self.policies(), checkpoint.tensors)
        self.best.info = self.best.info.model_copy(update={"members": info.best})
        self.resumed_from = checkpoint.folder

    def begin(
        self,
        stack: contextlib.ExitStack,
        resumed: CheckpointInfo | None,
        metrics: Mapping[str, Metric],
        *,
        quiet: bool,
    ) -> None:
        """Opens what is written to. `metrics`: of the algorithm."""
        try:
            if resumed is not None and resumed.best[0].eval_return is not None:
                self.best.save(self.run_dir / "policy" / "best")
            write_atomically(self.run_dir / "config.yaml", self.config.to_yaml())
            (self.run_dir / "result.json").unlink(missing_ok=True)  # of a run that is now longer
        except OSError as error:
            raise not_writable(self.run_dir, error) from error
        self.console = stack.enter_context(Console(self.config, Output(quiet=quiet)))
        self.tracker = stack.enter_context(Tracker(self.run_dir, self.config, resumed, METRICS | dict(metrics)))
        self.checkpoints = CheckpointWriter(self.run_dir, self.config.checkpoint.keep)
        stack.callback(self.checkpoints.wait)

    def describe_network(self, obs_parts: Sequence[ObsPart]) -> None:
        """Says what is not a plain MLP."""
        network = self.policy.info.network
        if any(part.is_image for part in obs_parts):
            self.console.message(f"Network: {described(network.name, obs_parts)}.")
        if network.memory:
            self.console.message(f"Memory: {network.memory.cell} of {network.memory.size} numbers.")

    def policies(self) -> State:
        """The weights of both policies, live."""
        return named("policy", dict(self.policy.tensors())) | named("best", dict(self.best.tensors()))

    def write(self, env_steps: int, rows: Sequence[dict[str, float]]) -> None:
        """Metrics of all members; of one that was dropped none."""
        self.tracker.write(env_steps, rows)
        self.console.update(env_steps, rows)

    def keep_best(self, sound: Sequence[int]) -> None:
        """Takes over the members whose last evaluation is their best; `sound`: those that count."""
        new, old = self.policy.info.members, self.best.info.members
        improved = [
            i for i in sound if (best := old[i].eval_return) is None or float(new[i].eval_return or 0.0) >= best
        ]
        if improved:
            self.best.take_members_(self.policy, improved)
            self.best.save(self.run_dir / "policy" / "best")

    def save_final(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """The policies and, by file, other weights, before the last evaluation."""
        self.tracker.require_in_place()
        self.policy.save(self.run_dir / "policy" / "final")
        for file, tensors in weights.items():
            save_weights(dict(tensors), self.run_dir / file)

    def finish(
        self, env_steps: int, wall_seconds: float, versions: Mapping[str, str], members: list[dict[str, Any]]
    ) -> None:
        """Writes and shows what came of the run. `members`: as evaluated at the end."""
        result = {
            "env_id": self.config.env.id,
            "env_steps": env_steps,
            "wall_seconds": wall_seconds,
            "max_episode_steps": self.config.evaluation.max_episode_steps,
            "versions": versions,
            "members": members,
        }
        try:
            self.tracker.require_in_place()
            self.policy.save(self.run_dir / "policy" / "final")
            write_atomically(self.run_dir / "result.json", json.dumps(result, indent=1))
        finally:
            self.console.final_table(result)  # where they cannot be written they are shown nevertheless
        self.tracker.summarize(
            [
                {} if has_failed(member) else {f"eval/final_return_{mode}": member[mode]["mean"] for mode in MODES}
                for member in members
            ]
        )
        if self.config.wandb.log_policy:
            self.tracker.wandb.log_policy(self.run_dir / "policy", "policy")
        if self.config.wandb.log_video:
            self.log_video([i for i, member in enumerate(members) if not has_failed(member)])
        self.console.saved(self.run_dir, next_commands(self.run_dir, self.policy.info))

    def log_video(self, sound: Sequence[int]) -> None:
        """An episode of the best member's best weights, to W&B. Where it cannot be filmed, one warning."""
        infos = self.best.info.members
        best = max(sound, key=lambda i: -math.inf if (r := infos[i].eval_return) is None else r)
        policy, seed = self.best.select([best]), infos[best].seed
        try:
            of_policy = make_env_of_policy(
                policy, 1, trust=True, changes={"id": self.config.env.id}, render_mode="rgb_array"
            )
            with contextlib.redirect_stdout(sys.stderr), contextlib.closing(of_policy) as env:
                video = record(policy, env, self.run_dir / "videos", seed, sampled=False)
        except UserError as error:
            logger.warning("wandb.log_video: no video: %s", error)
            return
        self.tracker.wandb.log_video(video.path)


def has_failed(member: Mapping[str, Any]) -> bool:
    return "failed_at_env_steps" in member


def members_info(members: Sequence[Member]) -> list[MemberInfo]:
    """Of members that have not learned anything yet."""
    return [
        MemberInfo(member=i, seed=m.seed, settings=m.settings, env_steps=0, eval_return=None)
        for i, m in enumerate(members)
    ]
