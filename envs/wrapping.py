"""Wrappers that a user names, put around each single environment."""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium

from envs.errors import UserError
from envs.importing import import_attribute, import_named, said


class Wrapping(NamedTuple):
    """A class of gymnasium.Wrapper, by the name it was found under, and its arguments besides the environment."""

    name: str
    wrapper: type[gymnasium.Wrapper]
    kwargs: Mapping[str, Any]

    def __call__(self, env: gymnasium.Env) -> gymnasium.Env:
        """The environment, wrapped. UserError whatever the constructor raises."""
        try:
            return self.wrapper(env, **self.kwargs)
        except (Exception, SystemExit) as error:
            around = env.spec.id if env.spec else type(env.unwrapped).__name__
            kwargs = f" with kwargs={dict(self.kwargs)}" if self.kwargs else ""
            raise UserError(
                f"env.wrappers: {self.name} cannot be put around {around}{kwargs}: {said(error)}"
            ) from error


def find_wrappers(wrappers: Sequence[str | Mapping[str, Any]]) -> list[Wrapping]:
    """Imports what is named: "module:Class", or {name: module:Class, kwargs: {…}}.

    Raises:
        UserError: there is no such class, it is no gymnasium.Wrapper, or it does not take the arguments.
    """
    found = []
    for entry in wrappers:
        name, kwargs = (entry, {}) if isinstance(entry, str) else (entry["name"], entry.get("kwargs", {}))
        try:
            wrapper = import_attribute(name)
        except UserError as error:
            raise UserError(f"env.wrappers: got '{name}', which cannot be imported: {error}") from error
        if not (isinstance(wrapper, type) and issubclass(wrapper, gymnasium.Wrapper)):
            raise UserError(f"env.wrappers: got '{name}', which is not a class of gymnasium.Wrapper{_instead(name)}")
        _check_kwargs(name, wrapper, kwargs)
        found.append(Wrapping(name, wrapper, kwargs))
    return found


def _instead(name: str) -> str:
    module, _, attribute = name.rpartition(":")
    wrappers = [
        key
        for key, value in vars(import_named(module)).items()
        if isinstance(value, type) and issubclass(value, gymnasium.Wrapper) and value is not gymnasium.Wrapper
    ]
    near = difflib.get_close_matches(attribute, wrappers, n=1)
    return f"; did you mean '{module}:{near[0]}'?" if near else ""


def _check_kwargs(name: str, wrapper: type[gymnasium.Wrapper], kwargs: Mapping[str, Any]) -> None:
    parameters = list(inspect.signature(wrapper).parameters.values())[1:]  # the first is the environment
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes = f"; it takes: {', '.join(named) or 'none'}"
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in kwargs:
            if key not in named:
                near = difflib.get_close_matches(key, named, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else takes
                raise UserError(f"env.wrappers: {name} does not know the argument '{key}'{hint}")
    missing = [p.name for p in parameters if p.name in named and p.default is p.empty and p.name not in kwargs]
    if missing:
        example = f"{{name: {name}, kwargs: {{{', '.join(f'{key}: …' for key in missing)}}}}}"
        raise UserError(f"env.wrappers: {name} needs {', '.join(missing)}, for example {example}")
