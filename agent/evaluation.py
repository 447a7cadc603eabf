"""Returns of frozen policies over whole episodes."""

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

import envs
from agent.bootstrap import iqm
from agent.config import MAX_SEED
from agent.config_fields import nearest
from agent.policy import Policy
from agent.seeding import member_seeds
from envs import UserError, VectorEnvironment

MODES = ("greedy", "sampled")
MAX_PARALLEL_EPISODES = 10  # per member
MAX_EPISODE_STEPS = 20_000  # a greedy policy can stand still for ever where the environment has no time limit

Watch = Callable[[int], None]


def evaluate(
    run: str | Path | Policy,
    *,
    member: int | Literal["best", "all"] = "best",
    weights: Literal["final", "best"] = "final",
    episodes: int = 100,
    seed: int = 0,
    modes: Sequence[str] = MODES,
    env_id: str | None = None,
    network: str | None = None,
    trust: bool = False,
    max_episode_steps: int = MAX_EPISODE_STEPS,
    watch: Watch = lambda num_done: None,
) -> list[dict[str, Any]]:
    """Evaluates saved policies on fresh environments: one row per member, as `evaluate_members` returns them.

    Args:
        run: a run folder, a policy folder, or a policy that is loaded already; then member and weights do not count.
        member: one by number, the one with the highest evaluation, or all of them.
        weights: of a run folder, those at the end of training or those of each member's best evaluation.
        episodes: of each mode.
        seed: of environments and draws.
        modes: greedy, sampled or both.
        env_id: another environment with the same spaces; `module:Id` imports the module.
        network, trust: as `Policy.load` takes them, to allow the import of a network of your own.
        max_episode_steps: at which an episode is cut and counts with its return so far.
        watch: called before each step with the number of episodes that are done, of all members and modes.

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
    with contextlib.closing(make_env(policy, num_parallel_envs(episodes), env_id)) as env:
        policy.check_fits(env)
        return evaluate_members(policy, env, episodes, [seed], modes, max_episode_steps=max_episode_steps, watch=watch)


def make_env(policy: Policy, num_envs: int, env_id: str | None = None, **settings: Any) -> VectorEnvironment:
    """`num_envs` environments for each member of a policy, of the kind that it was trained in.

    Where the policy's own id would import a module, the user must name it.
    """
    return envs.make(
        env_id or policy.trusted_env_id(),
        policy.num_members * num_envs,
        num_members=policy.num_members,
        kwargs=policy.info.env_kwargs,
        action_bins=policy.info.action_bins,
        action_mask_key=policy.info.action_mask_key,
        **settings,
    )


class Episodes(NamedTuple):
    """Undiscounted returns and lengths of each member's episodes, and which were cut, [P, num_episodes]."""

    returns: np.ndarray
    lengths: np.ndarray
    cut: np.ndarray


def run_episodes(
    policy: Policy,
    env: VectorEnvironment,
    num_episodes: int,
    seed: Sequence[int],
    *,
    sampled: bool,
    max_episode_steps: int = MAX_EPISODE_STEPS,
    watch: Watch = lambda num_done: None,
) -> Episodes:
    """Runs each member for exactly `num_episodes` episodes in its own environments.

    Each environment has a fixed number of episodes to finish, so short episodes are not counted more often than long
    ones. An episode that reaches `max_episode_steps` is cut: it counts with its return so far. Single environments
    cannot be reset, so one whose episode was cut stops there; once all have stopped, all are reset, and those with
    episodes left to finish continue.

    Args:
        env: its environments are divided evenly among the members.
        seed: numbers that decide, with a member's own seed, its environments and draws.
        watch: called before each step with the number of episodes that are done, of all members; may raise.
    """
    num_members = policy.num_members
    shape = (num_members, env.num_envs // num_members)
    quota = np.array([len(range(e, num_episodes, shape[1])) for e in range(shape[1])])
    found: list[list[list[tuple[float, int, bool]]]] = [[[] for _ in quota] for _ in range(num_members)]
    finished, num_rounds = np.zeros(shape, dtype=np.int64), 0
    while (runs := finished < quota).any():
        numbers = [*seed, num_rounds][: len(seed) + bool(num_rounds)]
        policy.seed_(*numbers)
        obs = env.reset(member_seeds(policy.seeds, "evaluation", *numbers))
        total, length = np.zeros(shape), np.zeros(shape, dtype=np.int64)
        while runs.any():
            watch(int(finished.sum()))
            mask = None if env.masks is None else env.masks.obs.unflatten(0, shape)
            step = env.step(policy.choose(obs.unflatten(0, shape), sampled=sampled, mask=mask).flatten(0, 1))
            obs = step.obs
            reward, ends, valid = (
                x.view(shape).cpu().numpy() for x in (step.reward, step.terminated | step.truncated, step.valid)
            )
            total += np.where(valid, reward, 0.0)
            length += valid
            ended = ends & valid
            cut = (length >= max_episode_steps) & ~ended
            for p, e in zip(*np.nonzero((ended | cut) & runs), strict=True):
                found[p][e].append((float(total[p, e]), int(length[p, e]), bool(cut[p, e])))
                finished[p, e] += 1
            total[ended], length[ended] = 0.0, 0
            runs &= ~cut & (finished < quota)
        num_rounds += 1
    by_episode = np.array([[episode for of_env in member for episode in of_env] for member in found])
    return Episodes(by_episode[..., 0], by_episode[..., 1].astype(np.int64), by_episode[..., 2].astype(np.bool_))


def _watch_from(num_before: int, watch: Watch, num_done: int) -> None:
    watch(num_before + num_done)


class EpisodeProgress:
    """Tells now and then how far an evaluation is that takes long."""

    def __init__(self, num_episodes: int, tell: Callable[[str], None], every_seconds: float = 10.0) -> None:
        self.num_episodes, self.tell, self.every_seconds = num_episodes, tell, every_seconds
        self.told = time.monotonic()

    def __call__(self, num_done: int) -> None:
        if time.monotonic() - self.told >= self.every_seconds:
            self.told = time.monotonic()
            self.tell(f"evaluation: {num_done} of {self.num_episodes} episodes")


def num_parallel_envs(num_episodes: int) -> int:
    """Environments of a member that `run_episodes` makes good use of."""
    return min(num_episodes, MAX_PARALLEL_EPISODES)


def summary(returns: np.ndarray, lengths: np.ndarray, cut: np.ndarray) -> dict[str, Any]:
    """One member's episodes in figures; the standard deviation is over episodes."""
    return {
        "mean": float(returns.mean()),
        "std": float(returns.std()),
        "iqm": float(iqm(returns)),
        "min": float(returns.min()),
        "max": float(returns.max()),
        "returns": [float(x) for x in returns],
        "lengths": [int(x) for x in lengths],
        "cut": [bool(x) for x in cut],
    }


def evaluate_members(
    policy: Policy,
    env: VectorEnvironment,
    num_episodes: int,
    seed: Sequence[int],
    modes: Sequence[str],
    *,
    max_episode_steps: int = MAX_EPISODE_STEPS,
    watch: Watch = lambda num_done: None,
) -> list[dict[str, Any]]:
    """Per member its seed, settings and, for each of the modes greedy and sampled, the summary of its episodes."""
    rows: list[dict[str, Any]] = [
        {"member": m.member, "seed": m.seed, "settings": m.settings} for m in policy.info.members
    ]
    for number, mode in enumerate(modes):
        before = number * num_episodes * policy.num_members
        with torch.inference_mode():
            episodes = run_episodes(
                policy,
                env,
                num_episodes,
                seed,
                sampled=mode == "sampled",
                max_episode_steps=max_episode_steps,
                watch=partial(_watch_from, before, watch),
            )
        for row, *of_member in zip(rows, *episodes, strict=True):
            row[mode] = summary(*of_member)
    return rows
