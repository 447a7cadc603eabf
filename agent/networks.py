"""Population-batched networks: R independent MLPs as one, their parameters in one [R, F] buffer.

One buffer makes the optimizer, gradient clipping and target averaging a handful of operations whatever the number of
layers and members. Row r holds all parameters of network r: member p of the actor is row p, critic c of member p is
row c * P + p.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from agent.action_space import ActionSpace

LAYER_NORM_EPS = 1e-5


def member_generators(seeds: Sequence[int], network: int) -> list[Generator]:
    """One stream per member and network: a seed starts from the same parameters in any population."""
    return [Generator().manual_seed(1_000_003 * seed + network) for seed in seeds]


class PopulationMLP:
    """R multilayer perceptrons side by side.  [R, B, in] -> [R, B, out].

    Hidden layers are linear, optional layer normalisation (Ba et al. 2016, with scale and shift), ReLU. Weights start
    as torch.nn.Linear's, the last layer's times `last_gain`; row r draws them from `generators[r]`.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        generators: Sequence[Generator],
        device: torch.device | str = "cpu",
        *,
        layer_norm: bool = False,
        last_gain: float = 1.0,
    ) -> None:
        self.layer_norm = layer_norm
        self.num_layers = len(sizes) - 1
        self.shapes: dict[str, tuple[int, int]] = {}
        for i, (num_in, num_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
            self.shapes |= {f"weight{i}": (num_in, num_out), f"bias{i}": (1, num_out)}
            if layer_norm and i < self.num_layers - 1:
                self.shapes |= {f"scale{i}": (1, num_out), f"shift{i}": (1, num_out)}
        rows = [self._initial_row(generator, last_gain) for generator in generators]
        self.flat: Float[Tensor, "R F"] = torch.stack(rows).to(device).requires_grad_()

    def __call__(self, x: Float[Tensor, "R B I"], *, frozen: bool = False) -> Float[Tensor, "R B O"]:
        """Frozen: no gradient reaches the parameters, only the input."""
        return _MLPFunction.apply(x, self.flat.detach() if frozen else self.flat, self)

    @torch.no_grad()
    def move_towards(self, other: "PopulationMLP", rate: float) -> None:
        """Polyak averaging: parameters += rate * (other's - parameters)."""
        self.flat.lerp_(other.flat, rate)

    def views(self, flat: Float[Tensor, "R F"]) -> dict[str, Float[Tensor, "R I O"]]:
        """Each layer's part of a buffer laid out like the parameters."""
        views, start = {}, 0
        for name, shape in self.shapes.items():
            views[name] = flat[:, start : start + math.prod(shape)].view(-1, *shape)
            start += math.prod(shape)
        return views

    def _initial_row(self, generator: Generator, last_gain: float) -> Float[Tensor, " F"]:
        parts: list[Tensor] = []
        bound = 1.0
        for name, shape in self.shapes.items():
            if name.startswith("weight"):
                bound = shape[0] ** -0.5 * (last_gain if name == f"weight{self.num_layers - 1}" else 1.0)
            if name.startswith(("scale", "shift")):
                parts.append(torch.full(shape, 1.0 if name.startswith("scale") else 0.0))
            else:
                parts.append(torch.empty(shape).uniform_(-bound, bound, generator=generator))
        return torch.cat([part.flatten() for part in parts])


class _MLPFunction(torch.autograd.Function):
    """The MLP and its derivative by hand: half the time of autograd's, whose strided gradients make ReLU crawl."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, flat: Tensor, mlp: PopulationMLP) -> Tensor:
        w = mlp.views(flat)
        saved = [x]  # the input of each layer, and what its normalisation needs
        for i in range(mlp.num_layers):
            x = torch.baddbmm(w[f"bias{i}"], x, w[f"weight{i}"])
            if i == mlp.num_layers - 1:
                break
            if mlp.layer_norm:
                raw = x
                x, mean, rstd = torch.native_layer_norm(raw, x.shape[-1:], None, None, LAYER_NORM_EPS)
                saved += [raw, mean, rstd, x]
                x = torch.addcmul(w[f"shift{i}"], x, w[f"scale{i}"])
            x = x.relu_() if not mlp.layer_norm else x.relu()
            saved.append(x)
        ctx.save_for_backward(flat, *saved)
        ctx.mlp = mlp
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        mlp: PopulationMLP = ctx.mlp
        flat, *saved = ctx.saved_tensors
        needs_x, needs_flat = ctx.needs_input_grad[:2]
        flat_gradient = torch.empty_like(flat) if needs_flat else None
        dw = mlp.views(flat_gradient) if flat_gradient is not None else None
        w = mlp.views(flat)
        g = gradients[0].contiguous()
        for i in reversed(range(mlp.num_layers)):
            x = saved.pop()
            if dw is not None:
                torch.bmm(x.transpose(1, 2), g, out=dw[f"weight{i}"])
                torch.sum(g, 1, keepdim=True, out=dw[f"bias{i}"])
            if i == 0 and not needs_x:
                return None, flat_gradient, None
            g = torch.bmm(g, w[f"weight{i}"].transpose(1, 2))
            if i == 0:
                return g, flat_gradient, None
            g = torch.ops.aten.threshold_backward(g, x, 0)
            if mlp.layer_norm:
                normalized, rstd, mean, raw = (saved.pop() for _ in range(4))
                if dw is not None:
                    torch.sum(g, 1, keepdim=True, out=dw[f"shift{i - 1}"])
                    torch.sum(g * normalized, 1, keepdim=True, out=dw[f"scale{i - 1}"])
                g = torch.ops.aten.native_layer_norm_backward(
                    g * w[f"scale{i - 1}"], raw, raw.shape[-1:], mean, rstd, None, None, [True, False, False]
                )[0]
        raise AssertionError("an MLP has at least one layer")


class Actor:
    """Logits of each member's policy.  [P, B, D] -> [P, B, K, N]; choices that do not exist are impossible."""

    def __init__(
        self,
        obs_size: int,
        actions: ActionSpace,
        hidden_sizes: Sequence[int],
        generators: Sequence[Generator],
        device: torch.device | str = "cpu",
    ) -> None:
        self.actions = actions
        sizes = [obs_size, *hidden_sizes, actions.num_factors * actions.width]
        # A small last layer starts the policy near uniform (Andrychowicz et al. 2021, sec. 3.2).
        self.mlp = PopulationMLP(sizes, generators, device, last_gain=0.01)

    def __call__(self, obs: Float[Tensor, "P B D"]) -> Float[Tensor, "P B K N"]:
        logits = self.mlp(obs).unflatten(-1, (self.actions.num_factors, self.actions.width))
        return self.actions.mask_logits(logits)


class PerActionCritic:
    """Q(s, a) = mean_k f_k(s) . a_k: one value per choice of each factor, linear in the action.

    For K = 1 the usual head of one value per action; for K > 1 additive (DecQN: Seyde et al. 2023, eq. 3). Being
    linear, Q(s, pi) is exactly the expectation of Q(s, a) under pi.
    """

    is_linear = True

    def __init__(
        self,
        obs_size: int,
        actions: ActionSpace,
        hidden_sizes: Sequence[int],
        generators: Sequence[Generator],
        num_critics: int,
        device: torch.device | str = "cpu",
        *,
        layer_norm: bool = False,
    ) -> None:
        self.actions, self.num_critics = actions, num_critics
        sizes = [obs_size, *hidden_sizes, actions.num_factors * actions.width]
        self.mlp = PopulationMLP(sizes, generators, device, layer_norm=layer_norm)

    def encode(self, obs: Float[Tensor, "P B D"]) -> Float[Tensor, "C P B KN"]:
        """All that Q(s, .) needs to know of s: the head."""
        rows = obs.repeat(self.num_critics, 1, 1)
        return self.mlp(rows).unflatten(0, (self.num_critics, -1))

    def q(self, encoded: Float[Tensor, "C P B KN"], action: Float[Tensor, "P B K N"]) -> Float[Tensor, "C P B"]:
        return (encoded * action.flatten(-2)).sum(-1) / self.actions.num_factors

    frozen_q = q  # the action's gradient is the head: nothing of the critic lies between


class JointCritic:
    """Q(s, a) = MLP([s, a_1 ... a_K]): sees every interaction between factors, not linear in the action."""

    is_linear = False

    def __init__(
        self,
        obs_size: int,
        actions: ActionSpace,
        hidden_sizes: Sequence[int],
        generators: Sequence[Generator],
        num_critics: int,
        device: torch.device | str = "cpu",
        *,
        layer_norm: bool = False,
    ) -> None:
        self.num_critics = num_critics
        sizes = [obs_size + actions.num_factors * actions.width, *hidden_sizes, 1]
        self.mlp = PopulationMLP(sizes, generators, device, layer_norm=layer_norm)

    def encode(self, obs: Float[Tensor, "P B D"]) -> Float[Tensor, "P B D"]:
        return obs

    def q(
        self, encoded: Float[Tensor, "P B D"], action: Float[Tensor, "P B K N"], *, frozen: bool = False
    ) -> Float[Tensor, "C P B"]:
        rows = torch.cat([encoded, action.flatten(-2)], -1).repeat(self.num_critics, 1, 1)
        return self.mlp(rows, frozen=frozen).squeeze(-1).unflatten(0, (self.num_critics, -1))

    def frozen_q(self, encoded: Float[Tensor, "P B D"], action: Float[Tensor, "P B K N"]) -> Float[Tensor, "C P B"]:
        """Q whose gradient reaches the action and not the critic's parameters."""
        return self.q(encoded, action, frozen=True)
