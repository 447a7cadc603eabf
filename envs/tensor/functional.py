"""Environments as functions of tensors, and the loop that runs them without leaving the device.

Axes: E environment · K action factor · D observation.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from gymnasium import Space, spaces
from gymnasium.experimental.functional import FuncEnv
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from envs.errors import UserError
from envs.frame_stack import FrameStack
from envs.masks import ACTION_MASK_KEY, MaskReader, Masks, require_legal_choice
from envs.random_streams import RandomStreams
from envs.spaces import FactoredActions, FlatObservations
from envs.vector_environment import Step, entropy_seeds, environment_seeds

State = TypeVar("State", bound=Tensor | tuple[Tensor, ...])  # one tensor, or a NamedTuple of tensors


class FunctionalEnv(FuncEnv[State, Tensor, Tensor, Tensor, Tensor, None, None]):
    """E environments as functions of their state, in the convention of Gymnasium's FuncEnv.

    Differs from FuncEnv: every argument and result is a batch along the first axis, of `num_envs` tensors on `device`.
    rng is a RandomStreams there with a row for each environment, so that the random numbers of an environment depend
    on its own seed alone: rng.uniform(3) gives each environment its next three numbers. The spaces are those of one
    environment. A function writes to none of its arguments and returns no part of them, except that an observation
    may be the state itself. It neither branches on a tensor's value nor changes a shape: a CUDA graph can hold it.

    initial(rng), transition(state, action, rng), observation(state, rng), reward(state, action, next_state, rng) as
    float32, terminal(state, rng) as bool; params, their last argument, is not used.
    """

    def __init__(
        self, num_envs: int = 1, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.num_envs, self.device, self.dtype = num_envs, torch.device(device), dtype

    def constant(self, value: float | list[float]) -> Tensor:
        """Returns a constant of the equations; on a CPU an operation with a Python number takes twice as long."""
        return torch.tensor(value, dtype=self.dtype, device=self.device)

    def action_mask(self, state: State) -> Bool[Tensor, "E A"] | None:
        """The legal choices, those of one factor after the other, A = sum_k n_k; None: every choice, always.

        Each factor must have one in every state that is not terminal.
        """
        return None


def check_counts(**counts: tuple[Any, int]) -> None:
    """Refuses arguments that are no integers or too small, all in one error; each is given with its minimum."""
    faults = [
        f"{name} must be an integer of at least {minimum}; got {value!r}"
        for name, (value, minimum) in counts.items()
        if not (isinstance(value, int) and value >= minimum)
    ]
    if faults:
        raise ValueError("; ".join(faults))


class TensorEnv:
    """Steps a functional environment, as a VectorEnvironment.

    The time limit and autoreset (SAME_STEP) are applied here. The state is updated in place and every random number
    comes from `streams`, one stream for each environment, so a CUDA graph can hold `step`. What `step` returns is
    never written to again. Actions are not checked: that would have to wait for the device; masks on a CPU only.

    Args:
        env: its environments are divided evenly among the members.
    """

    render_fps = 30
    is_tensor_program = True
    has_state = True

    def __init__(
        self,
        env: FunctionalEnv,
        max_episode_steps: int | None = None,
        action_bins: int | None = None,
        spec_id: str = "",
        action_mask_key: str | None = ACTION_MASK_KEY,
        num_members: int = 1,
    ) -> None:
        if max_episode_steps is not None and not (isinstance(max_episode_steps, int) and max_episode_steps > 0):
            raise ValueError(f"max_episode_steps must be a positive integer or None; got {max_episode_steps!r}")
        self.env, self.num_envs, self.device = env, env.num_envs, env.device
        assert self.num_envs % num_members == 0, f"{self.num_envs} environments for {num_members} members"
        self.num_members = num_members
        self.spec_id = spec_id or type(env).__name__
        self.max_episode_steps = max_episode_steps
        try:
            self.observations = FlatObservations(env.observation_space)
            self.actions = FactoredActions(env.action_space, action_bins)
        except UserError as error:
            raise UserError(f"{self.spec_id} has {error}") from None
        self._flatten = _flattener(env.observation_space, self.device)
        self._decode = _decoder(env.action_space, self.actions, self.device)
        self.streams = RandomStreams(entropy_seeds(self.num_envs), self.device)
        self.env_state = _map(Tensor.clone, env.initial(self.streams))
        self.restarts, self.broken_off = np.zeros((2, self.num_envs), dtype=np.int64)  # they never fail
        self.elapsed = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        self._all_valid = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        self.masks: Masks | None = None
        self._pad_mask = _mask_padder(self.actions, self.device)
        mask = None if action_mask_key is None else env.action_mask(self.env_state)
        expected = (self.num_envs, sum(self.actions.num_choices))
        if mask is not None and (mask.shape != expected or mask.dtype != torch.bool):
            raise ValueError(
                f"{self.spec_id}: action_mask must give torch.bool {list(expected)}, a column for each choice of each "
                f"factor; got {mask.dtype} {list(mask.shape)}"
            )
        self._gives_masks = mask is not None
        self._num_steps = 0

    def reset(self, seeds: Sequence[int] | None = None) -> Float[Tensor, "E D"]:
        if seeds is None:
            return self._flatten(self.start_())
        assert len(seeds) == self.num_members, f"{len(seeds)} seeds for {self.num_members} members"
        return self._flatten(self.start_(environment_seeds(seeds, self.num_envs // self.num_members)))

    def step(self, action: Int64[Tensor, "E K"]) -> Step:
        obs, reward, terminated, truncated, next_obs, valid = self.advance_(self._decode(action))
        return Step(self._flatten(obs), reward, terminated, truncated, self._flatten(next_obs), valid)

    def start_(self, seeds: Sequence[int] | None = None) -> Tensor:
        """As `reset`, with a seed for each environment, and observations as their space has them, batched."""
        if seeds is not None:
            assert len(seeds) == self.num_envs, f"{len(seeds)} seeds for {self.num_envs} environments"
            self.streams.seed_(seeds)
        self._write(self.env.initial(self.streams))
        self.elapsed.zero_()
        self._num_steps = 0
        return self._observe()

    def advance_(self, action: Tensor) -> Step:
        """As `step`, with actions and observations as the environment's spaces have them, batched."""
        env, rng = self.env, self.streams
        successor = env.transition(self.env_state, action, rng)
        reward = env.reward(self.env_state, action, successor, rng)
        terminated = env.terminal(successor, rng)
        self.elapsed += 1
        truncated = self._truncated()
        ended = terminated | truncated
        state = _map(lambda new, old: _where(ended, new, old), env.initial(rng), successor)
        self._write(state)
        self.elapsed.masked_fill_(ended, 0)
        if self._gives_masks:
            self._num_steps += 1
            self.masks = self._read_masks(state, successor, terminated)
        obs, next_obs = env.observation(state, rng), env.observation(successor, rng)
        return Step(obs, reward, terminated, truncated, next_obs, self._all_valid)

    def state(self) -> dict[str, Tensor]:
        states = [self.env_state] if isinstance(self.env_state, Tensor) else list(self.env_state)
        named = {f"state{i}": tensor for i, tensor in enumerate(states)}
        streams = {f"streams/{name}": tensor for name, tensor in self.streams.state().items()}
        return {**named, "elapsed": self.elapsed, **streams}

    def expect_frame_stack_(self, stack: FrameStack | None) -> None:
        assert stack is None, "tensor environments do not stack frames"

    @property
    def frame_stack_holds(self) -> bool:
        return True

    def make_repeatable_(self) -> None:
        """Nothing to record: `state` holds all."""

    def journal(self) -> dict[str, Tensor]:
        return {}

    def repeat(self, journal: Mapping[str, Tensor]) -> Float[Tensor, "E D"]:
        return self._flatten(self._observe())

    def render(self) -> NoReturn:
        raise UserError(f"{self.spec_id} has no frames as tensors: make it with render_mode='rgb_array'")

    def close(self) -> None:
        """Nothing to release."""

    def _observe(self) -> Tensor:
        """The observation of the current state, and its masks."""
        state = _map(Tensor.clone, self.env_state)  # the observation may be the state itself
        if self._gives_masks:
            self.masks = self._read_masks(state, state, torch.zeros_like(self._all_valid))
        return self.env.observation(state, self.streams)

    def _read_masks(self, state: Any, successor: Any, terminated: Bool[Tensor, " E"]) -> Masks:
        mask, next_mask = self.env.action_mask(state), self.env.action_mask(successor)
        assert mask is not None and next_mask is not None, "action_mask gave a mask before"
        masks = Masks(self._pad_mask(mask), self._pad_mask(next_mask | terminated.unsqueeze(-1)))
        if self.device.type == "cpu":
            for padded in masks:
                require_legal_choice(padded.numpy(), self.spec_id, self._num_steps)
        return masks

    def _truncated(self) -> Bool[Tensor, " E"]:
        """As Gymnasium's TimeLimit, which truncates whether or not the episode terminates in the same step."""
        if self.max_episode_steps is None:
            return torch.zeros_like(self._all_valid)
        return self.elapsed >= self.max_episode_steps

    def _write(self, state: Any) -> None:
        _map(Tensor.copy_, self.env_state, state)


def _map(function: Callable[..., Tensor], *states: Any) -> Any:
    """Applies the function to each tensor of one or more states of the same kind."""
    first = states[0]
    return function(*states) if isinstance(first, Tensor) else type(first)(*map(function, *states))


def _where(ended: Bool[Tensor, " E"], new: Tensor, old: Tensor) -> Tensor:
    return torch.where(ended.view(-1, *[1] * (new.ndim - 1)), new, old)


def _flattener(space: Space, device: torch.device) -> Callable[[Tensor], Float32[Tensor, "E D"]]:
    """What FlatObservations.flatten does to a batch, for tensors."""
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        if len(space.shape) == 1:
            return lambda obs: obs.to(torch.float32)
        return lambda obs: obs.reshape(len(obs), -1).to(torch.float32)
    if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        raise UserError(f"observation space {space}: tensors have Box, Discrete, MultiDiscrete or MultiBinary only")
    counts = np.atleast_1d(space.n if isinstance(space, spaces.Discrete) else space.nvec.ravel())
    starts = np.atleast_1d(space.start).ravel()
    entry = torch.from_numpy(np.repeat(np.arange(len(counts)), counts)).to(device)
    values = np.concatenate([start + np.arange(n) for start, n in zip(starts, counts, strict=True)])
    value = torch.from_numpy(values).to(device)
    if len(counts) == 1:
        return lambda obs: (obs.view(-1, 1) == value).to(torch.float32)
    return lambda obs: (obs.reshape(len(obs), -1)[:, entry] == value).to(torch.float32)


def _mask_padder(
    actions: FactoredActions, device: torch.device
) -> Callable[[Bool[Tensor, "E A"]], Bool[Tensor, "E K N"]]:
    """What MaskReader.read_each does to a batch of flat masks, for tensors."""
    exists = MaskReader(actions).exists
    if exists.all():
        return lambda mask: mask.view(-1, *exists.shape)
    column = torch.from_numpy(exists.ravel().cumsum() - 1).to(device)  # of a padding choice: the one before it
    is_choice = torch.from_numpy(exists).to(device)
    return lambda mask: mask[:, column].view(-1, *exists.shape) & is_choice


def _decoder(space: Space, actions: FactoredActions, device: torch.device) -> Callable[[Int64[Tensor, "E K"]], Tensor]:
    """What FactoredActions.decode does to a batch, for tensors."""
    if actions.parts:
        raise UserError(f"action space {space}: tensors have Box, Discrete, MultiDiscrete or MultiBinary only")
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return lambda action: action[:, 0]
    choice = np.minimum(np.arange(max(actions.num_choices))[:, None], np.array(actions.num_choices) - 1)  # [N, K]
    values = torch.from_numpy(actions.decode(choice).reshape(choice.shape)).to(device)
    return lambda action: values.gather(0, action).view(len(action), *(space.shape or ()))
