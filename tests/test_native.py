"""MLPs by operators in C++ are those of PyTorch's layers, in value and in derivative, alone and together."""

import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from agent.networks import native
from agent.networks.heads import with_head
from agent.networks.modules import MLP
from agent.networks.native import MLPShape, instruction_set
from agent.networks.population import Parameters, Population

SEEDS = [3, 1, 4]
SIZES = [[4, 128, 128, 2], [4, 33, 7], [7, 33, 65, 19], [3, 5], [3, 2], [17, 64, 64, 18], [5, 3, 4, 2], [1, 1, 1]]
needs_operators = pytest.mark.skipif(instruction_set() is None, reason="there is no C++ compiler")


def pair(sizes: list[int], layer_norm: bool, seeds: list[int] = SEEDS) -> tuple[Population, Population]:
    """The same networks in C++ and in PyTorch's layers, scales and shifts not as they begin."""

    def make() -> nn.Module:
        return with_head(MLP(sizes[0], sizes[1:-1], layer_norm), sizes[-1])

    ours, theirs = (Population(make, seeds, native=is_native) for is_native in (True, False))
    assert len(ours.parameters) == 1 and len(theirs.parameters) > 1
    with torch.no_grad():
        ours.flat.add_(0.3 * torch.randn(ours.flat.shape, generator=torch.Generator().manual_seed(0)))
        theirs.flat.copy_(ours.flat)
    return ours, theirs


def gradients(population: Population, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and the derivatives of a weighted sum of it by all parameters and by x."""
    x = x.detach().requires_grad_()

    def loss(parameters: Parameters) -> tuple[Tensor, Tensor]:
        out = population(x, parameters)
        weight = torch.linspace(-1, 2, out[0].numel()).view_as(out[0])  # of a row: it must not depend on the others
        return (out * weight).flatten(1).sum(1), out

    by_parameters, _, out = population.gradient(loss)
    (by_x,) = torch.autograd.grad(loss(population.parameters)[0].sum(), x)
    return out, by_parameters, by_x


@needs_operators
@pytest.mark.parametrize("batch", [1, 5, 128, 130])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_output_and_derivatives_are_those_of_pytorchs_layers(sizes: list[int], layer_norm: bool, batch: int) -> None:
    ours, theirs = pair(sizes, layer_norm)
    x = torch.randn(3, batch, sizes[0], generator=torch.Generator().manual_seed(1))
    for own, other in zip(gradients(ours, x), gradients(theirs, x), strict=True):
        scale = other.abs().max().item()
        torch.testing.assert_close(own, other, rtol=1e-5, atol=5e-6 * max(scale, 1e-3))


@needs_operators
@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_row_is_bitwise_the_same_alone_and_on_two_threads(layer_norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 37, 9, generator=torch.Generator().manual_seed(1))
    ours, _ = pair([9, 40, 24, 3], layer_norm)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    on_two, _ = pair([9, 40, 24, 3], layer_norm)
    alone, _ = pair([9, 40, 24, 3], layer_norm, SEEDS[1:2])
    alone.flat.copy_(ours.flat[1:2])
    together = gradients(ours, x)
    assert all(map(torch.equal, together, gradients(on_two, x)))
    assert all(torch.equal(own, every[1:2]) for own, every in zip(gradients(alone, x[1:2]), together, strict=True))


@needs_operators
def test_what_is_not_finite_stays_so() -> None:
    ours, theirs = pair([3, 8, 8, 2], False)
    for population in (ours, theirs):
        population.flat[1, 5] = torch.nan
    x = torch.ones(3, 4, 3)
    for own, other in zip(gradients(ours, x), gradients(theirs, x), strict=True):
        assert torch.equal(own.isnan(), other.isnan()) and own[1].isnan().any() and own[[0, 2]].isfinite().all()


@needs_operators
def test_denormals_are_treated_alike_on_every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    ours, _ = pair([1, 4, 1], False, [0, 1])
    tensors = ours.tensors()
    ours.flat.zero_()
    tensors["features.0.weight"].fill_(1e-20)
    tensors["head.weight"].fill_(1e10)
    x = torch.full((2, 1, 1), 1e-20)  # its products are denormal
    torch.set_flush_denormal(True)
    try:
        flushed = ours(x)
    finally:
        torch.set_flush_denormal(False)
    assert flushed.flatten().tolist() == [0, 0] and (ours(x) > 1e-30).all()


def layers(*which: nn.Module) -> nn.Module:
    return nn.Sequential(*which)


def hooked() -> nn.Module:
    module = layers(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    module[0].register_forward_hook(lambda module, args, out: out + 1)
    return module


def frozen() -> nn.Module:
    module = layers(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    module[0].bias.requires_grad_(False)
    return module


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@needs_operators
@pytest.mark.parametrize(
    "make",
    [
        lambda: layers(Doubled(3, 4), nn.ReLU(), nn.Linear(4, 2)),
        lambda: layers(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)),
        lambda: layers(nn.Linear(3, 4), nn.ReLU()),
        lambda: layers(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)),
        lambda: layers(nn.Linear(3, 4), nn.LayerNorm(4, bias=False), nn.ReLU(), nn.Linear(4, 2)),
        lambda: layers(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2)),
        lambda: layers(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double(),
        hooked,
        frozen,
    ],
)
def test_anything_else_is_left_to_pytorch_at_least_in_part(make: Callable[[], nn.Module]) -> None:
    ours, theirs = (Population(make, SEEDS, native=is_native) for is_native in (True, False))
    x = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(0)).to(ours.flat.dtype)
    assert [*ours.parameters] != [*pair([3, 4, 2], False)[0].parameters]
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(gradients(ours, x)[1], gradients(theirs, x)[1], rtol=1e-4, atol=1e-5)


def test_the_shape_of_an_mlp() -> None:
    module = with_head(MLP(3, [4, 5], layer_norm=True), 2)
    plain = [*itertools.chain(module[0].children()), module[1]]  # type: ignore[index]
    assert MLPShape.of(plain) == MLPShape((3, 4, 5, 2), 1e-5)


@pytest.fixture
def nothing_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.instruction_set.cache_clear()
    yield
    native.instruction_set.cache_clear()


@pytest.mark.usefixtures("nothing_built")
@pytest.mark.parametrize(("compiler", "message"), [("no-such-compiler", "no C\\+\\+ compiler"), ("false", "status 1")])
def test_without_a_compiler_pytorchs_layers_take_their_place(
    compiler: str, message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", compiler)
    caplog.set_level(logging.INFO)
    population = Population(lambda: with_head(MLP(3, [4]), 2), [0])
    assert len(population.parameters) == 4 and "PyTorch's take their place" in caplog.text
    Population(lambda: with_head(MLP(3, [4]), 2), [0])
    assert caplog.text.count("PyTorch's take their place") == 1
