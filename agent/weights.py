"""Files of weights: safetensors with a checksum of their own, written whole or not at all."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from agent.files import replaced
from envs.errors import UserError

CRITICS_FILE = "critics.safetensors"  # in a run folder: what `evaluate.py --gradients` needs beside the policies
CHECKSUM = "sha256"  # of names, shapes and numbers, in the file's metadata: one file, so that no kill can part them


def save_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes the file, or leaves what is there."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replaced(path) as staging:
        save_file(on_cpu, staging, metadata={CHECKSUM: checksum(on_cpu)})


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


def in_new_format(stored: Mapping[str, Tensor], old: str = "", new: str = "") -> dict[str, Tensor]:
    """Weights of version 0.1.0 under the names and in the shapes of today; others as they are.

    Then every network was the built-in one, its layers counted: weight0 [R, in, out], bias0 [R, 1, out], and of a layer
    normalization scale0 and shift0 [R, 1, out].

    Args:
        old, new: what the names of the network's tensors begin with.
    """
    if f"{old}weight0" not in stored:
        return dict(stored)
    renamed = {name: tensor for name, tensor in stored.items() if not name.startswith(old) or not old}
    last = max(int(name.removeprefix(f"{old}weight")) for name in stored if name.startswith(f"{old}weight"))
    step = 3 if f"{old}scale0" in stored else 2  # linear, layer normalization, ReLU
    for i in range(last + 1):
        layer = f"{new}head" if i == last else f"{new}features.{i * step}"
        renamed[f"{layer}.weight"] = stored[f"{old}weight{i}"].mT
        renamed[f"{layer}.bias"] = stored[f"{old}bias{i}"].squeeze(1)
        if f"{old}scale{i}" in stored:
            norm = f"{new}features.{i * step + 1}"
            renamed[f"{norm}.weight"] = stored[f"{old}scale{i}"].squeeze(1)
            renamed[f"{norm}.bias"] = stored[f"{old}shift{i}"].squeeze(1)
    return {name: tensor for name, tensor in renamed.items() if old or name not in stored}
