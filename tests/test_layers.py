"""Imports point downwards only, there are no cycles, and envs stands alone."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

LAYERS = [  # a module may import those of earlier lines, and others of its own package
    {"envs"},
    {"agent.config_fields", "agent.derived_defaults", "agent.files", "agent.losses", "agent.yaml12"},
    {"agent.config_faults", "agent.config_sections", "agent.exit_codes"},
    {
        "agent.config",
        "agent.action_space",
        "agent.bootstrap",
        "agent.commands",
        "agent.memory",
        "agent.metrics",
        "agent.seeding",
        "agent.state",
        "agent.weights",
    },
    {"agent.ranks"},
    {"agent.config_loader", "agent.data_ranks", "agent.estimators", "agent.policy_zoo", "agent.schedules"},
    {"agent.networks", "agent.exploration", "agent.normalizer", "agent.optimizer", "agent.replay", "agent.tables"},
    {"agent.diagnostics", "agent.policy_module", "agent.versions"},
    {"agent.algorithms", "agent.policy"},
    {"agent.evaluation", "agent.onnx_file", "agent.run"},
    {"agent.video"},
    {"agent.training", "agent.analysis"},  # neither imports the other: compare.py hands functions of one to the other
    {"agent.cli"},
    {"agent", "agent.__main__"},  # the public names, and python -m agent
    {"train", "evaluate", "compare"},
]
PACKAGES = {
    "envs",
    "agent.networks",
    "agent.diagnostics",
    "agent.algorithms",
    "agent.training",
    "agent.analysis",
    "agent.cli",
}
FILES = [
    *Path("agent").rglob("*.py"),
    *Path("envs").rglob("*.py"),
    *map(Path, ("train.py", "evaluate.py", "compare.py")),
]


def module_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


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
                place = Path(*submodule.split("."))
                is_module = place.with_suffix(".py").exists() or (place / "__init__.py").exists()
                found.add(submodule if is_module else node.module)
    return {name for name in found if name.split(".")[0] in ("agent", "envs", "train", "evaluate", "compare")}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_file_imports_only_layers_below(path: Path) -> None:
    module = module_of(path)
    for imported in imports(path):
        is_neighbour = any(is_in(module, package) and is_in(imported, package) for package in PACKAGES)
        assert is_neighbour or layer(imported) < layer(module), f"{module} imports {imported}"


@pytest.mark.parametrize(
    ("package", "other"), [("agent.training", "agent.analysis"), ("agent.analysis", "agent.training")]
)
def test_training_and_analysis_do_not_know_each_other(package: str, other: str) -> None:
    for path in FILES:
        if is_in(module_of(path), package):
            assert not any(is_in(imported, other) for imported in imports(path)), f"{path} imports {other}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module_of(path): imports(path) - {module_of(path)} for path in FILES}
    TopologicalSorter(graph).prepare()  # CycleError names the modules of a cycle
