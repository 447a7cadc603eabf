"""What observations of Atari and of MiniGrid go through before anything learns from them.

Atari's are the same for its vector class and for a single environment.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from envs.errors import UserError
from envs.registry import find_spec

PREPROCESSING = ("auto", "none", "atari", "minigrid")
ATARI = (
    "84x84 grey frames, four of them stacked, each action repeated for four frames, up to 30 no-ops at a reset, "
    "actions repeated with probability {sticky:g}, rewards not clipped, a lost life does not end an episode"
)
MINIGRID = "each cell's object, colour and state as codes, one-hot"
NUM_CODES = (11, 6, 4)  # of objects, colours, and states of doors or directions of the agent
FRAME_SKIP, NUM_FRAMES, MAX_NOOPS, SIZE = 4, 4, 30, 84
OF_VECTOR_CLASS = {  # arguments of ale_py's AtariVectorEnv
    "frameskip": FRAME_SKIP,
    "stack_num": NUM_FRAMES,
    "noop_max": MAX_NOOPS,
    "img_height": SIZE,
    "img_width": SIZE,
    "grayscale": True,
    "maxpool": True,
    "episodic_life": False,
    "life_loss_info": False,
    "reward_clipping": False,
    "use_fire_reset": False,
}
OF_SINGLE = {"frameskip": 1, "obs_type": "grayscale"}  # the wrapper repeats the actions


def preprocessing_of(spec: EnvSpec, kwargs: Mapping[str, Any], wanted: str = "auto") -> str:
    """atari, minigrid or none.  UserError where it does not fit the environment or its arguments."""
    if wanted not in PREPROCESSING:
        raise UserError(f"env.preprocessing must be one of {', '.join(PREPROCESSING)}; got {wanted!r}")
    is_atari = spec.namespace == "ALE" or str(spec.entry_point).startswith("ale_py")
    is_minigrid = str(spec.entry_point).startswith("minigrid.")
    if wanted == "auto":
        arguments = {**spec.kwargs, **kwargs}
        is_frames = arguments.get("obs_type") != "ram" and not arguments.get("sound_obs")
        wanted = "atari" if is_atari and is_frames else "minigrid" if is_minigrid else "none"
    if wanted != "atari":
        return wanted
    if not is_atari:
        raise UserError(f"env.preprocessing=atari is for the ids of ALE; {spec.id} is none of them")
    if decided := [key for key in kwargs if key in {**OF_VECTOR_CLASS, **OF_SINGLE}]:
        clips = "; to learn from clipped rewards, set clip_reward=1" if "reward_clipping" in decided else ""
        raise UserError(
            f"env.kwargs.{decided[0]} is decided by env.preprocessing=atari; for another value set "
            f"env.preprocessing=none and the wrappers you want in env.wrappers{clips}"
        )
    return "atari"


def preprocessing_in_force(env_id: str, kwargs: Mapping[str, Any], wanted: str) -> tuple[str, str]:
    """Which one, and what it does, for people: empty where that is nothing. UserError as `preprocessing_of`."""
    spec = find_spec(env_id)
    found = preprocessing_of(spec, kwargs, wanted)
    sticky = {**spec.kwargs, **kwargs}.get("repeat_action_probability", 0.25)
    return found, {"atari": ATARI.format(sticky=sticky), "minigrid": MINIGRID, "none": ""}[found]


class CellCodes(gymnasium.ObservationWrapper):
    """MiniGrid's observations in the space of what they are: codes of each cell, which Box says are shades of colour.

    The numbers stay the same. Behind a wrapper that gives other codes, as FullyObsWrapper, it must be set again.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        space = env.observation_space
        image = space["image"] if isinstance(space, spaces.Dict) else space
        if not isinstance(image, spaces.Box | spaces.MultiDiscrete) or image.shape[2:] != (len(NUM_CODES),):
            raise UserError(f"MiniGrid's codes of cells are expected in observations, but these are {space}")
        codes = spaces.MultiDiscrete(np.broadcast_to(NUM_CODES, image.shape).copy(), dtype=image.dtype)
        if isinstance(space, spaces.Dict):
            self.observation_space = spaces.Dict({**space.spaces, "image": codes}, sort_keys=False)
        else:
            self.observation_space = codes

    def observation(self, observation: Any) -> Any:
        return observation


def preprocessed(env: gymnasium.Env, preprocessing: str) -> gymnasium.Env:
    """A single environment with its preprocessing. Atari's first frame follows black ones, as in the vector class."""
    if preprocessing == "minigrid":
        return CellCodes(env)
    if preprocessing == "none":
        return env
    env = AtariPreprocessing(env, noop_max=MAX_NOOPS, frame_skip=FRAME_SKIP, screen_size=SIZE)
    return FrameStackObservation(env, NUM_FRAMES, padding_type="zero")
