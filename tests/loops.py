"""A plain and an accelerated loop side by side; run as a script, compares compiled loops with plain ones.

    python tests/loops.py several|guarded|stacked|functions

The script is for a process of its own: a compiler cannot look through the tests' checks of shapes.
"""

import sys

import torch

from agent.config_loader import load_config
from agent.ranks import ALONE
from agent.training.acceleration import Compiled
from agent.training.loop import TrainingLoop
from agent.training.pbt import Move, SelfTuning
from agent.training.setup import make_env

NUM_ITERATIONS = 40
SETTINGS = [
    "env.num_envs=2",
    "seeds=2",
    "hidden_sizes=[8]",
    "batch_size=8",
    "learning_starts=20",
    "total_env_steps=80",
    "updates_per_step=0.5",
    "replay_capacity=50",  # wraps
]
KINDS = [
    ["env.id=CartPole-v1", "env.vectorization_mode=sync"],
    [
        "env.id=Tensor/CartPole-v1",
        "critic.structure=joint",
        "hidden_sizes=[4]",
        "n_step=1",
        "critic.layer_norm=false",
        "estimator.name=gumbel_rao",
    ],
    [
        "env.id=Tensor/ChainBandit-v0",
        "env.kwargs={num_factors: 3, num_choices: 3}",
        "critic.rank=2",
        "actor.layer_norm=true",
        "estimator.name=exact",
    ],
    ["env.id=Taxi-v4", "env.kwargs={max_episode_steps: 6}", "n_step=[3,1]", "noise_persistence=[0.5,0.9]"],  # masks
    ["env.id=Tensor/CartPole-v1", "network.memory=mingru", "sequence_length=4", "burn_in=1"],
    ["env.id=Tensor/CartPole-v1", "pbt.every_env_steps=60"],
]


def make_loop(device: str, *overrides: str) -> TrainingLoop:
    config = load_config(None, [*SETTINGS, *overrides])
    return TrainingLoop(config, make_env(config, config.env.num_envs, torch.device(device)), torch.device(device))


def run(*loops: TrainingLoop) -> None:
    """All of them in turn."""
    for iteration in range(NUM_ITERATIONS):
        for loop in loops:
            loop.run_iteration(loop.num_envs * iteration)
            if loop.config.pbt.every_env_steps == loop.num_envs * (iteration + 1):
                tuning = SelfTuning(loop.config, ALONE, loop.learner.learned(), loop.learner.tunable())
                tuning.take_([Move(0, 1, dict.fromkeys(tuning.tunable, 1.25))])


def state(loop: TrainingLoop) -> dict[str, torch.Tensor]:
    return loop.state()


class OwnNetwork(torch.nn.Module):
    """Of a user: not a sequence of known layers, so that vmap batches it."""

    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(obs_shape[0], 8), torch.nn.Linear(8, 8)
        self.out_features = 8

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        x = self.first(obs).tanh()
        return x + self.second(x).relu()


def compare(*kinds: list[str]) -> None:
    """Compiled loops, all alive at once, with plain ones."""
    plain = [make_loop("cpu", *kind) for kind in kinds]
    compiled = [make_loop("cpu", *kind, "compile=true") for kind in kinds]
    run(*plain)
    run(*compiled)
    for ours, theirs in zip(compiled, plain, strict=True):
        assert ours.compiles and not theirs.compiles
        assert theirs.episodes.num_ended.sum() > 4
        torch.testing.assert_close(tuple(ours.transition), tuple(theirs.transition), rtol=1e-3, atol=1e-4)
        for name, tensor in state(theirs).items():
            torch.testing.assert_close(
                state(ours)[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )


class Counter:
    def __init__(self) -> None:
        self.place, self.attribute = torch.zeros(3), torch.zeros(3)

    def add_in_place(self) -> None:
        self.place += 1

    def add(self) -> torch.Tensor:
        self.attribute = self.attribute + 1
        return self.attribute * 2


def compare_functions() -> None:
    """What a function returns, and attributes that it sets, are those of each call."""
    counter, run_compiled = Counter(), Compiled(must=True)
    for call in range(1, 5):
        assert run_compiled(counter.add_in_place) is None and (counter.place == call).all()
        assert (run_compiled(counter.add) == 2 * call).all() and (counter.attribute == call).all()


if __name__ == "__main__":
    if sys.argv[1] == "functions":
        compare_functions()
    elif sys.argv[1] == "several":
        own_network = ["network.name=loops:OwnNetwork", "hidden_sizes=[128,128]", "actor.layer_norm=false"]
        single_envs = "env.vectorization_mode=sync"  # in NumPy
        images = ["env.id=test_encoders:Pointer-v0", "critic.structure=joint"]
        compare([*KINDS[2], *own_network, single_envs, *KINDS[5][1:]], [*KINDS[3], *KINDS[1][1:]], images)
    else:  # what is traced need not become C++
        from torch._inductor import compile_fx

        compile_fx.compile_fx = lambda graph, inputs, config_patches: graph.forward
        if sys.argv[1] == "guarded":
            compare([*KINDS[3], "compile_guards=true"])
        else:  # frames that stop to repeat: the programs are made again
            NUM_ITERATIONS = 90
            compare(["env.id=test_frame_stack:Stacked/lies-v0", "env.vectorization_mode=sync"])
    print("the same")
