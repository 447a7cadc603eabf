"""Adam over the flat parameters of a population: every member with its own learning rate and gradient norm."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from agent.state import State, members_first


class PopulationAdam:
    """Adam (Kingma & Ba 2015, algorithm 1) on buffers of rows that never mix, each [R, F] with an R of its own."""

    def __init__(
        self, parameters: Sequence[Float[Tensor, "_ _"]], betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self.parameters, self.betas, self.eps = list(parameters), betas, eps
        self.first_moments = [torch.zeros_like(p) for p in parameters]
        self.second_moments = [torch.zeros_like(p) for p in parameters]
        self.scratch = [torch.empty_like(p) for p in parameters]
        device = self.parameters[0].device
        self.decay = torch.tensor(betas, dtype=torch.float64, device=device)
        self.decayed = torch.ones_like(self.decay)  # beta^t

    def step(self, gradients: Sequence[Float[Tensor, "_ _"]], learning_rates: Sequence[Float[Tensor, "_ 1"]]) -> None:
        """Moves every buffer by its gradient, each row with its own learning rate."""
        beta1, beta2 = self.betas
        self.decayed.mul_(self.decay)
        correction1, correction2 = (1 - self.decayed).unbind()
        # m / (sqrt(v / c2) + eps) as m sqrt(c2) / (sqrt(v) + eps sqrt(c2)), in one scratch buffer each.
        root = correction2.sqrt()
        eps, scale = self.eps * root, root / correction1
        buffers = zip(self.parameters, self.first_moments, self.second_moments, self.scratch, strict=True)
        for (p, m, v, scratch), g, rate in zip(buffers, gradients, learning_rates, strict=True):
            m.lerp_(g, 1 - beta1)
            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            torch.sqrt(v, out=scratch).add_(eps)
            torch.div(m, scratch, out=scratch)
            p.sub_(scratch.mul_(rate * scale))

    def state(self, num_members: int | None = None) -> State:
        """All that changes, but the parameters. Rows r, r + P, r + 2P ... are of one member; by default P is R."""
        state: State = {"decayed1": self.decayed[0], "decayed2": self.decayed[1]}
        for i, moments in enumerate(zip(self.first_moments, self.second_moments, strict=True)):
            first, second = (members_first(x, num_members or len(x)) for x in moments)
            state |= {f"first{i}": first, f"second{i}": second}
        return state


def clip_grad_norm_(gradient: Float[Tensor, "R F"], num_members: int, max_norm: float) -> Float[Tensor, " P"]:
    """Scales each member's gradient in place to an L2 norm of at most `max_norm`; returns the norms before.

    Rows r, r + P, r + 2P ... belong to the same member and share one norm.
    """
    rows = gradient.view(-1, num_members, gradient.shape[1])
    norm = torch.linalg.vector_norm(torch.linalg.vector_norm(rows, dim=2), dim=0)
    rows.mul_((max_norm / (norm + 1e-6)).clamp_(max=1.0).unsqueeze(-1))
    return norm
