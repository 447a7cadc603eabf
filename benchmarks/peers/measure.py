"""One measurement of one peer, in the peers' own virtual environment; prints JSON. Run by ../against_peers.py.

Matched work: CartPole-v1, MLPs of two hidden layers, one update of a batch per environment step, replay of 100,000, the
first 1,000 steps random and off the clock, nothing logged. PPO trains on rollouts and is measured in environment steps.
PureJaxRL and CleanRL are no packages: --checkout is the folder of github.com/luchris429/purejaxrl or
github.com/vwxyzjn/cleanrl. PureJaxRL's compilation is not on the clock: `compile_seconds` holds it. `mflop_per_update`
is the arithmetic of one member's update.
"""

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import sys
import textwrap
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import nn

RANDOM_STEPS, FIRST_UPDATES = 1000, 100  # before the clock starts; the first update of SBX is compiled
THRESHOLD, EPISODES, EVERY = 475, 10, 2000  # of --learning
Fields = dict[str, Any]  # of the JSON line


def sb3_dqn(args: argparse.Namespace) -> Fields:
    from stable_baselines3 import DQN

    return dqn(DQN, args)


def sbx_dqn(args: argparse.Namespace) -> Fields:
    from sbx import DQN

    return dqn(DQN, args)


def dqn(make: Callable[..., Any], args: argparse.Namespace) -> Fields:
    """Both have the same interface."""
    clock = make_clock()
    model = make(
        "MlpPolicy",
        args.env,
        buffer_size=100_000,
        learning_starts=RANDOM_STEPS,
        batch_size=args.batch,
        train_freq=1,
        gradient_steps=1,
        target_update_interval=500,
        policy_kwargs={"net_arch": args.hidden},
        seed=args.seed,
        device="cpu",
    )
    model.learn(args.steps + RANDOM_STEPS + FIRST_UPDATES, callback=clock)
    return {"result": args.steps / (time.perf_counter() - clock.started)}


def purejaxrl_dqn(args: argparse.Namespace) -> Fields:
    """Its own program with wider layers and an update in every step, run a second time: updates of all members."""
    import flax.linen as nn
    import jax

    jax.tree_map = jax.tree_util.tree_map  # which it calls, and newer versions of JAX lack
    spec = importlib.util.spec_from_file_location("dqn", args.checkout / "purejaxrl" / "dqn.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["dqn"] = module
    spec.loader.exec_module(module)

    class QNetwork(nn.Module):
        action_dim: int

        @nn.compact
        def __call__(self, x: Any) -> Any:
            for width in args.hidden:
                x = nn.relu(nn.Dense(width)(x))
            return nn.Dense(self.action_dim)(x)

    module.QNetwork = QNetwork
    config = {
        "NUM_ENVS": 1,
        "BUFFER_SIZE": 100_000,
        "BUFFER_BATCH_SIZE": args.batch,
        "TOTAL_TIMESTEPS": args.steps + args.batch,
        "EPSILON_START": 1.0,
        "EPSILON_FINISH": 0.05,
        "EPSILON_ANNEAL_TIME": 1000,
        "TARGET_UPDATE_INTERVAL": 500,
        "LR": 2.5e-4,
        "LEARNING_STARTS": args.batch,
        "TRAINING_INTERVAL": 1,
        "GAMMA": 0.99,
        "TAU": 1.0,
        "ENV_NAME": args.env,
    }
    seeds = jax.random.split(jax.random.PRNGKey(args.seed), args.members)
    started = time.perf_counter()
    train = jax.jit(jax.vmap(module.make_train(config))).lower(seeds).compile()
    compile_seconds = time.perf_counter() - started
    jax.block_until_ready(train(seeds))
    started = time.perf_counter()
    metrics = jax.block_until_ready(train(seeds))["metrics"]
    seconds = time.perf_counter() - started
    return {"result": float(metrics["updates"][:, -1].sum()) / seconds, "compile_seconds": compile_seconds}


def sb3_ppo(args: argparse.Namespace) -> Fields:
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    envs = make_vec_env(args.env, 8, seed=args.seed)
    model = PPO("MlpPolicy", envs, policy_kwargs={"net_arch": args.hidden}, seed=args.seed, device="cpu")
    started = time.perf_counter()
    model.learn(args.steps)
    return {"result": model.num_timesteps / (time.perf_counter() - started)}


def tianshou_discrete_sac(args: argparse.Namespace) -> Fields:
    from tianshou.algorithm import DiscreteSAC
    from tianshou.algorithm.modelfree.discrete_sac import DiscreteSACPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Collector, CollectStats, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.trainer import OffPolicyTrainerParams
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic

    env = gym.make(args.env)
    obs_shape, num_actions = env.observation_space.shape, int(env.action_space.n)
    envs = DummyVectorEnv([lambda: gym.make(args.env)])
    envs.seed(args.seed)

    def trunk() -> Any:
        return Net(state_shape=obs_shape, hidden_sizes=args.hidden)

    actor = DiscreteActor(preprocess_net=trunk(), action_shape=num_actions, softmax_output=False)
    critics = [DiscreteCritic(preprocess_net=trunk(), last_size=num_actions) for _ in range(2)]
    adam = AdamOptimizerFactory(lr=3e-4)
    algorithm = DiscreteSAC(
        policy=DiscreteSACPolicy(actor=actor, action_space=env.action_space),
        policy_optim=adam,
        critic=critics[0],
        critic_optim=adam,
        critic2=critics[1],
        critic2_optim=adam,
    )
    collector = Collector[CollectStats](algorithm, envs, VectorReplayBuffer(100_000, 1), exploration_noise=False)
    collector.reset()
    collector.collect(n_step=RANDOM_STEPS, random=True)
    started = time.perf_counter()
    algorithm.run_training(
        OffPolicyTrainerParams(
            training_collector=collector,
            test_collector=None,
            max_epochs=1,
            epoch_num_steps=args.steps,
            collection_step_num_env_steps=1,
            batch_size=args.batch,
            update_step_num_gradient_steps_per_sample=1.0,
            verbose=False,
            show_progress=False,
            test_in_training=False,
        )
    )
    return {"result": args.steps / (time.perf_counter() - started)}


def cleanrl_discrete_sac(args: argparse.Namespace) -> Fields:
    """Its script for Atari, with MLPs in place of convolutions and without logs; its code makes every update.

    CartPole-v1 has no time limit here: at one, the script reads a key that Gymnasium no longer has.
    """
    sys.path.insert(0, str(args.checkout))
    path = args.checkout / "cleanrl" / "sac_atari.py"
    definitions, main = path.read_text(encoding="utf-8").split('if __name__ == "__main__":\n')
    script: dict[str, Any] = {"__name__": "sac_atari", "__file__": str(path)}
    sys.modules["sac_atari"] = types.ModuleType("sac_atari")  # where tyro looks up the types of its settings
    exec(compile(definitions, str(path), "exec"), script)

    class SoftQNetwork(nn.Sequential):
        def __init__(self, envs: Any) -> None:
            sizes = [envs.single_observation_space.shape[0], *args.hidden, int(envs.single_action_space.n)]
            layers = [part for pair in itertools.pairwise(sizes) for part in (nn.Linear(*pair), nn.ReLU())]
            super().__init__(*layers[:-1])

    class Actor(SoftQNetwork):
        def get_action(self, obs: Any) -> Any:
            return script["original_actor"].get_action(self, 255.0 * obs)  # it divides pixels by 255

    class Buffer(script["ReplayBuffer"]):
        samples, started = 0, 0.0

        def sample(self, *arguments: Any) -> Any:
            Buffer.samples += 1
            if Buffer.samples == FIRST_UPDATES:
                Buffer.started = time.perf_counter()
            return super().sample(*arguments)

    class NoWriter:
        def __init__(self, *arguments: Any) -> None: ...

        add_text = add_scalar = close = __init__

    def make_env(env_id: str, *arguments: Any) -> Callable[[], Any]:
        return lambda: gym.make(env_id, max_episode_steps=10**9)

    script |= {"original_actor": script["Actor"], "SoftQNetwork": SoftQNetwork, "Actor": Actor, "make_env": make_env}
    script |= {"ReplayBuffer": Buffer, "SummaryWriter": NoWriter, "print": lambda *words: None}
    options = {
        "seed": args.seed,
        "env-id": args.env,
        "total-timesteps": RANDOM_STEPS + FIRST_UPDATES + args.steps,
        "buffer-size": 100_000,
        "batch-size": args.batch,
        "learning-starts": RANDOM_STEPS,
        "update-frequency": 1,
        "target-network-frequency": 1,
        "tau": 0.005,
    }
    sys.argv = [
        "sac_atari.py",
        "--no-cuda",
        *(word for key, value in options.items() for word in (f"--{key}", str(value))),
    ]
    exec(compile(textwrap.dedent(main), str(path), "exec"), script)
    return {"result": (Buffer.samples - FIRST_UPDATES) / (time.perf_counter() - Buffer.started)}


def sb3_ppo_learning(args: argparse.Namespace) -> Fields:
    """PPO with the hyperparameters that rl-baselines3-zoo tuned for CartPole-v1: until it first evaluates at 475."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    model = PPO(
        "MlpPolicy",
        make_vec_env(args.env, 8, seed=args.seed),
        n_steps=32,
        batch_size=256,
        gae_lambda=0.8,
        gamma=0.98,
        n_epochs=20,
        ent_coef=0.0,
        learning_rate=lambda left: left * 1e-3,
        clip_range=lambda left: left * 0.2,
        seed=args.seed,
        device="cpu",
    )
    watch = make_watch(gym.make(args.env), args.seed)
    model.learn(100_000, callback=watch)
    return {"result": {"env_steps": watch.reached_at, "seconds": watch.training_seconds}}


def make_clock() -> Any:
    from stable_baselines3.common.callbacks import BaseCallback

    class Clock(BaseCallback):
        started = 0.0

        def _on_step(self) -> bool:
            if self.num_timesteps == RANDOM_STEPS + FIRST_UPDATES:
                self.started = time.perf_counter()
            return True

    return Clock()


def make_watch(env: Any, seed: int) -> Any:
    from stable_baselines3.common.callbacks import BaseCallback

    class Watch(BaseCallback):
        """Greedy evaluations; seconds are of training alone."""

        reached_at: int | None = None
        training_seconds = 0.0
        next_at = EVERY

        def _on_training_start(self) -> None:
            self.resumed = time.perf_counter()

        def _on_step(self) -> bool:
            if self.num_timesteps < self.next_at:
                return True
            self.training_seconds += time.perf_counter() - self.resumed
            self.next_at += EVERY
            if sum(self.episode(i) for i in range(EPISODES)) / EPISODES >= THRESHOLD:
                self.reached_at = self.num_timesteps
            self.resumed = time.perf_counter()
            return self.reached_at is None

        def episode(self, number: int) -> float:
            obs, _ = env.reset(seed=1000 * seed + number)
            total, over = 0.0, False
            while not over:
                action, _ = self.model.predict(obs, deterministic=True)
                obs, reward, terminated, truncated, _ = env.step(int(action))
                total, over = total + float(reward), terminated or truncated
            return total

    return Watch()


def mflop(forward: int, backward: int, args: argparse.Namespace) -> float:
    """Multiplications and additions of an update's matrix products in millions: so many passes of a batch.

    A forward pass multiplies by each weight matrix once. A backward pass does so twice, for the derivatives by the
    weights and by the layer's input; the first layer's input needs none.
    """
    env = gym.make(args.env)
    sizes = [env.observation_space.shape[0], *args.hidden, int(env.action_space.n)]
    products = [rows * columns for rows, columns in itertools.pairwise(sizes)]
    return 2 * args.batch * (forward * sum(products) + backward * (sum(products) + sum(products[1:]))) / 1e6


DQN = (2, 1)  # forward passes: network and target; backward: network
DISCRETE_SAC = (8, 3)  # forward: actor at both observations; each critic twice, its target once; backward: all three
PEERS: dict[str, tuple[Callable[[argparse.Namespace], Fields], str, tuple[int, int] | None]] = {
    "sb3_dqn": (sb3_dqn, "stable-baselines3", DQN),
    "sbx_dqn": (sbx_dqn, "sbx-rl", DQN),
    "purejaxrl_dqn": (purejaxrl_dqn, "jax", DQN),
    "sb3_ppo": (sb3_ppo, "stable-baselines3", None),
    "tianshou_discrete_sac": (tianshou_discrete_sac, "tianshou", DISCRETE_SAC),
    "cleanrl_discrete_sac": (cleanrl_discrete_sac, "torch", DISCRETE_SAC),
    "sb3_ppo_learning": (sb3_ppo_learning, "stable-baselines3", None),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 128])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--members", type=int, default=1, help="of purejaxrl_dqn, side by side")
    parser.add_argument("--checkout", type=Path, help="of purejaxrl_dqn and cleanrl_discrete_sac")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measure, package, passes = PEERS[arguments.peer]
    fields = measure(arguments)
    if passes:
        fields["mflop_per_update"] = mflop(*passes, arguments)
    versions = {name: importlib.metadata.version(name) for name in (package, "torch", "gymnasium")}
    print(json.dumps(fields | {"versions": versions}))
