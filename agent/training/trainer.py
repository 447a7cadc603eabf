"""The run: collect, learn, evaluate, log, save. Each of its ranks does so for members of its own."""

import contextlib
import copy
import itertools
import logging
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agent.algorithms.base import require_updates
from agent.commands import command
from agent.config import Config
from agent.config_fields import ConfigError
from agent.config_loader import flat
from agent.evaluation import MODES, evaluate_members, num_parallel_envs
from agent.exit_codes import RankLost, Stopped
from agent.memory import release_free_memory, told_if_it_runs_out
from agent.policy import Policy, describe_policy
from agent.ranks import Ranks, joined, one_speaks
from agent.run import Run
from agent.seeding import member_seeds
from agent.state import State, capture, named, restore_
from agent.training.accumulators import Milestones
from agent.training.callbacks import Callback, Callbacks, CheckpointView, EvaluationView, step_view
from agent.training.checkpoint import CheckpointInfo, require_fit
from agent.training.loop import TrainingLoop
from agent.training.pbt import SelfTuning, plan
from agent.training.record import RunRecord, members_info
from agent.training.resume import checkpoint_of, is_finished
from agent.training.run_dir import make_run_dir, not_writable, require_new, sole_writer
from agent.training.setup import in_force, make_env, select_device
from agent.training.sharing import Sharing, make_sharing
from agent.training.stopping import StopSignals
from agent.versions import code_digest, versions
from envs import Factory, UserError, VectorEnvironment, registered
from envs.random_streams import RandomStreams

REPLAY = "learner/replay/"  # in the names of a loop's state
SECONDS_BETWEEN_RELEASES = 1.0  # of free memory, each of which takes a few milliseconds
SECONDS_BETWEEN_MEETINGS = 1.0  # of ranks, to stop together
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
    ranks: Ranks | None = None,
) -> Run:
    """Trains all members of a config to the end; in a process that torchrun has started, some of them.

    Args:
        env: makes the environments where the config has no env.id: a class, or a function such as `lambda: MyEnv(3)`.
            It is called once for each environment of each member, and for those of evaluations.
        resume: resumes the run in `config.run_dir` where there is one.
        callbacks: are called on the way and may stop the run; of several ranks, rank 0 calls them.
        progress: whether anything is printed but warnings.
        ranks: the processes that share the run. None: those that torchrun has started, this one of them.

    Raises:
        UserError: the config cannot be run.
        Stopped: a signal came; what is done is saved.
        RankLost: another process has ended before the run.
    """
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(joined()) if ranks is None else ranks
        if env is not None:
            config = with_env(config, stack.enter_context(registered(env)))
        if not config.env.id:
            raise ConfigError(
                'env.id is required: Config(env={"id": "CartPole-v1"}), or what makes environments, '
                "train(config, env=MyEnv)"
            )
        if ranks.size > 1:
            ranks.require_alike("code", {"files": code_digest(), "torch": str(torch.__version__)})
            ranks.require_alike("settings", flat(config.model_dump()) | {"resume": resume})
        stack.enter_context(one_speaks(ranks))
        resume = resume or ranks.were_restarted
        if ranks.may_restart and config.run_dir is None:
            raise ConfigError(
                "torchrun --max-restarts runs the command again where a rank has died; give run_dir=FOLDER, in which "
                "it then finds what to resume"
            )
        if resume and ranks.from_first(lambda: is_finished(config)):
            folder = Path(str(config.run_dir))
            return Run(folder, trust=True) if ranks.is_first else Run.of_rank(folder)
        stack.enter_context(told_if_it_runs_out(OUT_OF_MEMORY))
        trainer = Trainer(config, stack, ranks, resume=resume, callbacks=callbacks, progress=progress)
        trainer.run()
    return Run(trainer.run_dir, trust=True) if ranks.is_first else Run.of_rank(trainer.run_dir)


def with_env(config: Config, env_id: str) -> Config:
    """The config with the id of environments that a factory makes.  ConfigError where it has another."""
    if config.env.id not in ("", env_id):
        raise ConfigError(f"env: got {env_id}, but the config has env.id={config.env.id}; leave one of them out")
    return config.model_copy(update={"env": config.env.model_copy(update={"id": env_id})})


class Trainer:
    """One rank's part of a run: of a population, the members that are its own.

    Members lie along the first axis of everything. Rank 0 also has the record, which is of all members.
    """

    def __init__(
        self,
        config: Config,
        stack: contextlib.ExitStack,
        ranks: Ranks,
        *,
        resume: bool = False,
        callbacks: Sequence[Callback] = (),
        progress: bool = True,
    ) -> None:
        require_updates(config)
        self.config, self.ranks = config, ranks
        self.callbacks = Callbacks(callbacks if ranks.is_first else ())
        self.device = select_device(config)
        torch.set_num_threads(config.num_threads)
        # Adam's moments of a parameter without gradient decay into denormals, each a hundred times slower to multiply.
        torch.set_flush_denormal(True)
        self.members, self.num_envs = config.members(), config.env.num_envs  # of all ranks
        self.sharing: Sharing = make_sharing(config, ranks)
        self.share, self.own_config = self.sharing.share, self.sharing.config
        self.seeds = [member.seed for member in self.own_config.members()]
        own_envs = self.own_config.env.num_envs
        self.env = stack.enter_context(contextlib.closing(make_env(self.own_config, own_envs, self.device)))
        evaluation_envs = num_parallel_envs(max(1, self.sharing.num_episodes(config.evaluation.episodes)))
        self.evaluation_env = stack.enter_context(
            contextlib.closing(make_env(self.own_config, evaluation_envs, self.device))
        )
        self.has_checkpoints = config.checkpoint.every_env_steps is not None
        self.env.make_repeatable_()  # without checkpoints, too: they do not change what is learned
        self.stop = StopSignals()
        self.loop = TrainingLoop(self.own_config, self.env, self.device, self.stop.check, self.sharing.data)
        resolved, preprocessing = in_force(config)
        infos = members_info(self.members)
        described = describe_policy(resolved, self.env, infos)
        of_own = {"members": infos[self.share.start : self.share.stop]}
        self.policy = Policy(described.model_copy(update=of_own), self.device)
        self.gradients: dict[str, torch.Tensor] = {}  # as inspected since the last log line
        self.inspection_streams = RandomStreams(
            member_seeds(self.seeds, "inspection", *self.own_config.streams_of_part), self.device
        )
        self.milestones = {
            "inspect": Milestones(None, config.total_env_steps, parts=max(1, self.loop.learner.num_inspections)),
            "log": Milestones(config.log_every_env_steps, config.total_env_steps, parts=100),
            "evaluate": Milestones(config.evaluation.every_env_steps, config.total_env_steps, parts=20),
            "checkpoint": Milestones(config.checkpoint.every_env_steps, config.total_env_steps, parts=1),
        }
        self.tuning: SelfTuning | None = None
        if config.pbt.every_env_steps is not None:
            learner = self.loop.learner
            if not learner.learned():
                raise ConfigError(
                    f"pbt.every_env_steps: {config.algorithm} does not say what a member has learned, so that another "
                    "could take it over (a class that does has `learned`); leave it out"
                )
            learned = learner.learned() | named("normalizer", self.loop.normalizer.state())
            self.tuning = SelfTuning(config, self.sharing.ranks_of_members, learned, learner.tunable())
        self.milestones["pbt"] = Milestones(config.pbt.every_env_steps, config.total_env_steps, parts=1)
        self.returns: list[float] = []  # of all members, greedy, of the last evaluation
        self.env_steps, self.training_seconds, self.logged_env_steps, self.logged_updates = 0, 0.0, 0, 0
        self.mean_return: float | None = None  # over members, greedy, of the last evaluation
        self.failed: dict[int, int] = {}  # members with parameters that are not finite: since which step
        self.saved_at: int | None = None
        self.updates_before_refill = 0  # until more are made the replay is too empty to inspect
        self.keeps_replay = True  # in checkpoints
        self.is_between_steps = True  # a state within one is no state to resume
        self.told_of_cut = False
        self.versions = versions(self.device)  # of the code that is running, whatever is checked out later
        self.started = self.released_at = self.met_at = time.perf_counter()
        self.met_after = self.next_meeting = 0  # environment steps
        self.is_to_end = False  # as a callback wants

        # Only now: what cannot be run leaves no folder behind.
        self.run_dir = Path(ranks.from_first(lambda: str(make_run_dir(config))))
        self.record: RunRecord | None = None
        if ranks.is_first:
            stack.enter_context(sole_writer(self.run_dir))
            if not resume:
                require_new(self.run_dir)
            whole = self.policy if len(self.share) == len(self.members) else Policy(described, self.device)
            self.record = RunRecord(config, self.run_dir, whole, self.device)
            ranks.note_begun()
        resumed = self.resume() if resume else None
        if self.record is not None:
            self.record.begin(stack, resumed, self.loop.learner.metrics, quiet=not progress)
        stack.enter_context(self.stop)
        self.say_what_it_is(preprocessing, resumed)
        if self.loop.compiles:
            stack.callback(torch.compiler.reset)  # PyTorch keeps only eight programs of a function, and their tensors

    def say_what_it_is(self, preprocessing: str, resumed: CheckpointInfo | None) -> None:
        """What the user may want to know before the first log line."""
        replay_bytes = sum(self.ranks.exchange(self.loop.learner.replay_bytes))
        if self.record is None:
            return
        say = self.record.console.message
        if preprocessing:
            say(f"Preprocessing: {preprocessing}.")
        if self.ranks.size > 1:
            own_envs = self.own_config.env.num_envs
            of_data = f"{own_envs} of the {self.num_envs} environments of each member"
            of_members = f"about {len(self.members) / self.ranks.size:.3g} members"
            each = of_data if self.sharing.num_parts > 1 else of_members
            say(f"Ranks: {self.ranks.size}, each with {each}.")
        self.record.describe_network(self.env.observations.parts)
        if resumed is not None:
            say(f"Resumes at step {self.env_steps}: {self.record.resumed_from}")
        if (gib := replay_bytes / 2**30) >= 1:
            say(f"The replay takes {gib:.1f} GiB of memory.")
        if self.loop.compiles:
            say("The update is compiled once it begins: half a minute at first, seconds later on.")

    def run(self) -> None:
        """Collects and learns to the end of the budget, with evaluations, log lines and checkpoints on their way."""
        try:
            while self.env_steps < self.config.total_env_steps:
                self.look()
                self.pass_boundary()
                self.meet()
                if self.is_to_end:
                    break
                self.run_iteration()
            self.save()  # a longer run resumes here
            self.loop.conclude(self.env_steps // self.sharing.num_parts)
            self.look()
            self.finish()
        except Stopped as stopped:
            raise self.leave(stopped) from None
        except RankLost as lost:
            if self.stop.received == signal.SIGINT:  # while another rank compiled
                raise self.leave(Stopped(signal.SIGINT), lost=True) from None
            raise self.leave_others(lost) from None
        except OSError as error:
            raise not_writable(self.run_dir, error) from error

    def meet(self) -> None:
        """All ranks agree on whether to stop, and on when to ask again: a second later, by the slowest of them."""
        if self.env_steps < self.next_meeting:
            return
        now, iterations = time.perf_counter(), (self.env_steps - self.met_after) // self.num_envs
        pace = (now - self.met_at) / max(1, iterations)
        asked = float(self.stop.received or 0), float(self.callbacks.wants_stop)
        signum, is_to_end, slowest = self.ranks.largest(*asked, pace)
        self.met_at, self.met_after = now, self.env_steps
        until = 1 if self.ranks.size == 1 else max(1, int(SECONDS_BETWEEN_MEETINGS / max(slowest, 1e-9)))
        if not self.loop.num_updates:
            until = min(until, 100)  # the first update takes much longer than the steps before
        self.next_meeting = self.env_steps + until * self.num_envs
        self.is_to_end = bool(is_to_end)
        if signum and not self.is_to_end:
            raise Stopped(int(signum))

    def run_iteration(self) -> None:
        clock = time.perf_counter()
        before = (self.loop.obs.clone(), self.loop.action.clone()) if self.callbacks.watch_steps else None
        self.is_between_steps = False  # until it returns: a signal may end the compilation in it
        self.loop.run_iteration(self.env_steps // self.sharing.num_parts)
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
        if any(self.milestones[name].is_due(self.env_steps) for name in ("log", "evaluate", "pbt")):
            self.look_for_failures()
        if inspect.is_due(self.env_steps):
            inspect.advance(self.env_steps)
            if self.loop.num_updates > self.updates_before_refill and self.loop.learner.num_inspections:
                self.gradients = self.loop.inspect_gradients(self.inspection_streams)
        if log.is_due(self.env_steps):
            log.advance(self.env_steps)
            self.log()
        exchanges = self.tuning is not None and self.is_time_to_exchange()
        if evaluate.is_due(self.env_steps) or exchanges:
            self.evaluate()
            evaluate.advance(self.env_steps)  # only now: a signal may cut it short
        if exchanges:
            self.milestones["pbt"].advance(self.env_steps)
            self.exchange_members()

    def is_time_to_exchange(self) -> bool:
        """Not at the end, nor before there is something to compare."""
        is_under_way = self.loop.num_updates > 0 and self.env_steps < self.config.total_env_steps
        return is_under_way and self.milestones["pbt"].is_due(self.env_steps)

    def exchange_members(self) -> None:
        """Has members with low returns take over from those with high ones; a member that had failed is sound again."""
        assert self.tuning is not None
        returns = [-np.inf if i in self.failed else value for i, value in enumerate(self.returns)]
        moves = plan(returns, list(self.tuning.tunable), self.config, self.env_steps)
        self.tuning.take_(moves)
        for move in moves:
            self.failed.pop(move.child, None)
        self.write(self.sharing.rows(self.tuning.rows(moves)))

    def look_for_failures(self) -> None:
        """Drops members with parameters that are not finite; the others continue. UserError where none is left."""
        own = torch.nonzero(~self.loop.learner.are_finite()).flatten().tolist()
        for member in itertools.chain(*self.ranks.exchange([self.share[i] for i in own])):
            if member not in self.failed:
                self.failed[member] = self.env_steps
                if self.record is not None:
                    logger.warning(
                        "member %d (seed %d) is dropped at step %d: its parameters are not finite; its policy stays "
                        "that of its last evaluation",
                        member,
                        self.members[member].seed,
                        self.env_steps,
                    )
        if len(self.failed) == len(self.members):
            raise UserError(
                f"{self.run_dir}: no member has finite parameters at step {self.env_steps}; a smaller "
                "learning_rate or max_grad_norm may help, or other rewards"
            )

    def pass_boundary(self) -> None:
        """Writes a checkpoint where one is due."""
        checkpoint = self.milestones["checkpoint"]
        if not self.has_checkpoints or not checkpoint.is_due(self.env_steps):
            return
        checkpoint.advance(self.env_steps)
        self.save()
        self.callbacks.call("on_checkpoint", CheckpointView(self.env_steps, self.run_dir))
        self.next_meeting = self.env_steps

    def save(self) -> None:
        """Writes a checkpoint beside the training, unless there is one of this very state."""
        if not self.has_checkpoints or self.saved_at == self.env_steps:
            return
        if self.record is not None:
            self.record.checkpoints.wait()  # first: of a large replay there is room for one copy
        if not all(self.ranks.exchange(self.loop.learner.keeps_frames)) and self.loop.learner.keeps_frames:
            self.loop.keep_whole_observations_()  # as those of another rank do
        state = self.without_large_replay(self.state())
        tensors = capture(state | named("gradients", self.gradients)) | self.env.journal()
        whole = self.sharing.whole(tensors)
        self.saved_at = self.env_steps
        if self.record is None:
            return
        tracker = self.record.tracker
        wandb_id, wandb_step = tracker.wandb.position()
        info = CheckpointInfo(
            env_steps=self.env_steps,
            num_updates=self.loop.num_updates,
            updates_before_refill=self.updates_before_refill,
            milestones={name: milestones.next for name, milestones in self.milestones.items()},
            elapsed_seconds=time.perf_counter() - self.started,
            metrics_bytes=tracker.num_bytes(),
            mean_return=self.mean_return,
            failed=self.failed,
            best=self.record.best.info.members,
            wandb_id=wandb_id,
            wandb_step=wandb_step,
            device=self.device.type,
            num_data_ranks=self.sharing.num_parts,
            config=self.config.model_dump(),
            versions=self.versions,
        )
        self.record.checkpoints.save(info, whole | capture(self.record.policies()))

    def state(self) -> State:
        """All tensors that training changes here, but policies."""
        state = self.loop.state() | named("inspection", self.inspection_streams.state())
        return state if self.tuning is None else state | named("pbt", self.tuning.state())

    def without_large_replay(self, state: State) -> State:
        """The state without a replay that is too large for checkpoints; the user is told of the first."""
        own_bytes = sum(x.nbytes for name, x in state.items() if name.startswith(REPLAY))
        gib = sum(self.ranks.exchange(own_bytes)) / 2**30
        if gib <= self.config.checkpoint.replay_gib:
            return state
        if self.keeps_replay:
            self.keeps_replay = False
            if self.record is not None:
                logger.warning(
                    "the replay takes %.1f GiB, more than checkpoint.replay_gib: if this run is stopped and resumed, "
                    "it starts empty",
                    gib,
                )
        return without_replay(state)

    def resume(self) -> CheckpointInfo | None:
        """Brings everything to where it was at the newest checkpoint, of however many ranks. None where there is none.

        Rank 0 reads it and hands each rank the rows of its members.
        """
        tensors: State = {}
        found: CheckpointInfo | None = None
        if self.record is not None:
            checkpoint = checkpoint_of(self.config, self.run_dir, self.device.type, self.sharing.num_parts)
            if checkpoint is not None:
                found, tensors = checkpoint.info, checkpoint.tensors
                self.record.resume(checkpoint, self.versions)
        text, folder = self.ranks.from_first(
            lambda: (
                (None, "")
                if found is None or self.record is None
                else (found.model_dump_json(), str(self.record.resumed_from))
            )
        )
        if text is None:
            return None
        info = found or CheckpointInfo.model_validate_json(text)
        self.restore(info, self.sharing.part(tensors), Path(folder))
        return info

    def restore(self, info: CheckpointInfo, tensors: State, folder: Path) -> None:
        """`tensors`: of the checkpoint in a folder, the rows of the members that this rank trains."""
        self.keeps_replay = any(name.startswith(REPLAY) for name in tensors)
        if self.keeps_replay:
            self.loop.make_room_(tensors)
        own = self.state() | named("policy", dict(self.policy.tensors()))
        state = own if self.keeps_replay else without_replay(own)
        require_fit(folder, tensors, state)
        restore_(state, tensors)
        if not self.env.has_state:
            self.repeat_steps(tensors)
        if any(name.startswith(REPLAY) for name in own) and not self.keeps_replay:
            self.loop.learner.refill_replay_(info.env_steps // self.sharing.num_parts)
            self.updates_before_refill = info.num_updates
        else:
            self.updates_before_refill = info.updates_before_refill
        self.gradients = {
            name.removeprefix("gradients/"): tensor.to(self.device)
            for name, tensor in tensors.items()
            if name.startswith("gradients/")
        }
        self.env_steps = self.saved_at = self.logged_env_steps = info.env_steps
        self.met_after = self.next_meeting = info.env_steps
        self.loop.num_updates = self.logged_updates = info.num_updates
        self.started -= info.elapsed_seconds
        self.mean_return, self.failed = info.mean_return, dict(info.failed)
        for name, milestones in self.milestones.items():
            milestones.resume(info.env_steps, info.milestones.get(name, 0))

    def repeat_steps(self, tensors: State) -> None:
        """Brings environments that cannot be saved to where they were, by the actions since they were last seeded."""
        obs = self.env.repeat(tensors)
        are_equal = self.ranks.exchange(torch.equal(self.loop.by_member(obs), self.loop.obs))
        if not all(are_equal) and self.record is not None:
            logger.warning(
                "%s is not deterministic given its seed: the run continues, but not as if it had never stopped",
                self.env.spec_id,
            )

    def leave(self, stopped: Stopped, lost: bool = False) -> Stopped:
        """Saves what is done, unless a rank is lost; what to tell the user."""
        has_ended = self.env_steps >= self.config.total_env_steps
        if self.is_between_steps and not has_ended and not lost:
            self.save()
        if self.record is None:
            return stopped
        self.record.checkpoints.wait()
        resume = command("train", "--resume", self.run_dir)
        if self.ranks.size > 1:
            resume = f"the same command with run_dir={self.run_dir} --resume auto"
        when, how = "", f"saved; {resume} continues the run"
        if not self.is_between_steps:
            when = " while programs were compiled"
        if not self.is_between_steps or lost or not self.record.checkpoints.last_was_written:
            how = f"{resume} continues at the last checkpoint, or starts over without one"
        if not self.has_checkpoints:
            how = "checkpoint.every_env_steps=null: there is no checkpoint to resume"
            if has_ended and (self.run_dir / "policy" / "final").exists():
                how += f"; the policies are in {self.run_dir}/policy/final"
        return Stopped(
            stopped.signum, f"stopped at step {self.env_steps} of {self.config.total_env_steps}{when}; {how}"
        )

    def leave_others(self, lost: RankLost) -> RankLost:
        """What to tell the user of a rank that has ended."""
        return RankLost(
            f"{lost}: the run ends at step {self.env_steps} of {self.config.total_env_steps}; the same command with "
            f"run_dir={self.run_dir} --resume auto continues at the last checkpoint, or starts over without one"
        )

    def log(self) -> None:
        """Writes the means since the last log line, of what there was in a member."""
        gradients = {name: values.cpu().numpy() for name, values in self.gradients.items()}
        self.loop.pool_averages_()
        columns = {**self.loop.episodes.read_(), **self.loop.metrics.read_(), **gradients}
        self.gradients = {}
        seconds = max(self.training_seconds, 1e-9)
        restarts = self.sharing.data.total(torch.from_numpy(self.env.restarts.reshape(len(self.share), -1).sum(1)))
        rows: list[dict[str, float]] = []
        for i in range(len(self.share)):
            row = {name: float(values[i]) for name, values in columns.items() if not np.isnan(values[i])}
            if restarts[i]:
                row["env/restarts"] = float(restarts[i])
            row["time/env_steps_per_second"] = (self.env_steps - self.logged_env_steps) / seconds
            row["time/updates_per_second"] = (self.loop.num_updates - self.logged_updates) / seconds
            row["time/elapsed_seconds"] = time.perf_counter() - self.started
            rows.append(row)
        self.training_seconds = 0.0
        self.logged_env_steps, self.logged_updates = self.env_steps, self.loop.num_updates
        self.write(self.sharing.rows(rows))
        self.next_meeting = self.env_steps

    def write(self, rows: Sequence[dict[str, float]]) -> None:
        """`rows`: of all members."""
        if self.record is not None:
            self.record.write(self.env_steps, [{} if member in self.failed else row for member, row in enumerate(rows)])

    def evaluate(self) -> None:
        """Greedy and sampled returns of the averaged policies; keeps each member's best weights."""
        members = self.evaluate_policy(self.evaluation_env, self.config.evaluation.episodes)
        self.returns = [member["greedy"]["mean"] for member in members]
        sound = [member for member in range(len(members)) if member not in self.failed]
        self.mean_return = float(np.mean([members[i]["greedy"]["mean"] for i in sound]))
        self.write(
            [
                {f"eval/return_{mode}": member[mode]["mean"] for mode in MODES}
                | {f"eval/length_{mode}": float(np.mean(member[mode]["lengths"])) for mode in MODES}
                for member in members
            ]
        )
        if self.record is not None:
            self.record.keep_best(sound)
        self.callbacks.call("on_evaluation", EvaluationView(self.env_steps, copy.deepcopy(members)))
        self.next_meeting = self.env_steps

    def evaluate_policy(self, env: VectorEnvironment, num_episodes: int) -> list[dict[str, Any]]:
        """Takes over the averaged policies and evaluates them on episodes of their own seeds; of all members."""
        progress = None if self.record is None else self.record.console.evaluation_progress()

        def before_step(done: int, total: int) -> None:
            self.stop.check()
            if progress is not None:
                progress(done, total)

        self.take_over_policies()
        part = self.own_config.streams_of_part
        numbers = (self.env_steps, num_episodes, *((0, *part) if part else ()))  # one more would be a round's
        limit, signum, own = self.config.evaluation.max_episode_steps, 0, []
        try:
            if number := self.sharing.num_episodes(num_episodes):
                own = evaluate_members(self.policy, env, number, numbers, MODES, limit, before_step)
        except Stopped as stopped:
            signum = stopped.signum
        if any(signals := self.ranks.largest(float(signum))):
            raise Stopped(int(signals[0]))
        members = self.sharing.evaluated(own)
        self.record_evaluation([member["greedy"]["mean"] for member in members])
        num_cut = sum(member[mode]["cut"] for member in members for mode in MODES)
        if num_cut and not self.told_of_cut and self.record is not None:
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
        sound = [i for i, member in enumerate(self.share) if member not in self.failed]
        self.policy.copy_from_(self.loop.learner.evaluated_actor, self.loop.normalizer, sound)

    def record_evaluation(self, returns: Sequence[float | None]) -> None:
        """Notes what the present weights of all members have brought, and has rank 0 take them over."""
        self.policy.record_evaluation_(self.env_steps, returns[self.share.start : self.share.stop])
        weights = self.sharing.weights(self.policy.tensors())
        if self.record is not None and self.record.policy is not self.policy:
            self.record.policy.record_evaluation_(self.env_steps, returns)
            restore_(self.record.policy.tensors(), weights)

    def finish(self) -> None:
        """Writes the final policy, evaluates it on fresh environments, writes its returns and result.json."""
        wall_seconds = time.perf_counter() - self.started
        self.save_final_weights()  # now: the evaluation may take long, or be stopped
        num_episodes = self.config.evaluation.final_episodes
        num_envs = num_parallel_envs(max(1, self.sharing.num_episodes(num_episodes)))
        with contextlib.closing(make_env(self.own_config, num_envs, self.device)) as env:
            members = self.evaluate_policy(env, num_episodes)
        for member, env_steps in self.failed.items():
            members[member]["failed_at_env_steps"] = env_steps
        if self.record is not None:
            self.record.finish(self.env_steps, wall_seconds, self.versions, members)
        self.ranks.exchange("done")  # a rank returns once the files are there

    def save_final_weights(self) -> None:
        """Of policies and critics, before their last evaluation."""
        self.take_over_policies()
        if self.policy.info.members[0].env_steps != self.env_steps:
            self.record_evaluation([None] * len(self.members))
        weights = {file: self.sharing.weights(own) for file, own in self.loop.learner.weights_to_save().items()}
        if self.record is not None:
            self.record.save_final(weights)


def without_replay(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith(REPLAY)}
