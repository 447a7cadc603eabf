"""Videos: whatever a renderer returns is the right picture, or one sentence."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent import video
from agent.video import magnified, mp4, pictures

GREY = np.array([[0, 51, 102, 17, 34], [153, 204, 255, 5, 7]], np.uint8)  # [2, 5]
RGB = np.stack([GREY] * 3, -1)
EVEN = np.concatenate([RGB, RGB[:, -1:]], 1)  # the last column twice


@pytest.mark.parametrize(
    "rendered",
    [
        RGB,
        GREY,
        GREY[..., None],
        RGB.astype(np.int64),
        RGB.astype(np.float64),
        (RGB / 255).astype(np.float32),
        GREY / 255,
        GREY.astype(np.float32),
        np.concatenate([RGB, np.full((2, 5, 1), 7, np.uint8)], -1),  # RGBA
        np.moveaxis(RGB, -1, 0),
        np.asfortranarray(RGB),
        [RGB],
        RGB[None],
        RGB.tolist(),
    ],
    ids=lambda rendered: f"{np.asarray(rendered).dtype}{np.shape(rendered)}",
)
def test_every_kind_of_frame_is_the_same_picture(rendered: Any) -> None:
    (picture,) = pictures(rendered)
    assert picture.dtype == np.uint8 and picture.flags.c_contiguous
    np.testing.assert_array_equal(picture, EVEN)


def test_black_and_white_and_lists_of_frames() -> None:
    assert pictures(np.array([[False, True], [True, False]]))[0][..., 0].tolist() == [[0, 255], [255, 0]]
    assert len(pictures([RGB, RGB])) == len(pictures(np.stack([RGB, RGB]))) == 2 and pictures([]) == []


def test_pixels_of_small_frames_become_squares() -> None:
    (picture,) = pictures(np.eye(10))
    large = magnified(picture)
    assert large.shape == (240, 240, 3) and np.array_equal(large[12::24, 12::24], picture)
    assert magnified(large) is large and magnified(np.zeros((2, 30, 3), np.uint8)).shape == (16, 240, 3)


@pytest.mark.parametrize(
    ("rendered", "message"),
    [
        (None, r"render\(\) returned None; expected an array"),
        ("a text", r"render\(\) returned 'a text'; expected an array"),
        (np.zeros(3), r"an array of float64 \[3\]; expected"),
        (np.zeros((2, 3, 5), np.uint8), r"an array of uint8 \[2, 3, 5\]"),
        (np.zeros((0, 3, 3), np.uint8), r"an array of uint8 \[0, 3, 3\]"),
        (RGB.astype(np.uint16) * 256, "values from 0 to 65280; expected 0 to 255, or 0.0 to 1.0"),
        (RGB / 255 - 0.5, "values from -127.5 to 127.5; expected"),
        (np.full((2, 2), np.nan), "values from nan to nan"),
    ],
)
def test_what_is_no_picture_is_said(rendered: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pictures(rendered)


def test_frames_come_back_from_the_file(tmp_path: Path) -> None:
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    (frame,) = pictures(np.full((31, 45), 0.5))
    with mp4(tmp_path / "x.mp4", 30) as add:
        for _ in range(5):
            add(frame)
    decode = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", tmp_path / "x.mp4"]
    raw = subprocess.run([*decode, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True).stdout
    decoded = np.frombuffer(raw, np.uint8).reshape(5, 32, 46, 3)
    assert (abs(decoded.astype(int) - 128) < 8).all()


def test_a_video_without_frames_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    with pytest.raises(OSError, match=r"render\(\) returned no frames"), mp4(tmp_path / "x.mp4", 30):
        pass


def test_frames_of_another_size_are_said(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    with (
        pytest.raises(ValueError, match="the frames change their size, from 4x4 to 4x8"),
        mp4(tmp_path / "x.mp4", 30) as add,
    ):
        for width in (4, 8):
            add(np.zeros((4, width, 3), np.uint8))


def test_a_file_that_ffmpeg_did_not_write_whole_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    monkeypatch.setattr(imageio_ffmpeg, "count_frames_and_secs", lambda path: (1, 0.1))
    with pytest.raises(OSError, match="ffmpeg has written 1 of 2 frames"), video.mp4(tmp_path / "x.mp4", 30) as add:
        for _ in range(2):
            add(np.zeros((4, 4, 3), np.uint8))
