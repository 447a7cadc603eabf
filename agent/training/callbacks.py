"""Code of a user's own that a run calls on its way: train(config, callbacks=[...])."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from envs.vector_environment import Step


@dataclass(frozen=True)
class StepView:
    """One step of every environment: P members of E environments each. The arrays are read-only."""

    env_steps: int  # of a member, this step included
    obs: np.ndarray  # [P, E, D], flattened: what the actions were chosen on
    action: np.ndarray  # [P, E, K]
    reward: np.ndarray  # [P, E]
    terminated: np.ndarray  # [P, E]
    truncated: np.ndarray  # [P, E]
    valid: np.ndarray  # [P, E]; False where a vector class only reset its environment in this step


@dataclass(frozen=True)
class EvaluationView:
    """The evaluation after so many steps of a member: for each member what result.json holds of one."""

    env_steps: int
    members: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class CheckpointView:
    """A checkpoint whose writing has begun."""

    env_steps: int
    run_dir: Path


class Callback:
    """Derive from this and override what you need. A method that returns False stops the run after its present step.

    Of several ranks rank 0 calls them, and `on_step` sees its members alone; the run stops within a second then.

    A run that is stopped so ends as any other: with a checkpoint, the final evaluation and its result. `train.py
    --resume` continues it.
    """

    def on_step(self, step: StepView) -> bool | None:
        """Called after each step of all environments, on a GPU at the cost of waiting for it."""
        return None

    def on_evaluation(self, evaluation: EvaluationView) -> bool | None:
        """Called after each evaluation during training."""
        return None

    def on_checkpoint(self, checkpoint: CheckpointView) -> bool | None:
        """Called after each checkpoint during training."""
        return None


class Callbacks:
    """The callbacks of a run, and whether one of them has asked it to stop."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self.callbacks, self.wants_stop = callbacks, False
        self.watch_steps = any(type(callback).on_step is not Callback.on_step for callback in callbacks)

    def call(self, event: str, view: StepView | EvaluationView | CheckpointView) -> None:
        for callback in self.callbacks:
            answer = getattr(callback, event)(view)
            if answer is not None and not answer:  # NumPy's False too
                self.wants_stop = True


def read_only(tensor: Tensor) -> np.ndarray:
    """A copy that nobody can write to."""
    array = tensor.detach().cpu().numpy().copy()
    array.flags.writeable = False
    return array


def step_view(env_steps: int, obs: Tensor, action: Tensor, transition: Step) -> StepView:
    of_envs = [transition.reward, transition.terminated, transition.truncated, transition.valid]
    reward, terminated, truncated, valid = (read_only(x.view(action.shape[:2])) for x in of_envs)
    return StepView(env_steps, read_only(obs), read_only(action), reward, terminated, truncated, valid)
