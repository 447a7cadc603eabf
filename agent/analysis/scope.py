"""Which settings make a difference: to an algorithm, and to what is learned at all."""

from collections.abc import Sequence

# Settings that the other algorithm does not read; a name ending in "." stands for its section.
ONE_ALGORITHM_ONLY = {
    "reinforce": ("reinforce.",),
    "gumbel_actor_critic": (
        "learning_rate",
        "n_step",
        "n_step_end",
        "batch_size",
        "updates_per_step",
        "learning_starts",
        "replay_capacity",
        "frame_stack",
        "target_update_rate",
        "policy_average_rate",
        "noise_persistence",
        "noise_persistence_max",
        "estimator.",
        "tau.",
        "alpha.",
        "target_entropy.",
        "critic.",
    ),
}
# Settings that do not change what is learned: which members there are, where they run, what is recorded of them.
NOT_LEARNING = (
    "seed", "seeds", "sweep", "run_dir", "device", "num_threads", "compile", "log_every_env_steps", "return_threshold",
    "evaluation.", "checkpoint.", "wandb.", "env.timeout_seconds",
)  # fmt: skip


def is_among(key: str, names: Sequence[str]) -> bool:
    """Whether a dotted key is one of the names, or lies in one of the sections."""
    return any(key.startswith(name) if name.endswith(".") else key == name for name in names)


def is_read_by(algorithm: str, key: str) -> bool:
    """Whether a setting makes a difference to an algorithm."""
    return not any(is_among(key, names) for other, names in ONE_ALGORITHM_ONLY.items() if other != algorithm)
