"""Adam over the flat parameters of a population: every member with its own learning rate and gradient norm."""

import torch
from jaxtyping import Float
from torch import Tensor


class PopulationAdam:
    """Adam (Kingma & Ba 2015, algorithm 1) on rows of parameters that never mix.  Parameters and gradients: [R, F]."""

    def __init__(
        self, flat: Float[Tensor, "R F"], betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self.flat, self.betas, self.eps = flat.detach(), betas, eps  # detached: the same memory, outside autograd
        self.first_moment = torch.zeros_like(self.flat)
        self.second_moment = torch.zeros_like(self.flat)
        self.scratch = torch.empty_like(self.flat)
        self.step_count = torch.zeros((), device=flat.device)

    @torch.no_grad()
    def step(self, gradient: Float[Tensor, "R F"], learning_rate: Float[Tensor, "R 1"]) -> None:
        beta1, beta2 = self.betas
        self.step_count += 1
        self.first_moment.lerp_(gradient, 1 - beta1)
        self.second_moment.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        correction1, correction2 = 1 - beta1**self.step_count, 1 - beta2**self.step_count
        # m / (sqrt(v / c2) + eps) as m sqrt(c2) / (sqrt(v) + eps sqrt(c2)), all in one scratch buffer.
        root = correction2.sqrt()
        torch.sqrt(self.second_moment, out=self.scratch).add_(self.eps * root)
        torch.div(self.first_moment, self.scratch, out=self.scratch)
        self.flat.sub_(self.scratch.mul_(learning_rate * root / correction1))


def clip_grad_norm(gradient: Float[Tensor, "R F"], num_members: int, max_norm: float) -> Float[Tensor, " P"]:
    """Scales each member's gradient in place to an L2 norm of at most `max_norm`; returns the norms before.

    Rows r, r + P, r + 2P ... belong to the same member and share one norm.
    """
    norm = torch.linalg.vector_norm(torch.linalg.vector_norm(gradient, dim=1).view(-1, num_members), dim=0)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    gradient.mul_(scale.repeat(gradient.shape[0] // num_members).unsqueeze(-1))
    return norm
