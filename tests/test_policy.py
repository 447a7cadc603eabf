"""Policies: act as the environment wants it, save and load without loss, refuse what does not fit."""

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import envs
from agent import Policy, PolicyError
from agent.config_sections import EnvSettings
from agent.policy import MemberInfo, NetworkInfo, PolicyInfo
from agent.weights import save_weights
from envs import space_to_json


def make_policy(
    observation_space: gymnasium.Space, action_space: gymnasium.Space, num_members: int = 1, bins: int | None = None
) -> Policy:
    """An untrained policy whose weights differ from member to member."""
    info = PolicyInfo(
        algorithm="gumbel_actor_critic",
        env=EnvSettings(id="CartPole-v1", action_bins=bins),
        observation_space=space_to_json(observation_space),
        action_space=space_to_json(action_space),
        network=NetworkInfo(**MLP),
        normalize_obs=True,
        members=[
            MemberInfo(member=i, seed=10 + i, settings={}, env_steps=5, eval_return=float(i % 2))
            for i in range(num_members)
        ],
    )
    policy = Policy(info)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        policy.actor.network.flat.normal_(generator=generator)
        policy.normalizer.mean.normal_(generator=generator)
        policy.normalizer.var.uniform_(0.5, 2.0, generator=generator)
    return policy


def test_swept_pairs_survive_saving(tmp_path: Path) -> None:
    policy = make_policy(OBS, spaces.Discrete(2))
    settings = {"noise_persistence": [0.5, 0.95], "n_step": 3, "tau.start": 2.0}
    member = policy.info.members[0].model_copy(update={"settings": settings})
    policy.info = policy.info.model_copy(update={"members": [member]})
    policy.save(tmp_path)
    assert Policy.load(tmp_path).info.members[0].settings == settings


OBS = spaces.Box(-1, 1, (3,))
MEMBER = {"member": 0, "seed": 0, "settings": {}, "env_steps": 1, "eval_return": None}
MLP = {"name": "mlp", "kwargs": {"hidden_sizes": [8], "layer_norm": False}}
ACTION_SPACES = [
    (spaces.Discrete(4), None),
    (spaces.Discrete(3, start=5), None),
    (spaces.MultiDiscrete([2, 3, 4]), None),
    (spaces.MultiDiscrete([[2, 3], [4, 5]]), None),
    (spaces.MultiBinary(3), None),
    (spaces.Box(-2, 2, (2,)), 3),
]


@pytest.mark.parametrize(("space", "bins"), ACTION_SPACES, ids=[str(s) for s, _ in ACTION_SPACES])
@pytest.mark.parametrize("sampled", [False, True])
def test_action_lies_in_the_space_alone_and_batched(space: gymnasium.Space, bins: int | None, sampled: bool) -> None:
    policy = make_policy(OBS, space, bins=bins)
    obs = np.random.default_rng(0).uniform(-1, 1, (5, 3)).astype(np.float32)
    assert space.contains(policy.act(obs[0], sampled=sampled))
    assert all(space.contains(action) for action in policy.act(obs, sampled=sampled))


def test_batch_acts_as_one_by_one() -> None:
    policy = make_policy(OBS, spaces.Discrete(4))
    obs = np.random.default_rng(0).uniform(-1, 1, (20, 3)).astype(np.float32)
    assert policy.act(obs).tolist() == [policy.act(o) for o in obs]
    assert len(set(policy.act(obs).tolist())) > 1


def test_dict_observations_are_understood() -> None:
    space = spaces.Dict({"place": spaces.Discrete(3), "speed": spaces.Box(-1, 1, (2,))})
    policy = make_policy(space, spaces.Discrete(2))
    space.seed(0)
    assert policy.act(space.sample()) in (0, 1)


@pytest.mark.parametrize("member", [0, 2])
def test_saved_member_acts_as_before(tmp_path: Path, member: int) -> None:
    policy = make_policy(OBS, spaces.Discrete(4), num_members=3)
    policy.save(tmp_path / "policy" / "final")
    obs = torch.rand((3, 50, 3), generator=torch.Generator().manual_seed(0))
    loaded = Policy.load(tmp_path, member=member)
    own, _ = loaded.choose(obs[member : member + 1], torch.zeros(1, 50, 0))
    assert torch.equal(own[0], policy.choose(obs, torch.zeros(3, 50, 0))[0][member])
    assert loaded.info.members[0].seed == 10 + member


def test_best_member_is_the_one_with_the_highest_evaluation(tmp_path: Path) -> None:
    make_policy(OBS, spaces.Discrete(4), num_members=3).save(tmp_path)
    assert Policy.load(tmp_path).info.members[0].member == 1
    assert Policy.load(tmp_path, member="all").num_members == 3


def test_saving_again_replaces_what_is_there(tmp_path: Path) -> None:
    make_policy(OBS, spaces.Discrete(4)).save(tmp_path / "p")
    make_policy(OBS, spaces.Discrete(4), num_members=2).save(tmp_path / "p")
    assert Policy.load(tmp_path / "p", member="all").num_members == 2
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["p", "policy.json", "weights.safetensors"]


def test_act_of_a_population_asks_for_one_member() -> None:
    with pytest.raises(PolicyError, match="holds 2 members; load one"):
        make_policy(OBS, spaces.Discrete(4), num_members=2).act(np.zeros(3, np.float32))


def test_normaliser_is_part_of_the_policy(tmp_path: Path) -> None:
    policy = make_policy(OBS, spaces.Discrete(4))
    policy.save(tmp_path)
    loaded = Policy.load(tmp_path)
    torch.testing.assert_close(loaded.normalizer.mean, policy.normalizer.mean, rtol=0, atol=0)
    torch.testing.assert_close(loaded.normalizer.var, policy.normalizer.var, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: (p / "policy.json").unlink(), "no policy here"),
        (lambda p: (p / "policy.json").write_text("{"), "policy.json: not readable as JSON"),
        (lambda p: (p / "policy.json").write_text("[]"), "policy.json"),
        (lambda p: (p / "policy.json").write_text("[" * 100_000), "policy.json: not readable as JSON"),
        (lambda p: (p / "weights.safetensors").unlink(), "weights.safetensors: not readable"),
        (lambda p: (p / "weights.safetensors").write_bytes(b"nonsense"), "weights.safetensors: not readable"),
        (lambda p: flip(p / "weights.safetensors", -1), "weights.safetensors: not what was written"),
        (
            lambda p: change(p, network=MLP | {"kwargs": {"hidden_sizes": [9], "layer_norm": False}}),
            "do not fit the networks",
        ),
        (lambda p: change(p, network=MLP | {"kwargs": {"hidden_sizes": [-1], "layer_norm": False}}), "hidden_sizes"),
        (lambda p: change(p, network=MLP | {"kwargs": {"hidden_sizes": [8]}}), "layer_norm"),
        (lambda p: change(p, network=MLP | {"kwargs": {}, "name": "os:path"}), "--network os:path"),
        (lambda p: change(p, network=MLP | {"kwargs": {}, "name": "os:path; reboot"}), "policy.json: network.name"),
        (lambda p: change(p, format=1), "policy.json: format"),
        (lambda p: change(p, action_space={"type": "os.system"}), "policy.json"),
        (lambda p: change(p, extra=1), "policy.json: extra"),
        (lambda p: change(p, members=[MEMBER | {"seed": 2**63}]), "policy.json: members.0.seed"),
        (lambda p: change(p, members=[MEMBER | {"seed": -1}]), "policy.json: members.0.seed"),
    ],
)
def test_unusable_folder_is_a_clear_error(tmp_path: Path, spoil: object, message: str) -> None:
    make_policy(OBS, spaces.Discrete(4)).save(tmp_path / "p")
    spoil(tmp_path / "p")  # type: ignore[operator]
    with pytest.raises(PolicyError, match=message):
        Policy.load(tmp_path / "p")


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def change(folder: Path, **fields: object) -> None:
    info = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(info | fields))


def test_missing_folder_and_member_are_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="nowhere: no such folder"):
        Policy.load(tmp_path / "nowhere")
    make_policy(OBS, spaces.Discrete(4), num_members=2).save(tmp_path / "p")
    with pytest.raises(PolicyError, match="member 2 does not exist; there are 0 to 1"):
        Policy.load(tmp_path / "p", member=2)


def test_policy_for_another_action_space_is_refused() -> None:
    policy = make_policy(spaces.Box(-np.inf, np.inf, (6,)), spaces.Discrete(2))
    env = envs.make("Acrobot-v1", 1)
    with pytest.raises(PolicyError, match="but Acrobot-v1 has"):
        policy.check_fits(env)
    env.close()


def test_environment_that_imports_a_module_is_refused_unless_asked_for() -> None:
    policy = make_policy(OBS, spaces.Discrete(2))
    policy.info = policy.info.model_copy(update={"env": EnvSettings(id="malicious:Env-v0")})
    with pytest.raises(PolicyError, match="--env malicious:Env-v0"):
        policy.env_settings()


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_policy_of_format_2_is_read(tmp_path: Path, layer_norm: bool) -> None:
    """Format 2 knew the built-in network only, its layers counted and its weights as [P, in, out]."""
    policy = make_policy(OBS, spaces.MultiDiscrete([2, 3]), num_members=2)
    kwargs = {"hidden_sizes": [8, 5], "layer_norm": layer_norm}
    policy = Policy(policy.info.model_copy(update={"network": NetworkInfo(name="mlp", kwargs=kwargs)}))
    policy.actor.network.flat.normal_(generator=torch.Generator().manual_seed(1))
    policy.save(tmp_path)
    step, old = 3 if layer_norm else 2, {}
    for name, tensor in policy.tensors().items():
        *_, layer, kind = name.split(".")
        if not name.startswith("actor."):
            old[name] = tensor
        elif layer == "head" or int(layer) % step == 0:
            number = 2 if layer == "head" else int(layer) // step
            old[f"actor.{kind}{number}"] = tensor.mT if kind == "weight" else tensor.unsqueeze(1)
        else:
            old[f"actor.{'scale' if kind == 'weight' else 'shift'}{int(layer) // step}"] = tensor.unsqueeze(1)
    save_weights(old, tmp_path / "weights.safetensors")
    info = json.loads((tmp_path / "policy.json").read_text())
    info = {key: value for key, value in info.items() if key not in ("network", "env")} | kwargs | {"format": 2}
    info |= {"env_id": "CartPole-v1", "env_kwargs": {"sutton_barto_reward": True}, "action_bins": None}
    (tmp_path / "policy.json").write_text(json.dumps(info))
    read = Policy.load(tmp_path, member="all")
    obs = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(read.actor(obs), policy.actor(obs))
    assert read.info.env == EnvSettings(id="CartPole-v1", kwargs={"sutton_barto_reward": True}, action_mask_key=None)


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        (np.zeros(4, np.float32), "does not fit Box"),
        (None, "does not fit Box"),
        ("abc", "does not fit Box"),
        (np.array([0, np.nan, 0], np.float32), "is not finite"),
    ],
    ids=repr,
)
def test_an_observation_that_does_not_fit_is_a_clear_error(obs: object, message: str) -> None:
    with pytest.raises(PolicyError, match=f"got an observation that {message}"):
        make_policy(OBS, spaces.Discrete(2)).act(obs)
