"""One environment: how it is made, and in one sentence why it cannot be."""

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.error import DependencyNotInstalled

from envs.errors import UserError
from envs.importing import said
from envs.preprocessing import OF_SINGLE, OF_VECTOR_CLASS, preprocessed, preprocessing_of
from envs.registry import find_spec, newest_version
from envs.wrapping import Wrapping, find_wrappers

EXTRAS = {  # of gymnasium, by the package that an entry point lies in
    "box2d": "box2d",
    "classic_control": "classic-control",
    "mujoco": "mujoco",
    "phys2d": "jax",
    "tabular": "jax",
    "toy_text": "toy-text",
}
OWN_SETTINGS = ("id", "num_envs", "vectorization_mode", "vector_kwargs", "wrappers", "render_mode")
OF_GYMNASIUM_MAKE = ("max_episode_steps", "disable_env_checker")


@dataclass(frozen=True)
class SingleEnv:
    """Makes one environment with its wrappers each time it is called. Its vector class takes the same arguments."""

    spec: EnvSpec
    kwargs: Mapping[str, Any]  # the user's
    wrappers: Sequence[Wrapping]
    preprocessing: str  # none, atari or minigrid
    render_mode: str | None

    @classmethod
    def find(
        cls,
        env_id: str,
        kwargs: Mapping[str, Any],
        wrappers: Sequence[str | Mapping[str, Any]],
        preprocessing: str,
        render_mode: str | None,
    ) -> "SingleEnv":
        """Imports what is named.  UserError where something of it does not exist."""
        own = [name for name in kwargs if name in OWN_SETTINGS]
        if own:
            raise UserError(f"env.kwargs must not contain {', '.join(own)}: it is for the environment's constructor")
        # Gymnasium's checks at every step cost as much as a step of CartPole; the adapter has its own.
        spec = replace(find_spec(env_id), disable_env_checker=True)
        preprocessing = preprocessing_of(spec, kwargs, preprocessing)
        return cls(spec, dict(kwargs), find_wrappers(wrappers), preprocessing, render_mode)

    def __call__(self) -> gymnasium.Env:
        kwargs = {**self.kwargs, **(OF_SINGLE if self.preprocessing == "atari" else {})}
        if self.render_mode is not None:
            kwargs["render_mode"] = self.render_mode
        with explained(self.spec, self.kwargs, self.render_mode):
            env = preprocessed(gymnasium.make(self.spec, **kwargs), self.preprocessing)
        for wrap in self.wrappers:
            try:
                env = wrap(env)
            except UserError:
                env.close()
                raise
        return env

    def check(self) -> None:
        """UserError where the constructor does not take the arguments, needs others or cannot render."""
        if self.spec.entry_point is None:
            raise UserError(
                f"{self.spec.id} has only a vector class: it takes no env.wrappers, cannot be rendered and needs "
                "env.vectorization_mode=auto or vector_entry_point"
            )
        creator = load(self.spec, self.spec.entry_point)
        known = parameters(creator)
        _check_kwargs(self.spec, self.kwargs, known, OF_GYMNASIUM_MAKE)
        if self.render_mode is not None:
            _check_render_mode(self.spec, creator, self.render_mode)

    def vector_class(self) -> Callable[..., Any]:
        assert self.spec.vector_entry_point is not None, f"{self.spec.id} has no vector class"
        return load(self.spec, self.spec.vector_entry_point)

    def vector_kwargs(self) -> dict[str, Any]:
        """Arguments that make the vector class what a single environment is.  UserError where it does not take them.

        Where both have an argument, it has the default of the single environment. Rewards are never clipped.
        """
        known = parameters(self.vector_class())
        _check_kwargs(self.spec, self.kwargs, known, (), besides=("num_envs",))
        if self.spec.max_episode_steps is not None and not takes(known, "max_episode_steps"):
            raise UserError(
                f"{self.spec.id} has a time limit of {self.spec.max_episode_steps} steps, which its vector class does "
                "not take; set env.vectorization_mode=sync"
            )
        kwargs: dict[str, Any] = {name: False for name, p in known.items() if clips_rewards(p)}
        if self.preprocessing == "atari":
            kwargs |= OF_VECTOR_CLASS
        kwargs |= {
            name: default
            for name, default in self._defaults().items()
            if name in known and name not in (*kwargs, *self.spec.kwargs) and known[name].default != default
        }
        kwargs |= self.kwargs
        return kwargs if self.render_mode is None else {**kwargs, "render_mode": self.render_mode}

    def unknown_to_vector_class(self) -> list[str]:
        """Arguments that the vector class does not take."""
        known = parameters(self.vector_class())
        time_limit = {} if self.spec.max_episode_steps is None else {"max_episode_steps": None}
        return [name for name in {**self.spec.kwargs, **self.kwargs, **time_limit} if not takes(known, name)]

    def only_of_vector_class(self) -> list[str]:
        """Arguments of the vector class that a single environment lacks, and that nobody has given a value."""
        known = parameters(self.vector_class())
        given = {*self._defaults(), *self.spec.kwargs, *self.kwargs, "num_envs", "max_episode_steps", "render_mode"}
        return [name for name in names_of(known) if name not in given]

    def _defaults(self) -> dict[str, Any]:
        """Of a single environment's constructor."""
        if self.spec.entry_point is None:
            return {}
        own = parameters(load(self.spec, self.spec.entry_point)).values()
        return {p.name: p.default for p in own if p.default is not p.empty}


def names_of(known: Mapping[str, inspect.Parameter]) -> list[str]:
    return [p.name for p in known.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def takes(known: Mapping[str, inspect.Parameter], name: str) -> bool:
    return name in known or any(p.kind is p.VAR_KEYWORD for p in known.values())


def clips_rewards(parameter: inspect.Parameter) -> bool:
    """Whether it is a switch that does, and is on where nobody turns it off."""
    return "reward" in parameter.name and "clip" in parameter.name and parameter.default is True


def parameters(creator: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Of what cannot be asked, as some functions in C: whatever it is given."""
    try:
        return inspect.signature(creator).parameters
    except (ValueError, TypeError):
        return {"kwargs": inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)}


def load(spec: EnvSpec, entry_point: Any) -> Callable[..., Any]:
    """What an entry point names."""
    if not isinstance(entry_point, str):
        return entry_point
    with explained(spec, {}):
        return load_env_creator(entry_point)


def _check_kwargs(
    spec: EnvSpec,
    kwargs: Mapping[str, Any],
    known: Mapping[str, inspect.Parameter],
    also: Sequence[str],
    besides: Sequence[str] = (),
) -> None:
    """UserError for arguments that a constructor does not know or lacks; `also` it takes, `besides` it is given."""
    names = names_of(known)
    unknown = [name for name in kwargs if not takes(known, name) and name not in also]
    if unknown:
        free = [name for name in names if name not in OWN_SETTINGS]
        near = difflib.get_close_matches(unknown[0], [*free, *also], n=1)
        hint = f"did you mean {near[0]}? It takes" if near else "it takes"
        raise UserError(f"{spec.id} does not know env.kwargs {', '.join(unknown)}; {hint}: {', '.join(free) or 'none'}")
    given = {*spec.kwargs, *kwargs, *besides}
    missing = [name for name in names if known[name].default is inspect.Parameter.empty and name not in given]
    if missing:
        example = ", ".join(f"{name}: …" for name in missing)
        raise UserError(
            f"{spec.id} needs {', '.join(missing)}, without which it cannot be made; give texts, numbers and lists as "
            f"'env.kwargs={{{example}}}', and what is none of them by an id of your own (docs/extending.md)"
        )


def _check_render_mode(spec: EnvSpec, creator: Callable[..., Any], render_mode: str) -> None:
    if not takes(parameters(creator), "render_mode"):
        raise UserError(f"{spec.id} cannot be rendered: it has no frames")
    modes = getattr(creator, "metadata", {}).get("render_modes") or []
    if modes and render_mode not in modes:
        raise UserError(f"{spec.id} cannot be rendered as {render_mode}; it offers {', '.join(modes)}")


@contextmanager
def explained(spec: EnvSpec, kwargs: Mapping[str, Any], render_mode: str | None = None) -> Iterator[None]:
    """Whatever a constructor raises, as a UserError of one sentence. `kwargs`: the user's, which may be the cause."""
    try:
        yield
    except UserError:
        raise
    except (ModuleNotFoundError, DependencyNotInstalled) as error:
        raise _missing_dependency(spec, error) from error
    except (Exception, SystemExit) as error:
        newest = newest_version(spec)
        if isinstance(error, ImportError) and newest != spec.id:
            raise UserError(f"{spec.id} cannot be made, use {newest} ({error})") from error
        if "raised from the environment creator" in str(error) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # without what Gymnasium says of it
        if render_mode is not None and isinstance(error, TypeError) and "'render_mode'" in str(error):
            raise UserError(f"{spec.id} cannot be rendered: it has no frames") from error
        given = f" with env.kwargs={dict(kwargs)}" if kwargs else ""
        raise UserError(f"{spec.id} cannot be made{given}: {said(error)}") from error


def _missing_dependency(spec: EnvSpec, error: Exception) -> UserError:
    """Says what to install, where that is known."""
    package = str(spec.entry_point).removeprefix("gymnasium.envs.").split(".")[0].split(":")[0]
    install = f': pip install "gymnasium[{EXTRAS[package]}]"' if package in EXTRAS else ""
    return UserError(f"{spec.id} needs a package that is not installed{install} ({error})")
