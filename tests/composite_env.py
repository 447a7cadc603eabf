"""An environment whose actions are a Dict with a Tuple in it, and whose reward tells which leaf got which choice.

Its actions are six factors, in the order of the space: a direction of three bins, two entries, a gear, two lamps. At
step t of an episode the wanted choice of factor k is (t + k) modulo its number of choices. The reward is the sum of
2^k over the factors that are as wanted; with `counts` it is their number. With masks one choice is barred of each
factor that has three, the one after the wanted; taking it is an error.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

ENV_ID, VECTOR_ID = "Composite-v0", "CompositeVector-v0"
BINS = 3
NUM_CHOICES = (3, 2, 3, 3, 2, 2)
EPISODE = 3
ACTION_SPACE = spaces.Dict(
    {
        "arm": spaces.Tuple([spaces.Box(-1.0, 1.0, (1,), np.float32), spaces.MultiDiscrete([2, 3])]),
        "gear": spaces.Discrete(3, start=5),
        "lamps": spaces.MultiBinary(2),
    }
)


def factors_of(action: Mapping[str, Any]) -> list[int]:
    """Choices of an action, read by hand."""
    direction, entries = action["arm"]
    return [*(direction + 1).astype(int), *entries, action["gear"] - 5, *action["lamps"]]


def wanted(t: int) -> list[int]:
    return [(t + k) % n for k, n in enumerate(NUM_CHOICES)]


def flat_mask(t: int) -> np.ndarray:
    return np.concatenate(
        [[n < 3 or i != (best + 1) % n for i in range(n)] for n, best in zip(NUM_CHOICES, wanted(t), strict=True)]
    )


def mask_by_leaf(t: int) -> dict[str, Any]:
    """No mask for lamps, of which all are legal; keys in another order than those of the space."""
    flat = flat_mask(t)
    return {"lamps": None, "gear": flat[8:11], "arm": (flat[:3].astype(np.int8), flat[3:8].astype(np.float32))}


MASK_SPACES = {
    "obs": spaces.MultiBinary(len(flat_mask(0))),
    "obs by leaf": spaces.Dict(
        {
            "arm": spaces.Tuple([spaces.MultiBinary(3), spaces.Box(0, 1, (5,))]),
            "gear": spaces.MultiBinary(3),
            "lamps": spaces.MultiBinary([2, 2]),
        }
    ),
}


class CompositeEnv(gymnasium.Env):
    """`mask`: where its masks come from, and in which form; "" for none."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}

    def __init__(self, mask: str = "", counts: bool = False, render_mode: str | None = None) -> None:
        self.counts = counts
        self.mask, self.render_mode, self.action_space = mask, render_mode, ACTION_SPACE
        self.observation_space: spaces.Space = spaces.Discrete(EPISODE + 1)
        if mask in MASK_SPACES:
            parts = {"action_mask": MASK_SPACES[mask], "step": self.observation_space}
            self.observation_space = spaces.Dict(parts)
        if mask == "method":
            self.action_masks = lambda: flat_mask(self.t)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.obs(), self.info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError(f"{action} is not in {self.action_space}")
        factors = factors_of(action)
        places = np.cumsum([0, *NUM_CHOICES[:-1]]) + factors
        if self.mask and not flat_mask(self.t)[places].all():
            raise ValueError(f"{action} is barred")
        base = 1.0 if self.counts else 2.0
        reward = sum(base**k for k, (own, best) in enumerate(zip(factors, wanted(self.t), strict=True)) if own == best)
        self.t += 1
        return self.obs(), reward, False, self.t == EPISODE, self.info()

    def obs(self) -> Any:
        match self.mask:
            case "obs":
                return {"step": self.t, "action_mask": flat_mask(self.t).astype(np.int8)}
            case "obs by leaf":
                masks = mask_by_leaf(self.t) | {"lamps": np.ones((2, 2), np.int8)}
                return {"step": self.t, "action_mask": masks | {"gear": masks["gear"].astype(np.int8)}}
        return self.t

    def info(self) -> dict[str, Any]:
        return {"info": {"action_mask": flat_mask(self.t)}, "info by leaf": {"action_mask": mask_by_leaf(self.t)}}.get(
            self.mask, {}
        )

    def render(self) -> np.ndarray:
        return np.full((16, 16, 3), 80 * self.t, dtype=np.uint8)


class CompositeVectorEnv(SyncVectorEnv):
    """The same as a vector class."""

    def __init__(self, num_envs: int, mask: str = "", autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP) -> None:
        super().__init__([partial(CompositeEnv, mask)] * num_envs, autoreset_mode=autoreset_mode)

    def step(self, actions: Any) -> Any:
        assert self.action_space.contains(actions)
        return super().step(actions)


for env_id, vector_class in ((ENV_ID, None), (VECTOR_ID, CompositeVectorEnv)):
    if env_id not in gymnasium.registry:
        gymnasium.register(env_id, CompositeEnv, vector_entry_point=vector_class)
