"""Ways to run the functions of an iteration: as they are, compiled to C++ on a CPU, or as CUDA graphs on a GPU.

Each is called as run(function, *args). The functions work on tensors that stay in place.
"""

import contextlib
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable
from unittest.mock import patch

import torch
from torch import Tensor

from agent.config_fields import ConfigError
from agent.networks.native import prepare_for_compiler

INDUCTOR = {  # settings of the compiler
    "cpp_wrapper": True,
    "cpp.threads": 1,
    "realize_opcount_threshold": 15,
    "size_asserts": False,  # of tensors that stay in place
    "cpp.vec_isa_ok": True,  # vector instructions are not tried out first, which takes five seconds
}
COMPILATION_PAYS_FROM = 8_000  # updates: compiling takes as long as 8,000 of them save, from the cache 2,500
EAGER_CALLS = 3  # before a graph is captured: libraries set themselves up in the first calls

Function = Callable[..., Any]
logger = logging.getLogger(__name__)


@runtime_checkable
class Runner(Protocol):
    def __call__(self, function: Function, *args: Any) -> Any:
        """Does what function(*args) does, and returns what it returns."""


def run_plain(function: Function, *args: Any) -> Any:
    return function(*args)


def pays_to_compile(num_updates: int) -> bool:
    """Whether a run of so many updates on the CPU of this machine is shorter compiled."""
    return shutil.which(os.environ.get("CXX") or "g++") is not None and num_updates >= COMPILATION_PAYS_FROM


class Compiled:
    """Runs each function as a C++ program for the shapes of its first call.

    Nothing about later calls is checked, as checking costs as much as a small update: they must agree with the first
    in all but the values of tensors, which stay in place. With `guards` it is checked, and a call that does not agree
    is an error.

    Args:
        check_stop: raises where the run is asked to stop. A signal to all processes of a run ends the compiler's too,
            which is no failure of theirs.
        must: a compiler that fails is an error; else the functions run as they are from then on, with a warning.
    """

    def __init__(
        self, check_stop: Callable[[], None] = lambda: None, *, must: bool = False, guards: bool = False
    ) -> None:
        self.check_stop, self.must, self.guards, self.has_failed = check_stop, must, guards, False
        self.programs: dict[Hashable, Function] = {}

    def __call__(self, function: Function, *args: Any) -> Any:
        program = function if self.has_failed else self.programs.get(function)
        if program is not None:
            return program(*args)
        program = compiled(function, guards=self.guards)
        try:
            result = program(*args)
        except Exception as error:  # whatever a compiler can fail with; nothing was run
            self.check_stop()
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if self.must:
                raise ConfigError(f"compile: got true, but that fails here: {reason}") from error
            logger.warning("the run continues uncompiled, and slower (compile=false skips the attempt): %s", reason)
            self.has_failed = True
            return function(*args)
        self.programs[function] = program
        return result


def compiled(function: Function, *, guards: bool = False) -> Function:
    """One function as a C++ program.  torch.compiler.reset() frees what it holds."""
    from torch._inductor.compile_fx import compile_fx  # seconds to import, needed by few

    prepare_for_compiler()

    def backend(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Any:
        # An object of its own for each function: what was compiled for one is never found by another.
        return compile_fx(graph, inputs, config_patches=INDUCTOR)

    options: dict[str, Any] = {} if guards else {"guard_filter_fn": lambda found: [False] * len(found)}
    program = torch.compile(function, backend=backend, fullgraph=True, dynamic=False, options=options)
    return failing_on_recompilation(program) if guards else Direct(program)


class Direct:
    """A compiled function: from the second call on its C++ program alone, on the tensors of the first call.

    PyTorch's wrapper looks these tensors up again in every call, in half the time of a small update. It stays where a
    function returns a tensor or assigns one to an attribute.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        self.program: Callable[[list[Tensor]], Sequence[Tensor]] | None = None
        self.inputs: list[Tensor] = []

    def __call__(self, *args: Any) -> Any:
        if self.program is None:
            return self.first_call(*args)
        self.program(self.inputs.copy())  # it empties the list
        return None

    def first_call(self, *args: Any) -> Any:
        from torch._inductor.output_code import CompiledFxGraph

        calls: list[tuple[Any, list[Tensor], Sequence[Tensor]]] = []

        def recorded(graph: CompiledFxGraph, inputs: Sequence[Any]) -> Any:
            tensors, outputs = list(inputs), call(graph, inputs)
            calls.append((graph.current_callable, tensors, outputs))
            return outputs

        call = CompiledFxGraph.__call__
        with patch.object(CompiledFxGraph, "__call__", recorded):
            result = self.function(*args)
        if len(calls) == 1 and not calls[0][2]:
            self.program, self.inputs, _ = calls[0]
        return result


def failing_on_recompilation(program: Function) -> Function:
    def run(*args: Any) -> Any:
        with torch._dynamo.config.patch(error_on_recompile=True):
            return program(*args)

    return run


class CudaGraphs:
    """Runs functions as CUDA graphs, one for each combination of arguments.

    A graph repeats the kernels of the call that it was captured from without Python between them.
    """

    def __init__(self) -> None:
        self.num_calls: Counter[Hashable] = Counter()
        self.graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Any]] = {}  # and what the captured call returned
        self.stream = torch.cuda.Stream()

    def __call__(self, function: Function, *args: Hashable) -> Any:
        key = (function, *args)
        self.num_calls[key] += 1
        if self.num_calls[key] <= EAGER_CALLS:
            with self.on_own_stream():
                return function(*args)
        if key not in self.graphs:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self.stream):  # records, does not run
                result = function(*args)
            self.graphs[key] = graph, result
        graph, result = self.graphs[key]
        graph.replay()  # writes the tensors of the result again
        return result

    @contextlib.contextmanager
    def on_own_stream(self) -> Iterator[None]:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield
        torch.cuda.current_stream().wait_stream(self.stream)
