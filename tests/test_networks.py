"""Networks: a row of a population is a plain module, its gradient is the module's own, and what cannot be one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from oracles.networks import PopulationMLP
from torch import Generator, Tensor, nn

from agent.action_space import ActionSpace
from agent.config_fields import ConfigError
from agent.networks.heads import Actor, with_head
from agent.networks.modules import MLP, NetworkError, NetworkSpec, require_contract, seeded
from agent.networks.population import Population, all_finite
from envs.spaces import ObsPart

SEEDS = [3, 1, 4]


def mlp(layer_norm: bool = False) -> nn.Module:
    return with_head(MLP(3, [5, 4], layer_norm), 2)


def shared_layer() -> nn.Module:
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer)


def hooked() -> nn.Module:
    layer = nn.Linear(3, 2)
    layer.register_forward_hook(lambda module, args, out: 2 * out)
    return layer


class Residual(nn.Module):
    """Of a user: a forward of its own, a buffer that stays, and a parameter that needs no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale = nn.Linear(3, 3, bias=False), nn.Parameter(torch.randn(3), requires_grad=False)
        self.register_buffer("frequencies", torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * (self.inner(x) * self.frequencies).sin()


MODULES: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "mlp with layer norm": lambda: mlp(layer_norm=True),
    "layers without bias": lambda: nn.Sequential(nn.Linear(3, 4, bias=False), nn.LayerNorm(4, bias=False), nn.GELU()),
    "layer norm without parameters": lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, elementwise_affine=False)),
    "nested, one ReLU twice": lambda: nn.Sequential(nn.Linear(3, 3), relu := nn.ReLU(), nn.Sequential(mlp(), relu)),
    "a layer twice": shared_layer,
    "a hook": hooked,
    "a user's own": Residual,
    "known and unknown layers": lambda: nn.Sequential(nn.Linear(3, 3), Residual(), nn.Linear(3, 2)),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 2), nn.ReLU(), nn.Flatten()),
    "an axis more": lambda: nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Linear(1, 4), nn.LayerNorm(4), nn.Flatten()),
}


@pytest.mark.parametrize("name", MODULES)
def test_each_row_is_its_module_and_so_is_its_gradient(name: str, generator: Generator) -> None:
    make = MODULES[name]
    population, x = Population(make, SEEDS), torch.randn(3, 6, 3, generator=generator)
    with torch.no_grad():  # scales of 1 and shifts of 0 would hide mistakes
        population.flat.add_(0.3 * torch.randn(population.flat.shape, generator=generator))
    weight = torch.randn(population(x).shape, generator=generator)
    gradient, loss, out = population.gradient(
        lambda parameters: ((y := population(x, parameters)).mul(weight).flatten(1).sum(1), y)
    )
    views = population.views(gradient)
    for row, seed in enumerate(SEEDS):
        module = seeded(make, seed)
        own = {name: tensor[row] for name, tensor in population.tensors().items()}
        module.load_state_dict(own, strict=len(own) == len(module.state_dict()))
        expected = module(x[row])
        torch.testing.assert_close(out[row], expected)
        (expected * weight[row]).sum().backward()
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                ours = population._layouts[name].to_module(views[name])[row]
                torch.testing.assert_close(ours, parameter.grad, rtol=1e-4, atol=1e-5)
    assert not out.requires_grad and not loss.requires_grad


@pytest.mark.parametrize("layer_norm", [False, True])
def test_the_derivative_is_the_one_by_hand(layer_norm: bool, generator: Generator) -> None:
    population, by_hand = (
        Population(lambda: mlp(layer_norm), SEEDS),
        PopulationMLP([3, 5, 4, 2], 3, layer_norm=layer_norm),
    )
    population.flat.add_(0.3 * torch.randn(population.flat.shape, generator=generator))
    by_hand.flat.copy_(population.flat)
    x, weight = torch.randn(3, 6, 3, generator=generator), torch.randn(3, 6, 2, generator=generator)
    gradient, _, _ = population.gradient(lambda p: ((population(x, p) * weight).sum((1, 2)), None))
    torch.testing.assert_close(gradient, by_hand.parameter_gradient(by_hand.forward(x), weight))


def test_rows_never_mix(generator: Generator) -> None:
    population, x = Population(mlp, SEEDS), torch.randn(3, 6, 3, generator=generator)
    only_second = torch.tensor([0.0, 1.0, 0.0])
    gradient, _, _ = population.gradient(lambda p: (population(x, p).sum((1, 2)) * only_second, None))
    assert gradient[[0, 2]].abs().sum() == 0 < gradient[1].abs().sum()


@pytest.mark.parametrize("name", MODULES)
def test_a_seed_starts_from_the_same_parameters_in_any_population(name: str) -> None:
    before = torch.random.get_rng_state()
    together, alone = Population(MODULES[name], SEEDS), Population(MODULES[name], [SEEDS[2]])
    for ours, theirs in zip(together.tensors().values(), alone.tensors().values(), strict=True):
        assert torch.equal(ours[2], theirs[0])
    assert not torch.equal(together.flat[0], together.flat[1])
    assert torch.equal(torch.random.get_rng_state(), before)  # the user's own generator is left alone


def test_an_unused_parameter_has_no_gradient() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(2, 1), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    population = Population(Unused, [0])
    gradient, _, _ = population.gradient(lambda p: (population(torch.ones(1, 1, 2), p).sum((1, 2)), None))
    views = population.views(gradient)
    assert views["unused.weight"].abs().sum() == 0 < views["used.weight"].abs().sum()


def test_initial_weights_are_torch_linears_and_the_policy_starts_near_uniform() -> None:
    population = Population(lambda: with_head(MLP(100, [50]), 7, gain=0.01), [0])
    weights = population.tensors()
    assert 0.09 < weights["features.0.weight"].abs().max() <= 0.1
    assert weights["head.weight"].abs().max() <= 0.01 / 50**0.5


def test_polyak_moves_by_the_rate() -> None:
    a, b = Population(mlp, SEEDS), Population(mlp, [5, 6, 7])
    expected = a.flat * 0.9 + b.flat * 0.1
    a.lerp_(b, 0.1)
    torch.testing.assert_close(a.flat, expected)


def test_rows_that_are_not_finite_are_found_by_member() -> None:
    one, two = Population(mlp, [0, 1]), Population(mlp, [0, 1, 2, 3])
    two.flat[3, 0] = torch.inf
    assert all_finite(2, one, two).tolist() == [True, False]


def test_actor_gives_padding_no_probability(generator: Generator) -> None:
    spec = NetworkSpec("mlp", {"hidden_sizes": [8], "layer_norm": False})
    actor = Actor(spec, [ObsPart("", (3,))], ActionSpace((4, 2)), [0, 1])
    pi = actor(torch.randn(2, 5, 3, generator=generator)).softmax(-1)
    assert pi.shape == (2, 5, 2, 4) and (pi[:, :, 1, 2:] == 0).all() and (pi[:, :, 1, :2] > 0).all()
    assert (pi[:, :, 0] - 0.25).abs().max() < 0.01  # near uniform at first


class Base(nn.Module):
    """A network of a user's that keeps to the contract, to derive ones from that do not."""

    def __init__(self, obs_shape: tuple[int, ...], width: int = 4) -> None:
        super().__init__()
        self.layer, self.out_features = nn.Linear(obs_shape[0], width), width

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class BatchNorm(Base):
    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__(obs_shape)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class Dropout(Base):
    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__(obs_shape)
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(super().forward(x))


class OwnNoise(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + torch.randn(y.shape)


class SeesItsBatch(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y - y.mean(0)


class HiddenState(Base):
    """Numbers of its own that are in no state_dict."""

    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__(obs_shape)
        self.shift = torch.randn(4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.shift


class OtherGenerator(Base):
    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__(obs_shape)
        self.register_buffer("shift", torch.from_numpy(np.random.default_rng().normal(size=4)).float())


class WritesToItsInput(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.relu_())


class NaN(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).log()


class Squeezes(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


class Lazy(Base):
    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__(obs_shape)
        self.layer = nn.LazyLinear(4)


class WrongSize(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, 1:]


class NoSize(nn.Linear):
    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__(obs_shape[0], 4)
        self.out_features = "4"  # type: ignore[assignment]


class Fails(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, 1:])


HERE = __name__


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("BatchNorm", "changes its buffers norm.running_mean, norm.running_var, norm.num_batches_tracked"),
        ("Dropout", "draws random numbers in drop"),
        ("OwnNoise", "draws random numbers in its forward"),
        ("SeesItsBatch", "depend on the others of its batch"),
        ("WrongSize", r"forward must return \[B, out_features\] = \[3, 4\]; got \[3, 3\]"),
        ("HiddenState", "keeps numbers outside its parameters and buffers; use register_buffer"),
        ("OtherGenerator", "initial weights do not follow from torch's random seed"),
        ("WritesToItsInput", "forward writes to its input"),
        ("NaN", "forward returns NaN or infinite features"),
        ("Squeezes", "depend on the others of its batch"),
        ("Lazy", "has lazy layers"),
        ("NoSize", "needs an attribute out_features, a positive integer; got '4'"),
        ("Fails", r"forward fails for observations \[3, 5\]: RuntimeError"),
    ],
)
def test_a_network_that_breaks_the_contract_is_refused_by_name(name: str, message: str) -> None:
    name = f"{HERE}:{name}"
    with pytest.raises(NetworkError, match=f"network.name={name}: .*{message}"):
        require_contract(NetworkSpec(name, {}), [ObsPart("", (5,))])
    require_contract(NetworkSpec(f"{HERE}:Base", {}), [ObsPart("", (5,))])


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("no_such_module:Net", {}, "cannot be imported: No module named 'no_such_module'"),
        (f"{HERE}:NoSuch", {}, "cannot be imported: .*NoSuch"),
        (f"{HERE}:seeded", {}, "not a class of torch.nn.Module"),
        (f"{HERE}:Base", {"width": "wide"}, r"cannot be made for observations of shape \[5\] with network.kwargs="),
        (f"{HERE}:Base", {"widht": 3}, "unexpected keyword argument 'widht'"),
    ],
)
def test_a_network_that_cannot_be_made_is_an_error_that_says_why(
    name: str, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        require_contract(NetworkSpec(name, kwargs), [ObsPart("", (5,))])
