"""The run: collect, learn, evaluate, log, save."""

import contextlib
import copy
import json
import logging
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from agent.algorithms.base import require_updates
from agent.commands import command
from agent.config import Config
from agent.config_fields import ConfigError
from agent.evaluation import MODES, evaluate_members, num_parallel_envs
from agent.evaluation import make_env as make_env_of_policy
from agent.exit_codes import Stopped
from agent.memory import release_free_memory, told_if_it_runs_out
from agent.metrics import METRICS
from agent.networks.encoders import described
from agent.policy import MemberInfo, Policy, describe_policy
from agent.run import Run
from agent.seeding import member_seeds
from agent.state import State, capture, named, restore_
from agent.training.accumulators import Milestones
from agent.training.callbacks import Callback, Callbacks, CheckpointView, EvaluationView, step_view
from agent.training.checkpoint import Checkpoint, CheckpointInfo, CheckpointWriter, require_fit
from agent.training.console import Console, Output
from agent.training.loop import TrainingLoop
from agent.training.resume import checkpoint_of, is_finished
from agent.training.run_dir import (
    make_run_dir,
    next_commands,
    not_writable,
    require_new,
    sole_writer,
    write_atomically,
)
from agent.training.setup import in_force, make_env, select_device
from agent.training.stopping import StopSignals
from agent.training.tracking import Tracker
from agent.versions import versions
from agent.video import record
from agent.weights import save_weights
from envs import Factory, UserError, VectorEnvironment, registered
from envs.random_streams import RandomStreams

REPLAY = "learner/replay/"  # in the names of a loop's state
SECONDS_BETWEEN_RELEASES = 1.0  # of free memory, each of which takes a few milliseconds
OUT_OF_MEMORY = (
    "fewer members or environments, a lower replay_capacity, batch_size or hidden_sizes, or a wrapper that makes "
    "observations smaller need less"
)

logger = logging.getLogger(__name__)


def train(
    config: Config,
    *,
    env: Factory | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> Run:
    """Trains all members of a config to the end.

    Args:
        env: makes the environments where the config has no env.id: a class, or a function such as `lambda: MyEnv(3)`.
            It is called once for each environment of each member, and for those of evaluations.
        resume: resumes the run in `config.run_dir` where there is one.
        callbacks: are called on the way and may stop the run.
        progress: whether anything is printed but warnings.

    Raises:
        UserError: the config cannot be run.
        Stopped: a signal came; what is done is saved.
    """
    with contextlib.ExitStack() as stack:
        if env is not None:
            config = with_env(config, stack.enter_context(registered(env)))
        if not config.env.id:
            raise ConfigError(
                'env.id is required: Config(env={"id": "CartPole-v1"}), or what makes environments, '
                "train(config, env=MyEnv)"
            )
        if resume and is_finished(config):
            return Run(str(config.run_dir), trust=True)
        stack.enter_context(told_if_it_runs_out(OUT_OF_MEMORY))
        trainer = Trainer(config, stack, resume=resume, callbacks=callbacks, progress=progress)
        trainer.run()
    return Run(trainer.run_dir, trust=True)


def with_env(config: Config, env_id: str) -> Config:
    """The config with the id of environments that a factory makes.  ConfigError where it has another."""
    if config.env.id not in ("", env_id):
        raise ConfigError(f"env: got {env_id}, but the config has env.id={config.env.id}; leave one of them out")
    return config.model_copy(update={"env": config.env.model_copy(update={"id": env_id})})


class Trainer:
    """One run of a population. Members lie along the first axis of everything."""

    def __init__(
        self,
        config: Config,
        stack: contextlib.ExitStack,
        *,
        resume: bool = False,
        callbacks: Sequence[Callback] = (),
        progress: bool = True,
    ) -> None:
        require_updates(config)
        self.config, self.callbacks = config, Callbacks(callbacks)
        self.device = select_device(config)
        torch.set_num_threads(config.num_threads)
        # Adam's moments of a parameter without gradient decay into denormals, each a hundred times slower to multiply.
        torch.set_flush_denormal(True)
        self.members = config.members()
        self.num_members, self.num_envs = len(self.members), config.env.num_envs
        self.seeds = [member.seed for member in self.members]
        self.env = stack.enter_context(contextlib.closing(make_env(config, self.num_envs, self.device)))
        evaluation_envs = num_parallel_envs(config.evaluation.episodes)
        self.evaluation_env = stack.enter_context(contextlib.closing(make_env(config, evaluation_envs, self.device)))
        self.has_checkpoints = config.checkpoint.every_env_steps is not None
        self.env.make_repeatable_()  # without checkpoints, too: they do not change what is learned
        self.stop = StopSignals()
        self.loop = TrainingLoop(config, self.env, self.device, self.stop.check)
        infos = [
            MemberInfo(member=i, seed=m.seed, settings=m.settings, env_steps=0, eval_return=None)
            for i, m in enumerate(self.members)
        ]
        resolved, preprocessing = in_force(config)
        self.policy = Policy(describe_policy(resolved, self.env, infos), self.device)
        self.best = Policy(self.policy.info, self.device)
        self.gradients: dict[str, torch.Tensor] = {}  # as inspected since the last log line
        self.inspection_streams = RandomStreams(member_seeds(self.seeds, "inspection"), self.device)
        self.milestones = {
            "inspect": Milestones(None, config.total_env_steps, parts=max(1, self.loop.learner.num_inspections)),
            "log": Milestones(config.log_every_env_steps, config.total_env_steps, parts=100),
            "evaluate": Milestones(config.evaluation.every_env_steps, config.total_env_steps, parts=20),
            "checkpoint": Milestones(config.checkpoint.every_env_steps, config.total_env_steps, parts=1),
        }
        self.env_steps, self.training_seconds, self.logged_env_steps, self.logged_updates = 0, 0.0, 0, 0
        self.mean_return: float | None = None  # over members, greedy, of the last evaluation
        self.failed: dict[int, int] = {}  # members with parameters that are not finite: since which step
        self.saved_at: int | None = None
        self.updates_before_refill = 0  # until more are made the replay is too empty to inspect
        self.keeps_replay = True  # in checkpoints
        self.is_between_steps = True  # a state within one is no state to resume
        self.told_of_cut = False
        self.versions = versions(self.device)  # of the code that is running, whatever is checked out later
        self.started = self.released_at = time.perf_counter()

        self.run_dir = make_run_dir(config)  # only now: what cannot be run leaves no folder behind
        stack.enter_context(sole_writer(self.run_dir))
        if not resume:
            require_new(self.run_dir)
        checkpoint = checkpoint_of(config, self.run_dir, self.device.type) if resume else None
        try:
            if checkpoint is not None:
                self.restore(checkpoint)  # first: a run that cannot be resumed is left as it was
            write_atomically(self.run_dir / "config.yaml", config.to_yaml())
            (self.run_dir / "result.json").unlink(missing_ok=True)  # of a run that is now longer
        except OSError as error:
            raise not_writable(self.run_dir, error) from error
        self.console = stack.enter_context(Console(config, Output(quiet=not progress)))
        self.tracker = stack.enter_context(
            Tracker(self.run_dir, config, checkpoint and checkpoint.info, METRICS | dict(self.loop.learner.metrics))
        )
        self.checkpoints = CheckpointWriter(self.run_dir, config.checkpoint.keep)
        stack.callback(self.checkpoints.wait)
        stack.enter_context(self.stop)
        if preprocessing:
            self.console.message(f"Preprocessing: {preprocessing}.")
        if any(part.is_image for part in self.env.observations.parts):
            self.console.message(f"Network: {described(self.policy.info.network.name, self.env.observations.parts)}.")
        if memory := self.policy.info.network.memory:
            self.console.message(f"Memory: {memory.cell} of {memory.size} numbers.")
        if checkpoint is not None:
            self.console.message(f"Resumes at step {self.env_steps}: {checkpoint.folder}")
        if (gib := self.loop.learner.replay_bytes / 2**30) >= 1:
            self.console.message(f"The replay takes {gib:.1f} GiB of memory.")
        if self.loop.compiles:
            stack.callback(torch.compiler.reset)  # PyTorch keeps only eight programs of a function, and their tensors
            self.console.message("The update is compiled once it begins: half a minute at first, seconds later on.")

    def without_large_replay(self, state: State) -> State:
        """The state without a replay that is too large for checkpoints; the user is told of the first."""
        gib = sum(x.nbytes for name, x in state.items() if name.startswith(REPLAY)) / 2**30
        if gib <= self.config.checkpoint.replay_gib:
            return state
        if self.keeps_replay:
            self.keeps_replay = False
            logger.warning(
                "the replay takes %.1f GiB, more than checkpoint.replay_gib: if this run is stopped and resumed, it "
                "starts empty",
                gib,
            )
        return without_replay(state)

    def run(self) -> None:
        """Collects and learns to the end of the budget, with evaluations, log lines and checkpoints on their way."""
        try:
            while self.env_steps < self.config.total_env_steps:
                self.look()
                self.pass_boundary()
                if self.callbacks.wants_stop:
                    break
                self.stop.check()
                self.run_iteration()
            self.save()  # a longer run resumes here
            self.loop.conclude(self.env_steps)
            self.look()
            self.finish()
        except Stopped as stopped:
            raise self.leave(stopped) from None
        except OSError as error:
            raise not_writable(self.run_dir, error) from error

    def run_iteration(self) -> None:
        clock = time.perf_counter()
        before = (self.loop.obs.clone(), self.loop.action.clone()) if self.callbacks.watch_steps else None
        self.is_between_steps = False  # until it returns: a signal may end the compilation in it
        self.loop.run_iteration(self.env_steps)
        self.is_between_steps = True
        self.env_steps += self.num_envs
        if self.milestones["log"].is_due(self.env_steps):
            self.loop.wait()
        if clock - self.released_at >= SECONDS_BETWEEN_RELEASES:
            release_free_memory()
            self.released_at = clock
        self.training_seconds += time.perf_counter() - clock
        if before is not None:
            self.callbacks.call("on_step", step_view(self.env_steps, *before, self.loop.transition))

    def look(self) -> None:
        """What is due after the steps so far, each once: gradients, log line, evaluation."""
        inspect, log, evaluate = (self.milestones[name] for name in ("inspect", "log", "evaluate"))
        if log.is_due(self.env_steps) or evaluate.is_due(self.env_steps):
            self.look_for_failures()
        if inspect.is_due(self.env_steps):
            inspect.advance(self.env_steps)
            if self.loop.num_updates > self.updates_before_refill and self.loop.learner.num_inspections:
                self.gradients = self.loop.inspect_gradients(self.inspection_streams)
        if log.is_due(self.env_steps):
            log.advance(self.env_steps)
            self.log()
        if evaluate.is_due(self.env_steps):
            self.evaluate()
            evaluate.advance(self.env_steps)  # only now: a signal may cut it short

    def look_for_failures(self) -> None:
        """Drops members with parameters that are not finite; the others continue. UserError where none is left."""
        for member in torch.nonzero(~self.loop.learner.are_finite()).flatten().tolist():
            if member not in self.failed:
                self.failed[member] = self.env_steps
                logger.warning(
                    "member %d (seed %d) is dropped at step %d: its parameters are not finite; its policy stays that "
                    "of its last evaluation",
                    member,
                    self.members[member].seed,
                    self.env_steps,
                )
        if len(self.failed) == self.num_members:
            raise UserError(
                f"{self.run_dir}: no member has finite parameters at step {self.env_steps}; a smaller "
                "learning_rate or max_grad_norm may help, or other rewards"
            )

    def sound_members(self) -> list[int]:
        return [member for member in range(self.num_members) if member not in self.failed]

    def pass_boundary(self) -> None:
        """Writes a checkpoint where one is due."""
        checkpoint = self.milestones["checkpoint"]
        if not self.has_checkpoints or not checkpoint.is_due(self.env_steps):
            return
        checkpoint.advance(self.env_steps)
        self.save()
        self.callbacks.call("on_checkpoint", CheckpointView(self.env_steps, self.run_dir))

    def save(self) -> None:
        """Writes a checkpoint beside the training, unless there is one of this very state."""
        if not self.has_checkpoints or self.saved_at == self.env_steps:
            return
        wandb_id, wandb_step = self.tracker.wandb.position()
        info = CheckpointInfo(
            env_steps=self.env_steps,
            num_updates=self.loop.num_updates,
            updates_before_refill=self.updates_before_refill,
            milestones={name: milestones.next for name, milestones in self.milestones.items()},
            elapsed_seconds=time.perf_counter() - self.started,
            metrics_bytes=self.tracker.num_bytes(),
            mean_return=self.mean_return,
            failed=self.failed,
            best=self.best.info.members,
            wandb_id=wandb_id,
            wandb_step=wandb_step,
            device=self.device.type,
            config=self.config.model_dump(),
            versions=self.versions,
        )
        self.checkpoints.wait()  # first: of a large replay there is room for one copy
        state = self.without_large_replay(self.state())
        tensors = capture(state | named("gradients", self.gradients)) | self.env.journal()
        self.checkpoints.save(info, tensors)
        self.saved_at = self.env_steps

    def restore(self, checkpoint: Checkpoint) -> None:
        """Brings everything to where it was when the checkpoint was written."""
        info, tensors = checkpoint.info, checkpoint.tensors
        for name in ("torch", "kernels"):
            if info.versions.get(name, self.versions[name]) != self.versions[name]:
                logger.warning(
                    "the run was computed with %s %s and resumes with %s: it continues, but not bit for bit",
                    name,
                    info.versions[name],
                    self.versions[name],
                )
        self.keeps_replay = any(name.startswith(REPLAY) for name in tensors)
        if self.keeps_replay:
            self.loop.make_room_(tensors)
        state = self.state() if self.keeps_replay else without_replay(self.state())
        require_fit(checkpoint, state)
        restore_(state, tensors)
        if not self.env.has_state:
            self.repeat_steps(checkpoint)
        if any(name.startswith(REPLAY) for name in self.state()) and not self.keeps_replay:
            self.loop.learner.refill_replay_(info.env_steps)
            self.updates_before_refill = info.num_updates
        else:
            self.updates_before_refill = info.updates_before_refill
        self.gradients = {
            name.removeprefix("gradients/"): tensor.to(self.device)
            for name, tensor in tensors.items()
            if name.startswith("gradients/")
        }
        self.env_steps = self.saved_at = self.logged_env_steps = info.env_steps
        self.loop.num_updates = self.logged_updates = info.num_updates
        self.started -= info.elapsed_seconds
        self.mean_return, self.failed = info.mean_return, dict(info.failed)
        for name, milestones in self.milestones.items():
            milestones.resume(info.env_steps, info.milestones.get(name, 0))
        self.best.info = self.best.info.model_copy(update={"members": info.best})
        if info.best[0].eval_return is not None:
            self.best.save(self.run_dir / "policy" / "best")

    def repeat_steps(self, checkpoint: Checkpoint) -> None:
        """Brings environments that cannot be saved to where they were, by the actions since they were last seeded."""
        obs = self.env.repeat(checkpoint.tensors)
        if not torch.equal(self.loop.by_member(obs), self.loop.obs):
            logger.warning(
                "%s is not deterministic given its seed: the run continues, but not as if it had never stopped",
                self.env.spec_id,
            )

    def state(self) -> State:
        """All tensors that training changes."""
        state = self.loop.state()
        policies = named("policy", dict(self.policy.tensors())) | named("best", dict(self.best.tensors()))
        return state | policies | named("inspection", self.inspection_streams.state())

    def leave(self, stopped: Stopped) -> Stopped:
        """Saves what is done; what to tell the user."""
        has_ended = self.env_steps >= self.config.total_env_steps
        if self.is_between_steps and not has_ended:
            self.save()
        self.checkpoints.wait()
        resume = command("train", "--resume", self.run_dir)
        when, how = "", f"saved; {resume} continues the run"
        if not self.is_between_steps:
            when = " while programs were compiled"
        if not self.is_between_steps or not self.checkpoints.last_was_written:
            how = f"{resume} continues at the last checkpoint, or starts over without one"
        if not self.has_checkpoints:
            how = "checkpoint.every_env_steps=null: there is no checkpoint to resume"
            if has_ended and (self.run_dir / "policy" / "final").exists():
                how += f"; the policies are in {self.run_dir}/policy/final"
        return Stopped(
            stopped.signum, f"stopped at step {self.env_steps} of {self.config.total_env_steps}{when}; {how}"
        )

    def log(self) -> None:
        """Writes the means since the last log line, of what there was in a member."""
        gradients = {name: values.cpu().numpy() for name, values in self.gradients.items()}
        columns = {**self.loop.episodes.read_(), **self.loop.metrics.read_(), **gradients}
        self.gradients = {}
        seconds = max(self.training_seconds, 1e-9)
        restarts = self.env.restarts.reshape(self.num_members, -1).sum(1)
        rows: list[dict[str, float]] = []
        for i in range(self.num_members):
            row = {name: float(values[i]) for name, values in columns.items() if not np.isnan(values[i])}
            if restarts[i]:
                row["env/restarts"] = float(restarts[i])
            row["time/env_steps_per_second"] = (self.env_steps - self.logged_env_steps) / seconds
            row["time/updates_per_second"] = (self.loop.num_updates - self.logged_updates) / seconds
            row["time/elapsed_seconds"] = time.perf_counter() - self.started
            rows.append(row)
        self.training_seconds = 0.0
        self.logged_env_steps, self.logged_updates = self.env_steps, self.loop.num_updates
        self.write(rows)

    def write(self, rows: Sequence[dict[str, float]]) -> None:
        rows = [{} if member in self.failed else row for member, row in enumerate(rows)]
        self.tracker.write(self.env_steps, rows)
        self.console.update(self.env_steps, rows)

    def evaluate(self) -> None:
        """Greedy and sampled returns of the averaged policies; keeps each member's best weights."""
        members = self.evaluate_policy(self.evaluation_env, self.config.evaluation.episodes)
        self.mean_return = float(np.mean([members[i]["greedy"]["mean"] for i in self.sound_members()]))
        rows = [
            {f"eval/return_{mode}": member[mode]["mean"] for mode in MODES}
            | {f"eval/length_{mode}": float(np.mean(member[mode]["lengths"])) for mode in MODES}
            for member in members
        ]
        self.write(rows)
        improved = [
            i
            for i, (new, old) in enumerate(zip(self.policy.info.members, self.best.info.members, strict=True))
            if i not in self.failed
            if old.eval_return is None or float(new.eval_return or 0.0) >= old.eval_return
        ]
        if improved:
            self.best.take_members_(self.policy, improved)
            self.best.save(self.run_dir / "policy" / "best")
        self.callbacks.call("on_evaluation", EvaluationView(self.env_steps, copy.deepcopy(members)))

    def evaluate_policy(self, env: VectorEnvironment, num_episodes: int) -> list[dict[str, Any]]:
        """Takes over the averaged policies and evaluates them on episodes of their own seeds."""
        progress = self.console.evaluation_progress()

        def before_step(done: int, total: int) -> None:
            self.stop.check()
            progress(done, total)

        self.take_over_policies()
        numbers, limit = (self.env_steps, num_episodes), self.config.evaluation.max_episode_steps
        members = evaluate_members(self.policy, env, num_episodes, numbers, MODES, limit, before_step)
        self.policy.record_evaluation_(self.env_steps, [member["greedy"]["mean"] for member in members])
        if (num_cut := sum(member[mode]["cut"] for member in members for mode in MODES)) and not self.told_of_cut:
            self.told_of_cut = True
            logger.warning(
                "%d episodes of the evaluation at step %d were cut after %d steps (evaluation.max_episode_steps); they "
                "count with their return so far",
                num_cut,
                self.env_steps,
                limit,
            )
        return members

    def take_over_policies(self) -> None:
        """The averaged policies of the members that are sound."""
        self.policy.copy_from_(self.loop.learner.evaluated_actor, self.loop.normalizer, self.sound_members())

    def finish(self) -> None:
        """Writes the final policy, evaluates it on fresh environments, writes its returns and result.json."""
        wall_seconds = time.perf_counter() - self.started
        self.save_final_weights()  # now: the evaluation may take long, or be stopped
        num_episodes = self.config.evaluation.final_episodes
        with contextlib.closing(make_env(self.config, num_parallel_envs(num_episodes), self.device)) as env:
            members = self.evaluate_policy(env, num_episodes)
        for member, env_steps in self.failed.items():
            members[member]["failed_at_env_steps"] = env_steps
        result = {
            "env_id": self.config.env.id,
            "env_steps": self.env_steps,
            "wall_seconds": wall_seconds,
            "max_episode_steps": self.config.evaluation.max_episode_steps,
            "versions": self.versions,
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
                {} if i in self.failed else {f"eval/final_return_{mode}": member[mode]["mean"] for mode in MODES}
                for i, member in enumerate(members)
            ]
        )
        if self.config.wandb.log_policy:
            self.tracker.wandb.log_policy(self.run_dir / "policy", "policy")
        if self.config.wandb.log_video:
            self.log_video()
        self.console.saved(self.run_dir, next_commands(self.run_dir, self.policy.info))

    def log_video(self) -> None:
        """An episode of the best member's best weights, to W&B. Where it cannot be filmed, one warning."""
        infos = self.best.info.members
        best = max(self.sound_members(), key=lambda i: -math.inf if (r := infos[i].eval_return) is None else r)
        policy, seed = self.best.select([best]), self.members[best].seed
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

    def save_final_weights(self) -> None:
        """Of policies and critics, before their last evaluation."""
        self.tracker.require_in_place()
        self.take_over_policies()
        if self.policy.info.members[0].env_steps != self.env_steps:
            self.policy.record_evaluation_(self.env_steps, [None] * self.num_members)
        self.policy.save(self.run_dir / "policy" / "final")
        for file, tensors in self.loop.learner.weights_to_save().items():
            save_weights(tensors, self.run_dir / file)


def without_replay(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith(REPLAY)}
