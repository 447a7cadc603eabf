"""Replay: windows by hand, and every sample held against a plain list."""

import pytest
import torch
from torch import Generator, Tensor

from agent.replay import Batch, Replay, Window
from agent.state import restore_
from envs import FrameStack, UserError

GAMMA = 0.5


class Recorder:
    """Feeds a replay of one member and one factor with steps whose observation says where they are."""

    def __init__(self, num_envs: int = 1, capacity: int = 100, n_step: int = 1, frame_stack: int = 1) -> None:
        gamma = torch.tensor([GAMMA])
        self.replay = Replay(
            1, num_envs, capacity, 2 * frame_stack, 1, n_step, gamma, frame_stack=FrameStack(frame_stack)
        )
        self.num_envs = num_envs

    def add(self, obs: list, reward: list, terminated: list, truncated: list, next_obs: list, valid: list) -> None:
        action = torch.tensor([[[int(o[1]) % 3] for o in obs]])
        tensors = [torch.tensor([x], dtype=torch.float32) for x in (obs, reward, next_obs)]
        flags = [torch.tensor([x]) for x in (terminated, truncated, valid)]
        self.replay.add_(tensors[0], action, tensors[1], flags[0], flags[1], tensors[2], flags[2])

    def episode(self, number: int, length: int, *, terminated: bool, unfinished: bool = False) -> None:
        """Step t of an episode: observation [number, t], reward 10^t."""
        for t in range(length):
            last = t == length - 1 and not unfinished
            ends = (terminated and last, not terminated and last)
            self.add([[number, t]], [10.0**t], [ends[0]], [ends[1]], [[number, t + 1]], [True])


def rows(batch: Batch) -> set[tuple[float, ...]]:
    """(episode, step) -> (return, discount, step of the successor), as rows."""
    columns = [batch.obs, batch.reward.unsqueeze(-1), batch.discount.unsqueeze(-1), batch.next_obs[..., 1:]]
    return {tuple(round(x, 5) for x in row.tolist()) for row in torch.cat(columns, -1)[0]}


def sample(replay: Replay, generator: Generator, size: int = 3000) -> Batch:
    window = draw(replay, generator, size)
    return replay.batch(window, window.length)


def draw(replay: Replay, generator: Generator, size: int) -> Window:
    return replay.sample(*torch.rand((2, len(replay.newest), size), dtype=torch.float64, generator=generator))


def test_one_step_transitions_by_hand(generator: Generator) -> None:
    recorder = Recorder()
    recorder.episode(0, 2, terminated=True)
    recorder.episode(1, 2, terminated=False)
    assert rows(sample(recorder.replay, generator)) == {
        (0, 0, 1.0, 0.5, 1), (0, 1, 10.0, 0.0, 2),
        (1, 0, 1.0, 0.5, 1), (1, 1, 10.0, 0.5, 2),  # the time limit bootstraps
    }  # fmt: skip


def test_three_step_windows_end_with_the_episode_and_at_the_newest_step(generator: Generator) -> None:
    recorder = Recorder(n_step=3)
    recorder.episode(0, 4, terminated=True)
    recorder.episode(1, 1, terminated=False)
    recorder.episode(2, 2, terminated=True, unfinished=True)
    assert rows(sample(recorder.replay, generator)) == {
        (0, 0, 1 + 5 + 25, 0.125, 3),  # a whole window
        (0, 1, 10 + 50 + 250, 0.0, 4),  # ends with the task
        (0, 2, 100 + 500, 0.0, 4),
        (0, 3, 1000, 0.0, 4),
        (1, 0, 1.0, 0.5, 1),  # cut by the time limit: bootstraps, does not run into episode 2
        (2, 0, 1 + 5, 0.25, 2),  # the newest steps bootstrap early
        (2, 1, 10, 0.5, 2),
    }  # fmt: skip


def test_filler_steps_leave_no_trace(generator: Generator) -> None:
    plain, with_fillers = Recorder(n_step=3), Recorder(n_step=3)
    for number in range(3):
        for recorder in (plain, with_fillers):
            recorder.episode(number, 2, terminated=True)
        with_fillers.add([[number, 2]], [0.0], [False], [False], [[number + 1, 0]], [False])
    results = [rows(sample(r.replay, generator)) for r in (plain, with_fillers)]
    assert results[0] == results[1]


def test_a_window_may_count_in_part_only(generator: Generator) -> None:
    recorder = Recorder(n_step=3)
    recorder.episode(0, 4, terminated=True)
    window = draw(recorder.replay, generator, 1000)
    results = [rows(recorder.replay.batch(window, window.length.clamp(max=most))) for most in (1, 2)]
    assert results[0] == {(0, t, 10.0**t, 0.5 * (t < 3), t + 1) for t in range(4)}
    assert results[1] == {
        (0, 0, 1 + 5, 0.25, 2), (0, 1, 10 + 50, 0.25, 3), (0, 2, 100 + 500, 0.0, 4), (0, 3, 1000, 0.0, 4),
    }  # fmt: skip


def test_a_reward_beyond_a_window_does_not_matter_whatever_it_is(generator: Generator) -> None:
    recorder = Recorder(n_step=3)
    recorder.episode(0, 2, terminated=True)
    recorder.add([[1, 0]], [float("inf")], [True], [False], [[1, 1]], [True])
    batch = sample(recorder.replay, generator)
    assert batch.reward[batch.obs[..., 0] == 0].isfinite().all() and not batch.reward.isnan().any()


def test_gamma_is_per_member(generator: Generator) -> None:
    replay = Replay(2, 1, 10, obs_size=1, num_factors=1, n_step=2, gamma=torch.tensor([0.5, 0.9]))
    for t in range(2):
        obs, one, no = torch.full((2, 1, 1), float(t)), torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.bool)
        replay.add_(obs, torch.zeros(2, 1, 1, dtype=torch.int64), one, no, no, obs + 1, ~no)
    batch = sample(replay, generator, 50)
    first = batch.obs[..., 0] == 0
    torch.testing.assert_close(batch.reward[0][first[0]].unique(), torch.tensor([1.5]))
    torch.testing.assert_close(batch.discount[1][first[1]].unique(), torch.tensor([0.81]))


@pytest.mark.slow
@pytest.mark.parametrize("n_step", [1, 3])
def test_every_sample_is_a_true_transition_however_often_the_ring_wraps(n_step: int, generator: Generator) -> None:
    """Two environments with episodes of 1 to 6 steps and fillers, 12 slots each: against a dictionary of what was."""
    recorder = Recorder(num_envs=2, capacity=24, n_step=n_step)
    truth: dict[tuple[float, float], tuple[float, bool]] = {}  # (episode, step) -> reward, terminated
    lengths: dict[float, int] = {}
    position, pending = [[0.0, 0.0], [1000.0, 0.0]], [False, False]
    for number in range(400):
        obs, reward, terminated, truncated, next_obs, valid = [], [], [], [], [], []
        for e in range(2):
            episode, t = position[e]
            ends = not pending[e] and bool(torch.rand((), generator=generator) < 0.3)
            task_ends = ends and bool(torch.rand((), generator=generator) < 0.5)
            obs.append([episode, t])
            reward.append(float(number))
            terminated.append(task_ends)
            truncated.append(ends and not task_ends)
            next_obs.append([episode + 1, 0.0] if pending[e] else [episode, t + 1])
            valid.append(not pending[e])
            if pending[e]:
                position[e] = [episode + 1, 0.0]
            else:
                truth[episode, t] = (float(number), task_ends)
                lengths[episode] = int(t) + 1
                position[e] = [episode, t + 1]
            pending[e] = ends
        recorder.add(obs, reward, terminated, truncated, next_obs, valid)
        if number % 7 == 0 and number:
            window = draw(recorder.replay, generator, 40)
            counted = torch.randint(1, n_step + 1, window.length.shape, generator=generator)
            batch = recorder.replay.batch(window, torch.minimum(counted, window.length))
            check_against_truth(batch, counted, truth, lengths)


def check_against_truth(batch: Batch, counted: Tensor, truth: dict, lengths: dict) -> None:
    for b in range(batch.obs.shape[1]):
        episode, t = batch.obs[0, b].tolist()
        assert int(batch.action[0, b, 0]) == int(t) % 3
        length = min(int(counted[0, b]), lengths[episode] - int(t))
        steps = [truth[episode, t + i] for i in range(length)]
        assert batch.reward[0, b] == pytest.approx(sum(GAMMA**i * r for i, (r, _) in enumerate(steps)))
        assert batch.discount[0, b] == pytest.approx(GAMMA**length * (not steps[-1][1]))
        assert batch.next_obs[0, b].tolist() == [episode, t + length]


def frequencies(values: Tensor) -> Tensor:
    return values.unique(return_counts=True)[1].float()


def test_transitions_are_drawn_uniformly(generator: Generator) -> None:
    """Chi-square over 11 transitions ; 45.1 is exceeded once in 2e6, none starts at a boundary."""
    recorder = Recorder(capacity=100)
    recorder.episode(0, 8, terminated=True)
    recorder.episode(1, 3, terminated=False)
    batch = sample(recorder.replay, generator, 110_000)
    counts = frequencies(batch.obs[0, :, 0] * 100 + batch.obs[0, :, 1])
    assert len(counts) == 11
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 45.1


def test_all_environments_are_drawn_alike(generator: Generator) -> None:
    """Five standard errors: false alarm < 1e-6."""
    recorder = Recorder(num_envs=2)
    for t in range(10):
        obs = [[0.0, t], [1000.0, t]]
        recorder.add(obs, [1.0, 1.0], [False] * 2, [False] * 2, [[0.0, t + 1], [1000.0, t + 1]], [True] * 2)
    share = (sample(recorder.replay, generator, 10_000).obs[..., 0] == 0).float().mean()
    assert abs(share - 0.5) < 5 * 0.5 / 100


def test_one_step_episodes_are_sampled_too(generator: Generator) -> None:
    recorder = Recorder(capacity=20, n_step=3)
    for number in range(30):
        recorder.episode(number, 1, terminated=True)
    batch = sample(recorder.replay, generator)
    assert (batch.discount == 0).all() and (batch.reward == 1).all()
    assert batch.obs[0, :, 0].unique().tolist() == list(map(float, range(21, 30)))  # two slots are kept free


def test_binary_observations_are_kept_as_bytes(generator: Generator) -> None:
    replay = Replay(1, 1, 10, 3, 1, n_step=1, gamma=torch.tensor([0.9]), obs_dtype=torch.uint8)
    obs, no = torch.tensor([[[0.0, 1.0, 0.0]]]), torch.zeros(1, 1, dtype=torch.bool)
    replay.add_(obs, torch.zeros(1, 1, 1, dtype=torch.int64), torch.ones(1, 1), no, no, obs.flip(-1) + obs, ~no)
    batch = sample(replay, generator, 4)
    assert replay.frames.dtype == torch.uint8 and batch.obs.dtype == torch.float32
    assert batch.obs[0, 0].tolist() == [0.0, 1.0, 0.0] and batch.next_obs[0, 0].tolist() == [0.0, 2.0, 0.0]


@pytest.mark.parametrize("padding", ["first frame", "zeros"])
def test_stacked_frames_come_back_as_they_were_however_an_episode_begins(padding: str, generator: Generator) -> None:
    """Three frames of two numbers; the ring wraps many times; each frame is stored once but for those that begin."""
    recorder = Recorder(capacity=40, n_step=2, frame_stack=3)
    assert recorder.replay.frames.shape == (40, 2)

    def stack(episode: int, t: int) -> list[float]:
        frames = [[episode, max(s, 0)] if s >= 0 or padding == "first frame" else [0, 0] for s in (t - 2, t - 1, t)]
        return [float(x) for frame in frames for x in frame]

    for episode in range(1, 60):
        length = 1 + episode % 7
        for t in range(length):
            ends = t == length - 1
            recorder.add([stack(episode, t)], [1.0], [ends], [False], [stack(episode, t + 1)], [True])
        batch = sample(recorder.replay, generator, 50)
        for b in range(50):
            number, t = (int(x) for x in batch.obs[0, b, -2:])
            steps = min(2, 1 + number % 7 - t)
            assert batch.obs[0, b].tolist() == stack(number, t)
            assert batch.next_obs[0, b].tolist() == stack(number, t + steps)


def test_a_million_atari_steps_fit_in_eight_gib() -> None:
    """Counted on a replay of a thousand; memory is the same for each step."""
    gamma = torch.tensor([0.99])
    replay = Replay(1, 1, 1000, 4 * 84 * 84, 1, 3, gamma, frame_stack=FrameStack(4), obs_dtype=torch.uint8)
    per_step = [replay.frames, replay.steps, replay.length, replay.is_start, replay.starts]
    num_bytes = sum(tensor.nbytes for tensor in per_step)
    assert num_bytes == 1000 * (84 * 84 + 4 * 4 + 9) and num_bytes * 1000 < 8 * 2**30


def test_no_more_slots_are_made_than_the_steps_of_a_run_can_fill(generator: Generator) -> None:
    """Also where every step ends an episode: none is lost."""
    gamma = torch.tensor([GAMMA])
    small = Replay(1, 2, 100_000, 2, 1, 1, gamma, max_steps=40)
    assert len(small.frames) < 2 * 60 and len(Replay(1, 2, 50, 2, 1, 1, gamma, max_steps=40).frames) == 50
    yes, no = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.bool)
    for t in range(20):
        obs = torch.full((1, 2, 2), float(t))
        small.add_(obs, torch.zeros(1, 2, 1, dtype=torch.int64), torch.ones(1, 2), yes, no, obs + 0.5, yes)
    assert small.num_started.tolist() == [[20, 20]] and small.num_dropped.sum() == 0
    assert set(sample(small, generator, 2000).obs[0, :, 0].tolist()) == set(range(20))


@pytest.mark.parametrize("frame_stack", [1, 3])
@pytest.mark.parametrize("num_steps", [5, 19, 300])
def test_a_checkpoint_holds_the_filled_slots_and_a_longer_run_has_room_for_more(
    num_steps: int, frame_stack: int, generator: Generator
) -> None:
    """Five and nineteen steps leave slots empty; three hundred fill a ring that cannot grow."""

    def replay(max_steps: int) -> Replay:
        gamma = torch.tensor([GAMMA])
        size = 2 * frame_stack
        return Replay(1, 2, 60, size, 1, 2, gamma, max_steps=max_steps, frame_stack=FrameStack(frame_stack))

    def add(steps: range, *replays: Replay) -> None:
        no = torch.zeros(1, 2, dtype=torch.bool)
        for t in steps:
            frames = torch.arange(t - frame_stack + 1, t + 1).repeat_interleave(2).float().expand(1, 2, -1)
            for own in replays:
                action, ends = torch.zeros(1, 2, 1, dtype=torch.int64), torch.tensor([[t % 4 == 3, t % 7 == 6]])
                own.add_(frames, action, torch.full((1, 2), float(t)), no, ends, frames + 1, ~no)

    first, longer, always = replay(2 * num_steps), replay(1000), replay(1000)
    add(range(num_steps), first, always)
    saved = {name: tensor.clone() for name, tensor in first.state().items()}
    if num_steps == 5:
        assert saved["frames"].shape[2] < first.num_slots
    longer.make_room_(saved)
    for name, tensor in longer.state().items():
        tensor.copy_(saved[name])
    add(range(num_steps, num_steps + 9), longer, always)
    u, v = torch.rand((2, 1, 200), dtype=torch.float64, generator=generator)
    for ours, theirs in zip(*(own.batch(w := own.sample(u, v), w.length) for own in (longer, always)), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("capacity", "frame_stack", "n_step"), [(17, 1, 1), (25, 1, 1), (17, 3, 3), (12, 2, 2)])
def test_a_checkpoint_at_any_step_holds_all_that_can_be_drawn(
    capacity: int, frame_stack: int, n_step: int, generator: Generator
) -> None:
    """Also where the ring has just begun again from its first slot, and an episode's last observation in its last."""

    def draws(replay: Replay) -> Batch:
        v = torch.arange(0, 1, 0.04, dtype=torch.float64).unsqueeze(0)
        window = replay.sample(torch.zeros_like(v), v)
        return replay.batch(window, window.length)

    recorder, t = Recorder(capacity=capacity, n_step=n_step, frame_stack=frame_stack), 0
    for number in range(1, 120):
        frames = [[[number, max(s, 0)] for s in range(last - frame_stack + 1, last + 1)] for last in (t, t + 1)]
        obs, next_obs = ([float(x) for frame in stack for x in frame] for stack in frames)
        ends = bool(torch.rand((), generator=generator) < 0.35)
        recorder.add([obs], [float(number)], [False], [ends], [next_obs], [True])
        t = 0 if ends else t + 1
        restored = Recorder(capacity=capacity, n_step=n_step, frame_stack=frame_stack).replay
        restored.make_room_(saved := {name: x.clone() for name, x in recorder.replay.state().items()})
        restore_(restored.state(), saved)
        for ours, theirs in zip(draws(restored), draws(recorder.replay), strict=True):
            assert torch.equal(ours, theirs), number


def test_unstacking_changes_nothing_that_is_drawn_before_or_later(generator: Generator) -> None:
    """Frames along the last axis of two pixels, in a ring that wraps; so members do not notice another's unstacking."""

    def add(steps: range, *replays: Replay) -> None:
        for t in steps:
            frames = torch.arange(t - 2, t + 2).float().repeat_interleave(2).view(1, 1, 4, 2)
            obs, next_obs = (frames[..., first : first + 3, :].transpose(-1, -2).flatten(-2) for first in (0, 1))
            action, yes = torch.zeros(1, 1, 1, dtype=torch.int64), torch.tensor([[True]])
            for replay in replays:
                replay.add_(obs, action, torch.ones(1, 1), ~yes, torch.tensor([[t % 5 == 4]]), next_obs, yes)

    made = [Replay(1, 1, 30, 6, 1, 2, torch.tensor([GAMMA]), frame_stack=FrameStack(3, 2)) for _ in range(2)]
    u, v = torch.rand((2, 1, 100), dtype=torch.float64, generator=generator)
    add(range(41), *made)
    made[0].unstack_()
    for steps in (range(0), range(41, 47), range(47, 90)):
        add(steps, *made)
        for ours, theirs in zip(*(own.batch(w := own.sample(u, v), w.length) for own in made), strict=True):
            assert torch.equal(ours, theirs)
    assert made[0].frames.shape[1] == 6 and made[1].frames.shape[1] == 2


ATARI = {"obs_size": 4 * 84 * 84, "num_factors": 1, "n_step": 3, "obs_dtype": torch.uint8}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {},
            r"of 300,000 slots for observations of 28,224 bytes \(whole\) needs 7\.9 GiB, but 1\.0 GiB of memory are",
        ),
        (
            {},
            r"use replay_capacity=12000 or less, fewer members, or a wrapper that makes observations smaller or stacks",
        ),
        ({"frame_stack": FrameStack(4)}, r"28,224 bytes \(one of 4 frames a slot\) needs 2\.0 GiB"),
        (
            {"capacity": 10_000, "checkpoint_bytes": 2**30},  # 0.8 GiB, and as much for the copy
            r"with 0\.8 GiB for its copy in a checkpoint, needs 1\.6 GiB.*=6300 or less.*checkpoint\.replay_gib=0",
        ),
    ],
)
def test_a_replay_that_memory_does_not_hold_is_refused_before_it_is_made(
    settings: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("agent.memory", "agent.replay"):
        monkeypatch.setattr(f"{module}.free_memory", lambda device: 2**30)
    monkeypatch.setattr(torch, "zeros", None)
    with pytest.raises(UserError, match=message):
        Replay(3, 1, gamma=torch.full((3,), 0.9), **{"capacity": 100_000} | ATARI | settings)


def test_observations_that_memory_does_not_hold_whole_are_not_unstacked(monkeypatch: pytest.MonkeyPatch) -> None:
    replay = Replay(1, 1, 1000, gamma=torch.tensor([0.9]), frame_stack=FrameStack(4), **ATARI)
    for module in ("agent.memory", "agent.replay"):
        monkeypatch.setattr(f"{module}.free_memory", lambda device: 2**20)
    with pytest.raises(
        UserError, match=r"\(whole\) needs 0\.0 GiB, but 0\.0 GiB of memory are free; use replay_capacity"
    ):
        replay.unstack_()
