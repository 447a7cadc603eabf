"""What several test files need."""

import os
from pathlib import Path

import jaxtyping
import pytest
import torch

torch.set_num_threads(1)  # the tests run side by side
os.environ.setdefault("XDG_CACHE_HOME", str(Path(__file__).parents[1] / ".pytest_cache"))  # of what is compiled

WHOLE_RUNS = {  # tests of runs from end to end: `make test-fast` leaves them out, and shapes are not checked in them
    "test_benchmarks", "test_comparison", "test_evaluation", "test_extending", "test_failures", "test_filters",
    "test_gradient_report", "test_pbt", "test_plan", "test_policy_environment", "test_public_names", "test_python_api",
    "test_ranks", "test_report", "test_resume", "test_scripts", "test_tabular", "test_trainer",
}  # fmt: skip


def is_of_whole_runs(path: Path) -> bool:
    return path.stem in WHOLE_RUNS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if is_of_whole_runs(item.path):
            item.add_marker(pytest.mark.whole_run)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """`make test` checks shapes, which makes a run several times as long; only the quick tests of parts do it."""
    is_long = is_of_whole_runs(item.path) or item.get_closest_marker("slow") is not None
    jaxtyping.config.update("jaxtyping_disable", is_long)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
