"""An episode as MP4."""

import os
from pathlib import Path

import numpy as np
import torch

from agent.evaluation import MAX_EPISODE_STEPS
from agent.policy import Policy
from agent.seeding import member_seeds
from envs import UserError, VectorEnvironment


def record(policy: Policy, env: VectorEnvironment, folder: Path, seed: int, *, sampled: bool) -> Path:
    """Plays one episode of a single policy and writes it to a file in `folder`, whose name tells what it shows.

    Args:
        env: one environment, made with render_mode="rgb_array".
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
    member = policy.info.members[0]
    path = folder / f"{env.spec_id.replace('/', '-')}-seed{member.seed}-step{member.env_steps}-episode{seed}.mp4"
    obs = env.reset(member_seeds(policy.seeds, "evaluation", seed))
    policy.seed_(seed)
    frame = np.asarray(env.render()[0])
    height, width = frame.shape[:2]
    fps = env.render_fps
    writer = imageio_ffmpeg.write_frames(
        str(path), (width, height), fps=fps, macro_block_size=2, ffmpeg_log_level="error"
    )
    writer.send(None)
    for _ in range(MAX_EPISODE_STEPS):
        writer.send(np.ascontiguousarray(frame))
        mask = None if env.masks is None else env.masks.obs.unsqueeze(0)
        with torch.inference_mode():
            step = env.step(policy.choose(obs.unsqueeze(0), sampled=sampled, mask=mask)[0])
        if bool((step.terminated | step.truncated).all()):
            break
        obs, frame = step.obs, np.asarray(env.render()[0])
    writer.close()
    return path
