"""ParityBandit: the negative control, in which no factor of the action is worth anything by itself."""

from functools import partial
from typing import Any

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float32, Int8
from torch import Tensor

from envs.random_streams import RandomStreams
from envs.tensor.functional import FunctionalEnv, check_counts
from envs.tensor.functional_gymnasium import FunctionalSingleEnv, FunctionalVectorEnv


class ParityBandit(FunctionalEnv[Tensor]):
    """A contextual bandit whose reward is 1 where the chosen bits of the action have the wanted parity, else 0.

    The context chooses `num_chosen` of the `num_bits` bits, any of them alike, and the parity t that is wanted, 0 or 1.
    State and observation, MultiBinary: a 1 for each bit that is chosen, then t. Action: the bits, MultiBinary. Every
    step terminates. The optimum is 1, uniform actions have 1/2.

    Under a factored policy, where bit i is 1 with probability p_i,

        E[r] = 1/2 + 1/2 (-1)^t prod_{i chosen} (1 - 2 p_i)

    At the uniform policy, p = 1/2, every derivative of this of an order below num_chosen is zero. The advantage of each
    bit, with the others averaged out, is zero; the best fit by a sum of one term per factor is the constant 1/2; the
    exact policy gradient is zero. A factored method has nothing to follow there, however good its estimator, and
    should stay at 1/2. One that scores has left the uniform policy for another cause (initial weights, noise, an
    entropy target that falls): once all other chosen bits are decided, the last one does have an advantage. With few
    of them that comes soon, at 4 of 8 bits within 10,000 steps; at the default it did not within 20,000.
    """

    def __init__(
        self, num_envs: int = 1, device: str | torch.device = "cpu", num_bits: int = 16, num_chosen: int = 8
    ) -> None:
        super().__init__(num_envs, device)
        check_counts(num_bits=(num_bits, 2), num_chosen=(num_chosen, 2))  # a bit chosen alone has an advantage
        if num_chosen > num_bits:
            raise ValueError(f"num_chosen must be at most num_bits, {num_bits}; got {num_chosen}")
        self.num_bits, self.num_chosen = num_bits, num_chosen
        self.observation_space, self.action_space = spaces.MultiBinary(num_bits + 1), spaces.MultiBinary(num_bits)

    def optimum(self) -> float:
        """The largest expected reward, which is that of every context."""
        return 1.0

    def random_value(self) -> float:
        """The expected reward of uniform actions, which is that of every context."""
        return 0.5

    def initial(self, rng: RandomStreams, params: Any = None) -> Int8[Tensor, "E K+1"]:
        uniform = rng.uniform(self.num_bits)
        chosen = torch.zeros(uniform.shape, dtype=torch.int8, device=self.device)
        chosen.scatter_(1, uniform.topk(self.num_chosen).indices, 1)
        wanted = rng.integers(2, 1).to(torch.int8)
        return torch.cat((chosen, wanted), dim=1)

    def transition(
        self, state: Int8[Tensor, "E K+1"], action: Int8[Tensor, "E K"], rng: RandomStreams, params: Any = None
    ) -> Int8[Tensor, "E K+1"]:
        return state.clone()

    def observation(
        self, state: Int8[Tensor, "E K+1"], rng: RandomStreams, params: Any = None
    ) -> Int8[Tensor, "E K+1"]:
        return state

    def reward(
        self,
        state: Int8[Tensor, "E K+1"],
        action: Int8[Tensor, "E K"],
        next_state: Int8[Tensor, "E K+1"],
        rng: RandomStreams,
        params: Any = None,
    ) -> Float32[Tensor, " E"]:
        parity = (state[:, :-1] & action).sum(1) % 2
        return (parity == state[:, -1]).to(torch.float32)

    def terminal(self, state: Int8[Tensor, "E K+1"], rng: RandomStreams, params: Any = None) -> Bool[Tensor, " E"]:
        """Asked of the states that a step leads to, all of which are."""
        return torch.ones_like(state[:, 0], dtype=torch.bool)


class ParityBanditVectorEnv(FunctionalVectorEnv):
    def __init__(
        self, num_envs: int = 1, max_episode_steps: int | None = None, num_bits: int = 16, num_chosen: int = 8
    ) -> None:
        super().__init__(partial(ParityBandit, num_bits=num_bits, num_chosen=num_chosen), num_envs, max_episode_steps)


class ParityBanditEnv(FunctionalSingleEnv):
    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, num_bits: int = 16, num_chosen: int = 8) -> None:
        super().__init__(ParityBandit(num_bits=num_bits, num_chosen=num_chosen))
