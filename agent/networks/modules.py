"""The network of one member: an ordinary torch.nn.Module that maps observations to features.

The contract, for the built-in one and for those of users (docs/extending.md):

    __init__(self, obs_shape: tuple[int, ...], **kwargs)      kwargs from network.kwargs
    out_features: int
    forward: [B, *obs_shape] -> [B, out_features]

Images are scaled to [0, 1] and keep their shape, [H, W, C] for example; the parts of a Dict or Tuple are one vector.

It knows nothing of the population and draws its initial weights from torch's global generator, as torch's layers do.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import nn
from torch.func import functional_call

from agent.config import Config
from agent.config_fields import ConfigError, imported
from agent.networks.encoders import CONVOLUTIONS, Encoder, fitting
from agent.networks.recurrent import CELLS
from envs.spaces import ObsPart

BUILT_IN = ("mlp", *CONVOLUTIONS)
DROPOUTS = nn.modules.dropout._DropoutNd


class MemorySpec(NamedTuple):
    """Which cell of agent.networks.recurrent, and the numbers of its state."""

    cell: str
    size: int


class NetworkSpec(NamedTuple):
    """Which network: a built-in one or "module:Class", and what its constructor takes beside the observations."""

    name: str
    kwargs: dict[str, Any]
    memory: MemorySpec | None = None


class Stages(NamedTuple):
    """A network in two: an encoder that actor and critics share, and what each has on its features."""

    make_encoder: Callable[[], nn.Module] | None  # a ModuleDict of features and perhaps memory; None: there is none
    head: NetworkSpec
    parts: tuple[ObsPart, ...]  # of what the head takes


class NetworkError(ConfigError):
    """A network that cannot be used: the text says which and why."""


class MLP(nn.Sequential):
    """Hidden layers of linear, optional layer normalization (Ba et al. 2016) and ReLU."""

    def __init__(self, size: int, hidden_sizes: Sequence[int] = (128, 128), layer_norm: bool = False) -> None:
        sizes = [size, *hidden_sizes]
        layers: list[nn.Module] = []
        for num_in, num_out in zip(sizes, sizes[1:], strict=False):
            layers += [
                nn.Linear(num_in, num_out),
                *([nn.LayerNorm(num_out)] if layer_norm else []),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)
        self.out_features = sizes[-1]


def network_spec(config: Config, parts: Sequence[ObsPart], layer_norm: bool) -> NetworkSpec:
    """The network of a config for observations of these parts; `layer_norm` is the built-in ones'."""
    name, cell = config.network.name, config.network.memory
    memory = None if cell == "none" else MemorySpec(cell, config.network.memory_size)
    if name != "auto" and name not in BUILT_IN:
        return NetworkSpec(name, config.network.kwargs, memory)
    kwargs = {"hidden_sizes": config.hidden_sizes, "layer_norm": layer_norm}
    try:
        return NetworkSpec(fitting(parts) if name == "auto" else name, kwargs, memory)
    except ValueError as error:
        raise NetworkError(f"network.name=auto: {error}") from None


def network_class(name: str) -> type[nn.Module]:
    """The class of the user's own that a setting names.  Imports its module; ConfigError where it does not exist."""
    found = imported("network.name", name)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise NetworkError(f"network.name: got '{name}', which is not a class of torch.nn.Module")
    return found


def stages(spec: NetworkSpec, parts: Sequence[ObsPart]) -> Stages:
    """What of a network is shared: convolutions, and all up to a memory. Without either there is no encoder."""

    def make_features() -> nn.Module:
        if spec.name not in BUILT_IN:
            return build_network(spec, parts)
        size, kwargs = sum(part.size for part in parts), spec.kwargs
        return build_encoder(spec.name, parts) or MLP(size, kwargs["hidden_sizes"][:1], kwargs["layer_norm"])

    def make() -> nn.Module:
        modules = {"features": make_features()}
        if spec.memory is not None:
            modules["memory"] = CELLS[spec.memory.cell](num_features(modules["features"]), spec.memory.size)
        return nn.ModuleDict(modules)

    if spec.memory is None and not (spec.name in CONVOLUTIONS and any(part.is_image for part in parts)):
        return Stages(None, spec, tuple(parts))
    size = num_features(seeded(make_features, 0)) + (0 if spec.memory is None else spec.memory.size)
    kwargs = spec.kwargs if spec.name in BUILT_IN else {"hidden_sizes": []}
    return Stages(make, NetworkSpec("mlp", kwargs), (ObsPart("features", (size,)),))


def build_network(spec: NetworkSpec, parts: Sequence[ObsPart]) -> nn.Module:
    """One member's network behind its encoder, newly initialized: [B, D] -> [B, out_features]."""
    if spec.name in BUILT_IN:
        return MLP(sum(part.size for part in parts), **spec.kwargs)
    network, shape = network_class(spec.name), obs_shape(parts)
    try:
        made = network(shape, **spec.kwargs)
    except Exception as error:  # whatever a user's constructor raises
        raise NetworkError(
            f"network.name={spec.name}: cannot be made for observations of shape {list(shape)} with "
            f"network.kwargs={spec.kwargs}: {type(error).__name__}: {error}"
        ) from error
    return made if len(shape) == 1 else in_sequence(shape=nn.Unflatten(1, shape), network=made)


def build_encoder(name: str, parts: Sequence[ObsPart]) -> nn.Module | None:
    """What turns images into features, before the layers of an MLP; None: there are none."""
    if name == "mlp" or not any(part.is_image for part in parts):
        return None
    try:
        return Encoder(parts, name)
    except ValueError as error:
        raise NetworkError(f"network.name={name}: {error}") from None


def obs_shape(parts: Sequence[ObsPart]) -> tuple[int, ...]:
    """As a network of the user's own gets it."""
    return parts[0].shape if len(parts) == 1 else (sum(part.size for part in parts),)


def in_sequence(**modules: nn.Module) -> nn.Module:
    """One after the other; the features are those of the last."""
    sequence = nn.Sequential(OrderedDict(modules))
    features: Any = getattr(sequence[-1], "out_features", None)  # require_contract looks at it
    sequence.out_features = features
    return sequence


def num_features(network: nn.Module) -> int:
    size = network.out_features
    assert isinstance(size, int), "require_contract has seen to it"
    return size


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A module whose initial weights follow from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return make()


def require_contract(spec: NetworkSpec, parts: Sequence[ObsPart]) -> None:
    """NetworkError where a network does not keep to the contract, by trying it on a few observations.

    Refused by name: what changes its buffers (batch normalization), draws random numbers (dropout), computes a row's
    features from other rows, writes to its input, or keeps numbers outside its parameters and buffers. In a population,
    while acting or in a target network each of them would be silently wrong.
    """

    def refuse(what: str) -> NoReturn:
        raise NetworkError(f"network.name={spec.name}: {what}")

    network, same, other = (seeded(lambda: build_network(spec, parts), seed) for seed in (0, 0, 1))
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in network.parameters()):
        refuse("has lazy layers; give them their sizes")
    size = getattr(network, "out_features", None)
    if not isinstance(size, int) or size < 1:
        refuse(f"needs an attribute out_features, a positive integer; got {size!r}")
    tensors = tensors_of(network)
    if any(not torch.equal(tensor, tensors_of(same)[name]) for name, tensor in tensors.items()):
        refuse("its initial weights do not follow from torch's random seed; draw them with torch")
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    shape, size_in = (3, *obs_shape(parts)), sum(part.size for part in parts)
    obs = torch.randn(3, size_in, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            given = obs.clone()
            first, second = network(given), network(obs.clone())
            fewer = None
            if all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers()):
                fewer = network(obs[:1].clone())
            moved = functional_call(network, tensors_of(other), (obs.clone(),))
            theirs = other(obs.clone())
        except Exception as error:  # whatever a user's forward raises
            raise NetworkError(
                f"network.name={spec.name}: forward fails for observations {list(shape)}: "
                f"{type(error).__name__}: {error}"
            ) from error
    if not isinstance(first, torch.Tensor) or tuple(first.shape) != (3, size):
        got = list(first.shape) if isinstance(first, torch.Tensor) else type(first).__name__
        refuse(f"forward must return [B, out_features] = {[3, size]}; got {got}")
    if not first.isfinite().all():
        refuse("forward returns NaN or infinite features")
    if not torch.equal(given, obs):
        refuse("forward writes to its input")
    changed = [name for name, buffer in network.named_buffers() if not torch.equal(buffer, before[name])]
    if changed or fewer is None:
        refuse(
            f"forward changes its buffers {', '.join(changed)} (batch normalization does); LayerNorm or GroupNorm need "
            "none"
        )
    if not torch.equal(first, second):
        layers = [name for name, layer in network.named_modules() if isinstance(layer, DROPOUTS)]
        where = f"in {', '.join(layers)}" if layers else "in its forward"
        refuse(f"draws random numbers {where} (dropout does); leave it out")
    if fewer.shape != (1, size) or not torch.allclose(first[:1], fewer, rtol=1e-3, atol=1e-5):
        refuse("the features of an observation depend on the others of its batch")
    if not torch.allclose(moved, theirs, rtol=1e-3, atol=1e-5):
        refuse("keeps numbers outside its parameters and buffers; use register_buffer")


def tensors_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
