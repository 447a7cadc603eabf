"""Finding a registered environment by its id, and saying what was meant where there is none."""

import contextlib
import difflib
import importlib.util
import inspect
import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import gymnasium
from gymnasium.envs.registration import EnvSpec, find_highest_version, get_env_id, parse_env_id

from envs.errors import UserError
from envs.factories import is_of_factory, needs_factory
from envs.importing import hidden, import_named, is_file, load_creator, said

REGISTERS = re.compile(r"_?register(_\w+)?_envs")  # functions with which packages register their ids


def find_spec(env_id: str) -> EnvSpec:
    """Returns what is registered under `Id`, or under `module:Id` or `folder/file.py:Id` once that is imported."""
    module, _, name = env_id.rpartition(":")
    imported = None
    if module:
        try:
            imported = import_named(module)
        except UserError as error:
            raise UserError(
                f"env.id={env_id}: cannot import '{module}', which should register {name}: {error}"
            ) from error
        if name not in gymnasium.registry:
            _register(imported, env_id)
    spec = gymnasium.registry.get(name)
    if spec is None and is_of_factory(name):
        raise UserError(f"{name}: {needs_factory(name)}")
    if spec is None:
        raise UserError(f"there is no environment {name!r}: {_advice(module, name, imported)}")
    newest = newest_version(spec)
    if newest != spec.id:
        warnings.warn(f"{spec.id} is out of date, its newest version is {newest}", stacklevel=3)
    return _with_creators(spec, Path(module).expanduser()) if is_file(module) else spec


def _register(module: ModuleType, env_id: str) -> None:
    """Calls what the module has to register its ids: register_envs(), register_highway_envs(), …"""
    for key, function in list(vars(module).items()):
        if REGISTERS.fullmatch(key) and inspect.isfunction(function) and not _needed(function):
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    function()
            except (Exception, SystemExit) as error:
                raise UserError(f"env.id={env_id}: {module.__name__}.{key}() {said(error)}") from error


def _needed(function: object) -> list[str]:
    """Its arguments without a default."""
    parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]


def _with_creators(spec: EnvSpec, file: Path) -> EnvSpec:
    """The spec with what its entry points name, where that lies beside the file: another package may hide it."""
    found = {
        name: creator
        for name in ("entry_point", "vector_entry_point")
        if isinstance(point := getattr(spec, name), str) and (creator := load_creator(point, file)) is not None
    }
    return replace(spec, **found)


def newest_version(spec: EnvSpec) -> str:
    """The id of the newest registered version of the same environment."""
    return get_env_id(spec.namespace, spec.name, find_highest_version(spec.namespace, spec.name))


def _advice(module: str, name: str, imported: ModuleType | None) -> str:
    try:
        namespace, stem, version = parse_env_id(name)
    except gymnasium.error.Error:
        namespace, stem, version = None, name, None
    newest = find_highest_version(namespace, stem)
    if newest is not None:
        older = version is not None and version < newest
        reason = "this version is older than those Gymnasium still has; " if older else ""
        return f"{reason}use {get_env_id(namespace, stem, newest)}"
    if namespace == "ALE":
        install = "" if importlib.util.find_spec("ale_py") else 'pip install "gymnasium[atari]", then '
        return f"{install}use ale_py:{name}"
    ids = {env_id.lower(): env_id for env_id in gymnasium.registry}
    close = difflib.get_close_matches(name.lower(), ids, n=1)
    own = (
        f"{module} does not register it{hidden(module, imported)}"
        if module
        else f"for your own, name what is in it: {name}:MyEnv-v0"
        if is_file(name)
        else f"for your own, name the module that registers it: module:{name}"
    )
    return f"did you mean {ids[close[0]]}? ({own})" if close else own
