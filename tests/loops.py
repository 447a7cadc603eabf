"""A plain and an accelerated loop side by side; run as a script, compares compiled loops with plain ones.

The script is for a process of its own: a compiler cannot look through the tests' checks of shapes.
"""

import torch

import envs
from agent.config_loader import load_config
from agent.training.loop import TrainingLoop

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
]


def make_loop(device: str, *overrides: str) -> TrainingLoop:
    config = load_config(None, [*SETTINGS, *overrides])
    settings = {"kwargs": config.env.kwargs, "vectorization_mode": config.env.vectorization_mode}
    env = envs.make(config.env.id, 4, device=device, **settings)
    return TrainingLoop(config, env, torch.device(device), env_seed=1, learner_seed=2)


def run(*loops: TrainingLoop) -> None:
    """All of them in turn."""
    for iteration in range(NUM_ITERATIONS):
        for loop in loops:
            loop.iterate(2 * iteration)


def state(loop: TrainingLoop) -> dict[str, torch.Tensor]:
    learner = loop.learner
    masks = {"masks": learner.replay.kept_masks, "mask": loop.mask} if loop.mask is not None else {}
    return masks | {
        "actor": learner.actor.mlp.flat,
        "critics": learner.critics.mlp.flat,
        "targets": learner.target_critics.mlp.flat,
        "evaluated": learner.evaluated_actor.mlp.flat,
        "log_alpha": learner.log_alpha,
        "second moments": learner.optimizer.second_moments[0],
        "frames": learner.replay.frames,
        "steps of episodes": learner.replay.steps,
        "lengths": learner.replay.length,
        "starts": learner.replay.starts,
        "mean": loop.normalizer.mean,
        "obs": loop.obs,
        "action": loop.action,
        "metrics": loop.metrics.total,
        "episodes": loop.episodes.ended,
        "steps": loop.env_steps,
    }


if __name__ == "__main__":
    plain = [make_loop("cpu", *kind) for kind in KINDS]
    compiled = [make_loop("cpu", *kind, "compile=true") for kind in KINDS]
    run(*plain)
    run(*compiled)  # of different shapes, alive at once
    for ours, theirs in zip(compiled, plain, strict=True):
        assert ours.compiles and not theirs.compiles
        assert theirs.episodes.num_ended.sum() > 4
        for name, tensor in state(theirs).items():
            torch.testing.assert_close(
                state(ours)[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )
    print("the same")
