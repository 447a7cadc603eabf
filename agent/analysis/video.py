"""An episode as MP4."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from agent.evaluation import MAX_EPISODE_STEPS
from agent.policy import Policy
from agent.seeding import member_seeds
from envs import UserError, VectorEnvironment


def record(
    policy: Policy,
    env: VectorEnvironment,
    folder: Path,
    seed: int,
    *,
    sampled: bool,
    max_episode_steps: int = MAX_EPISODE_STEPS,
) -> Path:
    """Plays one episode of a single policy and writes it to a file in `folder`, whose name tells what it shows.

    Args:
        env: one environment, made with render_mode="rgb_array".

    Raises:
        UserError: the environment cannot be rendered, or the file cannot be written. There is no file then.
    """
    try:
        import imageio_ffmpeg  # optional: only videos need it
    except ImportError:
        raise UserError('videos need ffmpeg: pip install "gumbel-actor-critic[video]"') from None
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # frames go to a file: no window, no complaint without a screen
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot make this folder for videos: {error.strerror}") from None
    (member,) = policy.info.members
    name = f"{env.spec_id.replace('/', '-')}-member{member.member}-seed{member.seed}-step{member.env_steps}"
    path = folder / f"{name}-episode{seed}.mp4"
    unfinished = path.with_name(f".{path.name}")
    frames = played(policy, env, seed, max_episode_steps, sampled=sampled)
    first = next(frames)
    height, width, _ = first.shape
    try:
        writer = imageio_ffmpeg.write_frames(
            str(unfinished), (width, height), fps=env.render_fps, macro_block_size=2, ffmpeg_log_level="error"
        )
        with contextlib.closing(writer):
            writer.send(None)
            writer.send(first)
            for frame in frames:
                writer.send(of_size(frame, height, width))
        os.replace(unfinished, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def played(
    policy: Policy, env: VectorEnvironment, seed: int, max_episode_steps: int, *, sampled: bool
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The frames of one episode."""
    obs = env.reset(member_seeds(policy.seeds, "evaluation", seed))
    policy.seed_(seed)
    yield rgb(env.render()[0], env.spec_id)
    for _ in range(max_episode_steps):
        mask = None if env.masks is None else env.masks.obs.unsqueeze(0)
        with torch.inference_mode():
            step = env.step(policy.choose(obs.unsqueeze(0), sampled=sampled, mask=mask)[0])
        if bool((step.terminated | step.truncated).all()):
            return  # what could be rendered now is the next episode
        obs = step.obs
        yield rgb(env.render()[0], env.spec_id)


def rgb(frame: Any, spec_id: str) -> UInt8[np.ndarray, "H W 3"]:
    """A frame as environments have them: grey, with transparency, in numbers from 0 to 1. UserError: it is none."""
    image = np.asarray(frame[-1] if isinstance(frame, list) and frame else frame)  # a list: the frames since the reset
    if image.ndim == 2:
        image = image[..., None]
    if image.dtype.kind not in "biuf" or image.ndim != 3 or image.shape[-1] not in (1, 3, 4) or image.size == 0:
        what = f"{type(frame).__name__} of shape {image.shape}" if image.ndim else repr(frame)
        raise UserError(f"{spec_id}: render() returned {what}; expected an image [height, width, 3]")
    image = image[..., :3] if image.shape[-1] == 4 else image
    if image.dtype == np.bool_ or (image.dtype.kind == "f" and image.max() <= 1):
        image = image * 255.0
    return np.ascontiguousarray(np.broadcast_to(np.rint(image.clip(0, 255)).astype(np.uint8), (*image.shape[:2], 3)))


def of_size(frame: UInt8[np.ndarray, "H W 3"], height: int, width: int) -> UInt8[np.ndarray, "H W 3"]:
    """Cut, or filled up with black, where it is not as large as the first."""
    if frame.shape[:2] == (height, width):
        return frame
    sized = np.zeros((height, width, 3), dtype=np.uint8)
    part = frame[:height, :width]
    sized[: len(part), : part.shape[1]] = part
    return sized
