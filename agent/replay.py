"""Experience on the device: a ring of slots per environment, n-step windows put together when sampled."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

NUM_DRAWS = 4  # of a slot, before falling back: one in 2^4 misses even where all episodes last one step


class Batch(NamedTuple):
    """Sampled transitions. `discount` is gamma^m (1 - terminated): n-step, end of task and time limit in one number."""

    obs: Float[Tensor, "P B D"]
    action: Int[Tensor, "P B K"]
    reward: Float[Tensor, "P B"]  # sum_{i<m} gamma^i r_i
    discount: Float[Tensor, "P B"]
    next_obs: Float[Tensor, "P B D"]  # m steps on


class Replay:
    """The newest slots of each environment, [P, E, S]; each observation is stored once.

    A slot holds an observation and, if it starts a transition, what followed it. The successor of slot i is the
    observation in slot i + 1; the slot after an episode's last step holds the terminal observation and starts nothing,
    and so does the newest slot. A window therefore ends where the next slot starts no transition: at the end of an
    episode or at the newest step, where it bootstraps after m < n rewards.
    """

    def __init__(
        self,
        num_members: int,
        num_envs: int,
        capacity: int,
        obs_size: int,
        num_factors: int,
        *,
        obs_dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_slots = max(2, capacity // num_envs)
        num_rows = num_members * num_envs * self.num_slots
        self.obs = torch.zeros((num_rows, obs_size), dtype=obs_dtype, device=device)
        self.action = torch.zeros((num_rows, num_factors), dtype=torch.int32, device=device)
        self.outcome = torch.zeros((num_rows, 3), device=device)  # reward, terminated, starts a transition
        shape = (num_members, num_envs)
        self.first_row = self.num_slots * torch.arange(num_members * num_envs, device=device).view(shape)
        self.newest = torch.zeros(shape, dtype=torch.int64, device=device)  # slot of the newest observation
        self.num_filled = torch.zeros(shape, dtype=torch.int64, device=device)

    def add(
        self,
        obs: Float[Tensor, "P E D"],
        action: Int[Tensor, "P E K"],
        reward: Float[Tensor, "P E"],
        terminated: Bool[Tensor, "P E"],
        truncated: Bool[Tensor, "P E"],
        next_obs: Float[Tensor, "P E D"],
        valid: Bool[Tensor, "P E"],
    ) -> None:
        """Writes one step of every environment; where not valid, leaves no trace."""
        row = (self.first_row + self.newest).flatten()
        successor = (self.first_row + (self.newest + 1) % self.num_slots).flatten()
        self.obs[row] = obs.flatten(0, 1).to(self.obs.dtype)
        self.action[row] = action.flatten(0, 1).to(self.action.dtype)
        self.outcome[row] = torch.stack([reward, terminated.float(), valid.float()], -1).flatten(0, 1)
        self.obs[successor] = next_obs.flatten(0, 1).to(self.obs.dtype)
        self.outcome[successor] = 0.0
        used = valid * (1 + (terminated | truncated).long())
        self.newest.add_(used).remainder_(self.num_slots)
        self.num_filled.add_(used).clamp_(max=self.num_slots)

    def sample(
        self, batch_size: int, n_step: int, gamma: Float[Tensor, " P"], generator: Generator | None = None
    ) -> Batch:
        """Transitions drawn uniformly with replacement, each with a window of up to `n_step` rewards."""
        start, env = self._draw_starts(batch_size, generator)
        base = self.first_row.gather(1, env)
        reward, discount = torch.zeros_like(base, dtype=torch.float32), torch.ones_like(base, dtype=torch.float32)
        alive = torch.ones_like(discount)
        length = torch.zeros_like(base)
        for i in range(n_step):
            step_reward, terminated, starts = self.outcome[base + (start + i) % self.num_slots].unbind(-1)
            alive = alive * starts
            reward = reward + alive * discount * step_reward
            discount = torch.where(alive > 0, discount * gamma.unsqueeze(-1) * (1 - terminated), discount)
            length = length + alive.long()
        row = base + start
        next_row = base + (start + length) % self.num_slots
        return Batch(self.obs[row].float(), self.action[row].long(), reward, discount, self.obs[next_row].float())

    def _draw_starts(self, batch_size: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Slots that start a transition [P, B], and their environments.

        The first of these that starts one: four uniform draws; the slot before the first draw, which starts nothing
        because it follows an episode's last step; the newest transition, which lies one slot back, or two after an end.
        """
        num_members, num_envs = self.newest.shape
        shape = (2, NUM_DRAWS, num_members, batch_size)
        u = torch.rand(shape, device=self.newest.device, dtype=torch.float64, generator=generator)
        env = (u[0] * num_envs).long()
        newest, filled, first_row = (
            x.expand(NUM_DRAWS, -1, -1).gather(2, env) for x in (self.newest, self.num_filled, self.first_row)
        )
        drawn = (newest - 1 - (u[1] * filled).long()) % self.num_slots
        others = torch.stack([drawn[0] - 1, newest[0] - 1, newest[0] - 2]) % self.num_slots
        row = torch.cat([first_row + drawn, first_row[:1] + others])
        slot, env = torch.cat([drawn, others]), torch.cat([env, env[:1].expand(3, -1, -1)])
        preference = torch.arange(len(slot), 0, -1, device=slot.device).view(-1, 1, 1)
        choice = (self.outcome[row, 2] * preference).argmax(0, keepdim=True)
        return slot.gather(0, choice).squeeze(0), env.gather(0, choice).squeeze(0)
