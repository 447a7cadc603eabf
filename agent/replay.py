"""Experience on the device: a ring of slots per environment that keeps each observation, and each frame of it, once."""

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int, Shaped
from torch import Tensor

from agent.memory import free_memory, gib, require_memory
from agent.state import State
from envs.frame_stack import FrameStack
from envs.masks import Masks

COPIED_AT_ONCE = 2**26  # bytes, where observations are unstacked


class Batch(NamedTuple):
    """Sampled transitions. `discount` is gamma^m (1 - terminated): n-step, end of task and time limit in one number."""

    obs: Float[Tensor, "P B D"]
    action: Int[Tensor, "P B K"]
    reward: Float[Tensor, "P B"]  # sum_{i<m} gamma^i r_i
    discount: Float[Tensor, "P B"]
    next_obs: Float[Tensor, "P B D"]  # m steps on


class SequenceBatch(NamedTuple):
    """Sampled steps in a row, for a network with memory: the transitions of T steps in the middle of L.

    The steps before them bring the state up to date. Episodes may end within. R = B T, sequence by sequence.
    """

    obs: Float[Tensor, "P B L D"]
    state: Float[Tensor, "P B H"]  # before the first step, as it was when that was taken
    starts: Bool[Tensor, "P B L"]  # where an episode begins after the first step
    next_at: Int[Tensor, "P B T"]  # place of the observation m steps on
    action: Int[Tensor, "P R K"]
    reward: Float[Tensor, "P R"]
    discount: Float[Tensor, "P R"]
    weight: Float[Tensor, "P R"]  # 1, or 0 where there is no transition


class Window(NamedTuple):
    """Sampled transitions before it is decided how many of their n steps count: up to `length` of them can."""

    first_row: Int[Tensor, "P B"]
    slot: Int[Tensor, "P B"]
    action: Int[Tensor, "P B K"]
    reward: Float[Tensor, "P B T"]  # of each step
    discount: Float[Tensor, "P B T"]  # gamma (1 - terminated)
    length: Int[Tensor, "P B"]


class Sequences(NamedTuple):
    """Sampled steps in a row before it is decided how many of their n steps count."""

    first_row: Int[Tensor, "P B"]
    slot: Int[Tensor, "P B L"]
    starts: Bool[Tensor, "P B L"]
    window: Window  # of R transitions
    weight: Float[Tensor, "P R"]


class Replay:
    """The newest slots of each environment, [P, E, S], and the n-step windows that start in them.

    Observations of an episode lie in consecutive slots, the terminal one included: the successor of slot i, m steps on,
    is slot i + m. Where an observation stacks F frames a slot keeps the newest only, an observation is slot i and the
    F - 1 before it, and an episode begins with F - 1 slots of older frames.

    A window grows while steps come in, until it holds n steps or its episode ends; that of the newest step holds one.
    `starts` lists the slots that start a transition, oldest first, so that one draw finds one of them, uniformly.

    With a mask shape [K, N] the mask of an observation lies in the slot of its newest frame.

    For a network with memory a slot also holds the state before its observation, and steps in a row can be sampled.

    Memory of a slot: a frame, 4 (K + 3) bytes of the step, 9 of lists, with masks K N bytes more, with states 4 H; 10^6
    slots of 84x84x4 uint8 take 6.6 GiB. A step takes a slot, and the end of an episode 1 + F - 1 more.
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
        frame_stack: FrameStack = FrameStack(),  # noqa: B008
        checkpoint_bytes: int = 0,
        obs_dtype: torch.dtype = torch.float32,
        mask_shape: tuple[int, int] | None = None,
        state_size: int = 0,
        longest_sequence: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        """
        Args:
            capacity: slots of a member.
            max_steps: of a member, that will be added; no more slots are made than so many steps can fill.
            frame_stack: how observations stack F frames; one frame: they are kept whole.
            checkpoint_bytes: the most that a checkpoint may copy.
            state_size: numbers of a memory's state; 0: there is none.
            longest_sequence: slots that `sequences` will ask for.

        Raises:
            UserError: memory does not hold it.
        """
        # Slots that one step may use: its successor, and after an end the frames of the next episode's first obs.
        self.lookahead = 1 + frame_stack.num_frames
        slots = capacity // num_envs
        if max_steps is not None:  # if every step ended an episode
            slots = min(slots, self.lookahead * (1 + -(-max_steps // num_envs)))
        self.num_slots = max(slots, n_step + longest_sequence + 2 * self.lookahead)
        self.state_size = state_size
        self.num_factors, self.frame_stack, self.obs_size = num_factors, frame_stack, obs_size
        self.obs_dtype, self.mask_shape, self.checkpoint_bytes = obs_dtype, mask_shape, checkpoint_bytes
        self.num_members, self.device = num_members, torch.device(device)
        num_rows = num_members * num_envs * self.num_slots
        self.num_bytes = num_rows * self.slot_bytes(frame_stack)
        self.require_memory(num_rows, frame_stack)
        self.frames = self.zeros(num_rows, frame_stack)
        self.steps = torch.zeros((num_rows, num_factors + 2), device=device)  # action, reward, gamma (1 - terminated)
        self.length = torch.zeros(num_rows, dtype=torch.int32, device=device)  # of the window, up to n
        self.is_start = torch.zeros(num_rows, dtype=torch.bool, device=device)
        self.starts = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.states = torch.zeros((num_rows, state_size), device=device)
        self.kept_masks: Bool[Tensor, "R K N"] | None = None
        if mask_shape is not None:
            self.kept_masks = torch.zeros((num_rows, *mask_shape), dtype=torch.bool, device=device)

        shape = (num_members, num_envs)
        first_row = self.num_slots * torch.arange(num_members * num_envs, device=device)
        self.first_row: Int[Tensor, "P E"] = first_row.view(shape)
        self.newest = torch.full(shape, self.lookahead - 2, device=device)  # of all slots ever used, the newest obs's
        self.age = torch.zeros(shape, dtype=torch.int64, device=device)  # steps since the episode began
        self.num_started = torch.zeros(shape, dtype=torch.int64, device=device)
        self.num_dropped = torch.zeros(shape, dtype=torch.int64, device=device)
        self.gamma = gamma.unsqueeze(-1)
        self.lag = torch.arange(n_step, device=device)
        self.ahead = torch.arange(1, 1 + self.lookahead, device=device)
        self.num_restored = 0  # slots of a checkpoint
        self.set_offsets_()

    def set_offsets_(self) -> None:
        """Of the slots that hold the frames of obs and the newest of next_obs."""
        self.written = torch.arange(-self.frame_stack.num_frames + 1, 2, device=self.device)
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
        state: Float[Tensor, "P E H"] | None = None,
    ) -> None:
        """Writes one step of every environment; where not valid, leaves no trace.

        `masks` are of obs and next_obs; `state` is a memory's, before obs.
        """
        frames = [self.frame_stack.frames(obs), self.frame_stack.frames(next_obs)[..., -1:, :]]
        self.frames[self.rows(self.newest, self.written)] = torch.cat(frames, -2).to(self.obs_dtype)
        if self.kept_masks is not None and masks is not None:
            self.kept_masks[self.rows(self.newest, self.written[-2:])] = torch.stack(masks, 2)

        if state is not None and self.state_size:
            self.states[self.rows(self.newest, self.written[-2:-1]).squeeze(-1)] = state

        # Room for the slots that this step may use: the transitions that started there are the oldest.
        slot = self.newest % self.num_slots
        row, ahead = self.first_row + slot, self.rows(slot, self.ahead)
        self.num_dropped.add_(self.is_start[ahead].sum(-1))
        self.is_start.index_fill_(0, ahead.flatten(), False)  # a number as a value would come from the CPU
        self.is_start[row] = valid
        self.starts[self.first_row + self.num_started % self.num_slots] = slot
        self.num_started.add_(valid)

        # The step joins the windows of the last n steps of the episode, its own included.
        discount = self.gamma * ~terminated
        self.steps[row] = torch.cat([action, torch.stack([reward, discount], -1)], -1)
        rows = self.rows(slot, -self.lag)
        grows = (self.lag <= self.age.unsqueeze(-1)) & valid.unsqueeze(-1)
        self.length[rows] = self.length[rows] * (self.lag > 0) + grows

        ended = terminated | truncated
        self.newest.add_(valid * (1 + (self.lookahead - 1) * ended))
        self.age.add_(valid).mul_(~(ended & valid))

    def unstack_(self) -> None:
        """Keeps whole observations from here on, those so far included: they do not stack frames after all.

        Each comes to lie in the slot of its newest frame, and an episode takes as many slots as before: what is drawn
        does not depend on it. `frames` does not stay in place.
        """
        stack, whole = self.frame_stack, FrameStack()
        if stack == whole:
            return
        num_rows, row_bytes = len(self.frames), self.obs_size * self.obs_dtype.itemsize
        self.require_memory(num_rows, whole)
        frames = self.zeros(num_rows, whole)
        filled = torch.arange(self.num_filled(), device=self.device)
        for slots in filled.split(max(1, COPIED_AT_ONCE // row_bytes)):
            for first_row in self.first_row.flatten():
                frames[first_row + slots] = self.kept(first_row.expand_as(slots), slots)
        self.frames, self.frame_stack = frames, whole
        self.num_bytes = num_rows * self.slot_bytes(whole)
        self.set_offsets_()

    def state(self) -> State:
        """All that changes: of each environment the slots that are filled, and those of a checkpoint to restore."""
        of_slots = {name: getattr(self, name) for name in ("frames", "steps", "length", "is_start", "starts")}
        if self.state_size:
            of_slots["states"] = self.states
        if self.kept_masks is not None:
            of_slots["masks"] = self.kept_masks
        num_slots = max(self.num_filled(), self.num_restored)
        shape = (*self.newest.shape, self.num_slots)
        views = {name: tensor.unflatten(0, shape)[:, :, :num_slots] for name, tensor in of_slots.items()}
        return views | {name: getattr(self, name) for name in ("newest", "age", "num_started", "num_dropped")}

    def num_filled(self) -> int:
        """Slots of an environment from the first on, outside of which none is used."""
        return min(self.num_slots, int(self.newest.max()) + 1)

    def make_room_(self, saved: Mapping[str, Tensor]) -> None:
        """Has `state` show as many slots as that of a checkpoint, and keep observations as it does."""
        self.num_restored = saved["frames"].shape[2]
        if saved["frames"].shape[-1] == self.obs_size:
            self.unstack_()

    def sample(self, u: Float64[Tensor, "P B"], v: Float64[Tensor, "P B"]) -> Window:
        """Transitions drawn with replacement, uniformly over environments and over what each holds.

        Args:
            u, v: uniform on [0, 1): which environment, which of its transitions.
        """
        return self.window(*self.draw(u, v))

    def window(self, first_row: Int[Tensor, "P B"], slot: Int[Tensor, "P B"]) -> Window:
        """The transitions that start in these slots."""
        rows = self.steps[first_row.unsqueeze(-1) + (slot.unsqueeze(-1) + self.lag) % self.num_slots]
        reward, discount = rows[..., -2:].unbind(-1)
        length = self.length[first_row + slot].long()
        return Window(first_row, slot, rows[..., 0, : self.num_factors].long(), reward, discount, length)

    def batch(self, window: Window, length: Int[Tensor, "P B"]) -> Batch:
        """The transitions of which the first `length` steps count, at least 1 and at most the window's own."""
        reward, discount = self.returns(window, length)
        obs = self.obs(window.first_row, window.slot)
        next_obs = self.obs(window.first_row, window.slot + length)
        return Batch(obs, window.action, reward, discount, next_obs)

    def returns(self, window: Window, length: Int[Tensor, "P B"]) -> tuple[Float[Tensor, "P B"], Float[Tensor, "P B"]]:
        """sum_{i<m} gamma^i r_i and gamma^m (1 - terminated), m = length."""
        counts = self.lag < length.unsqueeze(-1)
        steps = torch.where(counts, window.discount, 1.0).unbind(-1)
        discounts = list(itertools.accumulate(steps, torch.mul))  # which the compiler fuses, unlike cumprod
        before = torch.stack([torch.ones_like(discounts[0]), *discounts[:-1]], -1)  # gamma^i
        return (torch.where(counts, window.reward, 0.0) * before).sum(-1), discounts[-1]

    def sequences(
        self, u: Float64[Tensor, "P B"], v: Float64[Tensor, "P B"], burn_in: int, num_learned: int
    ) -> Sequences:
        """Steps in a row from transitions on that are drawn as in `sample`; `num_learned`: T."""
        first_row, first = self.draw(u, v)
        ahead = torch.arange(burn_in + num_learned + len(self.lag), device=self.device)
        slot = (first.unsqueeze(-1) + ahead) % self.num_slots
        is_start = self.is_start[first_row.unsqueeze(-1) + slot]
        starts = torch.cat([torch.zeros_like(is_start[..., :1]), ~is_start[..., :-1]], -1)
        newest = self.newest.gather(1, (u * self.newest.shape[1]).long())
        num_ahead = (newest - first) % self.num_slots  # slots from the first to that of the newest observation
        learned = slice(burn_in, burn_in + num_learned)
        weight = (is_start & (ahead < num_ahead.unsqueeze(-1)))[..., learned]
        window = self.window(first_row.repeat_interleave(num_learned, 1), slot[..., learned].flatten(1))
        window = window._replace(length=window.length.clamp(min=1))  # also where there is no transition
        return Sequences(first_row, slot, starts, window, weight.flatten(1).float())

    def sequence_batch(self, sequences: Sequences, length: Int[Tensor, "P R"], burn_in: int) -> SequenceBatch:
        """The transitions of which the first `length` steps count."""
        first_row, slot, window = sequences.first_row, sequences.slot, sequences.window
        reward, discount = self.returns(window, length)
        obs = self.obs(first_row.unsqueeze(-1).expand_as(slot), slot)
        steps = length.unflatten(1, (slot.shape[1], -1))
        next_at = burn_in + torch.arange(steps.shape[-1], device=self.device) + steps
        state = self.states[first_row + slot[..., 0]]
        return SequenceBatch(obs, state, sequences.starts, next_at, window.action, reward, discount, sequences.weight)

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

    def obs(self, first_row: Int[Tensor, "*batch"], slot: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch D"]:
        """The observations whose newest frames lie in these slots."""
        return self.kept(first_row, slot).float()

    def kept(self, first_row: Int[Tensor, "*batch"], slot: Int[Tensor, "*batch"]) -> Shaped[Tensor, "*batch D"]:
        """The same, as they are kept."""
        rows = first_row.unsqueeze(-1) + (slot.unsqueeze(-1) + self.stacked) % self.num_slots
        return self.frame_stack.observations(self.frames[rows])

    def rows(self, slot: Int[Tensor, "P E"], offsets: Int[Tensor, " F"]) -> Int[Tensor, "P E F"]:
        """Rows of the slots at these offsets from one of each environment."""
        return self.first_row.unsqueeze(-1) + (slot.unsqueeze(-1) + offsets) % self.num_slots

    def zeros(self, num_rows: int, frame_stack: FrameStack) -> Shaped[Tensor, "R D"]:
        """Room for a frame in each row."""
        shape = (num_rows, self.obs_size // frame_stack.num_frames)
        return torch.zeros(shape, dtype=self.obs_dtype, device=self.device)

    def slot_bytes(self, frame_stack: FrameStack) -> int:
        """Of frame, step, lists, state and mask."""
        frame = self.obs_size // frame_stack.num_frames * self.obs_dtype.itemsize
        mask = math.prod(self.mask_shape) if self.mask_shape else 0
        return frame + 4 * (self.num_factors + 3) + 9 + 4 * self.state_size + mask

    def require_memory(self, num_rows: int, frame_stack: FrameStack) -> None:
        """UserError where memory does not hold so many rows, and their copy in a checkpoint; nothing is made yet."""
        row_bytes, free = self.slot_bytes(frame_stack), free_memory(self.device)
        copy = min(num_rows * row_bytes, self.checkpoint_bytes)
        needed = max(num_rows * row_bytes, 2 * copy)
        obs_bytes, num_frames = self.obs_size * self.obs_dtype.itemsize, frame_stack.num_frames
        kept = "whole" if num_frames == 1 else f"one of {num_frames} frames a slot"
        what = f"the replay of {num_rows:,} slots for observations of {obs_bytes:,} bytes ({kept})"
        if copy:
            what += f", with {gib(copy)} for its copy in a checkpoint,"
        fitting = (free if 2 * self.checkpoint_bytes <= free else free // 2) // (self.num_members * row_bytes)
        fitting -= fitting % 10 ** max(0, len(str(fitting)) - 2)  # two digits: the rest of the run needs some, too
        instead = f"use replay_capacity={fitting} or less, " if fitting > 1 else "use "
        instead += "fewer members, or a wrapper that makes observations smaller or stacks fewer frames"
        if copy:
            instead += "; checkpoint.replay_gib=0 leaves the replay out of checkpoints"
        require_memory(needed, self.device, what, instead)
        if self.device.type != "cpu":
            cpu = torch.device("cpu")
            require_memory(copy, cpu, "a replay's copy in a checkpoint", "set checkpoint.replay_gib to less")
