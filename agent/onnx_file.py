"""A policy as an ONNX file, for programs without PyTorch. Its metadata say what goes in and what comes out."""

import contextlib
import importlib.util
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gymnasium.vector.utils import batch_space
from torch import Tensor
from torch.export import Dim
from torch.utils._pytree import tree_map

from agent.files import replaced
from agent.policy import Policy, PolicyError
from agent.policy_module import PolicyModule
from envs.errors import UserError

ROWS = 2  # of the example that is traced; the file takes any number of them


def write_onnx(policy: Policy, path: Path, *, sampled: bool = False) -> list[str]:
    """Writes the policy of one member; returns the names of its inputs and outputs, as "obs float32 [batch, 4]".

    Inputs: `obs`, of a Dict or Tuple one input for each leaf, `obs.name`; `state`, of a policy with a memory, zeros at
    the start of an episode; `mask`, of a policy that needs one, bool [batch, factors, choices]. Outputs: `action`, by
    leaf as well, and `next_state`.

    Args:
        sampled: actions are drawn from the policy, by ONNX's own random numbers; else the most probable ones.

    Raises:
        PolicyError: the policy holds several members, or its network cannot be written as ONNX.
        UserError: a package is missing, or the file cannot be written.
    """
    if missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        raise UserError(f'export needs {missing[0]}, which is not installed: pip install "gumbel-actor-critic[onnx]"')
    module, inputs = policy.to_module(sampled=sampled), example_inputs(policy)
    with torch.inference_mode():
        answer = module(**inputs)
    outputs = {"action": answer[0], "next_state": answer[1]} if module.has_memory else {"action": answer}
    program = exported(policy, module, inputs, list(leaves(inputs)), list(leaves(outputs)))
    program.model.metadata_props.update(metadata(policy, sampled))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as staging:
            program.save(staging)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error}") from None
    return [described(name, x) for name, x in leaves(inputs | outputs).items()]


def example_inputs(policy: Policy) -> dict[str, Any]:
    """Arguments of the policy's module: observations of its space, a memory's first state, masks that allow all."""
    space = policy.observations.space
    inputs = {"obs": tree_map(torch.from_numpy, batch_space(space, ROWS).sample())}
    if policy.actor.state_size:
        inputs["state"] = torch.zeros(ROWS, policy.actor.state_size)
    if policy.info.action_mask_key is not None:
        inputs["mask"] = torch.ones(ROWS, *policy.actor.actions.shape, dtype=torch.bool)
    return inputs


def leaves(tree: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors of nested dicts and tuples by their dotted names."""
    if isinstance(tree, Tensor):
        return {name: tree}
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree)
    of = f"{name}." if name else ""
    return {inner: x for key, part in parts for inner, x in leaves(part, f"{of}{key}").items()}


def described(name: str, tensor: Tensor) -> str:
    return f"{name} {str(tensor.dtype).removeprefix('torch.')} {['batch', *tensor.shape[1:]]}".replace("'", "")


def exported(
    policy: Policy, module: PolicyModule, inputs: dict[str, Any], input_names: list[str], output_names: list[str]
) -> torch.onnx.ONNXProgram:
    batch = Dim("batch")
    try:
        with quiet():
            shapes = tree_map(lambda _: {0: batch}, inputs)
            graph = torch.export.export(module, (), kwargs=inputs, dynamic_shapes=shapes)
            program = torch.onnx.export(
                graph, dynamo=True, verbose=False, input_names=input_names, output_names=output_names
            )
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        name = policy.info.network.name
        raise PolicyError(f"PyTorch cannot write the network '{name}' as ONNX: {reason}") from error
    assert program is not None  # as it is with dynamo
    return program


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides what PyTorch's exporter says of its own parts, as that torchvision is missing."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def metadata(policy: Policy, sampled: bool) -> dict[str, str]:
    member = policy.info.members[0]
    return {
        "env_id": policy.info.env.id,
        "observation_space": json.dumps(policy.info.observation_space),
        "action_space": json.dumps(policy.info.action_space),
        "actions": "sampled" if sampled else "greedy",
        "seed": str(member.seed),
        "env_steps": str(member.env_steps),
    }
