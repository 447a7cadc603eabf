"""Finds out how observations stack frames, by looking at what an environment returns.

Axes: E environment · K action factor.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from envs.frame_stack import FrameStack, candidates
from envs.random_streams import RandomStreams
from envs.vector_environment import VectorEnvironment

PROBE_STEPS = 64
MIN_CHANGES = 4  # steps that must have changed something in the stack: frames that never change prove nothing


def find_frame_stack(env: VectorEnvironment, seeds: Sequence[int]) -> FrameStack | None:
    """How the environments' observations stack frames, from some steps with random actions; None where they do not.

    Args:
        seeds: of the members. The environments are somewhere in an episode afterwards: reset them.
    """
    left = [(stack, 0) for stack in candidates(env.observations.space)]
    if not left or env.is_tensor_program:
        return None
    obs, streams = env.reset(seeds).cpu().numpy().copy(), RandomStreams(seeds)
    for _ in range(PROBE_STEPS):
        if not left:
            break
        step = env.step(random_actions(env, streams).to(env.device))
        next_obs = step.next_obs.cpu().numpy()
        valid = step.valid.cpu().numpy() & ~env.broken_off  # of one that failed nothing moves
        left = [
            (stack, num_changes + bool(stack.is_moving(next_obs)[valid].any()))
            for stack, num_changes in left
            if stack.repeats(obs, next_obs)[valid].all()
        ]
        obs = step.obs.cpu().numpy().copy()
    return next((stack for stack, num_changes in left if num_changes >= MIN_CHANGES), None)


def random_actions(env: VectorEnvironment, streams: RandomStreams) -> Int64[Tensor, "E K"]:
    """Uniform over the legal choices of each factor."""
    counts = torch.tensor(env.actions.num_choices)
    legal = (torch.arange(int(counts.max())) < counts.unsqueeze(-1)).expand(env.num_envs, -1, -1)
    if env.masks is not None:
        legal = env.masks.obs.cpu()
    uniform = streams.uniform(env.num_envs // env.num_members, *legal.shape[1:]).flatten(0, 1)
    return torch.where(legal, uniform, -1.0).argmax(-1)
