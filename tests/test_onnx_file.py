"""A policy as ONNX acts as the policy does, in ONNX's own runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from test_policy_module import KINDS, acted, inputs_of, obs, policy

from agent import Policy
from agent.cli import export
from agent.onnx_file import leaves, write_onnx

__all__ = ["obs", "policy"]  # fixtures


def session_of(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def fed(inputs: tuple[Any, ...]) -> dict[str, np.ndarray]:
    named = {name: x for name, x in zip(("obs", "state", "mask"), inputs, strict=False) if x is not None}
    return {name: x.numpy() for name, x in leaves(named).items()}


def test_the_file_acts_as_the_policy_does(policy: Policy, obs: Any, tmp_path: Path) -> None:
    inputs, path = inputs_of(policy, obs), tmp_path / "policy.onnx"
    write_onnx(policy, path)
    answers = session_of(path).run(None, fed(inputs))
    theirs = acted(policy, obs, inputs)
    for ours, expected in zip(answers, theirs if policy.actor.state_size else (theirs,), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4)
        assert ours.dtype == np.asarray(expected).dtype


@pytest.mark.parametrize("policy", [KINDS["factors"]], ids=["factors"], indirect=True)
def test_sampled_actions_differ_from_call_to_call(policy: Policy, obs: Any, tmp_path: Path) -> None:
    policy = policy.select([0])
    for tensor in policy.actor.tensors().values():
        tensor.mul_(0.1)
    write_onnx(policy, tmp_path / "policy.onnx", sampled=True)
    session, inputs = session_of(tmp_path / "policy.onnx"), fed(inputs_of(policy, obs))
    draws = [session.run(["action"], inputs)[0] for _ in range(4)]
    assert any((draw != draws[0]).any() for draw in draws[1:])


@pytest.mark.parametrize("policy", [KINDS["factors"]], ids=["factors"], indirect=True)
def test_the_command_says_what_goes_in_and_what_comes_out(
    policy: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy.save(tmp_path / "policy")
    assert export.main([str(tmp_path / "policy"), str(tmp_path / "out.onnx")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "obs float32 [batch, 8]",
        "action int64 [batch, 2]",
        f"saved: {tmp_path / 'out.onnx'}",
    ]


def test_faults_are_told_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["x", "policy.pt"], "policy.pt: must end in .onnx, for example policy.onnx"),
        (["x", "p.onnx", "--member", "all"], "--member all: a file holds one policy; give a number, or best"),
        ([str(tmp_path / "none"), "p.onnx"], f"{tmp_path / 'none'}: no such folder"),
    ):
        assert export.main(arguments) == 2
        assert capsys.readouterr().err == f"gumbel export: error: {message}\n"
