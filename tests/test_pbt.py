"""A population that tunes itself: who takes over from whom, what is copied, and that it resumes bit for bit."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from loops import make_loop
from test_resume import SHORT as DEFAULTS
from test_resume import assert_same, metrics, short, stop_at

from agent.algorithms.gumbel_actor_critic import GumbelActorCritic
from agent.analysis.exchanges import ancestors
from agent.cli import train as train_command
from agent.config_faults import InvalidConfig
from agent.config_fields import ConfigError
from agent.config_loader import load_config
from agent.exit_codes import Stopped
from agent.ranks import ALONE
from agent.state import State, named
from agent.training.loop import TrainingLoop
from agent.training.pbt import PERTURBED, Move, SelfTuning, plan
from agent.training.trainer import train

assert stop_at  # a fixture
SHORT = [text for text in DEFAULTS if not text.startswith(("seeds=", "total_env_steps="))]
PBT = ["pbt.every_env_steps=40", "seeds=4"]
CARTPOLE = ["env.id=Tensor/CartPole-v1", "pbt.every_env_steps=40", "seeds=4"]


def config_of(*overrides: str):
    return load_config(None, ["env.id=CartPole-v1", "seeds=8", "pbt.every_env_steps=100", *overrides])


def test_the_lowest_quarter_takes_over_from_the_highest() -> None:
    returns = [3.0, 1.0, 9.0, 2.0, 5.0, 8.0, 4.0, 6.0]
    children, parents, factors = Counter(), Counter(), Counter()
    for step in range(200):
        moves = plan(returns, ["tau", "learning_rate"], config_of(), step)
        children.update(move.child for move in moves)
        parents.update(move.parent for move in moves)
        factors.update(factor for move in moves for factor in move.factors.values())
    assert children == {1: 200, 3: 200} and parents.keys() == {2, 5} and factors.keys() == {0.8, 1.25}
    assert all(150 < count < 250 for count in parents.values()) and all(350 < n < 450 for n in factors.values())
    assert plan(returns, ["tau"], config_of(), 7) == plan(returns, ["tau"], config_of(), 7)


def test_nobody_takes_over_from_an_equal_but_from_one_that_is_sound() -> None:
    assert plan([1.0] * 8, ["tau"], config_of(), 0) == []
    for broken in (-np.inf, np.nan):
        (move, *_) = plan([2.0, 2.0, 2.0, broken], ["tau"], config_of("seeds=4"), 0)
        assert move.child == 3 and move.parent != 3
    assert len(plan([1.0, 2.0, 3.0], [], config_of("seeds=3", "pbt.fraction=0.5"), 0)) == 1  # never more than half


@pytest.mark.parametrize(
    ("setting", "value", "factor", "expected"),
    [
        ("learning_rate", 0.01, 1.25, 0.0125),
        ("tau", 0.06, 0.5, 0.05),
        ("target_entropy", 0.9, 1.25, 1.0),
        ("noise_persistence", 0.5, 1.25, 0.6),  # held for 2 steps, then 2.5
        ("noise_persistence", 0.1, 0.8, 0.0),
        ("entropy_coefficient", 0.01, 0.8, 0.008),
    ],
)
def test_settings_stay_in_their_range(setting: str, value: float, factor: float, expected: float) -> None:
    assert PERTURBED[setting](torch.tensor(value), factor).item() == pytest.approx(expected)


@pytest.mark.parametrize("overrides", [[], ["algorithm=reinforce"], ["network.memory=gru", "sequence_length=4"]])
def test_a_child_becomes_its_parent_and_others_stay(overrides: list[str]) -> None:
    loop = make_loop("cpu", *CARTPOLE, *overrides)
    run(loop)
    learned = loop.learner.learned() | named("normalizer", loop.normalizer.state())
    tuning = SelfTuning(loop.config, ALONE, learned, loop.learner.tunable())
    before = {name: tensor.clone() for name, tensor in loop.learner.state().items()}
    values = {name: tensor.clone() for name, tensor in tuning.tunable.items()}
    key = next(iter(tuning.tunable))
    tuning.take_([Move(0, 3, dict.fromkeys(tuning.tunable, 1.0) | {key: 1.25})])
    for name, tensor in learned.items():
        rows = tensor.unflatten(0, (4, -1)) if tensor.ndim else tensor
        assert not tensor.ndim or torch.equal(rows[0], rows[3]), name
    for name, tensor in loop.learner.state().items():
        if name not in loop.learner.learned():
            assert torch.equal(tensor, before[name]), f"{name} is not what was learned"
        elif tensor.ndim:
            assert torch.equal(tensor.unflatten(0, (4, -1))[1:], before[name].unflatten(0, (4, -1))[1:])
    torch.testing.assert_close(tuning.tunable[key][0], 1.25 * values[key][3])
    assert tuning.rows([Move(0, 3, {})])[0] == {"pbt/parent": 3.0} | {
        f"pbt/{name}": 1.25 if name == key else 1.0 for name in tuning.tunable
    }


def run(loop: TrainingLoop) -> None:
    for iteration in range(30):
        loop.run_iteration(loop.num_envs * iteration)


@pytest.mark.parametrize("overrides", [[], ["algorithm=reinforce"], ["tau.schedule=adaptive", "env.num_envs=2"]])
def test_a_run_with_exchanges_resumes_bit_for_bit(overrides: list[str], tmp_path: Path, stop_at) -> None:
    unbroken = train(short(tmp_path / "unbroken", *PBT[:1], "seeds=4", *overrides)).folder
    stop_at(90)
    with pytest.raises(Stopped):
        train(short(tmp_path / "run", *PBT[:1], "seeds=4", *overrides))
    assert_same(train(short(tmp_path / "run", *PBT[:1], "seeds=4", *overrides), resume=True).folder, unbroken)
    exchanged = [row for row in metrics(unbroken) if "pbt/parent" in row]
    assert {row["env_steps"] for row in exchanged} <= {40, 80} and len(exchanged) in (4, 8)


def test_a_member_that_failed_takes_over_from_a_sound_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_iteration = TrainingLoop.run_iteration

    def poison(loop: TrainingLoop, env_steps: int) -> None:
        run_iteration(loop, env_steps)
        if env_steps == 60:
            loop.learner.actor.network.flat[2] = torch.nan

    monkeypatch.setattr(TrainingLoop, "run_iteration", poison)
    run = train(short(tmp_path / "run", *PBT[:1], "seeds=4"), progress=False)
    members = json.loads((run.folder / "result.json").read_text())["members"]
    assert not any("failed_at_env_steps" in member for member in members)
    parents = {
        row["env_steps"]: row["pbt/parent"] for row in metrics(run.folder) if row["member"] == 2 and "pbt/parent" in row
    }
    assert parents[80] != 2


def test_mistakes_about_exchanges_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"members take over from each other, but there is one"):
        load_config(None, ["env.id=CartPole-v1", "pbt.every_env_steps=10"])
    with pytest.raises(ConfigError, match=r"pbt.settings: got 'learning_rte', .* did you mean 'learning_rate'\?"):
        train(short(tmp_path / "run", *PBT[:1], "seeds=2", "pbt.settings=[learning_rte]"))
    with pytest.raises((ConfigError, InvalidConfig), match=r"pbt.fraction"):
        load_config(None, ["env.id=CartPole-v1", "seeds=4", "pbt.fraction=0.7"])


class Silent(GumbelActorCritic):
    """An algorithm of a user's that has no `learned`."""

    def state(self) -> State:
        return super().state() | super().learned()

    def learned(self) -> State:
        return {}


def test_an_algorithm_that_does_not_say_what_it_has_learned_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"test_pbt:Silent does not say what a member has learned"):
        train(short(tmp_path / "run", "pbt.every_env_steps=40", "algorithm=test_pbt:Silent"))


def test_the_ancestors_of_the_best_member_are_found() -> None:
    """Member 1 takes over from 0 at step 20, member 2 from 1 at step 40; 2 is the best."""
    rows = [
        {"env_steps": step, "member": member, "eval/return_greedy": float(step + member), "pbt/parent": parent}
        for step, parents in ((20, [0, 0, 2]), (40, [0, 1, 1]), (60, [0, 1, 2]))
        for member, parent in enumerate(parents)
    ]
    before, after = ancestors(rows, best=2)
    assert after == {20: 1, 40: 2, 60: 2} and before == {20: 0, 40: 1, 60: 2}


def test_the_exchanges_of_a_run_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train_command.main([*SHORT, "total_env_steps=160", *PBT, f"run_dir={run}"]) == 0
    assert f"exchanged weights and settings: {run}/figures/exchanges.png" in capsys.readouterr().out
    assert (run / "figures" / "exchanges.png").stat().st_size > 10_000
