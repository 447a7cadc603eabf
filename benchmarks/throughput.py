"""How fast a population trains: updates, environment steps, arithmetic, memory.

    python benchmarks/throughput.py --members 1 8 --hidden 128 128 --batch 128 --steps 5000
    python benchmarks/throughput.py --device cuda --env Tensor/CartPole-v1 --members 1 256 1024 --json
    python benchmarks/throughput.py --env Tensor/CartPole-v1 --envs 1024 --only-envs

Matched work: two hidden layers, one update per environment step of a member, nothing logged or evaluated. What runs is
the trainer's own loop, environments included. `setup_s` is everything before the clock starts: imports, compilation,
random first steps, the first updates.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

STARTED = time.perf_counter()
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # not this folder: its profile.py would hide the library's

import torch
from torch.utils.flop_counter import FlopCounterMode

from agent.algorithms.gumbel_actor_critic import GumbelActorCritic
from agent.config import Config
from agent.config_loader import load_config
from agent.networks.native import FLAGS
from agent.networks.population import Population
from agent.training.acceleration import CudaGraphs
from agent.training.loop import TrainingLoop
from agent.training.setup import make_env
from envs import UserError

FIRST_UPDATES = 100


@dataclasses.dataclass(frozen=True)
class Throughput:
    """One measurement; an update moves all members at once, a member update one of them."""

    env: str
    device: str
    members: int
    num_envs: int
    hidden: list[int]
    batch: int
    compiled: bool
    steps: int
    setup_s: float
    updates_per_s: float
    member_updates_per_s: float
    env_steps_per_s: float  # of all members
    gflops: float  # of matrix products alone, in 10^9 operations a second
    peak_gflops: float
    peak_fraction: float
    peak_memory_mib: float


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    parser.add_argument("--only-envs", action="store_true", help="step environments with random actions, learn nothing")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    started = STARTED
    for members in args.members:
        try:
            config = make_config(args, members)
            if args.only_envs:
                steps_per_s = environment_speed(config, device, args.steps)
                print(json.dumps({"env": args.env, "num_envs": members * args.envs, "env_steps_per_s": steps_per_s}))
                continue
            row = measure(config, device, args.steps, started)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        print(json.dumps(dataclasses.asdict(row)) if args.json else text(row), flush=True)
        started = time.perf_counter()


def options(description: str | None) -> argparse.ArgumentParser:
    """What to train, where and how; shared by the benchmarks of speed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1", help="Gymnasium id; Tensor/… stays on the device")
    parser.add_argument("--members", type=int, nargs="+", default=[1], help="population sizes, one row each")
    parser.add_argument("--envs", type=int, default=1, help="environments of a member")
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 128], help="width of each hidden layer")
    parser.add_argument("--batch", type=int, default=128, help="transitions of an update, per member")
    parser.add_argument("--steps", type=int, default=20_000, help="environment steps of a member on the clock")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--compile", choices=["auto", "on", "off"], default="auto", help="auto: as training would")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="any other setting of train.py")
    return parser


def make_config(args: argparse.Namespace, members: int) -> Config:
    compiles = {"auto": "null", "on": "true", "off": "false"}[args.compile]
    return load_config(
        None,
        [
            f"env.id={args.env}",
            f"env.num_envs={args.envs}",
            f"seeds={members}",
            f"hidden_sizes={args.hidden}",
            f"batch_size={args.batch}",
            f"total_env_steps={args.steps + 2000}",
            f"compile={compiles}",
            f"device={args.device}",
            f"num_threads={args.threads}",
            *args.set,
        ],
    )


@contextlib.contextmanager
def make_loop(config: Config, device: torch.device) -> Iterator[TrainingLoop]:
    """The loop of a run without the run: no folder, no log, no evaluation."""
    with contextlib.closing(make_env(config, config.env.num_envs, device)) as env:
        yield TrainingLoop(config, env, device)


def run_until(loop: TrainingLoop, env_steps: int, more: int) -> int:
    """Iterates for so many more environment steps of a member; returns where it stands."""
    end = env_steps + more
    while env_steps < end:
        loop.run_iteration(env_steps)
        env_steps += loop.num_envs
    synchronize(loop.device)
    return env_steps


def measure(config: Config, device: torch.device, steps: int, started: float) -> Throughput:
    num_members, num_envs = len(config.members()), config.env.num_envs
    with make_loop(config, device) as loop:
        first_steps = run_until(loop, 0, config.learning_starts + FIRST_UPDATES * num_envs)
        setup = time.perf_counter() - started
        first_updates, clock = loop.num_updates, time.perf_counter()
        env_steps = run_until(loop, first_steps, steps)
        seconds = time.perf_counter() - clock
    updates = (loop.num_updates - first_updates) / seconds
    gflops, peak = updates * operations(loop) / 1e9, peak_gflops(device)
    return Throughput(
        env=config.env.id,
        device=device_name(device),
        members=num_members,
        num_envs=num_envs,
        hidden=list(config.hidden_sizes),
        batch=config.batch_size,
        compiled=loop.compiles,
        steps=env_steps - first_steps,
        setup_s=round(setup, 2),
        updates_per_s=round(updates, 1),
        member_updates_per_s=round(updates * num_members, 1),
        env_steps_per_s=round((env_steps - first_steps) * num_members / seconds, 1),
        gflops=round(gflops, 2),
        peak_gflops=round(peak, 1),
        peak_fraction=round(gflops / peak, 3),
        peak_memory_mib=round(peak_memory(device), 1),
    )


def environment_speed(config: Config, device: torch.device, steps: int) -> float:
    """Environment steps a second, all environments together, under random actions; captured where that is possible."""
    env = make_env(config, config.env.num_envs, device)
    env.reset([member.seed for member in config.members()])
    num_choices = torch.tensor(env.actions.num_choices, device=device)
    actions = (torch.rand((16, env.num_envs, len(num_choices)), device=device) * num_choices).long()
    total = torch.zeros((), device=device)  # something must need the steps

    def step_through() -> None:
        for action in actions:
            total.add_(env.step(action).reward.sum())

    turn = step_through
    if device.type == "cuda" and env.is_tensor_program:
        graphs = CudaGraphs()
        turn = functools.partial(graphs, step_through)
    for _ in range(10):
        turn()
    synchronize(device)
    clock = time.perf_counter()
    num_turns = max(1, steps // len(actions))
    for _ in range(num_turns):
        turn()
    synchronize(device)
    seconds = time.perf_counter() - clock
    env.close()
    return round(num_turns * len(actions) * env.num_envs / seconds, 1)


def operations(loop: TrainingLoop) -> int:
    """Multiplications and additions of one update's matrix products, over all members."""
    learner, batch = loop.learner, loop.config.batch_size

    def passes(network: Population, forward: int, to_parameters: int = 0, to_input: int = 0) -> int:
        products = [
            weight.numel()
            for name, weight in network.tensors().items()
            if name.endswith(".weight") and weight.ndim == 3
        ]
        whole, hidden = sum(products), sum(products[1:])  # the first layer's own input gradient is not always needed
        return 2 * batch * (forward * whole + to_parameters * (whole + hidden) + to_input * whole)

    if not isinstance(learner, GumbelActorCritic):
        raise UserError("algorithm: throughput is that of gumbel_actor_critic")
    samples = 0 if learner.critics.is_multilinear else learner.estimator.num_samples
    return (
        passes_of_encoder(learner)
        + passes(learner.actor.network, forward=2, to_parameters=1)
        + passes(learner.critics.network, forward=1 + samples, to_parameters=1, to_input=samples)
        + passes(learner.target_critics.network, forward=1)
    )


def passes_of_encoder(learner: GumbelActorCritic) -> int:
    """Two forward and one backward, which is worth two."""
    if learner.encoder is None:
        return 0
    if learner.memory_size:
        raise UserError("network.memory: the operations of a memory are not counted; use none")
    obs_size = learner.normalizer.mean.shape[1]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        learner.encoder(torch.zeros(learner.num_members, learner.config.batch_size, obs_size, device=learner.device))
    return 4 * counter.get_total_flops()


def peak_gflops(device: torch.device) -> float:
    """The best float32 rate in 10^9 operations a second: of a core's multiply-adds; of a GPU's matrix products."""
    if device.type == "cuda":
        return gemm_peak(device)
    flags = FLAGS.get(torch.backends.cpu.get_cpu_capability(), ())
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "fma_peak")
        source = str(Path(__file__).with_name("fma_peak.cpp"))
        subprocess.run([os.environ.get("CXX") or "g++", "-O3", *flags, source, "-o", program], check=True)
        return float(subprocess.run([program], check=True, capture_output=True, text=True).stdout)


def gemm_peak(device: torch.device, size: int = 1024) -> float:
    """Of matrix products of this size."""
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    best = float("inf")
    for _ in range(12):
        synchronize(device)
        clock = time.perf_counter()
        for _ in range(4):
            a @ b
        synchronize(device)
        best = min(best, (time.perf_counter() - clock) / 4)
    return 2 * size**3 / best / 1e9


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_memory(device: torch.device) -> float:
    """MiB: of the device's allocator, or of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return "cpu"


def text(row: Throughput) -> str:
    return (
        f"{row.env}, {row.members} member(s) of {row.hidden}, batch {row.batch}: {row.updates_per_s:,.0f} updates/s, "
        f"{row.member_updates_per_s:,.0f} member updates/s, {row.env_steps_per_s:,.0f} env steps/s, "
        f"{row.gflops:.1f} of {row.peak_gflops:.0f} GFLOP/s ({row.peak_fraction:.0%}), "
        f"{row.peak_memory_mib:,.0f} MiB, set-up {row.setup_s:.1f} s"
    )


if __name__ == "__main__":
    main()
