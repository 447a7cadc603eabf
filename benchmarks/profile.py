"""Where the time of a training iteration goes: by part, by operator, and as a trace for chrome://tracing or Perfetto.

    python benchmarks/profile.py --hidden 128 128
    python benchmarks/profile.py --compile on --trace trace.json

Takes the options of throughput.py. Parts nest: indented ones are within the one above. Each is timed where it runs,
between cold caches, which on a small network costs more than its arithmetic.
"""

import operator
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # not this folder: its profile.py would hide the library's

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from agent.algorithms.gumbel_actor_critic import GumbelActorCritic
from agent.training.loop import TrainingLoop
from benchmarks.throughput import FIRST_UPDATES, make_config, make_loop, options, run_until, synchronize

NUM_TRACED = 50
NUM_OPERATORS = 15


def main() -> None:
    parser = options(__doc__)
    parser.set_defaults(steps=1000)
    parser.add_argument("--trace", type=Path, help="write a trace of a few iterations here")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    config = make_config(args, args.members[0])
    is_captured = device.type == "cuda"
    with make_loop(config, device) as loop:
        start = run_until(loop, 0, config.learning_starts + FIRST_UPDATES * config.env.num_envs)
        with profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        ) as p:
            start = run_until(loop, start, NUM_TRACED * config.env.num_envs)
        if args.trace:
            p.export_chrome_trace(str(args.trace))
        clock = time.perf_counter()
        start = run_until(loop, start, args.steps * config.env.num_envs)
        whole = (time.perf_counter() - clock) / args.steps
        parts = {} if is_captured else time_parts(loop)  # a graph runs no Python that could be timed
        run_until(loop, start, args.steps * config.env.num_envs)
    kind = "a graph" if is_captured else "compiled" if loop.compiles else "plain"
    print(f"| part of an iteration ({kind}) | us |\n|---|---|")
    print(f"| whole, untimed inside | {whole * 1e6:,.0f} |")
    for name, seconds in parts.items():
        print(f"| {name} | {sum(seconds) / args.steps * 1e6:,.0f} |")
    print("\n| operator | calls an iteration | share of the time, itself |\n|---|---|---|")
    where, own_time = DeviceType.CPU, operator.attrgetter("self_cpu_time_total")
    if device.type == "cuda":
        where, own_time = DeviceType.CUDA, operator.attrgetter("self_device_time_total")
    events = [event for event in p.key_averages() if event.device_type == where and own_time(event) > 0]
    total = sum(map(own_time, events))
    for event in sorted(events, key=own_time, reverse=True)[:NUM_OPERATORS]:
        print(f"| {event.key} | {event.count / NUM_TRACED:.1f} | {own_time(event) / total:.0%} |")


def time_parts(loop: TrainingLoop) -> dict[str, list[float]]:
    """Puts clocks around the parts of the loop; fills the lists from then on."""
    learner = loop.learner
    assert isinstance(learner, GumbelActorCritic)
    seconds: dict[str, list[float]] = {}

    def time_it(owner: Any, method: str, name: str) -> None:
        function: Callable[..., Any] = getattr(owner, method)
        times = seconds.setdefault(name, [])

        def timed(*args: Any, **kwargs: Any) -> Any:
            clock = time.perf_counter()
            result = function(*args, **kwargs)
            synchronize(loop.device)
            times.append(time.perf_counter() - clock)
            return result

        setattr(owner, method, timed)

    programs = ("act", "update", "store")
    if loop.compiles:
        run = loop.run_part

        def timed_run(function: Callable[..., None], *args: Any) -> None:
            clock = time.perf_counter()
            run(function, *args)
            seconds.setdefault(f"compiled: {function.__name__}", []).append(time.perf_counter() - clock)

        loop.run_part = timed_run
        time_it(loop, "step", "step: environments")
        return seconds
    for name in (*programs, "step"):
        time_it(loop, name, name)
    time_it(learner, "sample_", "&nbsp; update: sample")
    time_it(learner, "noise_", "&nbsp; update: noise")
    time_it(learner, "learn", "&nbsp; update: learn")
    time_it(learner, "next_value", "&nbsp; &nbsp; value of the next observation")
    time_it(learner, "critic_loss", "&nbsp; &nbsp; critics forward")
    time_it(learner, "actor_loss", "&nbsp; &nbsp; actor forward")
    time_it(learner.optimizer, "step", "&nbsp; &nbsp; Adam")
    time_it(loop.metrics, "add_", "&nbsp; update: metrics")
    time_it(learner, "store", "&nbsp; store: replay")
    time_it(loop.normalizer, "update_", "&nbsp; store: normalizer")
    time_it(loop.episodes, "update_", "&nbsp; store: episode statistics")
    return seconds


if __name__ == "__main__":
    main()
