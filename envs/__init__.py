"""Worlds: Gymnasium environments of any discrete action space, as tensors. Imports nothing of `agent`."""

from envs.errors import UserError
from envs.factories import Factory, registered
from envs.factory import make, make_single
from envs.frame_probe import find_frame_stack
from envs.frame_stack import FrameStack
from envs.gymnasium_adapter import GymnasiumAdapter
from envs.masks import ACTION_MASK_KEY, MaskReader, Masks
from envs.member_envs import MemberEnvs
from envs.probes import PROBES, register_probes
from envs.random_streams import RandomStreams
from envs.spaces import FactoredActions, FlatObservations, space_from_json, space_to_json
from envs.tensor.functional import FunctionalEnv, TensorEnv
from envs.tensor.functional_gymnasium import FunctionalSingleEnv, FunctionalVectorEnv
from envs.tensor.registration import register_tensor_envs
from envs.vector_environment import Step, VectorEnvironment

__all__ = [
    "ACTION_MASK_KEY",
    "PROBES",
    "FactoredActions",
    "Factory",
    "FrameStack",
    "FlatObservations",
    "FunctionalEnv",
    "FunctionalSingleEnv",
    "FunctionalVectorEnv",
    "GymnasiumAdapter",
    "MaskReader",
    "Masks",
    "MemberEnvs",
    "RandomStreams",
    "Step",
    "TensorEnv",
    "UserError",
    "VectorEnvironment",
    "find_frame_stack",
    "make",
    "make_single",
    "registered",
    "space_from_json",
    "space_to_json",
]

register_probes()
register_tensor_envs()
