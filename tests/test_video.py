"""Frames of any environment as a video, or one sentence; a video that fails takes nothing with it."""

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from test_scripts import SHORT

import evaluate
import train
from agent.analysis.video import of_size, rgb
from envs import UserError

GREY = np.array([[0, 128], [255, 64]])
EXPECTED = np.repeat(GREY.astype(np.uint8)[..., None], 3, -1)


@pytest.mark.parametrize(
    "frame",
    [
        EXPECTED,
        GREY.astype(np.uint8),
        GREY[..., None],
        GREY.astype(np.float32),
        GREY / 255,
        np.dstack([EXPECTED, np.full((2, 2), 9, np.uint8)]),
        [np.zeros((2, 2, 3), np.uint8), EXPECTED],
        EXPECTED.astype(np.int64),
    ],
    ids=["rgb", "grey", "grey with an axis", "float", "0 to 1", "alpha", "list of frames", "int64"],
)
def test_a_frame_is_its_picture(frame: Any) -> None:
    assert np.array_equal(rgb(frame, "X-v0"), EXPECTED) and rgb(frame, "X-v0").dtype == np.uint8


@pytest.mark.parametrize(
    ("frame", "what"),
    [
        (None, "None"),
        ("text", "'text'"),
        (np.zeros(3), r"ndarray of shape \(3,\)"),
        (np.zeros((2, 2, 7)), "ndarray of"),
    ],
    ids=str,
)
def test_what_is_no_frame_is_one_sentence(frame: Any, what: str) -> None:
    with pytest.raises(UserError, match=rf"X-v0: render\(\) returned {what}.*; expected an image \[height, width, 3\]"):
        rgb(frame, "X-v0")


def test_frames_of_another_size_are_cut_or_filled_up() -> None:
    assert of_size(EXPECTED, 1, 3).tolist() == [[[0] * 3, [128] * 3, [0] * 3]]


class Renders(gymnasium.Env):
    """Odd, growing frames; fails at the frame asked for."""

    observation_space, action_space = gymnasium.spaces.Box(0, 1, (1,)), gymnasium.spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, fails_at: int = -1) -> None:
        self.render_mode, self.fails_at, self.num_frames = render_mode, fails_at, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.num_steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.num_steps += 1
        return np.zeros(1, np.float32), 1.0, False, self.num_steps == 5, {}

    def render(self) -> Any:
        self.num_frames += 1
        if self.num_frames == self.fails_at:
            raise ValueError("no picture")
        return np.full((51, 60 + self.num_frames), 0.5, dtype=np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "Renders-v0" not in gymnasium.registry:
        gymnasium.register("Renders-v0", Renders)
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    assert train.main([*SHORT, "env.id=Renders-v0", "seeds=2", f"run_dir={run_dir}"]) == 0
    return run_dir


def test_each_member_has_a_video_of_its_own(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = [str(run), "--member", "all", "--episodes", "1", "--greedy", "--video", str(tmp_path), "--json"]
    assert evaluate.main(arguments) == 0
    output = capfd.readouterr()
    assert len(json.loads(output.out)["members"]) == 2 and output.err.count("video: ") == 2
    assert sorted(path.name.split("-seed")[0] for path in tmp_path.iterdir()) == [
        "Renders-v0-member0",
        "Renders-v0-member1",
    ]


@pytest.mark.parametrize("fails_at", [1, 3])
def test_a_renderer_that_fails_takes_no_results_with_it(
    run: Path, tmp_path: Path, fails_at: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Renders.__init__, "__defaults__", (None, fails_at))
    assert evaluate.main([str(run), "--episodes", "1", "--video", str(tmp_path)]) == 2
    output = capfd.readouterr()
    assert "return per episode" in output.out and "sampled" in output.out
    assert "Renders-v0 cannot be rendered: render raised ValueError: no picture" in output.err
    assert "Traceback" not in output.err and list(tmp_path.iterdir()) == []
