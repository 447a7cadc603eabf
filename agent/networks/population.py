"""A population of networks: R copies of any module, their parameters in one [R, F] buffer.

One buffer makes the optimizer, gradient clipping and averaging a handful of operations whatever the number of layers
and members. Row r holds all parameters of copy r: member p of the actor is row p, critic c of member p is row c P + p.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_map_only

from agent.networks.modules import seeded
from agent.networks.native import MLPShape, NativeMLP, instruction_set

Parameters = Mapping[str, Tensor]  # by name, each with the rows along its first axis
Forward = Callable[[Parameters, Any], Tensor]
Aux = TypeVar("Aux")


class Population:
    """R modules side by side.  [R, B, *in] -> [R, B, *out].

    `parameters` are views of `flat`, in the shapes that the batched layers want.

    Args:
        make: builds one module; it draws its initial weights from torch's global generator.
        seeds: of the initial weights, one a row; a seed gives the same weights in any population.
        native: whether MLPs are operators in C++ (agent.networks.native). None: where that is possible.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
        native: bool | None = None,
    ) -> None:
        modules = [seeded(make, seed) for seed in seeds]
        parts = modules[0].keys() if isinstance(modules[0], nn.ModuleDict) else [""]
        uses_native = torch.device(device).type == "cpu" and native is not False and instruction_set() is not None
        batches = {part: batched(modules[0].get_submodule(part), part, uses_native) for part in parts}
        self._forwards = {part: batch.forward for part, batch in batches.items()}
        self._layouts = {name: layout for batch in batches.values() for name, layout in batch.layouts.items()}
        self._packed = {name: key for batch in batches.values() for name, key in batch.packed.items()}
        trained, fixed = zip(*map(self._trained_and_fixed, modules), strict=True)
        self.shapes = {name: tensor.shape for name, tensor in trained[0].items()}
        rows = [torch.cat([tensor.flatten() for tensor in row.values()]) for row in trained]
        self.flat: Float[Tensor, "R F"] = torch.stack(rows).to(device)
        self.parameters = self.pieces(self.flat)
        self.fixed = {name: torch.stack([row[name] for row in fixed]).to(device) for name in fixed[0]}
        modules[0].to("meta")  # from here on its structure only
        self.leaves = {name: view.detach().requires_grad_() for name, view in self.parameters.items()}

    def __call__(self, x: Tensor | tuple[Tensor, ...], parameters: Parameters | None = None, part: str = "") -> Tensor:
        """Applies each row's module to that row of `x`, with other parameters where given; of a ModuleDict one part.

        `x`: a tuple for a module of several arguments.
        """
        return self._forwards[part]({**self.fixed, **(parameters or self.parameters)}, x)

    def pieces(self, flat: Float[Tensor, "R F"]) -> dict[str, Tensor]:
        """A buffer laid out like `flat` as the layers take it: parameter by parameter, or all of an MLP in one."""
        views, sizes = self.views(flat), dict.fromkeys((self._packed.get(name, name) for name in self.shapes), 0)
        for name, shape in self.shapes.items():
            sizes[self._packed.get(name, name)] += shape.numel()
        parts = zip(sizes, flat.split(list(sizes.values()), 1), strict=True)
        return {key: views.get(key, part) for key, part in parts}

    def views(self, flat: Float[Tensor, "R F"]) -> dict[str, Tensor]:
        """Each parameter's part of a buffer laid out like `flat`."""
        parts = flat.split([shape.numel() for shape in self.shapes.values()], 1)
        return {name: part.view(-1, *shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def gradient(
        self, loss: Callable[[Parameters], tuple[Float[Tensor, " P"], Aux]]
    ) -> tuple[Float[Tensor, "R F"], Float[Tensor, " P"], Aux]:
        """d sum_P loss / d flat, the loss, and what else the function returns, as constants."""

        def with_value(parameters: Parameters) -> tuple[Tensor, tuple[Tensor, Aux]]:
            value, aux = loss(parameters)
            return value, (value, aux)

        (gradient,), (value, aux) = gradients(with_value, self)
        return gradient, value, aux

    def lerp_(self, other: "Population", rate: float) -> None:
        """Polyak averaging: parameters += rate * (other's - parameters)."""
        self.flat.lerp_(other.flat, rate)

    def tensors(self) -> dict[str, Tensor]:
        """All that the networks consist of, with names and shapes as in one module behind the axis of rows; live."""
        named = {**self.views(self.flat), **self.fixed}
        return {name: self._layouts[name].to_module(tensor) for name, tensor in named.items()}

    def _trained_and_fixed(self, module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """A module's trainable parameters; and its buffers and the parameters that need no gradient."""
        parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
        tensors = {
            name: self._layouts[name].from_module(tensor.detach()[None])[0]
            for name, tensor in {**parameters, **buffers}.items()
        }
        trained = {name: tensors[name] for name, parameter in parameters.items() if parameter.requires_grad}
        return trained, {name: tensor for name, tensor in tensors.items() if name not in trained}


def gradients(
    loss: Callable[..., tuple[Float[Tensor, " P"], Aux]], *of: Population | Tensor
) -> tuple[list[Tensor], Aux]:
    """The gradient of the members' summed loss by each of `of`, and what else the function returns, detached.

    torch.func inside a compiled program, where it is free; torch.autograd elsewhere, where it is the faster one.

    Args:
        loss: takes the parameters of each population and each tensor. It returns a loss of each member, and more.
        of: what to differentiate by. The gradient of a population has the layout of its `flat`.
    """
    if torch.compiler.is_compiling():

        def total(*given: Any) -> tuple[Tensor, Aux]:
            value, aux = loss(*given)
            return value.sum(), aux

        given = [x.parameters if isinstance(x, Population) else x for x in of]
        found, aux = grad(total, argnums=tuple(range(len(of))), has_aux=True)(*given)
        parts = iter([part for x in found for part in (x.values() if isinstance(x, dict) else [x])])
    else:
        leaves = [x.leaves if isinstance(x, Population) else x.detach().requires_grad_() for x in of]
        wanted = [part for x in leaves for part in (x.values() if isinstance(x, dict) else [x])]
        with torch.enable_grad():
            value, aux = loss(*leaves)
            parts = iter(torch.autograd.grad(value.sum(), wanted, materialize_grads=True))
        aux = tree_map_only(Tensor, Tensor.detach, aux)
    flat = [joined([next(parts) for _ in x.parameters]) if isinstance(x, Population) else next(parts) for x in of]
    return flat, aux


def joined(pieces: Sequence[Tensor]) -> Float[Tensor, "R F"]:
    return pieces[0] if len(pieces) == 1 and pieces[0].ndim == 2 else torch.cat([x.flatten(1) for x in pieces], 1)


def all_finite(num_members: int, *populations: Population) -> Bool[Tensor, " P"]:
    """Which members' parameters are finite in all of these; row r is of member r mod P."""
    rows = torch.cat([population.flat.isfinite().all(1) for population in populations])
    return rows.view(-1, num_members).all(0)


class Layout(NamedTuple):
    """How a batched layer wants a tensor [R, *shape] of its modules, and back: views, no copies."""

    from_module: Callable[[Tensor], Tensor] = lambda x: x
    to_module: Callable[[Tensor], Tensor] = lambda x: x


TRANSPOSED = Layout(lambda x: x.mT, lambda x: x.mT)  # [R, out, in] -> [R, in, out]
FOR_EACH_BATCH_ROW = Layout(lambda x: x.unsqueeze(1), lambda x: x.squeeze(1))  # [R, out] -> [R, 1, out]


class Batched(NamedTuple):
    """How to apply R copies of a module, and the layouts of its tensors."""

    forward: Forward
    layouts: dict[str, Layout]
    packed: Mapping[str, str] = {}  # by name, the key under which `forward` takes several parameters in one tensor


def batched(module: nn.Module, prefix: str = "", native: bool = False) -> Batched:
    """R copies of a module at once: MLPs and layers that we know as such, any other module by vmap."""
    own = f"{prefix}." if prefix else ""
    if native and all(p.requires_grad and p.dtype == torch.float32 for p in module.parameters()):
        shape = MLPShape.of(list(plain_layers(module)))
        if shape is not None:
            return native_mlp(module, own, shape)
    is_known = not (module._forward_hooks or module._forward_pre_hooks or shares_parameters(module))
    if type(module).forward is nn.Sequential.forward and is_known:
        layers = [batched(layer, own + name, native) for name, layer in module._modules.items() if layer is not None]

        def sequence(parameters: Parameters, x: Tensor) -> Tensor:
            for layer in layers:
                x = layer.forward(parameters, x)
            return x

        return Batched(
            sequence,
            {name: layout for layer in layers for name, layout in layer.layouts.items()},
            {name: key for layer in layers for name, key in layer.packed.items()},
        )
    if type(module) in KNOWN and is_known:
        return KNOWN[type(module)](module, own)
    names = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]

    def mapped(parameters: Parameters, x: Tensor | tuple[Tensor, ...]) -> Tensor:
        def of_one_row(row: dict[str, Tensor], x: Tensor | tuple[Tensor, ...]) -> Tensor:
            return functional_call(module, row, x)

        return vmap(of_one_row)({name: parameters[own + name] for name in names}, x)

    return Batched(mapped, {own + name: Layout() for name in names})


def plain_layers(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of sequences within sequences; one with hooks, or with a parameter twice, is no plain layer."""
    if module._forward_hooks or module._forward_pre_hooks or shares_parameters(module):
        yield module if type(module) not in KNOWN else nn.Module()
    elif type(module).forward is nn.Sequential.forward:
        for layer in module.children():
            yield from plain_layers(layer)
    else:
        yield module


def native_mlp(module: nn.Module, own: str, shape: MLPShape) -> Batched:
    mlp, key = NativeMLP(shape), f"{own}*"
    layouts = {own + name: TRANSPOSED if x.ndim == 2 else FOR_EACH_BATCH_ROW for name, x in module.named_parameters()}
    return Batched(lambda parameters, x: mlp(parameters[key], x), layouts, dict.fromkeys(layouts, key))


def shares_parameters(module: nn.Module) -> bool:
    """Whether a parameter stands in it under two names."""
    names = list(module.named_parameters(remove_duplicate=False))
    return len(names) != len({id(parameter) for _, parameter in names})


def linear(module: Any, own: str) -> Batched:
    weight, bias = f"{own}weight", f"{own}bias"

    def forward(parameters: Parameters, x: Tensor) -> Tensor:
        rows = x if x.ndim == 3 else x.flatten(1, -2)
        if module.bias is None:
            rows = torch.bmm(rows, parameters[weight])
        else:
            rows = torch.baddbmm(parameters[bias], rows, parameters[weight])
        return rows if x.ndim == 3 else rows.unflatten(1, x.shape[1:-1])

    return Batched(forward, {weight: TRANSPOSED} | ({} if module.bias is None else {bias: FOR_EACH_BATCH_ROW}))


def layer_norm(module: Any, own: str) -> Batched:
    present = [name for name in ("weight", "bias") if getattr(module, name) is not None]

    def forward(parameters: Parameters, x: Tensor) -> Tensor:
        more = x.ndim - 2 - len(module.normalized_shape)  # axes between the batch and those that are normalized
        tensors = {name: parameters[own + name] for name in present}
        if more:
            tensors = {name: tensor.unflatten(1, (1,) * (1 + more)) for name, tensor in tensors.items()}
        x = nn.functional.layer_norm(x, module.normalized_shape, eps=module.eps)
        match tensors:
            case {"weight": weight, "bias": bias}:
                return torch.addcmul(bias, x, weight)
            case {"weight": weight}:
                return x * weight
        return x

    return Batched(forward, {own + name: FOR_EACH_BATCH_ROW for name in present})


def elementwise(module: Any, own: str) -> Batched:
    return Batched(lambda parameters, x: module(x), {})


KNOWN: dict[type[nn.Module], Callable[[Any, str], Batched]] = {
    nn.Linear: linear,
    nn.LayerNorm: layer_norm,
    **dict.fromkeys((nn.Identity, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid), elementwise),
}
