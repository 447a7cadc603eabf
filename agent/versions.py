"""What exactly a run was made with."""

import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from agent.networks.native import instruction_set

PROJECT = "gumbel-actor-critic"


def versions(device: torch.device) -> dict[str, str]:
    """Versions that results may hang on, and the device, in words."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "project": project_version(),
        "torch": str(torch.__version__),
        "kernels": kernels(device),
        "gymnasium": metadata.version("gymnasium"),
        "numpy": metadata.version("numpy"),
        "python": platform.python_version(),
        "device": f"{device.type} ({name})",
    }


def code_digest() -> str:
    """Of all source files of the library: the same where the code is."""
    root = Path(__file__).parents[1]
    files = sorted(path for package in ("agent", "envs") for path in (root / package).rglob("*.py"))
    contents = b"".join(str(path.relative_to(root)).encode() + path.read_bytes() for path in files)
    return hashlib.sha256(contents).hexdigest()[:12]


def kernels(device: torch.device) -> str:
    """What multiplies matrices: results of two of these agree to rounding, not bit for bit."""
    if device.type != "cpu":
        return "PyTorch"
    return f"{'PyTorch' if instruction_set() is None else 'native'}, {torch.backends.cpu.get_cpu_capability()}"


def project_version() -> str:
    """The version, and the commit where this is a checkout: '0.1.0 (commit 1a2b3c…, changed)'."""
    try:
        version = metadata.version(PROJECT)
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        version = "not installed"
    commit = checkout(Path(__file__))
    return f"{version} (commit {commit})" if commit else version


def checkout(file: Path) -> str | None:
    """The commit of a file's checkout, ', changed' where tracked files are; None where git does not track the file."""
    if git(file.parent, "ls-files", file.name) != file.name:  # a package may lie in somebody else's repository
        return None
    changed = ", changed" if git(file.parent, "status", "--porcelain", "--untracked-files=no") else ""
    return f"{git(file.parent, 'rev-parse', 'HEAD')}{changed}"


def git(folder: Path, *arguments: str) -> str:
    """What git prints; nothing where it fails or is not there."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
