"""A population of MLPs in C++: operators of PyTorch, which take the place of the batched layers on a CPU.

mlp.cpp is compiled once for each instruction set and version of PyTorch, in seconds, and kept. Where that fails, or is
not wanted, the batched layers do the same.
"""

import functools
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

SOURCE = Path(__file__).with_name("mlp.cpp")
FLAGS = {  # of a compiler, by the instruction set that PyTorch finds
    "AVX512": ("-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma"),
    "AVX2": ("-mavx2", "-mfma"),
}
NO_NORM = -1.0  # in place of LayerNorm's eps

LIBRARY = torch.library.Library("gumbel_native", "IMPL")
logger = logging.getLogger(__name__)


class MLPShape(NamedTuple):
    """[Linear, (LayerNorm,) ReLU]* Linear."""

    sizes: tuple[int, ...]  # D, hidden layers, N
    eps: float  # of every LayerNorm, or NO_NORM

    @classmethod
    def of(cls, layers: Sequence[nn.Module]) -> "MLPShape | None":
        """What these layers are, one after the other; None where they are anything else, subclasses included."""
        if any(type(layer) not in (nn.Linear, nn.LayerNorm, nn.ReLU) for layer in layers):
            return None
        match layers:
            case [nn.Linear() as last] if last.bias is not None:
                return cls((last.in_features, last.out_features), NO_NORM)
            case [nn.Linear() as first, nn.ReLU(), *rest] if first.bias is not None:
                eps = NO_NORM
            case [nn.Linear() as first, nn.LayerNorm() as norm, nn.ReLU(), *rest] if first.bias is not None:
                if norm.normalized_shape != (first.out_features,) or norm.weight is None or norm.bias is None:
                    return None
                eps = norm.eps
            case _:
                return None
        behind = cls.of(rest)
        if behind is None or (len(behind.sizes) > 2 and behind.eps != eps):
            return None
        return cls((first.in_features, *behind.sizes), eps)

    def num_kept(self, batch: int) -> int:
        """Numbers of a row that the backward pass needs of the forward pass."""
        hidden = self.sizes[1:-1]
        if self.eps == NO_NORM:
            return batch * sum(hidden)
        return batch * (2 * sum(hidden) + len(hidden))


class NativeMLP:
    """A population of such networks. Their parameters are one [R, F] tensor, in the order of a module's."""

    def __init__(self, shape: MLPShape) -> None:
        self.shape, self.sizes, self.num_threads = shape, torch.tensor(shape.sizes), torch.get_num_threads()

    def __call__(self, parameters: Float[Tensor, "R F"], x: Float[Tensor, "R *batch D"]) -> Float[Tensor, "R *batch N"]:
        rows = (x if x.ndim == 3 else x.flatten(1, -2)).contiguous()
        forward: Callable[..., tuple[Tensor, Tensor]] = torch.ops.gumbel_native.mlp_forward
        num_kept = 0
        if torch.is_grad_enabled() and (x.requires_grad or parameters.requires_grad or torch.compiler.is_compiling()):
            forward = _in_graph if torch.compiler.is_compiling() else _Differentiable.apply
            num_kept = self.shape.num_kept(rows.shape[1])
        out, _ = forward(rows, parameters, self.sizes, self.shape.eps, self.shape.sizes[-1], num_kept, self.num_threads)
        return out if x.ndim == 3 else out.unflatten(1, x.shape[1:-1])


@functools.cache
def instruction_set() -> str | None:
    """Of the operators, once they are loaded; None where they cannot be."""
    try:
        load(built())
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        level = logging.INFO if isinstance(error, FileNotFoundError) else logging.WARNING
        logger.log(
            level, "the operators in C++ cannot be built, PyTorch's take their place: %s", reason.splitlines()[0]
        )
        return None
    return torch.backends.cpu.get_cpu_capability()


@functools.cache
def load(library: Path) -> None:
    """Registers the operators. OSError where the library is none."""
    torch.ops.load_library(library)
    torch.library.register_fake("gumbel_native::mlp_forward", _fake_forward)
    torch.library.register_fake("gumbel_native::mlp_backward", _fake_backward)
    for name in ("mlp_forward", "mlp_backward"):  # the classes below differentiate
        LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")


def built() -> Path:
    """The library, built if there is none yet. OSError or CalledProcessError where that fails."""
    capability = torch.backends.cpu.get_cpu_capability()
    compiler = os.environ.get("CXX") or "g++"
    torch_folder = Path(torch.__file__).parent
    flags = [*FLAGS.get(capability, ()), "-O3", "-std=c++17", "-fPIC", "-shared"]
    flags += ["-fopenmp"] if sys.platform == "linux" else []
    links = [f"-I{torch_folder / 'include'}", f"-L{torch_folder / 'lib'}", "-ltorch_cpu"]
    made_of = [SOURCE.read_text(encoding="utf-8"), torch.__version__, str(torch_folder), compiler, *flags]
    name = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:16]
    library = cache_folder() / f"mlp-{name}.so"
    if not library.exists():
        if shutil.which(compiler) is None:
            raise FileNotFoundError(f"there is no C++ compiler {compiler}")
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            new = Path(folder) / library.name
            command = [compiler, *flags, str(SOURCE), *links, "-o", str(new)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            new.replace(library)  # another process may build the same at this time
    return library


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gumbel-actor-critic"


def _fake_forward(
    x: Tensor, parameters: Tensor, sizes: Tensor, eps: float, num_outputs: int, num_kept: int, num_threads: int
) -> tuple[Tensor, Tensor]:
    return x.new_empty((*x.shape[:2], num_outputs)), x.new_empty((x.shape[0], num_kept))


def _fake_backward(
    grad: Tensor, x: Tensor, parameters: Tensor, sizes: Tensor, kept: Tensor, eps: float, needs_x: bool,
    needs_parameters: bool, num_threads: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    by_x = x.new_empty((x.shape[0] if needs_x else 0, *x.shape[1:]))
    return by_x, x.new_empty((x.shape[0] if needs_parameters else 0, parameters.shape[1]))


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = torch.ops.gumbel_native.mlp_forward(*inputs)
        _keep(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        x, parameters, sizes, kept = ctx.saved_tensors
        needs_x, needs_parameters = ctx.needs_input_grad[:2]
        by_x, by_parameters = torch.ops.gumbel_native.mlp_backward(
            grad.contiguous(), x, parameters, sizes, kept, ctx.eps, needs_x, needs_parameters, ctx.num_threads
        )
        return by_x if needs_x else None, by_parameters if needs_parameters else None, *[None] * 5


class _Transformable(torch.autograd.Function):
    """The same in the form that torch.func differentiates, at twice the cost of a call."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return torch.ops.gumbel_native.mlp_forward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _keep(ctx, inputs, output)

    backward = _Differentiable.backward


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, parameters, sizes, ctx.eps, _, _, ctx.num_threads = inputs
    ctx.save_for_backward(x, parameters, sizes, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # of what is kept


def _in_graph(*inputs: Any) -> tuple[Tensor, Tensor]:
    return _Transformable.apply(*inputs)


@functools.cache
def prepare_for_compiler() -> None:
    """To be called before anything with these operators is compiled, and not sooner: the import takes a second.

    The compiler's front end does not look into torch.func and is told to take the function as it is.
    """
    torch.compiler.allow_in_graph(_in_graph)
