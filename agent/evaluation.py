"""Returns of frozen policies over whole episodes."""

import contextlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

import envs
from agent.bootstrap import iqm
from agent.config_fields import nearest
from agent.config_sections import MAX_EPISODE_STEPS, MAX_SEED
from agent.policy import Policy
from agent.seeding import member_seeds
from envs import Factory, UserError, VectorEnvironment, registered

MODES = ("greedy", "sampled")
MAX_PARALLEL_EPISODES = 10  # per member
PROGRESS_SECONDS = 10.0  # between two lines about an evaluation that takes long


def evaluate(
    run: str | PathLike[str] | Policy,
    *,
    member: int | Literal["best", "all"] = "best",
    weights: Literal["final", "best"] = "final",
    episodes: int = 100,
    max_episode_steps: int = MAX_EPISODE_STEPS,
    seed: int = 0,
    modes: Sequence[str] = MODES,
    env: Mapping[str, Any] | Factory | None = None,
    network: str | None = None,
    trust: bool = False,
    before_step: "BeforeStep" = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Evaluates saved policies on fresh environments: one row per member, as `evaluate_members` returns them.

    Args:
        run: a run folder, a policy folder, or a policy that is loaded already; then member and weights do not count.
        member: one by number, the one with the highest evaluation, or all of them.
        weights: of a run folder, those at the end of training or those of each member's best evaluation.
        episodes: of each mode.
        max_episode_steps: a longer episode is cut there: it counts with its return so far, and is marked.
        seed: of environments and draws.
        modes: greedy, sampled or both.
        env: other values for settings of the environment, such as {"kwargs": {"level": 2}}, or {"id": "module:Id"} for
            another with the same spaces; or what makes environments, as `train` takes it.
        network, trust: as `Policy.load` takes them, to allow the import of what is your own.
        before_step: called before each step of all environments with the episodes done and those asked for; may raise.

    Raises:
        UserError: the arguments, the folder or the environment cannot be used.
    """
    if unknown := [mode for mode in modes if mode not in MODES]:
        raise UserError(f"modes: got {unknown[0]!r}, must be among {', '.join(MODES)}{nearest(unknown[0], MODES)}")
    if not modes:
        raise UserError(f"modes: got none, must be among {', '.join(MODES)}")
    if episodes < 1:
        raise UserError(f"episodes: got {episodes}, must be at least 1")
    if max_episode_steps < 1:
        raise UserError(f"max_episode_steps: got {max_episode_steps}, must be at least 1")
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"seed: got {seed}, must be between 0 and {MAX_SEED}")
    policy = (
        run
        if isinstance(run, Policy)
        else Policy.load(run, member=member, weights=weights, network=network, trust=trust)
    )
    with contextlib.ExitStack() as stack:
        changes = env if env is None or isinstance(env, Mapping) else {"id": stack.enter_context(registered(env))}
        made = make_env(policy, num_parallel_envs(episodes), trust=trust, changes=changes)
        stack.enter_context(contextlib.closing(made))
        return evaluate_members(policy, made, episodes, [seed], modes, max_episode_steps, before_step)


def make_env(
    policy: Policy,
    num_envs: int,
    *,
    trust: bool = False,
    changes: Mapping[str, Any] | None = None,
    render_mode: str | None = None,
) -> VectorEnvironment:
    """`num_envs` environments for each member of a policy, as it was trained in, with other values for some settings.

    PolicyError where its file alone names a module to import (`Policy.env_settings`), or where the spaces differ.
    """
    env = envs.make(
        num_envs=policy.num_members * num_envs,
        num_members=policy.num_members,
        render_mode=render_mode,
        **policy.env_settings(trust=trust, **(changes or {})).for_make(),
    )
    try:
        policy.check_fits(env)
    except UserError:
        env.close()
        raise
    return env


BeforeStep = Callable[[int, int], None]  # of an evaluation's episodes, those done and all


class Episode(NamedTuple):
    """A whole episode, or one that was cut: its undiscounted return and its steps so far."""

    score: float
    length: int
    was_cut: bool


class Episodes(NamedTuple):
    """Of each member's episodes the undiscounted return, the length and whether it was cut, [P, num_episodes]."""

    returns: np.ndarray
    lengths: np.ndarray
    were_cut: np.ndarray


def run_episodes(
    policy: Policy,
    env: VectorEnvironment,
    num_episodes: int,
    seed: Sequence[int],
    *,
    sampled: bool,
    max_episode_steps: int = MAX_EPISODE_STEPS,
    before_step: Callable[[int], None] = lambda done: None,
) -> Episodes:
    """Runs each member for exactly `num_episodes` episodes in its own environments, each from a reset on.

    Each environment has a fixed number of episodes to finish, so short episodes are not counted more often than long
    ones. An episode of more than `max_episode_steps` is cut: it counts with its return so far. As only a reset of all
    environments begins another, its environment then waits; the episodes that are missing run in another round, with
    seeds of its own. One that an environment's failure broke off counts as cut, too.

    Args:
        env: its environments are divided evenly among the members.
        seed: numbers that decide, with a member's own seed, its environments and draws.
        before_step: called before each step of all of them with the number of episodes done; may raise.
    """
    num_envs = env.num_envs // policy.num_members
    episodes: list[list[Episode]] = [[] for _ in range(policy.num_members)]
    for number in itertools.count():
        missing = [num_episodes - len(own) for own in episodes]
        if not any(missing):
            break
        quota = np.array([[count // num_envs + (e < count % num_envs) for e in range(num_envs)] for count in missing])
        numbers = seed if number == 0 else (*seed, number)
        num_done = sum(map(len, episodes))
        found = _run_round(policy, env, quota, numbers, sampled, max_episode_steps, before_step, num_done)
        for own, new in zip(episodes, found, strict=True):
            own.extend(new)
    return Episodes(*(np.array([[episode[i] for episode in own] for own in episodes]) for i in range(3)))


def _run_round(
    policy: Policy,
    env: VectorEnvironment,
    quota: np.ndarray,  # [P, E]: episodes of each environment
    seed: Sequence[int],
    sampled: bool,
    max_episode_steps: int,
    before_step: Callable[[int], None],
    num_done: int,  # in earlier rounds
) -> list[list[Episode]]:
    """Resets all environments and runs each until its episodes are done or one was cut; the episodes of each member."""
    num_members, num_envs = quota.shape
    episodes: list[list[list[Episode]]] = [[[] for _ in range(num_envs)] for _ in range(num_members)]
    policy.seed_(*seed)
    obs = env.reset(member_seeds(policy.seeds, "evaluation", *seed))
    state = policy.actor.initial_state(num_members, num_envs)
    total, length = np.zeros(quota.shape), np.zeros(quota.shape, dtype=np.int64)
    is_running = quota > 0
    while is_running.any():
        before_step(num_done)
        mask = None if env.masks is None else env.masks.obs.unflatten(0, quota.shape)
        action, state = policy.choose(obs.unflatten(0, quota.shape), state, sampled=sampled, mask=mask)
        step = env.step(action.flatten(0, 1))
        goes_on = (step.valid & ~(step.terminated | step.truncated)).view(quota.shape)
        state = state * goes_on.unsqueeze(-1)
        obs, is_broken_off = step.obs, env.broken_off.reshape(quota.shape)
        reward, done, valid = (
            x.view(quota.shape).cpu().numpy() for x in (step.reward, step.terminated | step.truncated, step.valid)
        )
        total += np.where(valid, reward, 0.0)
        length += valid
        has_ended = done & valid
        for p, e in zip(*np.nonzero(is_running & (has_ended | (length >= max_episode_steps))), strict=True):
            was_cut = not has_ended[p, e] or bool(is_broken_off[p, e])
            episodes[p][e].append(Episode(float(total[p, e]), int(length[p, e]), was_cut))
            num_done += 1
            is_running[p, e] = has_ended[p, e] and len(episodes[p][e]) < quota[p, e]
            total[p, e], length[p, e] = 0.0, 0
    return [[episode for of_env in of_member for episode in of_env] for of_member in episodes]


class EpisodeProgress:
    """Says every few seconds how many episodes of an evaluation are done; of a quick one nothing."""

    def __init__(
        self,
        say: Callable[[str], None],
        every_seconds: float = PROGRESS_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.say, self.every_seconds, self.clock, self.said_at = say, every_seconds, clock, clock()

    def __call__(self, done: int, total: int) -> None:
        if self.clock() - self.said_at >= self.every_seconds:
            self.said_at = self.clock()
            self.say(f"evaluation: {done} of {total} episodes done")


def num_parallel_envs(num_episodes: int) -> int:
    """Environments of a member that `run_episodes` makes good use of."""
    return min(num_episodes, MAX_PARALLEL_EPISODES)


def summary(returns: np.ndarray, lengths: np.ndarray, were_cut: np.ndarray) -> dict[str, Any]:
    """One member's episodes in figures; the standard deviation is over episodes."""
    return {
        "mean": float(returns.mean()),
        "std": float(returns.std()),
        "iqm": float(iqm(returns)),
        "min": float(returns.min()),
        "max": float(returns.max()),
        "cut": int(were_cut.sum()),
        "returns": [float(x) for x in returns],
        "lengths": [int(x) for x in lengths],
        "were_cut": [bool(x) for x in were_cut],
    }


def evaluate_members(
    policy: Policy,
    env: VectorEnvironment,
    num_episodes: int,
    seed: Sequence[int],
    modes: Sequence[str],
    max_episode_steps: int = MAX_EPISODE_STEPS,
    before_step: BeforeStep = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Per member its seed, settings and, for each of the modes greedy and sampled, the summary of its episodes."""
    rows: list[dict[str, Any]] = [
        {"member": m.member, "seed": m.seed, "settings": m.settings} for m in policy.info.members
    ]
    of_mode = num_episodes * policy.num_members
    for number, mode in enumerate(modes):

        def tell(done: int, before: int = number * of_mode) -> None:
            before_step(before + done, len(modes) * of_mode)

        with torch.inference_mode():
            episodes = run_episodes(
                policy,
                env,
                num_episodes,
                seed,
                sampled=mode == "sampled",
                max_episode_steps=max_episode_steps,
                before_step=tell,
            )
        for row, *of_member in zip(rows, *episodes, strict=True):
            row[mode] = summary(*of_member)
    return rows
