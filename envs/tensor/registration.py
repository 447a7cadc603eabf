"""Registers the tensor environments with Gymnasium as `Tensor/<Name>`."""

import gymnasium

TWINS = {  # of Gymnasium's: same name, arguments, time limit and threshold; a single one is Gymnasium's own
    "Tensor/Acrobot-v1": "envs.tensor.acrobot:AcrobotVectorEnv",
    "Tensor/CartPole-v1": "envs.tensor.cartpole:CartPoleVectorEnv",
    "Tensor/FrozenLake-v1": "envs.tensor.frozen_lake:FrozenLakeVectorEnv",
    "Tensor/FrozenLake8x8-v1": "envs.tensor.frozen_lake:FrozenLakeVectorEnv",
    "Tensor/MountainCar-v0": "envs.tensor.mountain_car:MountainCarVectorEnv",
}
OWN: dict[str, tuple[str, int | None]] = {  # module:Name, of NameEnv and NameVectorEnv, and the time limit
    "Tensor/ChainBandit-v0": ("envs.tensor.chain_bandit:ChainBandit", None),
    "Tensor/Harvest-v0": ("envs.tensor.harvest:Harvest", 200),
    "Tensor/KCartPole-v0": ("envs.tensor.k_cartpole:KCartPole", 500),
    "Tensor/KWalkers-v0": ("envs.tensor.k_walkers:KWalkers", 200),
    "Tensor/ParityBandit-v0": ("envs.tensor.parity_bandit:ParityBandit", None),
}


def register_tensor_envs() -> None:
    """Registers every tensor environment; a second call changes nothing."""
    for env_id, vector_entry_point in TWINS.items():
        if env_id not in gymnasium.registry:
            twin = gymnasium.spec(env_id.removeprefix("Tensor/"))
            gymnasium.register(
                env_id,
                twin.entry_point,
                vector_entry_point=vector_entry_point,
                max_episode_steps=twin.max_episode_steps,
                reward_threshold=twin.reward_threshold,
                kwargs=dict(twin.kwargs),
            )
    for env_id, (name, max_episode_steps) in OWN.items():
        if env_id not in gymnasium.registry:
            gymnasium.register(
                env_id,
                f"{name}Env",
                vector_entry_point=f"{name}VectorEnv",
                max_episode_steps=max_episode_steps,
            )
