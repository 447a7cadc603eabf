"""Worlds: Gymnasium environments of any discrete action space, as tensors. Imports nothing of `agent`."""

from envs.errors import UserError
from envs.factory import VectorEnvironment, make
from envs.functional import FunctionalEnv, TensorEnv
from envs.functional_gymnasium import FunctionalSingleEnv, FunctionalVectorEnv
from envs.gymnasium_adapter import GymnasiumAdapter, Step
from envs.masks import ACTION_MASK_KEY, MaskReader, Masks
from envs.native import register_native
from envs.probes import PROBES, register_probes
from envs.spaces import FactoredActions, FlatObservations, space_from_json, space_to_json

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
register_native()
