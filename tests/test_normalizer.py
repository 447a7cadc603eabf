"""The observation normaliser against numpy on all valid rows."""

import numpy as np
import torch
from torch import Generator

from agent.normalizer import ObservationNormalizer


def test_statistics_are_those_of_all_valid_rows(generator: Generator) -> None:
    normalizer = ObservationNormalizer(2, torch.zeros(3, dtype=torch.bool))
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
    normalizer = ObservationNormalizer(1, torch.zeros(1, dtype=torch.bool))
    normalizer.update_(torch.tensor([[[1.0], [5.0]]]), torch.tensor([[True, True]]))
    assert normalizer(torch.tensor([[[5.0], [3.0], [1e6]]])).flatten().tolist() == [1.0, 0.0, 10.0]


def test_binary_entries_and_disabled_normalisers_pass_unchanged() -> None:
    obs = torch.tensor([[[1.0, 7.0]]])
    some = ObservationNormalizer(1, torch.tensor([True, False]))
    some.update_(torch.tensor([[[0.0, 3.0], [1.0, 5.0]]]), torch.tensor([[True, True]]))
    assert some(obs)[0, 0].tolist() == [1.0, 3.0]
    for normalizer in (
        ObservationNormalizer(1, torch.tensor([True, True])),
        ObservationNormalizer(1, torch.tensor([False, False]), enabled=False),
    ):
        normalizer.update_(obs, torch.tensor([[True]]))
        assert torch.equal(normalizer(obs), obs)


def test_constant_observations_stay_finite() -> None:
    normalizer = ObservationNormalizer(1, torch.zeros(1, dtype=torch.bool))
    for _ in range(3):
        normalizer.update_(torch.full((1, 2, 1), 4.0), torch.ones(1, 2, dtype=torch.bool))
    assert normalizer(torch.full((1, 1, 1), 4.0)).item() == 0.0
