"""The population's Adam against torch's, and clipping member by member."""

import torch
from torch import Generator

from agent.optimizer import PopulationAdam, clip_grad_norm


def test_each_row_steps_as_torchs_adam_with_its_own_learning_rate(generator: Generator) -> None:
    flat = torch.randn(3, 7, generator=generator)
    rates = [0.1, 0.01, 0.001]
    rows = [row.clone().requires_grad_() for row in flat]
    theirs = [torch.optim.Adam([row], lr=rate) for row, rate in zip(rows, rates, strict=True)]
    ours = PopulationAdam(flat)
    for _ in range(20):
        gradient = torch.randn(3, 7, generator=generator)
        ours.step(gradient.clone(), torch.tensor(rates).unsqueeze(-1))
        for row, adam, g in zip(rows, theirs, gradient, strict=True):
            row.grad = g.clone()
            adam.step()
    torch.testing.assert_close(flat, torch.stack([row.detach() for row in rows]), rtol=1e-5, atol=1e-6)


def test_step_moves_the_parameters_that_autograd_sees() -> None:
    flat = torch.ones(1, 2, requires_grad=True)
    PopulationAdam(flat).step(torch.ones(1, 2), torch.full((1, 1), 0.5))
    torch.testing.assert_close(flat.detach(), torch.full((1, 2), 0.5))


def test_clipping_is_per_member_over_both_critics(generator: Generator) -> None:
    """Rows 0 and 2 are the critics of member 0, rows 1 and 3 those of member 1."""
    gradient = torch.randn(4, 5, generator=generator)
    gradient[[1, 3]] *= 0.01
    before = gradient.clone()
    norm = clip_grad_norm(gradient, num_members=2, max_norm=1.0)
    large = [before[r].clone().requires_grad_() for r in (0, 2)]
    for parameter in large:
        parameter.grad = parameter.detach().clone()
    total = torch.nn.utils.clip_grad_norm_(large, 1.0)
    torch.testing.assert_close(norm[0], total)
    torch.testing.assert_close(gradient[[0, 2]], torch.stack([p.grad for p in large if p.grad is not None]))
    assert torch.equal(gradient[[1, 3]], before[[1, 3]])
