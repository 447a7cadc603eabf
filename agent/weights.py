"""Files of weights: safetensors with a checksum of their own, written whole or not at all."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from envs.errors import UserError

CRITICS_FILE = "critics.safetensors"  # of a run folder: the critics at the end
CHECKSUM = "sha256"  # of names, shapes and numbers, in the file's metadata: one file, so that no kill can part them


def save_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes the file, or leaves what is there."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    staging = path.with_name(f".{path.name}.tmp")
    save_file(on_cpu, staging, metadata={CHECKSUM: checksum(on_cpu)})
    os.replace(staging, path)


def save_critics(tensors: Mapping[str, Tensor], run: Path) -> None:
    """Writes the critics' weights into a run folder: [C P, in, out] by layer."""
    save_weights(tensors, run / CRITICS_FILE)


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors as they were written.  UserError where the file is not what was written."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no dict)
            written = (file.metadata() or {}).get(CHECKSUM)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not readable as safetensors: {error}") from None
    if written != checksum(tensors):
        raise UserError(f"{path}: not what was written: its checksum differs")
    return tensors


def checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
