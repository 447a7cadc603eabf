"""Images: what is one, in which layouts, which network takes it, and what each costs."""

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Generator, nn

from agent import Policy
from agent.action_space import ActionSpace
from agent.config_loader import load_config
from agent.config_sections import NETWORKS
from agent.networks.encoders import ToChannelsFirst, described
from agent.networks.heads import make_actor, make_critics
from agent.networks.modules import (
    BUILT_IN,
    NetworkError,
    NetworkSpec,
    build_encoder,
    build_network,
    network_spec,
    num_features,
    seeded,
)
from agent.training.trainer import train
from envs.errors import UserError
from envs.spaces import FlatObservations, ObsPart

KWARGS = {"hidden_sizes": [8], "layer_norm": False}


def parts_of(*shapes: tuple[int, ...]) -> tuple[ObsPart, ...]:
    return tuple(ObsPart(f"part {i}", shape, is_image=len(shape) > 1) for i, shape in enumerate(shapes))


def box(shape: tuple[int, ...], dtype: Any = np.uint8) -> spaces.Box:
    return spaces.Box(0, 1 if dtype is np.bool_ else 255, shape, dtype)


@pytest.mark.parametrize(
    ("space", "shape"),
    [
        (box((10, 10, 4), np.bool_), (10, 10, 4)),
        (box((84, 84)), (84, 84)),
        (box((4, 84, 84, 3)), (4, 84, 84, 3)),
        (box((8, 8, 3), np.float32), (8, 8, 3)),
        (spaces.MultiBinary((6, 7, 2)), (6, 7, 2)),
        (spaces.MultiDiscrete(np.broadcast_to([11, 6, 3], (7, 7, 3))), (7, 7, 20)),  # MiniGrid's codes, one-hot
    ],
)
def test_what_is_an_image(space: spaces.Space, shape: tuple[int, ...]) -> None:
    assert FlatObservations(space).parts == (ObsPart("", shape, is_image=True),)


@pytest.mark.parametrize(
    "space",
    [
        box((128,)),
        box((10, 5), np.float32),
        box((2, 50)),
        spaces.MultiDiscrete(np.full((2, 9, 2), 3)),  # too narrow for a filter
        spaces.Box(-np.inf, np.inf, (8, 8, 3)),
        spaces.MultiDiscrete(np.arange(1, 28).reshape(3, 3, 3)),  # cells of different codes
    ],
)
def test_what_is_none(space: spaces.Space) -> None:
    flat = FlatObservations(space)
    assert flat.parts == (ObsPart("", (flat.size,)),)


def test_codes_of_a_cell_are_its_channels() -> None:
    space = spaces.MultiDiscrete(np.broadcast_to([3, 2], (3, 4, 2)))
    obs = np.zeros((3, 4, 2), np.int64)
    obs[1, 2] = 2, 1
    (part,) = (flat := FlatObservations(space)).parts
    cells = flat.flatten_one(obs).reshape(part.shape)
    assert cells[1, 2].tolist() == [0, 0, 1, 0, 1] and cells[0, 0].tolist() == [1, 0, 0, 1, 0]


def test_a_float_image_outside_of_its_space_is_an_error() -> None:
    flat = FlatObservations(spaces.Box(0, 1, (3, 3, 1)))
    with pytest.raises(UserError, match=r"an image with values from 0 to 255, outside of its space Box\(0"):
        flat.flatten(np.array([[[[0.0]] * 3] * 2 + [[[255.0]] * 3]]))


def test_layouts_of_one_picture_lead_to_the_same_channels(generator: Generator) -> None:
    picture = torch.rand(2, 6, 8, 9, generator=generator)  # [B, C, H, W]
    layouts = {
        (8, 9, 6): picture.permute(0, 2, 3, 1),
        (6, 8, 9): picture,
        (3, 8, 9, 2): picture.unflatten(1, (3, 2)).permute(0, 1, 3, 4, 2),  # three frames of two channels
        (3, 2, 8, 9): picture,
    }
    for shape, obs in layouts.items():
        assert torch.equal(ToChannelsFirst(ObsPart("", shape, True))(obs.flatten(1)), picture)
    one_channel = ToChannelsFirst(ObsPart("", (8, 9), True))
    assert torch.equal(one_channel(picture[:, 0].flatten(1)), picture[:, :1])


def test_settings_name_the_networks_that_there_are() -> None:
    assert ("auto", *BUILT_IN) == NETWORKS


@pytest.mark.parametrize(
    ("shapes", "name"),
    [([(4,)], "mlp"), ([(10, 10, 4)], "conv"), ([(4,), (35, 80, 3)], "conv"), ([(4, 84, 84), (3,)], "nature")],
)
def test_auto_chooses_by_the_size_of_pictures(shapes: list[tuple[int, ...]], name: str) -> None:
    config = load_config(None, ["env.id=Test-v0"])
    assert network_spec(config, parts_of(*shapes), layer_norm=False).name == name


@pytest.mark.parametrize(
    ("name", "shape", "features", "weights"),
    [  # of docs/images_and_memory.md: of the convolutions alone
        ("conv", (10, 10, 4), 1024, 592),
        ("nature", (4, 84, 84), 3136, 77_984),
        ("impala", (84, 84, 3), 32, 97_600),
    ],
)
def test_sizes_are_those_of_the_documentation(name: str, shape: tuple[int, ...], features: int, weights: int) -> None:
    encoder = build_encoder(name, parts_of(shape))
    assert encoder is not None and encoder.out_features == features
    assert sum(parameter.numel() for parameter in encoder.parameters()) == weights


def test_to_describe_a_network_draws_no_numbers() -> None:
    before = torch.random.get_rng_state()
    said = described("nature", parts_of((4, 84, 84), (3,)))
    assert said.endswith("'part 0' of shape [4, 84, 84] into 3139 features, 77,984 weights before hidden_sizes")
    assert described("mlp", parts_of((9, 9))) == "mlp takes the image 'part 0' of shape [9, 9]"
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", ["conv", "nature", "impala"])
def test_a_population_of_encoders_is_each_of_its_modules(name: str, generator: Generator) -> None:
    parts = parts_of((3,), (2, 40, 36))
    config = load_config(None, ["env.id=Test-v0", f"network.name={name}", "hidden_sizes=[8]", "seeds=2"])
    encoder = make_actor(config, parts, ActionSpace((3,))).encoder
    assert encoder is not None
    obs = torch.rand(2, 4, 3 + 2 * 40 * 36, generator=generator)
    gradient, _, out = encoder.network.gradient(lambda p: ((y := encoder(obs, p)).square().sum((1, 2)), y))
    for row in range(2):
        module = nn.ModuleDict({"features": build_encoder(name, parts)})
        module.load_state_dict({key: tensor[row] for key, tensor in encoder.network.tensors().items()})
        expected = module["features"](obs[row])
        torch.testing.assert_close(out[row], expected, rtol=1e-4, atol=1e-6)
        expected.square().sum().backward()
        own = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
        torch.testing.assert_close(gradient[row].norm(), own.norm(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("structure", ["multilinear", "joint"])
def test_critics_take_images(structure: str, generator: Generator) -> None:
    config = load_config(None, ["env.id=Test-v0", f"critic.structure={structure}", "hidden_sizes=[8]"])
    actions = ActionSpace((3, 2))
    critics = make_critics(config, parts_of((5, 5, 2), (4,)), actions)
    encoded = critics.encode(torch.rand(1, 6, 54, generator=generator))
    assert critics.evaluate(encoded, actions.one_hot(torch.zeros(1, 6, 2, dtype=torch.int64))).shape == (2, 1, 6)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("auto", (84, 3, 84), "channels along the axis in the middle"),
        ("nature", (10, 10, 4), "is below 36 by 36, the smallest that it takes; use conv or impala or mlp"),
    ],
)
def test_pictures_that_no_convolution_takes_are_told(name: str, shape: tuple[int, ...], message: str) -> None:
    config = load_config(None, ["env.id=Test-v0", f"network.name={name}"])
    with pytest.raises(NetworkError, match=rf"network.name={name}: the image 'part 0' of shape .*{message}"):
        make_actor(config, parts_of(shape), ActionSpace((2,)))
    mlp = build_network(NetworkSpec("mlp", KWARGS), parts_of(shape))
    assert num_features(mlp) == 8


class OwnConvolution(nn.Module):
    """Of a user: gets the picture in its own shape."""

    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.conv, self.out_features = nn.Conv2d(obs_shape[-1], 4, obs_shape[0]), 4

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.conv(obs.movedim(-1, 1)).flatten(1)


def test_a_network_of_ones_own_gets_the_picture_in_its_shape() -> None:
    spec = NetworkSpec(f"{__name__}:OwnConvolution", {})
    network = seeded(lambda: build_network(spec, parts_of((5, 5, 2))), 0)
    assert network(torch.zeros(3, 50)).shape == (3, 4)


class Pointer(gymnasium.Env[Any, Any]):
    """A lit pixel in one of four columns: the right action is its column."""

    observation_space = spaces.Dict({"image": spaces.Box(0, 255, (4, 4, 1), np.uint8), "bias": spaces.Box(-9, 9, (1,))})
    action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.column = int(self.np_random.integers(4))
        image = np.zeros((4, 4, 1), np.uint8)
        image[self.np_random.integers(4), self.column] = 255
        return {"image": image, "bias": np.ones(1, np.float32)}, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = float(action == self.column)
        return self.reset()[0], reward, True, False, {}


gymnasium.register("Pointer-v0", Pointer)
POINTER = [
    "env.id=Pointer-v0",
    "hidden_sizes=[16]",
    "batch_size=32",
    "reinforce.rollout_steps=64",
    "wandb.mode=disabled",
    "compile=false",
]


@pytest.mark.whole_run
@pytest.mark.parametrize("algorithm", ["gumbel_actor_critic", "reinforce"])
def test_a_picture_is_learned_from_and_its_policy_read_again(
    algorithm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps, least = {"gumbel_actor_critic": (800, 0.9), "reinforce": (8000, 0.5)}[algorithm]
    settings = [f"algorithm={algorithm}", f"total_env_steps={steps}", f"run_dir={tmp_path / 'run'}"]
    train(load_config(None, [*POINTER, *settings]))
    (member,) = json.loads((tmp_path / "run" / "result.json").read_text())["members"]
    assert member["greedy"]["mean"] > least
    said = "Network: conv turns the image 'image' of shape [4, 4, 1] into 65 features, 160 weights before hidden_sizes."
    assert said in " ".join(capsys.readouterr().out.split())
    policy, env = Policy.load(tmp_path / "run"), Pointer()
    assert policy.info.network.name == "conv"
    obs, _ = env.reset(seed=0)
    assert policy.act(obs) == env.column
