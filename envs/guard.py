"""One environment, watched: what it gives must fit its space; where it fails, an error that names it or a new one."""

import contextlib
import logging
from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

RESTARTED = "env_restarted"  # in info: whether this environment is a new one since this step
MAX_FAILURES = 5  # in a row, without a step that went well

logger = logging.getLogger(__name__)


class Guard(gymnasium.Wrapper):
    """Checks observations and rewards, and copies the last ones of an episode.

    Some environments write the next episode into the same arrays, and under SAME_STEP autoreset Gymnasium holds on to
    them while it resets.

    Args:
        on_error: "stop" raises RuntimeError where the environment raises, or gives a wrong shape, type or a number
            that is not finite; "restart" puts a new one in its place: the episode is truncated there.
    """

    def __init__(self, env: gymnasium.Env, action_mask_key: str | None, on_error: str) -> None:
        super().__init__(env)
        self.action_mask_key, self.restarts_on_error = action_mask_key, on_error == "restart"
        self.name = env.spec.id if env.spec else type(env.unwrapped).__name__
        space = env.observation_space
        has_shape = isinstance(space, spaces.Box | spaces.MultiBinary | spaces.MultiDiscrete)
        self.shape = space.shape if has_shape else None
        self.dtype = np.dtype(space.dtype)
        self.seed, self.num_restarts, self.num_failures = 0, 0, 0
        self.last: tuple[Any, dict[str, Any]] = (None, {})  # observation and info, where they may be needed again

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.seed, self.num_restarts = seed, 0
        obs, info = self.reset_or_replace(seed, options)
        self.remember(obs, info)
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        try:
            obs, reward, terminated, truncated, info = self.env.step(action)
            self.check(obs, reward)
        except Exception as error:
            self.replace(error, "step")
            self.reset_or_replace(self.fresh_seed())
            obs, info = self.last
            return obs, 0.0, False, True, info | {RESTARTED: True}
        self.num_failures = 0
        if terminated or truncated:
            obs = deepcopy(obs)
            if self.action_mask_key in info:
                info = info | {self.action_mask_key: deepcopy(info[self.action_mask_key])}
        self.remember(obs, info)
        return obs, reward, terminated, truncated, info

    def reset_or_replace(self, seed: int | None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The first observation of this environment, or of the first one in its place that does not fail."""
        restarted: dict[str, Any] = {}
        while True:
            try:
                obs, info = self.env.reset(seed=seed, options=options)
                self.check(obs)
                return obs, info | restarted
            except Exception as error:
                self.replace(error, "reset")
                seed, restarted = self.fresh_seed(), {RESTARTED: True}

    def check(self, obs: Any, reward: Any = 0.0) -> None:
        """Raises where these do not fit."""
        if self.shape is not None:
            if np.shape(obs) != self.shape:  # NumPy would stretch some
                raise ValueError(f"an observation of shape {np.shape(obs)}, its space has {self.shape}")
            dtype = np.asarray(obs).dtype
            if dtype != self.dtype and not np.can_cast(dtype, self.dtype, "same_kind"):  # shared memory would round it
                raise ValueError(f"an observation of type {dtype}, its space has {self.dtype}")
            if self.restarts_on_error and not np.isfinite(obs).all():  # else the adapter finds it, for all at once
                raise ValueError(f"an observation that is not finite: {obs}")
        if self.restarts_on_error and not np.isfinite(reward):
            raise ValueError(f"a reward that is not finite: {reward}")

    def replace(self, error: Exception, call: str) -> None:
        """A new environment in place of one that failed; RuntimeError where that is not wanted or does not help."""
        what = f"{self.name}: an environment failed in {call}: {type(error).__name__}: {error}"
        self.num_failures += 1
        if not self.restarts_on_error:
            raise RuntimeError(f"{what} (env.on_error=restart continues with a new one)") from error
        if self.num_failures > MAX_FAILURES or self.env.spec is None:
            raise RuntimeError(f"{what}, {self.num_failures} times in a row") from error
        logger.warning("%s; a new one is in its place", what)
        spec = self.env.spec
        with contextlib.suppress(Exception):  # whatever is wrong with it
            self.env.close()
        self.env = gymnasium.make(spec)

    def fresh_seed(self) -> int:
        """Of the environment put in place: decided by that of the first and by how many there were."""
        self.num_restarts += 1
        return int(np.random.SeedSequence([self.seed, self.num_restarts]).generate_state(1)[0] >> 1)

    def remember(self, obs: Any, info: dict[str, Any]) -> None:
        if self.restarts_on_error:
            masks = {key: value for key, value in info.items() if key == self.action_mask_key}
            self.last = deepcopy((obs, masks))
