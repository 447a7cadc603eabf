"""Networks: a row is a plain module, and the derivative by hand is autograd's."""

import pytest
import torch
from plain_mlp import plain
from torch import Generator, nn

from agent.action_space import ActionSpace
from agent.networks import Actor, PopulationMLP, member_generators

SIZES = [3, 5, 4, 2]


def make_mlp(num_rows: int = 3, layer_norm: bool = False) -> PopulationMLP:
    mlp = PopulationMLP(SIZES, member_generators(list(range(num_rows)), 0), layer_norm=layer_norm)
    if layer_norm:  # scales of 1 and shifts of 0 would hide mistakes
        with torch.no_grad():
            mlp.flat.add_(torch.randn(mlp.flat.shape, generator=Generator().manual_seed(9)) * 0.3)
    return mlp


@pytest.mark.parametrize("layer_norm", [False, True])
def test_each_row_is_a_torch_module(layer_norm: bool, generator: Generator) -> None:
    mlp, x = make_mlp(layer_norm=layer_norm), torch.randn(3, 6, 3, generator=generator)
    out = mlp(x)
    for r in range(3):
        w = {name: view[r] for name, view in mlp.views(mlp.flat).items()}
        layers: list[nn.Module] = []
        for i in range(mlp.num_layers):
            linear = nn.Linear(SIZES[i], SIZES[i + 1])
            linear.weight.data, linear.bias.data = w[f"weight{i}"].T, w[f"bias{i}"][0]
            layers.append(linear)
            if i < mlp.num_layers - 1:
                if layer_norm:
                    norm = nn.LayerNorm(SIZES[i + 1])
                    norm.weight.data, norm.bias.data = w[f"scale{i}"][0], w[f"shift{i}"][0]
                    layers.append(norm)
                layers.append(nn.ReLU())
        torch.testing.assert_close(out[r], nn.Sequential(*layers)(x[r]))


@pytest.mark.parametrize("layer_norm", [False, True])
def test_derivative_by_hand_is_autograds(layer_norm: bool, generator: Generator) -> None:
    mlp = make_mlp(layer_norm=layer_norm)
    x = torch.randn(3, 6, 3, generator=generator, requires_grad=True)
    weight = torch.randn(3, 6, 2, generator=generator)
    flat = mlp.flat.clone().requires_grad_()
    expected = torch.autograd.grad((plain(mlp, flat, x) * weight).sum(), (x, flat))
    saved = mlp.forward(x.detach())
    by_hand = mlp.input_gradient(saved, weight), mlp.parameter_gradient(saved, weight)
    for ours, theirs in zip(by_hand, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_rows_never_mix(generator: Generator) -> None:
    mlp, x = make_mlp(), torch.randn(3, 6, 3, generator=generator)
    output_gradient = torch.zeros(3, 6, 2).index_fill_(0, torch.tensor(1), 1.0)
    gradient = mlp.parameter_gradient(mlp.forward(x), output_gradient)
    assert gradient[[0, 2]].abs().sum() == 0 < gradient[1].abs().sum()


def test_a_seed_starts_from_the_same_parameters_in_any_population() -> None:
    together = PopulationMLP(SIZES, member_generators([4, 7], 1)).flat
    alone = PopulationMLP(SIZES, member_generators([7], 1)).flat
    assert torch.equal(together[1], alone[0]) and not torch.equal(together[0], together[1])


def test_initial_weights_are_bounded_as_torch_linears() -> None:
    views = PopulationMLP([100, 50, 7], member_generators([0], 0), last_gain=0.01).views
    weights = views(PopulationMLP([100, 50, 7], member_generators([0], 0), last_gain=0.01).flat)
    assert 0.09 < weights["weight0"].abs().max() <= 0.1
    assert weights["weight1"].abs().max() <= 0.01 / 50**0.5


def test_polyak_moves_by_the_rate() -> None:
    a, b = make_mlp(), PopulationMLP(SIZES, member_generators([5, 6, 7], 0))
    expected = a.flat.detach() * 0.9 + b.flat.detach() * 0.1
    a.move_towards(b, 0.1)
    torch.testing.assert_close(a.flat.detach(), expected)


def test_actor_gives_padding_no_probability(generator: Generator) -> None:
    actor = Actor(3, ActionSpace((4, 2)), [8], member_generators([0, 1], 0))
    pi = actor(torch.randn(2, 5, 3, generator=generator)).softmax(-1)
    assert pi.shape == (2, 5, 2, 4) and (pi[:, :, 1, 2:] == 0).all() and (pi[:, :, 1, :2] > 0).all()
    assert (pi[:, :, 0] - 0.25).abs().max() < 0.01  # near uniform at first
