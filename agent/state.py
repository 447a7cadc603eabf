"""Training state as named live tensors: copied out for a checkpoint, written back in place.

A function that changes such tensors ends in an underscore, as torch's do. The verbs of reinforcement learning do not:
act, step, store, update, reset; nor do the draws of a random stream, as in NumPy.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Shaped
from torch import Tensor

# Live: what changes during training, under a name of its own. Members lie along the first axis, or rows of a member
# follow one another along it; what all members share has no axis.
State = dict[str, Tensor]


def named(prefix: str, state: Mapping[str, Tensor]) -> State:
    """The same under `prefix/…`."""
    return {f"{prefix}/{name}": tensor for name, tensor in state.items()}


def members_first(x: Shaped[Tensor, " R *rest"], num_members: int) -> Shaped[Tensor, " P C *rest"]:
    """A view of rows of which r, r + P, r + 2P ... belong to the same member."""
    return x.unflatten(0, (-1, num_members)).transpose(0, 1)


def capture(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, that nothing writes to."""
    contiguous = torch.contiguous_format
    return {name: x.detach().to("cpu", copy=True, memory_format=contiguous) for name, x in state.items()}


def restore_(state: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Writes copies back in place."""
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(saved[name])
