"""Networks with their derivatives by hand: R multilayer perceptrons side by side."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agent.action_space import ActionSpace

LAYER_NORM_EPS = 1e-5


class PopulationMLP:
    """Hidden layers are linear, optional layer normalization, ReLU.  [R, B, in] -> [R, B, out]."""

    def __init__(
        self,
        sizes: Sequence[int],
        num_rows: int,
        *,
        layer_norm: bool = False,
    ) -> None:
        self.layer_norm = layer_norm
        self.num_layers = len(sizes) - 1
        self.shapes: dict[str, tuple[int, int]] = {}
        for i, (num_in, num_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
            self.shapes |= {f"weight{i}": (num_in, num_out), f"bias{i}": (1, num_out)}
            if layer_norm and i < self.num_layers - 1:
                self.shapes |= {f"scale{i}": (1, num_out), f"shift{i}": (1, num_out)}
        self.flat: Float[Tensor, "R F"] = torch.zeros(num_rows, sum(map(math.prod, self.shapes.values())))
        self.parameters = self.views(self.flat)

    def __call__(self, x: Float[Tensor, "R B I"]) -> Float[Tensor, "R B O"]:
        return self.forward(x)[-1]

    def forward(self, x: Float[Tensor, "R B I"]) -> list[Tensor]:
        """All that `backward` needs, the output last."""
        w = self.parameters
        saved = [x]  # the input of each layer, and what its normalisation needs
        for i in range(self.num_layers):
            x = torch.baddbmm(w[f"bias{i}"], x, w[f"weight{i}"])
            if i < self.num_layers - 1:
                if self.layer_norm:
                    raw = x
                    x, mean, rstd = torch.native_layer_norm(raw, x.shape[-1:], None, None, LAYER_NORM_EPS)
                    saved += [raw, mean, rstd, x]
                    x = torch.addcmul(w[f"shift{i}"], x, w[f"scale{i}"])
                x = x.relu_()
            saved.append(x)
        return saved

    def parameter_gradient(self, saved: list[Tensor], gradient: Float[Tensor, "R B O"]) -> Float[Tensor, "R F"]:
        """Gradient with respect to `flat`, from that with respect to the output."""
        gradients: dict[str, Tensor] = {}
        self._backward(saved, gradient, gradients)
        return torch.cat([gradients[name].flatten(1) for name in self.shapes], 1)

    def input_gradient(self, saved: list[Tensor], gradient: Float[Tensor, "R B O"]) -> Float[Tensor, "R B I"]:
        """Gradient with respect to the input, from that with respect to the output."""
        return torch.bmm(self._backward(saved, gradient, None), self.parameters["weight0"].transpose(1, 2))

    def _backward(self, saved: list[Tensor], g: Tensor, gradients: dict[str, Tensor] | None) -> Tensor:
        """Gradient with respect to the first layer's output before its ReLU; fills those of the parameters."""
        w, saved = self.parameters, saved[:-1]
        for i in reversed(range(self.num_layers)):
            x = saved.pop()
            if gradients is not None:
                gradients[f"weight{i}"] = torch.bmm(x.transpose(1, 2), g)
                gradients[f"bias{i}"] = g.sum(1, keepdim=True)
            if i == 0:
                break
            g = torch.bmm(g, w[f"weight{i}"].transpose(1, 2))
            g = torch.ops.aten.threshold_backward(g, x, 0)
            if self.layer_norm:
                normalized, rstd, mean, raw = (saved.pop() for _ in range(4))
                if gradients is not None:
                    gradients[f"shift{i - 1}"] = g.sum(1, keepdim=True)
                    gradients[f"scale{i - 1}"] = (g * normalized).sum(1, keepdim=True)
                g = torch.ops.aten.native_layer_norm_backward(
                    g * w[f"scale{i - 1}"], raw, raw.shape[-1:], mean, rstd, None, None, [True, False, False]
                )[0]
        return g

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


class Actor:
    """Logits of each member's policy.  [P, B, D] -> [P, B, K, N]; choices that do not exist, or that a mask of legal
    choices bars, are impossible."""

    def __init__(
        self,
        obs_size: int,
        actions: ActionSpace,
        hidden_sizes: Sequence[int],
        num_rows: int,
        *,
        layer_norm: bool = False,
    ) -> None:
        self.actions = actions
        sizes = [obs_size, *hidden_sizes, actions.num_factors * actions.width]
        self.mlp = PopulationMLP(sizes, num_rows, layer_norm=layer_norm)

    def __call__(
        self, obs: Float[Tensor, "P B D"], mask: Bool[Tensor, "P B K N"] | None = None
    ) -> Float[Tensor, "P B K N"]:
        return self.logits(self.mlp.forward(obs), mask)

    def logits(self, saved: list[Tensor], mask: Bool[Tensor, "P B K N"] | None = None) -> Float[Tensor, "P B K N"]:
        """Of a forward pass of the network."""
        return self.actions.mask_logits(saved[-1].unflatten(-1, (self.actions.num_factors, self.actions.width)), mask)

    def parameter_gradient(self, saved: list[Tensor], gradient: Float[Tensor, "P B K N"]) -> Float[Tensor, "P F"]:
        """From a gradient with respect to the logits, which is zero at choices that do not exist."""
        return self.mlp.parameter_gradient(saved, gradient.flatten(-2))
