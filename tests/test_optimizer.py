"""The population's Adam against torch's, and clipping member by member."""

import torch
from torch import Generator

from agent.optimizer import PopulationAdam, clip_grad_norm_


def test_each_row_steps_as_torchs_adam_with_its_own_learning_rate(generator: Generator) -> None:
    flat = torch.randn(3, 7, generator=generator)
    rates = [0.1, 0.01, 0.001]
    rows = [row.clone().requires_grad_() for row in flat]
    theirs = [torch.optim.Adam([row], lr=rate) for row, rate in zip(rows, rates, strict=True)]
    ours = PopulationAdam([flat])
    for _ in range(20):
        gradient = torch.randn(3, 7, generator=generator)
        ours.step([gradient], [torch.tensor(rates).unsqueeze(-1)])
        for row, adam, g in zip(rows, theirs, gradient, strict=True):
            row.grad = g.clone()
            adam.step()
    torch.testing.assert_close(flat, torch.stack([row.detach() for row in rows]), rtol=1e-5, atol=1e-6)


def test_buffers_of_different_shapes_step_together_as_they_would_apart(generator: Generator) -> None:
    buffers = [torch.randn(2, 3, generator=generator), torch.randn(4, 5, generator=generator)]
    together, apart = [b.clone() for b in buffers], [b.clone() for b in buffers]
    joint, single = PopulationAdam(together), [PopulationAdam([b]) for b in apart]
    rates = [torch.full((2, 1), 0.1), torch.full((4, 1), 0.01)]
    for _ in range(3):
        gradients = [torch.randn(b.shape, generator=generator) for b in buffers]
        joint.step(gradients, rates)
        for adam, gradient, rate in zip(single, gradients, rates, strict=True):
            adam.step([gradient], [rate])
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b)


def test_clipping_is_per_member_over_both_critics(generator: Generator) -> None:
    """Rows 0 and 2 are the critics of member 0, rows 1 and 3 those of member 1."""
    gradient = torch.randn(4, 5, generator=generator)
    gradient[[1, 3]] *= 0.01
    before = gradient.clone()
    norm = clip_grad_norm_(gradient, num_members=2, max_norm=1.0)
    large = [before[r].clone().requires_grad_() for r in (0, 2)]
    for parameter in large:
        parameter.grad = parameter.detach().clone()
    total = torch.nn.utils.clip_grad_norm_(large, 1.0)
    torch.testing.assert_close(norm[0], total)
    torch.testing.assert_close(gradient[[0, 2]], torch.stack([p.grad for p in large if p.grad is not None]))
    assert torch.equal(gradient[[1, 3]], before[[1, 3]])
