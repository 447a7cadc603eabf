"""From images, grids and vectors to features: the convolutions of the built-in networks.

Axes: B batch row · H, W rows and columns of a picture · C its channels.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from envs.spaces import ObsPart

NATURE_SIDE = 36  # the smallest picture that the three layers of Nature CNN leave something of


class Picture(NamedTuple):
    """An image as convolutions take it."""

    channels: int
    height: int
    width: int

    @property
    def shorter_side(self) -> int:
        return min(self.height, self.width)


class ToChannelsFirst(nn.Module):
    """[B, H W C] -> [B, C, H, W], from the layout that the observation space has.

    Two axes: [H, W]. Three: [H, W, C] or [C, H, W]; the channels are along the shorter one of first and last. Four:
    frames one after the other, [F, H, W, C] or [F, C, H, W], whose channels are put side by side.
    """

    def __init__(self, part: ObsPart) -> None:
        super().__init__()
        self.shape = part.shape
        self.axes: tuple[int, ...]  # of the shape: channels, rows, columns
        match part.shape:
            case height, width:
                self.axes, self.picture = (0, 1), Picture(1, height, width)
            case *frames, first, second, third if len(frames) <= 1:
                if second < min(first, third):
                    raise ValueError(
                        f"{name_of(part)} seems to have its channels along the axis in the middle; a wrapper can "
                        "move them to the first or the last (env.wrappers), network.name=mlp takes them as a vector"
                    )
                channels, height, width = (2, 0, 1) if third <= first else (0, 1, 2)
                self.axes = (*range(len(frames)), *(len(frames) + axis for axis in (channels, height, width)))
                of_frame = part.shape[len(frames) :]
                self.picture = Picture(math.prod(frames) * of_frame[channels], of_frame[height], of_frame[width])
            case _:
                raise ValueError(f"{name_of(part)} is no picture")

    def forward(self, obs: Tensor) -> Tensor:
        axes = (0, *(1 + axis for axis in self.axes))
        return obs.unflatten(1, self.shape).permute(axes).reshape(obs.shape[0], *self.picture)


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))), with 3x3 filters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in "12")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(torch.relu(x))))


class MeanOverPicture(nn.Module):
    """[B, C, H, W] -> [B, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1))


def conv(picture: Picture) -> list[nn.Module]:
    """One layer of 16 filters of 3x3, for grids: MinAtar's network (Young & Tian 2019)."""
    return [nn.Conv2d(picture.channels, 16, 3), nn.ReLU(), nn.Flatten()]


def nature(picture: Picture) -> list[nn.Module]:
    """Three layers for screens (Mnih et al. 2015)."""
    return [
        nn.Conv2d(picture.channels, 32, 8, stride=4),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3),
        nn.ReLU(),
        nn.Flatten(),
    ]


def impala(picture: Picture) -> list[nn.Module]:
    """Fifteen layers with residuals (Espeholt et al. 2018), and the mean over the picture at the end: Impoola
    (Trumpp et al. 2025)."""
    layers: list[nn.Module] = []
    channels = picture.channels
    for width in (16, 32, 32):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.MaxPool2d(3, 2, padding=1)]
        layers += [Residual(width), Residual(width)]
        channels = width
    return [*layers, nn.ReLU(), MeanOverPicture()]


CONVOLUTIONS: dict[str, Callable[[Picture], list[nn.Module]]] = {"conv": conv, "nature": nature, "impala": impala}
SMALLEST = {"conv": 3, "nature": NATURE_SIDE, "impala": 3}  # of a picture's shorter side


class Encoder(nn.Module):
    """Features of an observation: those of each image's own convolutions, all other numbers as they are."""

    def __init__(self, parts: Sequence[ObsPart], name: str) -> None:
        """`name`: of CONVOLUTIONS.  ValueError: an image that they do not take."""
        super().__init__()
        self.sizes = [part.size for part in parts]
        self.encoders = nn.ModuleList(convolutions(part, name) if part.is_image else nn.Identity() for part in parts)
        with torch.no_grad():
            self.out_features = self(torch.zeros(1, sum(self.sizes))).shape[-1]

    def forward(self, obs: Tensor) -> Tensor:
        pieces = zip(self.encoders, obs.split(self.sizes, -1), strict=True)
        return torch.cat([encoder(piece) for encoder, piece in pieces], -1)


def convolutions(part: ObsPart, name: str) -> nn.Sequential:
    reorder = ToChannelsFirst(part)
    if reorder.picture.shorter_side < SMALLEST[name]:
        others = [other for other, side in SMALLEST.items() if side <= reorder.picture.shorter_side]
        instead = f"use {' or '.join([*others, 'mlp'])}"
        raise ValueError(
            f"{name_of(part)} is below {SMALLEST[name]} by {SMALLEST[name]}, the smallest that it takes; {instead}"
        )
    return nn.Sequential(reorder, *CONVOLUTIONS[name](reorder.picture))


def fitting(parts: Sequence[ObsPart]) -> str:
    """The built-in network for observations of these parts."""
    sides = [ToChannelsFirst(part).picture.shorter_side for part in parts if part.is_image]
    if not sides:
        return "mlp"
    return "nature" if min(sides) >= NATURE_SIDE else "conv"


def described(name: str, parts: Sequence[ObsPart]) -> str:
    """What a network does with images, for people."""
    images = " and ".join(map(name_of, (part for part in parts if part.is_image)))
    if name not in CONVOLUTIONS:
        return f"{name} takes {images}"
    with torch.device("meta"):
        encoder = Encoder(parts, name)
    weights = sum(parameter.numel() for parameter in encoder.parameters())
    return f"{name} turns {images} into {encoder.out_features} features, {weights:,} weights before hidden_sizes"


def name_of(part: ObsPart) -> str:
    return f"the image {f'{part.name!r} ' if part.name else ''}of shape {list(part.shape)}"
