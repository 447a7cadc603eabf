"""docs/extending.md: each of its examples runs as it stands there, as a module of a user's own."""

import contextlib
import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import gymnasium
import numpy as np
import pytest
import torch
from test_estimators import AnyQ, curved_q, estimate, made, noise_for
from test_scripts import SHORT
from torch import Generator

import agent
import envs
from agent.algorithms.base import Algorithm, require_updates
from agent.analysis import gradients
from agent.cli import evaluate, train
from agent.config import Config
from agent.config_fields import ConfigError
from agent.config_loader import load_config
from agent.estimators import Estimator
from agent.seeding import member_seeds
from agent.training.callbacks import Callback, CheckpointView, EvaluationView, StepView
from agent.weights import load_weights

IMPORTS = """
import math

import agent
import envs
import gymnasium
import torch
from pydantic import Field
from torch import Tensor

from agent import losses
from agent.algorithms.base import Task, own_settings
from agent.algorithms.off_policy import OffPolicy
from agent.config import Config
from agent.config_fields import Section
from agent.estimators import ActionValue, Noise, relaxed_gumbel_softmax, straight_through_gumbel_softmax
from agent.metrics import METRICS, Metric
from agent.networks.heads import make_actor
from agent.networks.population import Parameters, all_finite
from agent.optimizer import PopulationAdam, clip_grad_norm_
from agent.state import State, named
from agent.training.callbacks import Callback, EvaluationView
"""
DOCUMENT = Path("docs/extending.md").read_text(encoding="utf-8")


def example(title: str) -> str:
    """The first Python block under a heading."""
    section = DOCUMENT.split(f"## {title}\n")[1].split("\n## ")[0]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]  # type: ignore[index]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with all examples but the one that trains when it is imported."""
    name = f"own_{abs(hash(tmp_path))}"
    titles = ("A network", "An environment", "An estimator", "An algorithm")
    (tmp_path / f"{name}.py").write_text(IMPORTS + "\n\n".join(map(example, titles)), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    gymnasium.registry.pop("CoinFlips-v0", None)  # of another test
    return name


def module_of(own: str) -> ModuleType:
    return importlib.import_module(own)


def metrics_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("structure", ["multilinear", "joint"])
def test_a_network_of_ones_own_trains_evaluates_and_resumes(
    own: str, structure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("NUM_STATES", 16), ("NUM_STEPS", 20), ("ROUNDS", 4), ("TAUS", (0.5, 1.0))):
        monkeypatch.setattr(gradients, name, value)
    run = tmp_path / "run"
    network = [f"network.name={own}:Residual", "network.kwargs={width: 8}", f"critic.structure={structure}"]
    settings = [setting for setting in SHORT if structure == "joint" or not setting.startswith("hidden_sizes")]
    assert train.main([*settings, *network, f"run_dir={run}"]) == 0
    weights = load_weights(run / "policy" / "final" / "weights.safetensors")
    assert weights["actor.features.first.weight"].shape == (2, 8, 4)
    assert evaluate.main([str(run), "--network", f"{own}:Residual", "--episodes", "2"]) == 0
    assert evaluate.main([str(run), "--trust", "--episodes", "2", "--gradients"]) == 0
    assert train.main(["--resume", str(run), "total_env_steps=400"]) == 0


def test_a_network_that_only_a_file_names_is_not_imported(
    own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    settings = [setting for setting in SHORT if not setting.startswith("hidden_sizes")]
    assert train.main([*settings, f"network.name={own}:Residual", f"run_dir={run}"]) == 0
    sys.modules.pop(own)
    gymnasium.registry.pop("CoinFlips-v0")
    for command in ([str(run)], [str(run), "--gradients"]):
        assert evaluate.main(command) == 2
        message = capsys.readouterr().err
        assert f"python evaluate.py {run} --network {own}:Residual" in message and own not in sys.modules
    with pytest.raises(agent.PolicyError, match="imports the Python module"):
        agent.Policy.load(run)
    with pytest.raises(agent.PolicyError, match="the policy's network is"):
        agent.Policy.load(run, network="other:Network")
    assert own not in sys.modules
    agent.Policy.load(run, network=f"{own}:Residual").act(np.zeros(4, dtype=np.float32))


def test_a_tensor_environment_of_ones_own_is_learned(own: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["hidden_sizes=[16]", "total_env_steps=2000", "learning_starts=200", "evaluation.final_episodes=50"]
    assert train.main([f"env.id={own}:CoinFlips-v0", "env.num_envs=4", *settings, f"run_dir={run}"]) == 0
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert result["members"][0]["greedy"]["mean"] > 6.3  # 7 is the best, 5 a guess


def test_an_estimator_of_ones_own_is_differentiated(own: str, generator: Generator) -> None:
    estimator, q = Estimator(module_of(own).halfway), AnyQ(curved_q)
    logits, noise = torch.randn(2, 9, 2, 3, generator=generator), noise_for(estimator, (2, 9, 2, 3), generator)
    _, gradient = estimate(estimator, logits, 0.7, noise, q)
    parts = [
        estimate(made(name), logits, 0.7, noise, q)[1]
        for name in ("straight_through_gumbel_softmax", "relaxed_gumbel_softmax")
    ]
    torch.testing.assert_close(gradient, (parts[0] + parts[1]) / 2)


def test_an_algorithm_of_ones_own_is_short_and_learns(own: str, tmp_path: Path) -> None:
    assert len(example("An algorithm").splitlines()) < 80
    run = tmp_path / "run"
    settings = ["hidden_sizes=[32]", "gamma=0.8", "total_env_steps=1500", "learning_starts=100", "env.num_envs=2"]
    command = ["env.id=Probe/ChoiceFromObs-v0", f"algorithm={own}:DoubleDQN", "seeds=2", *settings, f"run_dir={run}"]
    assert train.main(command) == 0
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert all(member["greedy"]["mean"] == 1 for member in result["members"])
    rows = metrics_of(run)
    epsilons = [row["dqn/epsilon"] for row in rows if "dqn/epsilon" in row]
    assert epsilons[0] > 0.8 and epsilons[-1] == pytest.approx(0.05) and any("critic/loss" in row for row in rows)
    assert evaluate.main([str(run), "--episodes", "2"]) == 0


def test_an_algorithm_that_does_not_learn_from_sequences_has_no_memory(
    own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*SHORT, f"algorithm={own}:DoubleDQN", "network.memory=gru", "sequence_length=16"]) == 2
    assert "does not learn from sequences; use none" in " ".join(capsys.readouterr().err.split())


def test_an_algorithm_of_ones_own_resumes_bit_for_bit(own: str, tmp_path: Path) -> None:
    settings = [*SHORT, f"algorithm={own}:DoubleDQN", "checkpoint.every_env_steps=100"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    agent.train(load_config(None, [*settings, "total_env_steps=400", f"run_dir={whole}"]))

    class Stop(Callback):
        def on_step(self, step: StepView) -> bool:
            return np.bool_(step.env_steps < 250)  # type: ignore[return-value]  # arrays give such ones

    stopped = load_config(None, [*settings, "total_env_steps=400", f"run_dir={parts}"])
    agent.train(stopped, callbacks=[Stop()])
    assert json.loads((parts / "result.json").read_text(encoding="utf-8"))["env_steps"] == 250
    assert train.main(["--resume", str(parts)]) == 0
    for file in ("policy/final/weights.safetensors", "policy/best/weights.safetensors"):
        ours, theirs = load_weights(whole / file), load_weights(parts / file)
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ("{epsilon_end: 2}", "algorithm_kwargs.epsilon_end: Input should be less than or equal to 1"),
        ("{epsilon_end: true}", "algorithm_kwargs.epsilon_end: got True, must be a valid number"),
        ("{epsilon: 0.1}", "algorithm_kwargs.epsilon: Extra inputs are not permitted"),
    ],
)
def test_wrong_settings_of_an_algorithm_are_named(
    own: str, kwargs: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*SHORT, f"algorithm={own}:DoubleDQN", f"algorithm_kwargs={kwargs}"]) == 2
    error = capsys.readouterr().err
    assert message in error and "this algorithm has the settings: epsilon_end" in error


def test_warm_up_must_end_only_where_an_algorithm_reads_it(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [*SHORT, "learning_starts=200"]
    with pytest.raises(ConfigError, match="learning_starts: got 200, must be below total_env_steps=200"):
        require_updates(load_config(None, [*settings, f"algorithm={own}:DoubleDQN"]))
    methods = dict.fromkeys(("act", "store", "update", "updates_due", "are_finite", "state"), lambda self: None)
    online = type("Online", (Algorithm,), {"metrics": {}, "is_static": False, **methods})
    monkeypatch.setattr(sys.modules[own], "Online", online, raising=False)
    require_updates(load_config(None, [*settings, f"algorithm={own}:Online"]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:DQN", "algorithm: got 'no_such_module:DQN', which cannot be imported: No module named"),
        ("math:DQN", "algorithm: got 'math:DQN', which cannot be imported: module 'math' has no attribute 'DQN'"),
        (
            "math:sqrt",
            "which lacks metrics, is_static, act, store, update, updates_due, are_finite, state",
        ),
    ],
)
def test_an_algorithm_that_is_none_is_an_error(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*SHORT, f"algorithm={name}"]) == 2
    assert message in capsys.readouterr().err


def short(tmp_path: Path, *overrides: str) -> Config:
    return load_config(None, [*SHORT, f"run_dir={tmp_path / 'run'}", *overrides])


def test_the_callback_of_the_page_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands there, but for the run, which is shorter and solved from the start."""
    config = short(tmp_path, "evaluation.every_env_steps=100", "total_env_steps=1000")
    monkeypatch.setattr(agent, "load_config", lambda path: config)
    code = example("A callback").replace("475", "1")
    (tmp_path / "own_callback.py").write_text(IMPORTS + code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("own_callback")
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["env_steps"] == 100 and result["members"][0]["greedy"]["mean"] > 1


def test_callbacks_see_every_step_evaluation_and_checkpoint_and_cannot_write(tmp_path: Path) -> None:
    class Watch(Callback):
        def __init__(self) -> None:
            self.steps: list[StepView] = []
            self.events: list[tuple[str, int]] = []

        def on_step(self, step: StepView) -> None:
            self.steps.append(step)

        def on_evaluation(self, evaluation: EvaluationView) -> None:
            self.events.append(("evaluation", evaluation.env_steps))
            assert [member["seed"] for member in evaluation.members] == [0, 1]
            evaluation.members[0]["greedy"]["mean"] = 1e9  # type: ignore[index]  # a copy: changes nothing

        def on_checkpoint(self, checkpoint: CheckpointView) -> None:
            self.events.append(("checkpoint", checkpoint.env_steps))

    watch, plain = Watch(), tmp_path / "plain"
    settings = ["seeds=2", "total_env_steps=200", "evaluation.every_env_steps=100", "checkpoint.every_env_steps=80"]
    agent.train(short(tmp_path, *settings), callbacks=[watch])
    assert [step.env_steps for step in watch.steps] == list(range(1, 201))
    assert watch.events == [("checkpoint", 80), ("evaluation", 100), ("checkpoint", 160), ("evaluation", 200)]
    first, second = watch.steps[:2]
    assert first.obs.shape == (2, 1, 4) and first.action.shape == (2, 1, 1) and first.reward.shape == (2, 1)
    assert not np.array_equal(first.obs, second.obs)
    with contextlib.closing(envs.make("CartPole-v1", 2, num_members=2)) as env:
        obs = env.reset(member_seeds([0, 1], "environments"))
        for step in watch.steps[:50]:
            assert np.array_equal(step.obs[:, 0], obs)
            obs = env.step(torch.tensor(step.action[:, 0])).obs
    with pytest.raises(ValueError, match="read-only"):
        first.obs[:] = 0
    agent.train(load_config(None, [*SHORT, *settings, f"run_dir={plain}"]))  # watching changes nothing
    ours, theirs = (load_weights(run / "policy/final/weights.safetensors") for run in (tmp_path / "run", plain))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_the_page_names_what_exists() -> None:
    """Paths of this project that it mentions."""
    for path in re.findall(r"`((?:agent|envs|tests|configs)/[\w/]+\.(?:py|yaml))`", DOCUMENT):
        assert Path(path).is_file(), path
