"""Faster ways to run the same iteration: compiled to C++ on a CPU, replayed as CUDA graphs on a GPU."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Generator

COMPILATION_PAYS_FROM = 50_000  # updates: compiling takes 15 to 40 s and saves about a millisecond of each
EAGER_CALLS = 3  # before a graph is captured: libraries set themselves up in the first calls


def pays_to_compile(num_updates: int) -> bool:
    """Whether a run of so many updates on the CPU of this machine is shorter compiled."""
    return shutil.which(os.environ.get("CXX") or "g++") is not None and num_updates >= COMPILATION_PAYS_FROM


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """A function on tensors that stay in place, as one C++ program for the shapes of its first call.

    Nothing about later calls is checked, as checking costs as much as a small update: they must agree with the first
    in all but the values of tensors.
    """
    from torch._inductor.compile_fx import compile_fx  # seconds to import, needed by few

    def backend(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Any:
        # An object of its own for each function: what was compiled for one is never found by another.
        return compile_fx(graph, inputs, config_patches={"cpp_wrapper": True, "cpp.threads": 1})

    options: dict[str, Any] = {"guard_filter_fn": lambda guards: [False] * len(guards)}
    return torch.compile(function, backend=backend, fullgraph=True, dynamic=False, options=options)


class CudaGraphs:
    """Runs functions on tensors that stay in place as CUDA graphs, one for each combination of arguments.

    A graph repeats the kernels of the call that it was captured from without Python between them. The numbers are
    those of a plain call: random draws go on from where `generators` stand.
    """

    def __init__(self, generators: Sequence[Generator]) -> None:
        self.generators = generators
        self.num_calls: Counter[Hashable] = Counter()
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self.stream = torch.cuda.Stream()

    def __call__(self, function: Callable[..., None], *args: Hashable) -> None:
        key = (function, *args)
        self.num_calls[key] += 1
        if self.num_calls[key] <= EAGER_CALLS:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                function(*args)
            torch.cuda.current_stream().wait_stream(self.stream)
            return
        if key not in self.graphs:
            graph = torch.cuda.CUDAGraph()
            for generator in self.generators:
                graph.register_generator_state(generator)
            with torch.cuda.graph(graph, stream=self.stream):  # records, does not run
                function(*args)
            # Up to PyTorch 2.12 beginning a capture zeroes the generators' offset, by a kernel on its stream that the
            # graph does not hold; a replay sets it on this one, which must come second.
            torch.cuda.current_stream().wait_stream(self.stream)
            self.graphs[key] = graph
        self.graphs[key].replay()
