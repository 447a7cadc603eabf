"""Off-policy actor-critic for discrete action spaces, with straight-through Gumbel-softmax actors.

The public names are imported when they are first used: `import agent` alone is fast and imports no torch.
"""

import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent.analysis.comparison import compare
    from agent.config import Config
    from agent.config_loader import load_config
    from agent.evaluation import evaluate
    from agent.policy import Policy, PolicyError
    from agent.run import Run
    from agent.training.callbacks import Callback
    from agent.training.trainer import train

if "WORLD_SIZE" in os.environ:  # in a rank PyTorch would show its frames in C++ for another that has ended
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
ENVS = Path(__file__).parents[1] / "envs" / "__init__.py"
if (found := find_spec("envs")) is None or found.origin is None or not os.path.samefile(found.origin, ENVS):
    raise ImportError(
        f"the package 'envs' of gumbel-actor-critic ({ENVS}) is hidden by {found and found.origin}: rename that one, "
        "or use the command gumbel, which does not look for modules in the current folder first"
    )

__all__ = ["Callback", "Config", "Policy", "PolicyError", "Run", "compare", "evaluate", "load_config", "train"]

MODULES = {
    "Callback": "agent.training.callbacks",
    "Config": "agent.config",
    "Policy": "agent.policy",
    "PolicyError": "agent.policy",
    "Run": "agent.run",
    "compare": "agent.analysis.comparison",
    "evaluate": "agent.evaluation",
    "load_config": "agent.config_loader",
    "train": "agent.training.trainer",
}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module 'agent' has no attribute {name!r}")
    return getattr(import_module(MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
