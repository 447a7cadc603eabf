"""Random numbers of a population: one stream a row, which depends on that row's seed alone.

Axes: R row: a population member, or an environment.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

INCREMENT, FACTOR1, FACTOR2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # as signed 64-bit integers


class RandomStreams:
    """Counter-based random numbers: the n-th number of row r is a function of its key and of n.

        x_n = mix(key_r + n * increment)        SplitMix64: Steele, Lea & Flood 2014

    So a row draws the same numbers in any population, on any device, compiled, captured in a CUDA graph or neither.
    Counter-based as Philox is (Salmon et al. 2011), in a tenth of the operations.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        """`seeds`: one a row, from 0 to 2^63 - 1."""
        self.key: Int64[Tensor, " R"] = torch.zeros(len(seeds), dtype=torch.int64, device=device)
        self.counter: Int64[Tensor, ""] = torch.zeros((), dtype=torch.int64, device=device)
        self.seed_(seeds)

    def seed_(self, seeds: Sequence[int]) -> None:
        """Starts every row over, with these seeds."""
        self.key.copy_(torch.from_numpy(mix(np.array(seeds, dtype=np.int64) + INCREMENT)))  # similar seeds far apart
        self.counter.zero_()

    def uniform(self, *shape: int) -> Float64[Tensor, "R ..."]:
        """The next numbers of every row, uniform on [0, 1), with 53 random bits each."""
        size = math.prod(shape)
        if self.key.device.type == "cpu" and not torch.compiler.is_compiling():  # a call of NumPy costs a third
            index = np.arange(1, size + 1) + self.counter.numpy()
            uniform = torch.from_numpy(to_uniform(mix(self.key.numpy()[:, None] + index * INCREMENT)))
        else:
            index = torch.arange(1, size + 1, device=self.key.device) + self.counter
            uniform = to_uniform(mix(self.key.unsqueeze(-1) + index * INCREMENT))
        self.counter.add_(size)
        return uniform.view(len(self.key), *shape)

    def integers(self, high: int, *shape: int) -> Int64[Tensor, "R ..."]:
        """The next numbers of every row, uniform on 0 … high - 1 but for a bias of high / 2^53."""
        return (self.uniform(*shape) * high).long()

    def state(self) -> dict[str, Tensor]:
        """All that changes, live: written back in place, the streams continue from there."""
        return {"key": self.key, "counter": self.counter}


Words = TypeVar("Words", Tensor, np.ndarray)  # of 64 bits, as signed integers


def mix(x: Words) -> Words:
    """SplitMix64's output function: variant 13 of Stafford's mixers of 64 bits."""
    x = (x ^ shifted(x, 30)) * FACTOR1
    x = (x ^ shifted(x, 27)) * FACTOR2
    return x ^ shifted(x, 31)


def to_uniform(x: Words) -> Words:
    """The upper 53 bits as a float64 on [0, 1)."""
    return shifted(x, 11) * 2.0**-53 if isinstance(x, np.ndarray) else shifted(x, 11).double() * 2.0**-53


def shifted(x: Words, bits: int) -> Words:
    """Shifted to the right as an unsigned integer: a signed one's own shift repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
