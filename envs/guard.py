"""One environment, watched: its values must fit its spaces; where it fails, an error that names it or a new one."""

import logging
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from envs.errors import UserError
from envs.importing import said
from envs.masks import MaskSource
from envs.spaces import FactoredActions, encodable, left_out, without_mask
from envs.values import Misfit, as_tuple, fitting_flag, fitting_obs, fitting_reward, immoderate, leaves
from envs.vector_environment import segment_seed

RESTARTED = "env_restarted"  # in info: whether this environment is a new one since this step
MAX_FAILURES = 5  # in a row, without a step that went well
SEGMENT_STEPS = 1000  # after so many, the next episode begins with a seeded reset

logger = logging.getLogger(__name__)


class Segment(NamedTuple):
    """A place in the life of an environment: the actions since its last seeded reset lead there."""

    seed: int  # of the environment's first segment
    number: int
    actions: Iterable[Any]  # in the form of the environment's own action space


class Guard(gymnasium.Wrapper):
    """Checks what an environment returns, and makes it able to return to where it was.

    An environment's life is cut into segments. Each begins with a reset that is seeded with a number that follows from
    the first seed and the segment's number, and lasts for whole episodes, until SEGMENT_STEPS steps are taken. So a
    reset and the actions of one segment bring an environment that is deterministic given its seed to any place.

    The last observation of an episode is copied: some environments write the next episode into the same array, and
    under SAME_STEP autoreset Gymnasium holds on to it while it resets. Of the infos only the action mask is kept: no
    other is read, and Gymnasium cannot batch all of them. A mask in the observation becomes one of them. Parts of an
    observation that are not numeric are dropped.

    Args:
        on_error: "stop" raises UserError where the environment raises, or returns what does not fit its spaces or is
            not finite; "restart" puts a new one in its place: the episode is truncated there.
        reward_weights: of an environment with several rewards, whose weighted sum is the reward.
        remake: makes that new one, for "restart".
        action_bins: values that each entry of a Box action space is cut into, as masks see it.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        action_mask_key: str | None,
        on_error: str,
        reward_weights: Sequence[float] | None = None,
        remake: Callable[[], gymnasium.Env] | None = None,
        action_bins: int | None = None,
    ) -> None:
        super().__init__(env)
        self.remake = remake
        self.restarts_on_error, self.reward_weights = on_error == "restart", reward_weights
        self.name = env.spec.id if env.spec else type(env.unwrapped).__name__
        self.left_out = left_out(env.observation_space)
        try:
            self.mask_source = MaskSource(env, action_mask_key, FactoredActions(env.action_space, action_bins))
            self.space = self.observation_space = encodable(without_mask(env.observation_space, action_mask_key))
        except UserError as error:
            env.close()  # nobody else holds it
            raise UserError(f"{self.name} has {error}") from None
        self.seed: int | None = None  # none before the first seeded reset
        self.segment, self.num_steps = 0, 0
        self.num_failures, self.has_worked = 0, False
        self.to_repeat: Segment | None = None  # where the next reset leads
        self.last: tuple[Any, dict[str, Any]] = (None, {})  # observation and info, where they may be needed again

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if self.to_repeat is not None:
            return self.repeat()
        if seed is not None:
            self.seed, self.segment, self.num_steps = seed, 0, 0
        elif self.num_steps >= SEGMENT_STEPS:
            seed = self.begin_segment()
        return self.reset_or_replace(seed, options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.num_steps += 1
        try:
            obs, reward, terminated, truncated, info = as_tuple(self.env.step(action), "step")
            terminated, truncated = fitting_flag(terminated, "terminated"), fitting_flag(truncated, "truncated")
            info = self.mask_source.kept(self.env, obs, info, terminated)
            obs, reward = self.checked(obs), self.checked_reward(reward)
        except (Exception, SystemExit) as error:  # a window that is closed may end the process
            self.replace(error, "step")
            self.num_steps = SEGMENT_STEPS  # the reset that follows is seeded
            obs, info = self.last
            return obs, 0.0, False, True, info | {RESTARTED: True}
        self.num_failures, self.has_worked = 0, True
        if terminated or truncated:
            obs, info = deepcopy((obs, info))
        self.remember(obs, info)
        return obs, reward, terminated, truncated, info

    def close(self) -> None:
        """Whatever is wrong with it then: what it has given is not lost for it."""
        try:
            super().close()
        except (Exception, SystemExit) as error:
            logger.warning("%s: close %s", self.name, fault(error))

    def repeat(self) -> tuple[Any, dict[str, Any]]:
        """Leads to `to_repeat`; the observation and info there."""
        assert self.to_repeat is not None
        (self.seed, number, actions), self.to_repeat = self.to_repeat, None
        self.segment = number - 1
        obs, info = self.reset_or_replace(self.begin_segment())
        for action in actions:
            obs, _, terminated, truncated, info = self.step(action)
            if terminated or truncated:
                obs, info = self.reset()
        return obs, {key: value for key, value in info.items() if key != RESTARTED}

    def begin_segment(self) -> int | None:
        """The seed of its first reset."""
        self.segment, self.num_steps = self.segment + 1, 0
        return None if self.seed is None else segment_seed(self.seed, self.segment)

    def reset_or_replace(self, seed: int | None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The first observation of this environment, or of the first one in its place that does not fail."""
        restarted: dict[str, Any] = {}
        while True:
            try:
                obs, info = as_tuple(self.env.reset(seed=seed, options=options), "reset")
                info = self.mask_source.kept(self.env, obs, info) | restarted
                obs = self.checked(obs)
                self.remember(obs, info)
                return obs, info
            except (Exception, SystemExit) as error:
                self.replace(error, "reset")
                seed, restarted = self.begin_segment(), {RESTARTED: True}

    def checked(self, obs: Any) -> Any:
        """The observation, if it fits the space."""
        obs = fitting_obs(obs, self.space)
        if self.restarts_on_error:
            for part in leaves(obs):
                require_moderate(part, "an observation")
        return obs

    def checked_reward(self, reward: Any) -> float:
        number = fitting_reward(reward, self.reward_weights)
        if self.restarts_on_error:
            require_moderate(np.array(number), "a reward")
        return number

    def replace(self, error: BaseException, call: str) -> None:
        """A new environment in place of one that failed; UserError where that is not wanted or does not help."""
        what = f"{self.name}: {call} {fault(error)}"
        never_fits = isinstance(error, Misfit) and not error.may_pass and not self.has_worked
        self.num_failures += 1
        if not self.restarts_on_error or never_fits:
            instead = "" if never_fits else " (env.on_error=restart continues with a new environment)"
            raise UserError(f"{what}{instead}") from error
        if self.num_failures > MAX_FAILURES or self.remake is None:
            raise UserError(f"{what}, {self.num_failures} times in a row") from error
        logger.warning("%s; a new one is in its place", what)
        self.close()
        self.env = self.remake()

    def remember(self, obs: Any, info: dict[str, Any]) -> None:
        if self.restarts_on_error:
            self.last = deepcopy((obs, info))


def require_moderate(values: np.ndarray, name: str) -> None:
    """Where a new environment helps; else the adapter looks at all environments at once."""
    if (what := immoderate(values)) is not None:
        error = Misfit(f"{name} that is {what}")
        error.may_pass = not np.isfinite(values).all()
        raise error


def fault(error: BaseException) -> str:
    """What went wrong in a call of an environment; of an exception of its own, where."""
    return f"returned {error}" if isinstance(error, Misfit) else f"raised {said(error)}"
