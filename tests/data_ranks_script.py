"""One update on the same rows, on two ranks with half of them each and on one with all: python … OUTPUT KIND"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from agent.algorithms.gumbel_actor_critic import UpdateNoise
from agent.config import Config
from agent.config_loader import load_config
from agent.data_ranks import DataRanks
from agent.estimators import Noise
from agent.ranks import joined
from agent.training.loop import TrainingLoop
from agent.training.setup import make_env
from agent.training.sharing import part_of_data

KINDS = {
    "actor_critic": ["env.id=Tensor/CartPole-v1"],
    "joint": ["env.id=Tensor/CartPole-v1", "critic.structure=joint", "estimator.name=gumbel_rao"],
    "masks": ["env.id=Taxi-v4"],
    "memory": ["env.id=CartPole-v1", "network.memory=gru", "sequence_length=4", "burn_in=1"],
    "reinforce": ["env.id=Tensor/CartPole-v1", "algorithm=reinforce", "reinforce.rollout_steps=120"],
}
LEARNED = ("actor", "encoder", "critics", "log_alpha", "baseline")
SETTINGS = ["env.num_envs=4", "seeds=2", "hidden_sizes=[8]", "batch_size=16", "learning_starts=100",
            "total_env_steps=400", "device=cpu", "noise_persistence=0"]  # fmt: skip


def loop_of(config: Config, data: DataRanks) -> TrainingLoop:
    cpu = torch.device("cpu")
    return TrainingLoop(config, make_env(config, config.env.num_envs, cpu), cpu, data=data)


def half(x: Any, rank: int, axis: int = 1) -> Any:
    """Of the rows of a batch, or of each part of it."""
    if isinstance(x, torch.Tensor):
        return x.chunk(2, axis)[rank] if len(x) else x
    return None if x is None else type(x)(*(half(part, rank, axis) for part in x))


def actor_critic(whole: TrainingLoop, part: TrainingLoop, rank: int) -> None:
    """The batch and noise of one process, halved."""
    learner, own = whole.learner, part.learner
    sample = learner.sample_sequences_ if learner.memory_size else learner.sample_
    batch, masks = sample(whole.progress())
    noise = learner.noise_()
    estimators = Noise(half(noise.estimator.sample, rank), half(noise.estimator.further, rank, axis=2))
    own.learn(half(batch, rank), half(masks, rank), UpdateNoise(half(noise.target, rank), estimators), whole.progress())
    learner.learn(batch, masks, noise, whole.progress())


def reinforce(whole: TrainingLoop, part: TrainingLoop, rank: int) -> None:
    """The buffer of one process, its environments halved."""
    for name in ("obs", "action", "reward", "ends", "unused"):
        getattr(part.learner, name).copy_(getattr(whole.learner, name)[:, :, 2 * rank : 2 * rank + 2])
    part.learner.num_steps.copy_(whole.learner.num_steps)
    for loop in (whole, part):
        loop.learner.update(whole.progress())


def main(output: Path, kind: str) -> None:
    config = load_config(None, [*SETTINGS, *KINDS[kind], "parallel.data=true"])
    with joined() as ranks:
        data = DataRanks(ranks.rank, ranks.size)
        whole, part = loop_of(config, DataRanks()), loop_of(part_of_data(config, ranks.rank, 2), data)
        for _ in range(30):
            for loop in (whole, part):
                loop.step(loop.action.flatten(0, 1))
                loop.store_and_act(uniform=True)
        for name, tensor in whole.learner.normalizer.state().items():
            part.learner.normalizer.state()[name].copy_(tensor)
        (reinforce if kind == "reinforce" else actor_critic)(whole, part, ranks.rank)
        states = {"whole": whole.learner.state(), "part": part.learner.state()}
        names = [name for name in LEARNED if name in states["whole"]]
        tensors = {f"{of}/{name}": states[of][name].contiguous() for of in states for name in names}
        save_file(tensors, output / f"{ranks.rank}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
