"""Experience on the device: a ring of slots per environment that keeps each observation, and each frame of it, once."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from agent.state import State
from envs.errors import UserError
from envs.masks import Masks


class Batch(NamedTuple):
    """Sampled transitions. `discount` is gamma^m (1 - terminated): n-step, end of task and time limit in one number."""

    obs: Float[Tensor, "P B D"]
    action: Int[Tensor, "P B K"]
    reward: Float[Tensor, "P B"]  # sum_{i<m} gamma^i r_i
    discount: Float[Tensor, "P B"]
    next_obs: Float[Tensor, "P B D"]  # m steps on


class Window(NamedTuple):
    """Sampled transitions before it is decided how many of their n steps count: up to `length` of them can."""

    first_row: Int[Tensor, "P B"]
    slot: Int[Tensor, "P B"]
    action: Int[Tensor, "P B K"]
    reward: Float[Tensor, "P B T"]  # of each step
    discount: Float[Tensor, "P B T"]  # gamma (1 - terminated)
    length: Int[Tensor, "P B"]


class Replay:
    """The newest slots of each environment, [P, E, S], and the n-step windows that start in them.

    Observations of an episode lie in consecutive slots, the terminal one included: the successor of slot i, m steps on,
    is slot i + m. Where an observation stacks F frames a slot keeps the newest only, an observation is slot i and the
    F - 1 before it, and an episode begins with F - 1 slots of older frames.

    A window grows while steps come in, until it holds n steps or its episode ends; that of the newest step holds one.
    `starts` lists the slots that start a transition, oldest first, so that one draw finds one of them, uniformly.

    With a mask shape [K, N] the mask of an observation lies in the slot of its newest frame.

    Memory of a slot: a frame, 4 (K + 3) bytes of the step, 9 of lists, with masks K N bytes more; 10^6 slots of 84x84x4
    uint8 take 6.6 GiB. A step takes a slot, and the end of an episode 1 + F - 1 more.
    """

    def __init__(
        self,
        num_members: int,
        num_envs: int,
        capacity: int,
        obs_size: int,
        num_factors: int,
        n_step: int,
        gamma: Float[Tensor, " P"],
        *,
        max_steps: int | None = None,
        frame_stack: int = 1,
        frame_order: Sequence[int] | None = None,
        obs_dtype: torch.dtype = torch.float32,
        mask_shape: tuple[int, int] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """
        Args:
            capacity: slots of a member.
            max_steps: of a member, that will be added; no more slots are made than so many steps can fill.
            frame_stack: F.
            frame_order: where the numbers of the frames, one after the other, stand in an observation; None: as they
                come.

        Raises:
            UserError: the device's memory does not hold it.
        """
        # Slots that one step may use: its successor, and after an end the frames of the next episode's first obs.
        self.lookahead = 1 + frame_stack
        slots = capacity // num_envs
        if max_steps is not None:  # if every step ended an episode
            slots = min(slots, frame_stack + (1 + frame_stack) * -(-max_steps // num_envs) + self.lookahead)
        self.num_slots = max(slots, n_step + 2 * self.lookahead + 1)
        self.num_factors, self.frame_stack, self.obs_size = num_factors, frame_stack, obs_size
        num_rows = num_members * num_envs * self.num_slots
        self.num_bytes = num_rows * slot_bytes(obs_size // frame_stack, obs_dtype, num_factors, mask_shape)
        require_memory(self.num_bytes, num_rows, obs_size // frame_stack * obs_dtype.itemsize, torch.device(device))
        self.frames = torch.zeros((num_rows, obs_size // frame_stack), dtype=obs_dtype, device=device)
        self.steps = torch.zeros((num_rows, num_factors + 2), device=device)  # action, reward, gamma (1 - terminated)
        self.length = torch.zeros(num_rows, dtype=torch.int32, device=device)  # of the window, up to n
        self.is_start = torch.zeros(num_rows, dtype=torch.bool, device=device)
        self.starts = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.kept_masks: Bool[Tensor, "R K N"] | None = None
        if mask_shape is not None:
            self.kept_masks = torch.zeros((num_rows, *mask_shape), dtype=torch.bool, device=device)

        shape = (num_members, num_envs)
        first_row = self.num_slots * torch.arange(num_members * num_envs, device=device)
        self.first_row: Int[Tensor, "P E"] = first_row.view(shape)
        self.newest = torch.full(shape, frame_stack - 1, device=device)  # slot of the newest observation
        self.age = torch.zeros(shape, dtype=torch.int64, device=device)  # steps since the episode began
        self.num_started = torch.zeros(shape, dtype=torch.int64, device=device)
        self.num_dropped = torch.zeros(shape, dtype=torch.int64, device=device)
        self.gamma = gamma.unsqueeze(-1)
        self.lag = torch.arange(n_step, device=device)
        self.ahead = torch.arange(1, 1 + self.lookahead, device=device)
        self.num_restored = 0  # slots of a checkpoint
        self.order: Int64[Tensor, " D"] | None = None
        if frame_order is not None and list(frame_order) != list(range(obs_size)):
            self.order = torch.tensor(frame_order, device=device)
            self.inverse = self.order.argsort()
        self.set_offsets_()

    def set_offsets_(self) -> None:
        """Of the slots that hold the frames of obs and the newest of next_obs."""
        self.written = torch.arange(-self.frame_stack + 1, 2, device=self.frames.device)
        self.stacked = self.written[:-1]

    def add_(
        self,
        obs: Float[Tensor, "P E D"],
        action: Int[Tensor, "P E K"],
        reward: Float[Tensor, "P E"],
        terminated: Bool[Tensor, "P E"],
        truncated: Bool[Tensor, "P E"],
        next_obs: Float[Tensor, "P E D"],
        valid: Bool[Tensor, "P E"],
        masks: Masks | None = None,
    ) -> None:
        """Writes one step of every environment; where not valid, leaves no trace. `masks` are of obs and next_obs."""
        if self.order is not None:
            obs, next_obs = obs[..., self.order], next_obs[..., self.order]
        frames = torch.cat([obs, next_obs[..., -self.frames.shape[1] :]], -1).to(self.frames.dtype)
        self.frames[self.rows(self.newest, self.written)] = frames.unflatten(-1, (-1, self.frames.shape[1]))
        if self.kept_masks is not None and masks is not None:
            self.kept_masks[self.rows(self.newest, self.written[-2:])] = torch.stack(masks, 2)

        # Room for the slots that this step may use: the transitions that started there are the oldest.
        row, ahead = self.first_row + self.newest, self.rows(self.newest, self.ahead)
        self.num_dropped.add_(self.is_start[ahead].sum(-1))
        self.is_start.index_fill_(0, ahead.flatten(), False)  # a number as a value would come from the CPU
        self.is_start[row] = valid
        self.starts[self.first_row + self.num_started % self.num_slots] = self.newest
        self.num_started.add_(valid)

        # The step joins the windows of the last n steps of the episode, its own included.
        discount = self.gamma * ~terminated
        self.steps[row] = torch.cat([action, torch.stack([reward, discount], -1)], -1)
        rows = self.rows(self.newest, -self.lag)
        grows = (self.lag <= self.age.unsqueeze(-1)) & valid.unsqueeze(-1)
        self.length[rows] = self.length[rows] * (self.lag > 0) + grows

        ended = terminated | truncated
        self.newest.add_(valid * (1 + self.frame_stack * ended)).remainder_(self.num_slots)
        self.age.add_(valid).mul_(~(ended & valid))

    def unstack_(self) -> None:
        """Keeps whole observations from here on, those so far included: they do not stack frames after all.

        Tensors do not stay in place.
        """
        of_slot = torch.arange(self.num_slots, device=self.frames.device)
        slots = (of_slot.unsqueeze(-1) + self.stacked) % self.num_slots
        blocks = self.frames.view(-1, self.num_slots, self.frames.shape[1])
        num_rows, num_bytes = len(self.frames), self.obs_size * self.frames.itemsize
        require_memory(num_rows * num_bytes, num_rows, num_bytes, self.frames.device)
        whole = torch.cat([block[slots].flatten(1) for block in blocks])
        self.frames = whole if self.order is None else whole[:, self.inverse]
        self.order, self.frame_stack, self.lookahead = None, 1, 2
        self.ahead = self.ahead[: self.lookahead]
        self.set_offsets_()

    def state(self) -> State:
        """All that changes: of each environment the slots that are filled, and those of a checkpoint to restore."""
        of_slots = {name: getattr(self, name) for name in ("frames", "steps", "length", "is_start", "starts")}
        if self.kept_masks is not None:
            of_slots["masks"] = self.kept_masks
        num_slots = max(self.num_filled(), self.num_restored)
        shape = (*self.newest.shape, self.num_slots)
        views = {name: tensor.unflatten(0, shape)[:, :, :num_slots] for name, tensor in of_slots.items()}
        return views | {name: getattr(self, name) for name in ("newest", "age", "num_started", "num_dropped")}

    def num_filled(self) -> int:
        """Slots of an environment from the first on, outside of which none is used."""
        num_filled = int(torch.maximum(self.newest + self.lookahead, self.num_started).max()) + 1
        if num_filled >= self.num_slots or self.is_start.view(-1, self.num_slots)[:, num_filled:].any():
            return self.num_slots
        return num_filled

    def make_room_(self, saved: Mapping[str, Tensor]) -> None:
        """Has `state` show as many slots as that of a checkpoint, and keep observations as it does."""
        self.num_restored = saved["frames"].shape[2]
        if self.frame_stack > 1 and saved["frames"].shape[-1] == self.obs_size:
            self.unstack_()

    def sample(self, u: Float64[Tensor, "P B"], v: Float64[Tensor, "P B"]) -> Window:
        """Transitions drawn with replacement, uniformly over environments and over what each holds.

        Args:
            u, v: uniform on [0, 1): which environment, which of its transitions.
        """
        first_row, slot = self.draw(u, v)
        rows = self.steps[first_row.unsqueeze(-1) + (slot.unsqueeze(-1) + self.lag) % self.num_slots]
        reward, discount = rows[..., -2:].unbind(-1)
        length = self.length[first_row + slot].long()
        return Window(first_row, slot, rows[..., 0, : self.num_factors].long(), reward, discount, length)

    def batch(self, window: Window, length: Int[Tensor, "P B"]) -> Batch:
        """The transitions of which the first `length` steps count, at least 1 and at most the window's own."""
        counts = self.lag < length.unsqueeze(-1)
        discounts = torch.where(counts, window.discount, 1.0).cumprod(-1)
        before = torch.cat([torch.ones_like(discounts[..., :1]), discounts[..., :-1]], -1)  # gamma^i
        reward = (torch.where(counts, window.reward, 0.0) * before).sum(-1)
        obs = self.obs(window.first_row, window.slot)
        next_obs = self.obs(window.first_row, window.slot + length)
        return Batch(obs, window.action, reward, discounts[..., -1], next_obs)

    def masks(self, window: Window, length: Int[Tensor, "P B"]) -> Masks | None:
        """Those of the observations in `batch`; None where none are kept."""
        if self.kept_masks is None:
            return None
        first_row, slot = window.first_row, window.slot
        return Masks(self.kept_masks[first_row + slot], self.kept_masks[first_row + (slot + length) % self.num_slots])

    def draw(
        self, u: Float64[Tensor, "P B"], v: Float64[Tensor, "P B"]
    ) -> tuple[Int[Tensor, "P B"], Int[Tensor, "P B"]]:
        """The first row of an environment, and the slot in which one of its transitions starts."""
        env = (u * self.newest.shape[1]).long()
        first_row, dropped, started = (x.gather(1, env) for x in (self.first_row, self.num_dropped, self.num_started))
        number = dropped + (v * (started - dropped)).long()
        return first_row, self.starts[first_row + number % self.num_slots]

    def obs(self, first_row: Int[Tensor, "P B"], slot: Int[Tensor, "P B"]) -> Float[Tensor, "P B D"]:
        """The observations whose newest frames lie in these slots."""
        rows = first_row.unsqueeze(-1) + (slot.unsqueeze(-1) + self.stacked) % self.num_slots
        obs = self.frames[rows].flatten(-2)
        return (obs if self.order is None else obs[..., self.inverse]).float()

    def rows(self, slot: Int[Tensor, "P E"], offsets: Int[Tensor, " F"]) -> Int[Tensor, "P E F"]:
        """Rows of the slots at these offsets from one of each environment."""
        return self.first_row.unsqueeze(-1) + (slot.unsqueeze(-1) + offsets) % self.num_slots


def slot_bytes(frame_size: int, obs_dtype: torch.dtype, num_factors: int, mask_shape: tuple[int, int] | None) -> int:
    """Of frame, step, lists and mask."""
    return frame_size * obs_dtype.itemsize + 4 * (num_factors + 3) + 9 + (math.prod(mask_shape) if mask_shape else 0)


def require_memory(num_bytes: int, num_slots: int, frame_bytes: int, device: torch.device) -> None:
    """UserError where the device has less memory than a replay needs."""
    available = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    if num_bytes > available:
        raise UserError(
            f"the replay needs {num_bytes / 2**30:.1f} GiB, {num_slots:,} slots of {frame_bytes:,} bytes an "
            f"observation, but {available / 2**30:.1f} GiB of memory are free; lower replay_capacity, train fewer "
            "members, or make observations smaller with a wrapper"
        )


def available_memory() -> int:
    """Bytes that this process may still use: of the machine, or of the control group that it runs in."""
    available = [psutil.virtual_memory().available]
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no control group, or one without a limit
        available.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min(available)
