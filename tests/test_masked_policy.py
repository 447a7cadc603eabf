"""Legal choices in a saved policy, its evaluation and its videos."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from test_policy import OBS, make_policy

import envs
from agent import Policy, PolicyError
from agent.cli import evaluate, train
from agent.video import record

MASKED_SPACES = [
    (spaces.Discrete(4), np.array([0, 0, 1, 0], np.int8), 2),
    (spaces.Discrete(3, start=5), np.array([False, True, False]), 6),
    (spaces.MultiDiscrete([2, 3]), np.array([0, 1, 1, 0, 0], np.int8), [1, 0]),
    (spaces.MultiDiscrete([2, 3]), (np.array([0, 1], np.int8), np.array([0, 0, 1], np.int8)), [1, 2]),
    (spaces.MultiBinary(2), np.array([[0, 1], [1, 0]], np.int8), [1, 0]),
]


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize(("space", "mask", "action"), MASKED_SPACES, ids=[str(s) for s, _, _ in MASKED_SPACES])
def test_policy_takes_the_only_legal_action_alone_and_batched(
    space: gymnasium.Space, mask: object, action: object, sampled: bool
) -> None:
    policy = make_policy(OBS, space)
    obs = np.random.default_rng(0).uniform(-1, 1, (5, 3)).astype(np.float32)
    assert np.array_equal(policy.act(obs[0], sampled=sampled, action_mask=mask), action)
    assert np.array_equal(policy.act(obs, sampled=sampled, action_mask=[mask] * 5), [action] * 5)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (None, r"trained with masks of legal choices and needs one .* in info\['legal'\]"),
        (np.ones(3, np.int8), r"got an action mask of shape \[3\]; expected \[4\]"),
        (np.zeros(4, np.int8), "action mask 0 leaves action factor 0 no legal choice"),
    ],
)
def test_policy_that_needs_a_mask_says_so(mask: np.ndarray | None, message: str) -> None:
    policy = make_policy(OBS, spaces.Discrete(4))
    policy.info = policy.info.model_copy(update={"action_mask_key": "legal"})
    with pytest.raises(PolicyError, match=message):
        policy.act(np.zeros(3, np.float32), action_mask=mask)


def test_policy_wants_a_mask_for_each_observation() -> None:
    with pytest.raises(PolicyError, match="got 2 action masks for 5 observations"):
        make_policy(OBS, spaces.Discrete(4)).act(np.zeros((5, 3), np.float32), action_mask=np.ones((2, 4), np.int8))


@pytest.fixture(scope="module")
def taxi_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masks") / "run"
    settings = [
        "env.id=Taxi-v4",
        "total_env_steps=150",
        "learning_starts=100",
        "hidden_sizes=[8]",
        "wandb.mode=disabled",
    ]
    evaluations = ["evaluation.every_env_steps=150", "evaluation.episodes=1", "evaluation.final_episodes=1"]
    assert train.main([*settings, *evaluations, f"run_dir={folder}"]) == 0
    return folder


def test_saved_policy_records_that_it_needs_a_mask(taxi_run: Path) -> None:
    assert Policy.load(taxi_run).info.action_mask_key == "action_mask"


def test_saved_policy_is_evaluated_with_masks(taxi_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert evaluate.main([str(taxi_run), "--episodes", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["env_id"] == "Taxi-v4"


@pytest.fixture
def unmasked_taxi() -> Iterator[str]:
    class Unmasked(gymnasium.Wrapper):
        def reset(self, **kwargs: object) -> tuple:
            return self.env.reset(**kwargs)[0], {}

        def step(self, action: object) -> tuple:
            return *self.env.step(action)[:4], {}

    gymnasium.register("Test/Unmasked-v0", lambda **kwargs: Unmasked(gymnasium.make("Taxi-v4")))
    yield "Test/Unmasked-v0"
    del gymnasium.registry["Test/Unmasked-v0"]


def test_environment_without_the_mask_that_a_policy_needs_is_refused(
    taxi_run: Path, unmasked_taxi: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([str(taxi_run), "--env", unmasked_taxi]) == 2
    assert (
        "needs one with every observation: in it as obs['action_mask'], in info['action_mask']"
        in capsys.readouterr().err
    )


def test_policy_saved_before_masks_were_known_needs_none(taxi_run: Path, tmp_path: Path) -> None:
    Policy.load(taxi_run).save(tmp_path)
    info = json.loads((tmp_path / "policy.json").read_text())
    del info["action_mask_key"]
    (tmp_path / "policy.json").write_text(json.dumps(info))
    assert Policy.load(tmp_path).act(0) in range(6)


def test_video_shows_legal_actions(taxi_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("imageio_ffmpeg")
    pytest.importorskip("pygame")
    policy, env = (
        Policy.load(taxi_run),
        envs.make("Taxi-v4", 1, render_mode="rgb_array", kwargs={"max_episode_steps": 8}),
    )
    barred, step = [], env.step
    monkeypatch.setattr(
        env, "step", lambda action: barred.append(not env.masks.obs[0, 0, action[0, 0]]) or step(action)
    )
    with contextlib.closing(env):
        assert record(policy, env, tmp_path, 0, sampled=True).path.stat().st_size > 0
    assert len(barred) == 8 and not any(barred)


class Turning(gymnasium.Env):
    """One of three actions is legal, by the method alone; any other is an error. Observations are lists."""

    observation_space, action_space = OBS, spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[list[float], dict[str, object]]:
        super().reset(seed=seed)
        self.num_steps = 0
        return [0.0, 0.0, 0.0], {}

    def step(self, action: int) -> tuple[list[float], float, bool, bool, dict[str, object]]:
        assert self.action_masks()[action]
        self.num_steps += 1
        return [0.0, 0.0, 0.0], 1.0, self.num_steps == 5, False, {}

    def action_masks(self) -> np.ndarray:
        return np.arange(3) == self.num_steps % 3


def test_the_environment_of_a_policy_gives_the_mask_of_a_method_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gymnasium.registry, "Turning-v0", gymnasium.envs.registration.EnvSpec("Turning-v0", Turning))
    policy = make_policy(OBS, spaces.Discrete(3))
    env_settings = policy.info.env.model_copy(update={"id": "Turning-v0"})
    policy.info = policy.info.model_copy(update={"action_mask_key": "action_mask", "env": env_settings})
    env = policy.make_env()
    obs, info = env.reset(seed=0)
    terminated = False
    while not terminated:
        obs, _, terminated, _, info = env.step(policy.act(obs, action_mask=info.get("action_mask")))
