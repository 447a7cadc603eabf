"""Returns of frozen policies over whole episodes."""

import contextlib
from collections.abc import Callable, Sequence
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

    Raises:
        UserError: the arguments, the folder or the environment cannot be used.
    """
    if unknown := [mode for mode in modes if mode not in MODES]:
        raise UserError(f"modes: got {unknown[0]!r}, must be among {', '.join(MODES)}{nearest(unknown[0], MODES)}")
    if not modes:
        raise UserError(f"modes: got none, must be among {', '.join(MODES)}")
    if episodes < 1:
        raise UserError(f"episodes: got {episodes}, must be at least 1")
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"seed: got {seed}, must be between 0 and {MAX_SEED}")
    policy = (
        run
        if isinstance(run, Policy)
        else Policy.load(run, member=member, weights=weights, network=network, trust=trust)
    )
    with contextlib.closing(make_env(policy, num_parallel_envs(episodes), env_id)) as env:
        policy.check_fits(env)
        return evaluate_members(policy, env, episodes, [seed], modes)


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
    """Undiscounted returns and lengths of each member's episodes, [P, num_episodes]."""

    returns: np.ndarray
    lengths: np.ndarray


def run_episodes(
    policy: Policy,
    env: VectorEnvironment,
    num_episodes: int,
    seed: Sequence[int],
    *,
    sampled: bool,
    before_step: Callable[[], None] = lambda: None,
) -> Episodes:
    """Runs each member for exactly `num_episodes` episodes in its own environments.

    Each environment has a fixed number of episodes to finish, so short episodes are not counted more often than long
    ones. An episode of more than MAX_EPISODE_STEPS counts with its return so far.

    Args:
        env: its environments are divided evenly among the members.
        seed: numbers that decide, with a member's own seed, its environments and draws.
        before_step: called before each step of all of them; may raise.
    """
    num_members = policy.num_members
    num_envs = env.num_envs // num_members
    quota = np.array([num_episodes // num_envs + (e < num_episodes % num_envs) for e in range(num_envs)])
    returns: list[list[list[float]]] = [[[] for _ in range(num_envs)] for _ in range(num_members)]
    lengths: list[list[list[int]]] = [[[] for _ in range(num_envs)] for _ in range(num_members)]
    policy.seed_(*seed)
    obs = env.reset(member_seeds(policy.seeds, "evaluation", *seed))
    total, length = np.zeros((num_members, num_envs)), np.zeros((num_members, num_envs), dtype=np.int64)
    finished = np.zeros((num_members, num_envs), dtype=np.int64)
    while (finished < quota).any():
        before_step()
        mask = None if env.masks is None else env.masks.obs.unflatten(0, (num_members, num_envs))
        action = policy.choose(obs.unflatten(0, (num_members, num_envs)), sampled=sampled, mask=mask)
        step = env.step(action.flatten(0, 1))
        obs = step.obs
        reward, done, valid = (
            x.view(num_members, num_envs).cpu().numpy()
            for x in (step.reward, step.terminated | step.truncated, step.valid)
        )
        total += np.where(valid, reward, 0.0)
        length += valid
        for p, e in zip(*np.nonzero((done & valid) | (length >= MAX_EPISODE_STEPS)), strict=True):
            if finished[p, e] < quota[e]:
                returns[p][e].append(float(total[p, e]))
                lengths[p][e].append(int(length[p, e]))
            finished[p, e] += 1
            total[p, e], length[p, e] = 0.0, 0
    return Episodes(_per_member(returns), _per_member(lengths))


def _per_member(values: list) -> np.ndarray:
    return np.array([[x for env in member for x in env] for member in values])


def num_parallel_envs(num_episodes: int) -> int:
    """Environments of a member that `run_episodes` makes good use of."""
    return min(num_episodes, MAX_PARALLEL_EPISODES)


def summary(returns: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
    """One member's episodes in figures; the standard deviation is over episodes."""
    return {
        "mean": float(returns.mean()),
        "std": float(returns.std()),
        "iqm": float(iqm(returns)),
        "min": float(returns.min()),
        "max": float(returns.max()),
        "returns": [float(x) for x in returns],
        "lengths": [int(x) for x in lengths],
    }


def evaluate_members(
    policy: Policy,
    env: VectorEnvironment,
    num_episodes: int,
    seed: Sequence[int],
    modes: Sequence[str],
    before_step: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Per member its seed, settings and, for each of the modes greedy and sampled, the summary of its episodes."""
    rows: list[dict[str, Any]] = [
        {"member": m.member, "seed": m.seed, "settings": m.settings} for m in policy.info.members
    ]
    for mode in modes:
        with torch.inference_mode():
            episodes = run_episodes(policy, env, num_episodes, seed, sampled=mode == "sampled", before_step=before_step)
        for row, returns, lengths in zip(rows, episodes.returns, episodes.lengths, strict=True):
            row[mode] = summary(returns, lengths)
    return rows
