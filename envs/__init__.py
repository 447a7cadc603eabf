"""Worlds: Gymnasium environments of any discrete action space, as tensors. Imports nothing of `agent`."""

from envs.errors import UserError
from envs.factory import VectorEnvironment, make
from envs.gymnasium_adapter import GymnasiumAdapter, Step
from envs.masks import ACTION_MASK_KEY, MaskReader, Masks
from envs.probes import PROBES, register_probes
from envs.spaces import FactoredActions, FlatObservations, space_from_json, space_to_json
from envs.tensor.functional import FunctionalEnv, TensorEnv
from envs.tensor.functional_gymnasium import FunctionalSingleEnv, FunctionalVectorEnv
from envs.tensor.registration import register_tensor_envs

__all__ = [
    "ACTION_MASK_KEY",
    "PROBES",
    "FactoredActions",
    "FlatObservations",
    "FunctionalEnv",
    "FunctionalSingleEnv",
    "FunctionalVectorEnv",
    "GymnasiumAdapter",
    "MaskReader",
    "Masks",
    "Step",
    "TensorEnv",
    "UserError",
    "VectorEnvironment",
    "make",
    "space_from_json",
    "space_to_json",
]

register_probes()
register_tensor_envs()
