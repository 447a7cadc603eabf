"""The environments that are tensors themselves, registered with Gymnasium as `Tensor/<Name>`."""

import gymnasium

TWINS = {  # of Gymnasium's: same name, arguments, time limit and threshold; a single one is Gymnasium's own
    "Tensor/Acrobot-v1": "envs.acrobot:AcrobotVectorEnv",
    "Tensor/CartPole-v1": "envs.cartpole:CartPoleVectorEnv",
    "Tensor/FrozenLake-v1": "envs.frozen_lake:FrozenLakeVectorEnv",
    "Tensor/FrozenLake8x8-v1": "envs.frozen_lake:FrozenLakeVectorEnv",
    "Tensor/MountainCar-v0": "envs.mountain_car:MountainCarVectorEnv",
}
HARVEST, HARVEST_TIME_LIMIT = "Tensor/Harvest-v0", 200


def register_native() -> None:
    """Registers every environment of this kind with Gymnasium; a second call changes nothing."""
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
    if HARVEST not in gymnasium.registry:
        gymnasium.register(
            HARVEST,
            "envs.harvest:HarvestEnv",
            vector_entry_point="envs.harvest:HarvestVectorEnv",
            max_episode_steps=HARVEST_TIME_LIMIT,
        )
