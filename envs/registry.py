"""Finding a registered environment by its id, and saying what was meant where there is none."""

import difflib
import importlib
import warnings

import gymnasium
from gymnasium.envs.registration import EnvSpec, find_highest_version, get_env_id, parse_env_id

from envs.errors import UserError


def find_spec(env_id: str) -> EnvSpec:
    """Returns what is registered under `Id`, or under `module:Id` once the module is imported."""
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except (ImportError, TypeError, ValueError) as error:
            raise UserError(
                f"env.id={env_id}: cannot import {module!r}, which should register {name}: {error}"
            ) from error
    spec = gymnasium.registry.get(name)
    if spec is None:
        raise UserError(f"there is no environment {name!r}: {_advice(module, name)}")
    newest = newest_version(spec)
    if newest != spec.id:
        warnings.warn(f"{spec.id} is out of date, its newest version is {newest}", stacklevel=3)
    return spec


def newest_version(spec: EnvSpec) -> str:
    """The id of the newest registered version of the same environment."""
    return get_env_id(spec.namespace, spec.name, find_highest_version(spec.namespace, spec.name))


def _advice(module: str, name: str) -> str:
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
        return f'pip install "gymnasium[atari]", then use ale_py:{name}'
    ids = {env_id.lower(): env_id for env_id in gymnasium.registry}
    close = difflib.get_close_matches(name.lower(), ids, n=1)
    own = (
        f"{module} does not register it"
        if module
        else f"for your own, name the module that registers it: module:{name}"
    )
    return f"did you mean {ids[close[0]]}? ({own})" if close else own
