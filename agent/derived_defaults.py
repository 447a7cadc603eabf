"""Defaults that follow from other settings (docs/recipe.md). Each takes the settings read before its own."""

import math
from collections.abc import Mapping
from typing import Any

TOTAL_ENV_STEPS = 50_000  # the default; up to here an update is made at every step


def updates_of_the_budget(given: Mapping[str, Any]) -> float:
    """So that a run of twice the steps makes sqrt(2) times the updates."""
    total = given.get("total_env_steps", TOTAL_ENV_STEPS)
    return round(min(1.0, math.sqrt(TOTAL_ENV_STEPS / total)), 3)


def warm_up_of_the_budget(given: Mapping[str, Any]) -> int:
    total = given.get("total_env_steps", TOTAL_ENV_STEPS)
    return max(1, min(total // 20, 5000))


def persistence_of_the_environments(given: Mapping[str, Any]) -> float | list[float]:
    return [0.5, 0.95] if "env" in given and given["env"].num_envs > 1 else 0.7


def batch_of_the_network(given: Mapping[str, Any]) -> int:
    return 512 if "network" in given and given["network"].memory != "none" else 128
