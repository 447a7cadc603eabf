"""Environments that a callable makes: registered with Gymnasium while they are in use, and never found by id alone."""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium

from envs.errors import UserError

NAMESPACE = "factory"

Factory = Callable[..., gymnasium.Env[Any, Any]]


@contextlib.contextmanager
def registered(factory: Factory) -> Iterator[str]:
    """The id under which Gymnasium makes the environments of `factory`, until the context ends.

    Args:
        factory: a class, or a function that returns a new environment at each call. It is given env.kwargs, and
            `render_mode` where frames are wanted.

    Raises:
        UserError: it is no such callable.
    """
    env_id = f"{NAMESPACE}/{name_of(factory)}-v0"
    before = gymnasium.registry.pop(env_id, None)
    gymnasium.register(env_id, entry_point=factory)
    try:
        yield env_id
    finally:
        del gymnasium.registry[env_id]
        if before is not None:
            gymnasium.registry[env_id] = before


def name_of(factory: Any) -> str:
    """What to call the environments of a factory: its own name, without what an id may not hold."""
    if isinstance(factory, gymnasium.Env | gymnasium.vector.VectorEnv):
        raise UserError(
            f"env: got an environment, {type(factory).__name__}; but every member and every evaluation needs "
            "environments of its own: give what makes one, the class or a function such as lambda: MyEnv(3)"
        )
    if not callable(factory):
        raise UserError(
            f"env: got {factory!r}, must be a class or a function that makes an environment; a registered one is "
            'given by its id: env={"id": "CartPole-v1"}'
        )
    inner = getattr(factory, "func", factory)  # of a functools.partial
    return re.sub(r"\W+", "", getattr(inner, "__name__", type(inner).__name__)) or "env"


def is_of_factory(env_id: str) -> bool:
    """Whether only the factory itself can make it."""
    return env_id.startswith(f"{NAMESPACE}/")


def factory_of(env_id: str) -> str:
    """The name of the factory that makes these environments."""
    return env_id.removeprefix(f"{NAMESPACE}/").partition("-")[0]


def needs_factory(env_id: str) -> str:
    """Why no environment can be made by such an id alone, and what to do."""
    name = factory_of(env_id)
    return (
        f"its environment was made in Python by {name}, which no file can name: give it again, as "
        f"evaluate(policy, env={name}) or train(config, env={name}, resume=True)"
    )
