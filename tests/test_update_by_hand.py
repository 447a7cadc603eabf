"""What autograd makes of the losses is what version 0.1.0 had by hand: parameters agree after five updates."""

from typing import get_args

import pytest
import torch
from oracles.update import UpdateByHand
from test_gumbel_actor_critic import COMBINATIONS, make_agent, random_batch, random_masks
from torch import Generator

from agent.config_sections import EstimatorConfig

ESTIMATORS = get_args(EstimatorConfig.model_fields["name"].annotation)
CASES = [
    *([f"critic.structure={structure}", f"estimator.name={estimator}"] for structure, estimator in COMBINATIONS),
    ["estimator.name=score_function", "estimator.baseline=value"],
    ["critic.structure=joint", "critic.reduce=mean"],
    *(["critic.reduce=min", f"estimator.name={estimator}"] for estimator in ESTIMATORS),
    ["critic.entropy_in_target=true", "critic.layer_norm=false", "max_grad_norm=0.1"],
    ["hidden_sizes=[]"],
]


@pytest.fixture(autouse=True)
def same_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both multiply by PyTorch: other roundings decide ReLUs at 0 in another way, and Adam magnifies that."""
    monkeypatch.setattr("agent.networks.population.instruction_set", lambda: None)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
@pytest.mark.parametrize("has_masks", [False, True], ids=["all legal", "masked"])
def test_five_updates_are_those_by_hand(case: list[str], has_masks: bool, generator: Generator) -> None:
    """Two members, two factors of three and two choices."""
    settings = ["seeds=2", "hidden_sizes=[16, 8]", "actor.layer_norm=true", *case]
    learner = make_agent(*settings, num_choices=(3, 2), has_masks=has_masks)
    by_hand = UpdateByHand(learner, obs_size=4)
    for number in range(5):
        masks = random_masks(learner, generator) if has_masks else None
        batch, noise, progress = random_batch(learner, generator), learner.noise_(), torch.tensor(number / 5)
        ours = learner.learn(batch, masks, noise, progress)
        theirs = by_hand.learn(batch, masks, noise, progress)
        for name, value in theirs.items():  # Adam would hide a gradient of the wrong length
            torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5, msg=lambda t, name=name: f"{name}: {t}")
    for name in ("actor", "evaluated_actor", "critics", "target_critics"):
        ours, theirs = getattr(learner, name).network.flat, getattr(by_hand, name).mlp.flat
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(learner.log_alpha, by_hand.log_alpha, rtol=0, atol=1e-5)
