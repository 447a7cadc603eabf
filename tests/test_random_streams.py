"""Random numbers: known answers, uniformity, and that a row depends on its own seed alone."""

import torch

from envs.random_streams import INCREMENT, RandomStreams, mix


def test_numbers_are_those_of_the_reference_implementation() -> None:
    """The first outputs of splitmix64.c (Vigna 2015) for the seed 1234567."""
    first = mix(1234567 + torch.arange(1, 6) * INCREMENT)
    assert [x % 2**64 for x in first.tolist()] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_a_row_depends_on_its_own_seed_alone() -> None:
    together, alone = RandomStreams([4, 7, 4]), RandomStreams([7])
    for shape in ((3,), (), (2, 5)):
        ours, theirs = together.uniform(*shape), alone.uniform(*shape)
        assert torch.equal(ours[1:2], theirs) and torch.equal(ours[0], ours[2]) and not torch.equal(ours[0], ours[1])


def test_a_stream_continues_from_its_state_and_starts_over_with_its_seed() -> None:
    streams, other = RandomStreams([3, 9]), RandomStreams([0, 0])
    first = streams.uniform(5)
    for name, tensor in streams.state().items():
        other.state()[name].copy_(tensor)
    following = streams.uniform(5)
    assert torch.equal(other.uniform(5), following) and not torch.equal(following, first)
    other.seed_([3, 9])
    assert torch.equal(other.uniform(5), first)


def test_numbers_are_uniform_and_rows_and_neighbours_uncorrelated() -> None:
    """Moments and correlations within five standard errors."""
    u = RandomStreams(range(4)).uniform(250_000)
    assert 0 <= u.min() and u.max() < 1
    centred = (u - 0.5) * 12**0.5
    bound = 5 / 250_000**0.5
    assert (centred.mean(-1).abs() < bound).all() and ((centred.square().mean(-1) - 1).abs() < bound).all()
    correlations = torch.corrcoef(torch.cat([centred[:, 1:], centred[:, :-1]]))
    assert (correlations - torch.eye(8)).abs().max() < bound
    counts = torch.histc(u.float(), 1000, 0, 1)
    assert ((counts - 1000) ** 2 / 1000).sum() < 999 + 5 * (2 * 999) ** 0.5


def test_integers_cover_their_range() -> None:
    drawn = RandomStreams([1]).integers(6, 60_000)
    assert ((drawn.flatten().bincount() - 10_000).abs() < 5 * (10_000 * 5 / 6) ** 0.5).all() and drawn.max() == 5
