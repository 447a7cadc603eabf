"""An episode as MP4."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8

from agent.evaluation import MAX_EPISODE_STEPS
from agent.files import replaced
from agent.policy import Policy
from agent.seeding import member_seeds
from envs import UserError, VectorEnvironment

Picture = UInt8[np.ndarray, "height width 3"]
TOO_SMALL, VISIBLE = 32, 240  # pixels of a frame's longer side
logger = logging.getLogger(__name__)


class Video(NamedTuple):
    path: Path
    was_cut: bool  # before the end of its episode


def record(
    policy: Policy,
    env: VectorEnvironment,
    folder: Path,
    seed: int,
    *,
    sampled: bool,
    max_steps: int = MAX_EPISODE_STEPS,
) -> Video:
    """Plays one episode of a single policy and writes it to a file in `folder`, whose name tells what it shows.

    Args:
        env: one environment, made with render_mode="rgb_array".
        max_steps: after which an episode is cut.

    Raises:
        UserError: there is no video; nothing of it is left in the folder.
    """
    if sys.platform == "linux":  # frames go to a file: no window, no complaint without a screen
        os.environ.setdefault("SDL_VIDEODRIVER", "offscreen")
    member = policy.info.members[0]
    name = (
        f"{env.spec_id.replace('/', '-')}-member{member.member}-seed{member.seed}-step{member.env_steps}-episode{seed}"
        f"{'-sampled' if sampled else ''}.mp4"
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replaced(folder / name) as file, mp4(file, env.render_fps or 30) as add:
            blank: list[bool] = []

            def add_and_look(picture: Picture) -> None:
                blank.append(bool(picture.min() == picture.max()))
                add(picture)

            was_cut = play(policy, env, seed, sampled, max_steps, lambda: show(env, add_and_look))
        if all(blank):
            logger.warning("%s: every frame has one colour alone", folder / name)
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise UserError(f"{folder / name}: this video cannot be written: {reason}") from None
    return Video(folder / name, was_cut)


def play(
    policy: Policy,
    env: VectorEnvironment,
    seed: int,
    sampled: bool,
    max_steps: int,
    show: Callable[[], None],
) -> bool:
    """Plays one episode and calls `show` before each step; returns whether it was cut after `max_steps`."""
    obs = env.reset(member_seeds(policy.seeds, "evaluation", seed))
    policy.seed_(seed)
    state = policy.actor.initial_state(1, 1)
    for _ in range(max_steps):
        show()
        mask = None if env.masks is None else env.masks.obs.unsqueeze(0)
        with torch.inference_mode():
            action, state = policy.choose(obs.unsqueeze(0), state, sampled=sampled, mask=mask)
            step = env.step(action[0])
        if bool((step.terminated | step.truncated).all()):
            return False
        obs = step.obs
    return True


def show(env: VectorEnvironment, add: Callable[[Picture], None]) -> None:
    """Hands over what the environment renders. UserError where that is no picture."""
    frames = env.render()
    try:
        for picture in pictures(None if frames is None else frames[0]):
            add(picture)
    except ValueError as error:
        raise UserError(f"{env.spec_id}: no video: {error}") from None


@contextlib.contextmanager
def mp4(path: Path, fps: int | float) -> Iterator[Callable[[Picture], None]]:
    """Yields a function that adds a picture to the file: ValueError where it has another size than the first.

    OSError where ffmpeg fails.
    """
    try:
        import imageio_ffmpeg  # optional: only videos need it
    except ImportError:
        raise UserError('videos need ffmpeg: pip install "gumbel-actor-critic[video]"') from None
    writer: Any = None
    shape: tuple[int, ...] = ()
    count = 0

    def add(picture: Picture) -> None:
        nonlocal writer, shape, count
        if writer is None:
            shape = picture.shape
            height, width, _ = magnified(picture).shape
            writer = imageio_ffmpeg.write_frames(
                str(path), (width, height), fps=fps, macro_block_size=2, ffmpeg_log_level="error"
            )
            writer.send(None)
        if picture.shape != shape:
            sizes = " to ".join(f"{height}x{width}" for height, width, _ in (shape, picture.shape))
            raise ValueError(f"the frames change their size, from {sizes}; a video has one size")
        writer.send(magnified(picture))
        count += 1

    try:
        yield add
    finally:
        if writer is not None:
            writer.close()
    if not count:
        raise OSError("render() returned no frames")
    try:
        num_written, _ = imageio_ffmpeg.count_frames_and_secs(str(path))
    except RuntimeError:
        num_written = 0
    if num_written < count:
        raise OSError(f"ffmpeg has written {num_written} of {count} frames")


def magnified(picture: Picture) -> UInt8[np.ndarray, "more_rows more_columns 3"]:
    """The picture, each pixel a square of many where there are too few to see, as in MinAtar's 10x10."""
    longer_side = max(picture.shape[:2])
    if longer_side >= TOO_SMALL:
        return picture
    factor = 2 * (VISIBLE // (2 * longer_side))
    return np.ascontiguousarray(picture.repeat(factor, 0).repeat(factor, 1))


def pictures(rendered: Any) -> list[Picture]:
    """What render() of one environment returned, a frame or a list of frames, as RGB with even sides.

    A frame has values from 0 to 255, or floats from 0 to 1, and the shape [H, W], [H, W, C] or [C, H, W], where C is 1
    (grey), 3 (RGB) or 4 (RGBA). Anything else is a ValueError.
    """
    is_list = isinstance(rendered, list | tuple) and all(isinstance(frame, np.ndarray) for frame in rendered)
    frames = rendered if is_list else [rendered]
    return [to_picture(np.asarray(part)) for frame in frames for part in (frame if np.ndim(frame) == 4 else [frame])]


def to_picture(frame: np.ndarray) -> Picture:
    picture = frame[..., None] if frame.ndim == 2 else frame
    if picture.ndim == 3 and picture.shape[-1] not in (1, 3, 4):
        picture = np.moveaxis(picture, 0, -1)
    if picture.ndim != 3 or picture.shape[-1] not in (1, 3, 4) or picture.dtype.kind not in "buif" or not picture.size:
        what = f"an array of {frame.dtype} {list(frame.shape)}" if frame.ndim else repr(frame.item())
        raise ValueError(f"render() returned {what}; expected an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]")
    low, high = float(picture.min()), float(picture.max())
    if picture.dtype.kind == "b" or (picture.dtype.kind == "f" and high < 1.001):
        picture, low, high = picture * 255.0, low * 255, high * 255
    if not (-0.5 <= low and high < 255.5):  # NaN too
        raise ValueError(f"render() returned values from {low:g} to {high:g}; expected 0 to 255, or 0.0 to 1.0")
    rgb = np.repeat(picture, 3, axis=-1) if picture.shape[-1] == 1 else picture[..., :3]
    height, width, _ = rgb.shape
    even = np.pad(rgb, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")  # what players want
    return np.ascontiguousarray(even if even.dtype == np.uint8 else np.rint(even).clip(0, 255).astype(np.uint8))
