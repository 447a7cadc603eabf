"""The processes that share a run: `torchrun` starts them, and each is a rank.

    torchrun --nproc-per-node=4 train.py cartpole seeds=16

Rank 0 writes the run folder and shows the run. The other ranks send it their metrics and weights, as JSON and as the
bytes of tensors.
"""

import contextlib
import itertools
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous
from torch.nn.functional import pad

from agent.exit_codes import RankLost, Stopped
from envs.errors import UserError

PATIENCE = timedelta(minutes=5)  # for all ranks to begin
SECONDS_TO_LEAVE = 3.0
BEGUN = "begun"  # in the store: whether an attempt of torchrun's has begun a run
TOLD = "told"  # in the store: the exit code of the rank that tells the user why the run ends
Value = TypeVar("Value")


class Ranks:
    """All ranks, as one of them sees them. All of them call the same methods, in the same order.

    Without arguments: a process alone, for which every method returns what it was given.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, store: dist.Store | None = None, lasting: dist.Store | None = None
    ) -> None:
        """`store`: of this attempt. `lasting`: of all attempts, where torchrun begins again."""
        self.rank, self.size, self.store, self.lasting = rank, size, store, lasting
        self.num_rounds = 0  # of work that was taken

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def may_restart(self) -> bool:
        """Whether torchrun begins again where a rank has died."""
        return self.size > 1 and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0

    @property
    def were_restarted(self) -> bool:
        """Whether torchrun has begun again, with a run that an earlier attempt had begun."""
        return self.lasting is not None and self.lasting.check([BEGUN])

    def note_begun(self) -> None:
        """From here on `were_restarted` is true in later attempts."""
        if self.lasting is not None:
            self.lasting.set(BEGUN, "yes")

    def share(self, count: int) -> range:
        """Which of `count` things are this rank's, where each rank takes some in a row."""
        return shares(count, self.size)[self.rank]

    def exchange(self, value: Any) -> list[Any]:
        """The values of all ranks, each one that JSON can say."""
        if self.size == 1:
            return [value]
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        with lost_ranks_told():
            lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(lengths, torch.tensor([len(own)]))
            longest = int(max(lengths))
            texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(texts, pad(own, (0, longest - len(own))))
        return [json.loads(text[:n].numpy().tobytes()) for text, n in zip(texts, map(int, lengths), strict=True)]

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What rank 0 makes, one that JSON can say; the others only wait for it."""
        found: Value = self.exchange(make() if self.is_first else None)[0]
        return found

    def collect(self, values: Sequence[Value]) -> list[Value]:
        """The values of all ranks, those of rank 0 first."""
        return [value for of_rank in self.exchange(list(values)) for value in of_rank]

    def largest(self, *numbers: float) -> list[float]:
        """Of each of these numbers the largest of all ranks."""
        if self.size == 1:
            return list(numbers)
        found = torch.tensor(numbers, dtype=torch.float64)
        with lost_ranks_told():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.tolist()

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """At rank 0 each tensor with the rows of all ranks, on the CPU; nothing at the others.

        Of a tensor without axes, rank 0's. Where other axes are of different lengths, zeros follow the shorter ones.
        """
        if self.size == 1:
            return dict(tensors)
        shapes = self.exchange({name: list(x.shape) for name, x in tensors.items()})
        found = {}
        for name, x in tensors.items():
            if x.ndim == 0:
                found[name] = x.cpu()
                continue
            lengths = [of_rank[name][0] for of_rank in shapes]
            rest = [max(of_axis) for of_axis in zip(*(of_rank[name][1:] for of_rank in shapes), strict=True)]
            own = fitted(x.detach().cpu(), rest)
            if not self.is_first:
                send(own, to=0)
                continue
            whole = torch.empty((sum(lengths), *rest), dtype=x.dtype)
            for rank, rows in enumerate(whole.split(lengths)):
                if rank == 0:
                    rows.copy_(own)
                else:
                    receive(rows, rank)
            found[name] = whole
        return found if self.is_first else {}

    def scatter(self, tensors: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
        """Of what rank 0 has, each rank's rows: tensors have those of `count` members along their first axis."""
        if self.size == 1:
            return dict(tensors)
        found = {}
        for name, (shape, dtype) in self.from_first(lambda: layout(tensors)).items():
            of_member = shape[0] // count if shape else 1
            lengths = [len(own) * of_member for own in shares(count, self.size)]
            if not self.is_first:
                rows = [lengths[self.rank], *shape[1:]] if shape else []
                found[name] = receive(empty(rows, dtype), 0)
                continue
            parts = tensors[name].split(lengths) if shape else [tensors[name]] * self.size
            for rank in range(1, self.size):
                send(parts[rank], to=rank)
            found[name] = parts[0]
        return found

    def take(self, count: int) -> Iterator[int]:
        """Pieces of work by number, each for the rank that is free first. Ends once all of them are done."""
        if self.store is None:
            yield from range(count)
            return
        self.num_rounds += 1
        while (number := self.store.add(f"taken{self.num_rounds}", 1) - 1) < count:
            yield number
        self.store.add(f"done{self.num_rounds}", 1)
        while self.store.add(f"done{self.num_rounds}", 0) < self.size:  # which may take hours
            if self.store.check([TOLD]):
                raise RankLost("another rank has ended")
            time.sleep(0.2)

    def gather_each(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """At rank 0 the tensors of each rank, on the CPU; nothing at the others."""
        if self.size == 1:
            return [dict(tensors)]
        layouts = self.exchange(layout(tensors))
        if not self.is_first:
            for x in tensors.values():
                send(x, to=0)
            return []
        others = [
            {name: receive(empty(*of), rank) for name, of in layouts[rank].items()} for rank in range(1, self.size)
        ]
        return [dict(tensors), *others]

    def scatter_each(self, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Of what rank 0 has for each rank, this rank's."""
        if self.size == 1:
            return dict(parts[0])
        own: dict[str, Any] = self.from_first(lambda: [layout(part) for part in parts])[self.rank]
        if not self.is_first:
            return {name: receive(empty(*of), 0) for name, of in own.items()}
        for rank, part in enumerate(parts[1:], 1):
            for x in part.values():
                send(x, to=rank)
        return dict(parts[0])

    def pass_on(
        self, tensors: Mapping[str, Tensor] | None, from_rank: int, to_rank: int, like: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """At one rank the tensors of another, which may be itself; nothing at the others.  `like`: of such shapes."""
        if from_rank == to_rank:
            return tensors or {}
        if self.rank == from_rank:
            for x in (tensors or {}).values():
                send(x, to_rank)
        if self.rank != to_rank:
            return {}
        return {name: receive(torch.empty(x.shape, dtype=x.dtype), from_rank) for name, x in like.items()}

    def require_alike(self, what: str, facts: Mapping[str, Any]) -> None:
        """UserError where a rank has other facts than rank 0, with those that differ."""
        known = self.exchange(dict(facts))
        for rank, own in enumerate(known):
            differing = [key for key in known[0] | own if known[0].get(key) != own.get(key)]
            if differing:
                listed = "; ".join(f"{key}: {known[0].get(key)!r} at rank 0, {own.get(key)!r}" for key in differing)
                raise UserError(f"rank {rank} has other {what} than rank 0: {listed}")

    def may_tell(self, code: int) -> bool:
        """Whether this rank is the one to tell the user why the run ends; the first that asks is."""
        if self.store is None:
            return True
        try:
            return self.store.compare_set(TOLD, "", f"{code} {self.rank}").decode() == f"{code} {self.rank}"
        except RuntimeError:  # the store is gone with the rank that held it
            return True

    def told(self, own: int) -> int:
        """The exit code of the rank that tells the user why the run ends; this rank's own where it is not known."""
        try:
            return int(self.store.get(TOLD).split()[0]) if self.store is not None else own
        except RuntimeError:
            return own

    def leave(self) -> None:
        """Rank 0, which may hold the store, leaves last; it does not wait for those that have died."""
        with contextlib.suppress(RuntimeError):
            if self.store is not None and self.store.add("left", 1) < self.size and self.is_first:
                ends = time.monotonic() + SECONDS_TO_LEAVE
                while self.store.add("left", 0) < self.size and time.monotonic() < ends:
                    time.sleep(0.05)


def local_rank() -> int | None:
    """This process's number on its machine; None where torchrun has not started it."""
    return int(os.environ["LOCAL_RANK"]) if "LOCAL_RANK" in os.environ else None


ALONE = Ranks()
_joins = itertools.count()  # of this process, each with keys of its own
_current: list[Ranks] = []  # of the group that this process has joined, if it has


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that torchrun has started, this process one of them; alone where it was not started so.

    Where the run ends early one rank tells why, the others end in silence.
    """
    if _current or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield _current[0] if _current else ALONE
        return
    ranks = join()
    _current.append(ranks)
    try:
        yield ranks
    except (UserError, RankLost, Stopped) as error:
        code = 2 if isinstance(error, UserError) else 1
        if isinstance(error, Stopped):
            if not ranks.is_first:
                raise SystemExit(128 + error.signum) from None
        elif not ranks.may_tell(code):
            raise SystemExit(ranks.told(code)) from None
        raise
    except KeyboardInterrupt:
        if not ranks.is_first:
            raise SystemExit(130) from None
        raise
    finally:
        _current.clear()
        ranks.leave()
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


@contextlib.contextmanager
def one_speaks(ranks: Ranks) -> Iterator[None]:
    """While entered rank 0 alone warns of what all of them would."""
    logger = logging.getLogger("agent")
    level = logger.level
    if not ranks.is_first:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def join() -> Ranks:
    """Meets the other ranks.  UserError where they cannot be reached."""
    where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=PATIENCE)))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun keeps the store where it begins again
        own = dist.PrefixStore(f"gumbel/{attempt}/{next(_joins)}", store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=timedelta(hours=1))
    except (RuntimeError, ValueError) as error:
        why = in_short(error)
        if "EADDRINUSE" in str(error) or "address already in use" in str(error):
            why = "the port is in use; choose another, torchrun --master-port=29501 or MASTER_PORT=29501"
        raise UserError(f"the ranks cannot meet at {where}: {why}") from None
    return Ranks(rank, size, dist.PrefixStore("work", own), dist.PrefixStore("lasting", store))


@contextlib.contextmanager
def lost_ranks_told() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankLost(f"another rank has ended or cannot be reached ({in_short(error)})") from None


def in_short(error: Exception) -> str:
    """The first sentence, without the place in PyTorch's sources."""
    line = str(error).strip().partition("\n")[0]
    return re.sub(r"\[/[^]]*\] ?", "", line).partition(". ")[0]


def shares(count: int, size: int) -> list[range]:
    """`count` things in order, dealt to `size` ranks as evenly as can be."""
    ends = [count * rank // size for rank in range(size + 1)]
    return [range(first, last) for first, last in zip(ends[:-1], ends[1:], strict=True)]


def layout(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Their shapes and types, as JSON has them."""
    return {name: [list(x.shape), str(x.dtype)] for name, x in tensors.items()}


def empty(shape: Sequence[int], dtype: str) -> Tensor:
    """To receive a tensor of a layout."""
    return torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))


def as_bytes(x: Tensor) -> Tensor:
    return x.contiguous().flatten().view(torch.uint8)


def fitted(x: Tensor, rest: Sequence[int]) -> Tensor:
    """With zeros up to these lengths of all axes but the first."""
    missing = [n for length, have in zip(rest, x.shape[1:], strict=True) for n in (length - have, 0)]
    return pad(x, missing[::-1]) if any(missing) else x


def send(x: Tensor, to: int) -> None:
    if x.numel():
        with lost_ranks_told():
            dist.send(as_bytes(x.detach().cpu()), to)


def receive(x: Tensor, from_rank: int) -> Tensor:
    """Fills a tensor that is contiguous, and returns it."""
    if x.numel():
        with lost_ranks_told():
            dist.recv(as_bytes(x), from_rank)
    return x
