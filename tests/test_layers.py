"""Imports point downwards only, and envs stands alone."""

import ast
from pathlib import Path

import pytest

LAYERS = [  # a module may import those of earlier lines
    {"envs"},
    {
        "agent.config",
        "agent.action_space",
        "agent.metrics",
        "agent.exit_codes",
        "agent.versions",
        "agent.state",
        "agent.weights",
    },
    {"agent.config_loader", "agent.estimators", "agent.schedules", "agent.losses", "agent.networks"},
    {
        "agent.critics",
        "agent.exploration",
        "agent.gradient_quality",
        "agent.optimizer",
        "agent.normalizer",
        "agent.replay",
    },
    {"agent.policy", "agent.gumbel_actor_critic", "agent.reinforce"},
    {"agent", "agent.analysis"},
    {"agent.training"},
    {"train", "evaluate", "compare"},
]
FILES = [
    *Path("agent").rglob("*.py"),
    *Path("envs").rglob("*.py"),
    *map(Path, ("train.py", "evaluate.py", "compare.py")),
]


def layer(module: str) -> int:
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        for i, names in enumerate(LAYERS):
            if ".".join(parts[:length]) in names and (parts[0] != "agent" or length > 1 or len(parts) == 1):
                return i
    raise AssertionError(f"tests/test_layers.py does not place {module}")


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:  # `from agent import losses` imports agent.losses
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if Path(*submodule.split(".")).with_suffix(".py").exists() else node.module)
    return {name for name in found if name.split(".")[0] in ("agent", "envs", "train", "evaluate", "compare")}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_file_imports_only_layers_below(path: Path) -> None:
    module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    same_package = {"envs", "agent.analysis", "agent.training"}
    for imported in imports(path):
        package = next((p for p in same_package if module.startswith(p) and imported.startswith(p)), None)
        assert package or layer(imported) < layer(module), f"{module} imports {imported}"
