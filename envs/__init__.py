"""Worlds: Gymnasium environments of any discrete action space, as tensors. Imports nothing of `agent`."""

from envs.errors import UserError
from envs.factory import make
from envs.gymnasium_adapter import GymnasiumAdapter, Step
from envs.probes import PROBES, register_probes
from envs.spaces import FactoredActions, FlatObservations, space_from_json, space_to_json

__all__ = [
    "PROBES",
    "FactoredActions",
    "FlatObservations",
    "GymnasiumAdapter",
    "Step",
    "UserError",
    "make",
    "space_from_json",
    "space_to_json",
]

register_probes()
