"""The observation normaliser against numpy on all valid rows."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Generator

from agent.normalizer import ObservationNormalizer, make_normalizer
from envs.spaces import FlatObservations


def test_statistics_are_those_of_all_valid_rows(generator: Generator) -> None:
    normalizer = ObservationNormalizer(2, *torch.zeros(2, 3))
    seen: list[list[np.ndarray]] = [[], []]
    for _ in range(50):
        obs = torch.randn(2, 4, 3, generator=generator) * 5 + 100
        valid = torch.rand(2, 4, generator=generator) < 0.7
        normalizer.update_(obs, valid)
        for p in range(2):
            seen[p].append(obs[p][valid[p]].numpy())
    for p in range(2):
        rows = np.concatenate(seen[p]).astype(np.float64)
        np.testing.assert_allclose(normalizer.mean[p], rows.mean(0), rtol=1e-5)
        np.testing.assert_allclose(normalizer.var[p], rows.var(0), rtol=1e-3)


def test_observations_come_out_centred_scaled_and_clipped() -> None:
    normalizer = ObservationNormalizer(1, *torch.zeros(2, 1))
    normalizer.update_(torch.tensor([[[1.0], [5.0]]]), torch.tensor([[True, True]]))
    assert normalizer(torch.tensor([[[5.0], [3.0], [1e6]]])).flatten().tolist() == [1.0, 0.0, 10.0]


def test_binary_entries_and_disabled_normalisers_pass_unchanged() -> None:
    obs = torch.tensor([[[1.0, 7.0]]])
    some = ObservationNormalizer(1, torch.zeros(2), torch.tensor([1.0, 0.0]))
    some.update_(torch.tensor([[[0.0, 3.0], [1.0, 5.0]]]), torch.tensor([[True, True]]))
    assert some(obs)[0, 0].tolist() == [1.0, 3.0]
    for normalizer in (
        ObservationNormalizer(1, torch.zeros(2), torch.ones(2)),
        ObservationNormalizer(1, *torch.zeros(2, 2), enabled=False),
    ):
        normalizer.update_(obs, torch.tensor([[True]]))
        assert torch.equal(normalizer(obs), obs)


@pytest.mark.parametrize("enabled", [True, False])
def test_images_are_scaled_by_their_space_alone(enabled: bool) -> None:
    space = spaces.Dict(
        {
            "1": spaces.Box(0, 255, (3, 3, 1), np.uint8),
            "2": spaces.Box(-1, 3, (3, 3, 1)),
            "3": spaces.Box(0, 1, (3, 3, 1), np.bool_),
        }
    )
    normalizer = make_normalizer(1, FlatObservations(space), enabled=enabled)
    obs = torch.tensor([[[51.0] * 9 + [0.0] * 9 + [1.0] * 9]])
    normalizer.update_(obs, torch.ones(1, 1, dtype=torch.bool))
    torch.testing.assert_close(normalizer(obs), torch.tensor([[[0.2] * 9 + [0.25] * 9 + [1.0] * 9]]))


def test_constant_observations_stay_finite() -> None:
    normalizer = ObservationNormalizer(1, *torch.zeros(2, 1))
    for _ in range(3):
        normalizer.update_(torch.full((1, 2, 1), 4.0), torch.ones(1, 2, dtype=torch.bool))
    assert normalizer(torch.full((1, 1, 1), 4.0)).item() == 0.0
