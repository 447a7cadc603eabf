"""What `from agent import …` offers, and when it is imported."""

import subprocess
import sys

import pytest

import agent
from agent.analysis.comparison import compare
from agent.config import Config
from agent.config_loader import load_config
from agent.evaluation import evaluate
from agent.policy import Policy, PolicyError
from agent.run import Run
from agent.training.callbacks import Callback
from agent.training.trainer import train

NAMES = {
    "Callback": Callback,
    "Config": Config,
    "Policy": Policy,
    "PolicyError": PolicyError,
    "Run": Run,
    "compare": compare,
    "evaluate": evaluate,
    "load_config": load_config,
    "train": train,
}


def test_every_public_name_is_what_it_says() -> None:
    assert {name: getattr(agent, name) for name in agent.__all__} == NAMES
    assert dir(agent) == sorted(NAMES)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'agent' has no attribute 'trian'"):
        agent.trian  # noqa: B018  (reading it is the test)


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import agent", {"torch", "numpy", "gymnasium", "pydantic"}),
        ("from agent import load_config", {"agent.policy", "agent.training.trainer", "matplotlib"}),
        ("from agent import Policy", {"agent.training.trainer", "agent.analysis.comparison", "matplotlib", "wandb"}),
        ("from agent import evaluate", {"agent.training.trainer", "agent.analysis.comparison", "matplotlib", "wandb"}),
        ("from agent import train", {"agent.analysis", "matplotlib", "wandb"}),
        ("from agent import compare", {"agent.training.trainer", "matplotlib", "wandb"}),
    ],
)
def test_imports_are_lazy(statement: str, heavy: set[str]) -> None:
    code = f"import sys; {statement}; print(*({heavy!r} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []
