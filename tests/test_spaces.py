"""Observations flatten as Gymnasium flattens them, actions decode to members of their space, JSON goes both ways."""

import json
import sys
from typing import Any

import numpy as np
import pytest
from gymnasium import Space, spaces
from gymnasium.spaces.utils import flatten
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array

from envs import FactoredActions, FlatObservations, UserError, space_from_json, space_to_json

SPACES: dict[str, Space] = {
    "box": spaces.Box(-1.0, 1.0, (3,)),
    "unbounded": spaces.Box(np.array([-np.inf, 0.0]), np.array([2.5, np.inf]), dtype=np.float64),
    "image": spaces.Box(0, 255, (4, 5, 3), np.uint8),
    "integers": spaces.Box(-3, 4, (2, 2), np.int64),
    "scalar": spaces.Box(-1.0, 1.0, ()),
    "booleans": spaces.Box(0, 1, (3,), np.bool_),
    "discrete": spaces.Discrete(4),
    "discrete from -2": spaces.Discrete(4, start=-2, dtype=np.int32),
    "multi-discrete": spaces.MultiDiscrete([3, 1, 4]),
    "nested multi-discrete": spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[1, 0], [-3, 7]])),
    "multi-binary": spaces.MultiBinary(5),
    "nested multi-binary": spaces.MultiBinary((2, 3)),
    "dict": spaces.Dict({"b": spaces.Discrete(3, start=1), "a": spaces.Box(0.0, 1.0, (2, 2))}),
    "ordered dict": spaces.Dict([("b", spaces.Discrete(3)), ("a", spaces.MultiBinary(2))]),
    "tuple": spaces.Tuple([spaces.Discrete(3), spaces.Box(0.0, 1.0, (2,))]),
    "nested": spaces.Dict(
        {
            "x": spaces.Tuple([spaces.Dict({"y": spaces.MultiDiscrete([2, 3])}), spaces.Discrete(2)]),
            "a": spaces.Box(0, 9),
        }
    ),
}
every_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())


@every_space
def test_flat_observations_equal_those_of_gymnasium(space: Space) -> None:
    space.seed(0)
    samples = [space.sample() for _ in range(20)]
    batch = concatenate(space, samples, create_empty_array(space, len(samples)))
    expected = np.stack([flatten(space, sample) for sample in samples]).astype(np.float32)
    observations = FlatObservations(space)
    flat = observations.flatten(batch)
    assert flat.dtype == np.float32 and flat.flags.c_contiguous and observations.size == expected.shape[1]
    np.testing.assert_array_equal(flat, expected)
    np.testing.assert_array_equal(observations.flatten_each(samples), expected)
    np.testing.assert_array_equal(observations.flatten_one(samples[3]), expected[3])
    assert observations.is_batch(batch) and not observations.is_batch(samples[0])


def test_flat_observations_never_alias_what_the_environment_returned() -> None:
    observations, batch = FlatObservations(SPACES["box"]), np.zeros((2, 3), dtype=np.float32)
    flat = observations.flatten(batch)
    batch += 1
    assert (flat == 0).all()


def test_flat_observations_are_contiguous_where_the_environment_returned_a_transpose() -> None:
    batch = np.arange(6, dtype=np.float32).reshape(3, 2).T  # CartPole's own vector environment does so
    assert FlatObservations(SPACES["box"]).flatten(batch).flags.c_contiguous


def test_scales_are_known_of_one_hot_and_binary_entries_alone() -> None:
    space = spaces.Tuple([spaces.Box(0, 1, (2,)), spaces.Discrete(2), spaces.MultiBinary(1), spaces.MultiDiscrete([2])])
    flat = FlatObservations(space)
    assert flat.scale.tolist() == [0, 0, 1, 1, 1, 1, 1] and not flat.offset.any()


@pytest.mark.parametrize("outside", [0, 5])
def test_observation_outside_of_a_discrete_space_is_an_error(outside: int) -> None:
    with pytest.raises(UserError, match=rf"outside of its space Discrete\(4, start=1\): \[\[1\], \[{outside}\]\]"):
        FlatObservations(spaces.Discrete(4, start=1)).flatten(np.array([1, outside]))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(5),
        spaces.Graph(spaces.Box(0, 1), None),
        spaces.Sequence(spaces.Box(0, 1)),
        spaces.OneOf([spaces.Box(0, 1)]),
        spaces.Dict({"a": spaces.Tuple([]), "b": spaces.Text(5)}),
    ],
    ids=lambda space: type(space).__name__,
)
def test_unsupported_observation_spaces_say_what_is_supported(space: Space) -> None:
    text = (
        "observation space (Text|Graph|Sequence|OneOf|Dict).*, which is not supported: use Box, Discrete, .* Dict or "
        "Tuple, or a wrapper"
    )
    with pytest.raises(UserError, match=text):
        FlatObservations(space)


def test_observation_space_without_any_number_is_refused() -> None:
    with pytest.raises(UserError, match=r"observation space Box\(.*\(0,\), float32\), which is empty"):
        FlatObservations(spaces.Box(0, 1, (0,)))


ACTIONS: list[tuple[Space, int | None, tuple[int, ...], list[int], Any]] = [
    (spaces.Discrete(4), None, (4,), [2], 2),
    (spaces.Discrete(4, start=-2), None, (4,), [3], 1),
    (spaces.MultiDiscrete([3, 1, 4]), None, (3, 1, 4), [2, 0, 3], [2, 0, 3]),
    (spaces.MultiDiscrete([3, 2], dtype=np.int8, start=[5, 0]), None, (3, 2), [2, 1], [7, 1]),
    (SPACES["nested multi-discrete"], None, (2, 3, 4, 5), [1, 2, 3, 4], [[2, 2], [0, 11]]),
    (spaces.MultiBinary(3), None, (2, 2, 2), [1, 0, 1], [1, 0, 1]),
    (spaces.MultiBinary((2, 2)), None, (2, 2, 2, 2), [1, 0, 0, 1], [[1, 0], [0, 1]]),
    (spaces.Box(-2.0, 2.0, (1,)), 3, (3,), [2], [2.0]),
    (spaces.Box(np.array([-1, 0]), np.array([1, 10]), dtype=np.float64), 5, (5, 5), [0, 3], [-1, 7.5]),
    (spaces.Box(0.0, 1.0, (2, 1)), 2, (2, 2), [1, 0], [[1.0], [0.0]]),
    (spaces.Box(0, 10, (2,), np.int32), 4, (4, 4), [2, 3], [7, 10]),
]


@pytest.mark.parametrize(("space", "bins", "num_choices", "factors", "action"), ACTIONS, ids=lambda part: str(part))
def test_factors_decode_to_the_action(
    space: Space, bins: int | None, num_choices: tuple[int, ...], factors: list[int], action: Any
) -> None:
    actions = FactoredActions(space, bins)
    decoded = actions.decode(np.array(factors))
    assert actions.num_choices == num_choices and all(type(n) is int for n in actions.num_choices)
    np.testing.assert_array_equal(decoded, action)
    assert decoded.dtype == space.dtype and decoded.shape == space.shape


@pytest.mark.parametrize(("space", "bins"), [entry[:2] for entry in ACTIONS], ids=lambda part: str(part))
def test_every_choice_decodes_to_a_batch_within_the_space(space: Space, bins: int | None) -> None:
    actions = FactoredActions(space, bins)
    most = np.array(actions.num_choices)
    factors = np.random.default_rng(0).integers(0, most, size=(50, len(most)))
    factors[0], factors[1] = 0, most - 1
    decoded = actions.decode(factors)
    assert batch_space(space, 50).contains(decoded)
    assert len(np.unique(decoded.reshape(50, -1), axis=0)) == len(np.unique(factors, axis=0))  # none is lost


def test_bins_include_both_ends_of_the_range_of_each_entry() -> None:
    space = spaces.Box(np.array([-1.1, 0.3], np.float32), np.array([0.7, 1e6], np.float32))
    actions = FactoredActions(space, 7)
    np.testing.assert_array_equal(actions.decode(np.array([[0, 0], [6, 6]])), [space.low, space.high])


@pytest.mark.parametrize(
    ("space", "bins", "text"),
    [
        (
            spaces.Box(-2.0, 2.0, (1,)),
            None,
            r"action space Box\(-2.0, 2.0, \(1,\), float32\): set env.action_bins \(for example env.action_bins=3\) to "
            "cut it into bins, or use Discrete, MultiDiscrete, MultiBinary, or a Tuple or Dict of these",
        ),
        (spaces.Box(-1, np.inf, (1,)), 3, "action space Box.*: only a bounded Box can be cut into bins"),
        (spaces.Box(-1e308, 1e308, (1,), np.float64), 3, "only a bounded Box can be cut into bins"),
        (spaces.Box(-1, 1, (1,)), 1, "env.action_bins must be at least 2, the ends of the range; got 1"),
        (spaces.Box(0, 2, (1,), np.int64), 4, "env.action_bins=4 is more than the integers in its range"),
        (spaces.Discrete(2), 3, r"action space Discrete\(2\): it is discrete already, leave env.action_bins unset"),
        (spaces.Dict({"a": spaces.Text(2)}), 3, "action space Text.*, which is not supported: use Discrete, .* Dict"),
        (
            spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 1)]),
            None,
            "in part 1 of its actions the action space Box.*: set env.action_bins",
        ),
        (spaces.Tuple([spaces.Discrete(2)]), 3, "action space Tuple.*: it is discrete already"),
        (spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Tuple([])}), None, r"Tuple\(\), which is empty"),
        (spaces.Box(0, 1, (0,)), 3, "action space Box.*, which is empty"),
    ],
)
def test_actions_that_cannot_be_factored_say_what_to_do(space: Space, bins: int | None, text: str) -> None:
    with pytest.raises(UserError, match=text):
        FactoredActions(space, bins)


@every_space
def test_spaces_survive_json(space: Space) -> None:
    text = json.dumps(space_to_json(space), allow_nan=False)
    again = space_from_json(json.loads(text))
    assert again == space
    assert json.dumps(space_to_json(again)) == text
    assert again.dtype == space.dtype and again.shape == space.shape


def test_json_keeps_the_order_of_a_dict() -> None:
    again = space_from_json(space_to_json(SPACES["ordered dict"]))
    assert list(again.spaces) == ["b", "a"]


@pytest.mark.parametrize("space", [spaces.Text(3), spaces.Dict({1: spaces.Discrete(2)})], ids=["Text", "numbered keys"])
def test_other_spaces_cannot_be_saved(space: Space) -> None:
    with pytest.raises(UserError, match="cannot be saved: use Box, Discrete, .* or Dict with text keys"):
        space_to_json(space)


def box(**changes: Any) -> dict[str, Any]:
    return {"type": "Box", "low": 0, "high": 1, "shape": [2], "dtype": "float32"} | changes


def discrete(**changes: Any) -> dict[str, Any]:
    return {"type": "Discrete", "n": 4, "start": 0, "dtype": "int64"} | changes


def nested(depth: int) -> dict[str, Any]:
    return {"type": "Tuple", "spaces": [nested(depth - 1)]} if depth else discrete()


MALFORMED: dict[str, tuple[Any, str]] = {
    "no object": ([1], "valid dictionary"),
    "no type": ({}, "discriminator 'type'"),
    "unknown type": ({"type": "os.system", "command": "true"}, "'os.system'"),
    "missing field": ({"type": "Discrete", "n": 4}, "Discrete.start: Field required"),
    "unknown field": (discrete(x=1), "Discrete.x: Extra inputs"),
    "text for a number": (discrete(n="4"), "Discrete.n: Input should be a valid integer"),
    "truth for a number": (discrete(n=True), "Discrete.n: Input should be a valid integer"),
    "no choices": (discrete(n=0), "Discrete.n: Input should be greater than 0"),
    "object dtype": (discrete(dtype="object"), "Discrete.dtype"),
    "number beyond its dtype": (discrete(n=300, dtype="int8"), "out of bounds for int8"),
    "huge Discrete": (discrete(n=10**12), "more than 10000000"),
    "huge Box": (box(shape=[10**6, 10**6]), "more than 10000000"),
    "huge MultiBinary": ({"type": "MultiBinary", "n": [10**4] * 3}, "more than 10000000"),
    "huge in sum": ({"type": "Tuple", "spaces": [box(shape=[10**6])] * 11}, "more than 10000000"),
    "too few bounds": (box(low=[0]), "cannot reshape"),
    "bounds crossed": (box(low=2), "low is above high"),
    "bound not a number": (box(low=float("nan")), "Box.low"),
    "negative size": (box(shape=[-1]), "Box.shape.0: Input should be greater than or equal to 0"),
    "infinite integer": (box(high="inf", dtype="int8"), "cannot convert float infinity"),
    "start of another shape": (
        {"type": "MultiDiscrete", "nvec": [2, 3], "start": [0], "shape": [2], "dtype": "int64"},
        "cannot reshape",
    ),
    "key not a text": ({"type": "Dict", "spaces": [[1, box()]]}, "Dict.spaces.0.0: Input should be a valid string"),
    "key repeated": ({"type": "Dict", "spaces": [["a", box()], ["a", box()]]}, "a key is repeated"),
    "fault deep inside": ({"type": "Dict", "spaces": [["a", box(low="x")]]}, "Dict.spaces.0.1.Box.low"),
    "bottomless": (nested(900), "recursion|Recursion"),
}


@pytest.mark.parametrize(("description", "text"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_descriptions_are_the_users_errors(description: Any, text: str) -> None:
    with pytest.raises(UserError, match=f"not the description of a space: .*({text})"):
        space_from_json(description)


def test_reading_imports_nothing_that_the_file_names() -> None:
    for hostile in ({"type": "this"}, {"type": "this:Box"}, discrete(dtype="this"), box(dtype="this.Box")):
        with pytest.raises(UserError):
            space_from_json(hostile)
    assert "this" not in sys.modules  # the module of the Zen of Python, which prints when imported
