"""What several test files need."""

import pytest
import torch

torch.set_num_threads(1)  # the tests run side by side


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
