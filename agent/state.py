"""Training state as named live tensors: copied out for a checkpoint, written back in place."""

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

State = dict[str, Tensor | Generator]  # live: what changes during training, under a name of its own


def named(prefix: str, state: Mapping[str, Tensor | Generator]) -> State:
    """The same under `prefix/…`."""
    return {f"{prefix}/{name}": value for name, value in state.items()}


def capture(state: Mapping[str, Tensor | Generator]) -> dict[str, Tensor]:
    """Copies on the CPU, that nothing writes to; of a generator where it stands."""
    return {
        name: value_of(value).detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
    }


def restore(state: Mapping[str, Tensor | Generator], saved: Mapping[str, Tensor]) -> None:
    """Writes copies back in place."""
    with torch.no_grad():
        for name, value in state.items():
            if isinstance(value, Generator):
                value.set_state(saved[name])
            else:
                value.copy_(saved[name])


def value_of(value: Tensor | Generator) -> Tensor:
    return value.get_state() if isinstance(value, Generator) else value
