"""A trained policy: acting on observations as the environment gives them, saving and loading without pickle."""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from agent.action_space import ActionSpace
from agent.commands import command
from agent.config import Config, settings
from agent.config_faults import InvalidConfig
from agent.config_fields import Section, Value, nearest
from agent.config_sections import EnvSettings
from agent.estimators import gumbel
from agent.files import replaced
from agent.networks.heads import Actor
from agent.networks.modules import BUILT_IN, MemorySpec, NetworkSpec, network_spec
from agent.normalizer import ObservationNormalizer, make_normalizer
from agent.policy_module import PolicyModule
from agent.policy_zoo import ZOO, in_zoo, zoo_entries
from agent.seeding import member_seeds
from agent.tables import number
from agent.weights import in_new_format, load_weights, save_weights
from envs import VectorEnvironment, make_single
from envs.errors import UserError
from envs.factories import is_of_factory, needs_factory
from envs.importing import OWN_CLASS, is_ours
from envs.masks import ACTION_MASK_KEY, MaskReader
from envs.random_streams import RandomStreams
from envs.spaces import FactoredActions, FlatObservations, are_same, has_mask, space_from_json, space_to_json
from envs.values import describe as describe_value
from envs.values import fitting_obs, immoderate


class PolicyError(UserError):
    """A policy folder that cannot be used: the text says which file and why."""


class MemberInfo(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    member: int  # its number in the run
    seed: Annotated[int, Field(ge=0, lt=2**63)]  # what RandomStreams takes
    settings: dict[str, Value]
    env_steps: int  # of this member when these weights were saved
    eval_return: float | None  # greedy, of the evaluation at that time


class BuiltInKwargs(BaseModel):
    """Of the built-in network, as a policy file may give them."""

    model_config = ConfigDict(extra="forbid", strict=True)
    hidden_sizes: list[Annotated[int, Field(ge=1, le=65_536)]] = Field(max_length=100)
    layer_norm: bool


class MemoryInfo(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    cell: Literal["gru", "mingru"]
    size: int = Field(ge=1, le=65_536)


class NetworkInfo(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Annotated[str, Field(pattern=rf"^({'|'.join(BUILT_IN)}|{OWN_CLASS.pattern})$")]
    kwargs: dict[str, Any]
    memory: MemoryInfo | None = None

    @model_validator(mode="after")
    def built_in_kwargs_are_sound(self) -> "NetworkInfo":
        if self.name in BUILT_IN:
            BuiltInKwargs.model_validate(self.kwargs)
        return self


class PolicyInfo(BaseModel):
    """policy.json: all that is needed to use the weights, besides the weights."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")
    format: Literal[4] = 4
    algorithm: str
    env: EnvSettings
    observation_space: dict[str, Any]
    action_space: dict[str, Any]
    action_mask_key: str | None = None  # of the mask that the policy needs, see envs.masks; none: it needs none
    network: NetworkInfo
    normalize_obs: bool
    members: list[MemberInfo] = Field(min_length=1, max_length=100_000)

    def network_spec(self) -> NetworkSpec:
        of = self.network
        return NetworkSpec(
            of.name, of.kwargs, None if of.memory is None else MemorySpec(of.memory.cell, of.memory.size)
        )

    def names(self) -> list[str]:
        """Of all that using the policy imports."""
        return [self.network.name, self.env.id, *(wrapper.name for wrapper in self.env.wrappers)]


class WithEnv(Section):
    """Settings of an environment under the keys that a config has."""

    env: EnvSettings


class EnvOfPolicy(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment as a policy wants it: see `Policy.make_env`."""

    def __init__(self, env: gymnasium.Env[Any, Any], action_mask_key: str | None) -> None:
        super().__init__(env)
        asks = action_mask_key == ACTION_MASK_KEY and not has_mask(env.observation_space, action_mask_key)
        self.has_method = asks and env.has_wrapper_attr("action_masks")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.given(*self.env.reset(seed=seed, options=options))

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        obs, info = self.given(obs, info)
        return obs, reward, terminated, truncated, info

    def given(self, obs: Any, info: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if self.has_method and ACTION_MASK_KEY not in info:
            info = info | {ACTION_MASK_KEY: self.env.get_wrapper_attr("action_masks")()}
        return fitting_obs(obs, self.observation_space), info


class Policy:
    """The policies of one or more members, frozen.

        policy = Policy.load("runs/x")
        action = policy.act(obs)          # greedy; numpy in, an action the environment accepts out
        action = policy.act(obs, action_mask=info["action_mask"])       # one of the legal actions

    Where observations have the mask, as obs["action_mask"], it is taken from them. A policy with a memory takes its
    state and returns the next one:

        state = policy.initial_state()                                  # at the start of an episode
        action, state = policy.act(obs, state)

    `choose` is the same on tensors, for all members at once.
    """

    def __init__(
        self,
        info: PolicyInfo,
        device: torch.device | str = "cpu",
        *,
        source: str | PathLike[str] = "RUN",
        trust: bool = False,
    ) -> None:
        """`source`: where it was loaded from. `trust`: whether what it names may be imported."""
        self.info, self.source, self.trust = info, source, trust
        self.observations = FlatObservations(space_from_json(info.observation_space))
        self.factored = FactoredActions(space_from_json(info.action_space), info.env.action_bins)
        self.mask_reader = MaskReader(self.factored)
        actions = ActionSpace(self.factored.num_choices, device)
        self.num_members = len(info.members)
        self.actor = Actor(info.network_spec(), self.observations.parts, actions, [0] * self.num_members, device)
        self.normalizer = make_normalizer(
            self.num_members, self.observations, enabled=info.normalize_obs, device=device
        )
        self.seeds = [member.seed for member in info.members]
        self.streams = RandomStreams(self.seeds, device)
        self.seed_(0)

    def __repr__(self) -> str:
        first, *others = self.info.members
        about = [self.info.env.id, self.info.algorithm, f"{first.env_steps} env steps"]
        about.append(f"{self.num_members} members" if others else f"seed {first.seed}")
        if not others and first.eval_return is not None:
            about.append(f"greedy return {number(first.eval_return)}")
        return f"Policy('{self.source}': {', '.join(about)})"

    def seed_(self, *seed: int) -> None:
        """Starts the draws of sampled actions over; each member's follow from these numbers and its own seed."""
        self.streams.seed_(member_seeds(self.seeds, "evaluation", *seed))

    def initial_state(self, num_envs: int | None = None) -> Float[np.ndarray, "*num_envs H"]:
        """A memory's state at the start of an episode; for a batch of observations one each.

        Of no numbers where the policy has no memory.
        """
        return np.zeros((*([] if num_envs is None else [num_envs]), self.actor.state_size), dtype=np.float32)

    def act(self, obs: Any, state: Any = None, *, sampled: bool = False, action_mask: Any = None) -> Any:
        """An action for one observation, or a batch of actions for a batch of observations.

        With a `state` also the next state: (action, state). A policy with a memory needs it.

        Of a Tuple or Dict action space: a tuple or dict of each part's action, for a batch each part batched, as
        Gymnasium's vector environments take them.

        Args:
            obs: in the shapes of the environment's space, alone or batched along a new first axis. Parts that the
                policy was trained without, as texts, may be in it.
            state: as the last call returned it; at the start of an episode initial_state().
            sampled: draw from the policy instead of taking its most probable action.
            action_mask: of the legal choices, as the environment gives it in `info` or by `action_masks()`; one, or a
                batch for a batch. A policy trained with masks needs it, unless `obs` has it; any other may have it.
        """
        self.require_one_member()
        try:
            batched = self.observations.is_batch(obs)
            flat = self.observations.flatten(obs) if batched else self.observations.flatten_one(obs)[None]
        except (UserError, ValueError, TypeError, LookupError) as error:
            raise PolicyError(f"got an observation that does not fit {self.observations.space}: {error}") from None
        if (wrong := immoderate(flat)) is not None:
            raise PolicyError(f"got an observation that is {wrong}")
        if action_mask is None and isinstance(obs, Mapping) and self.info.action_mask_key is not None:
            action_mask = obs.get(self.info.action_mask_key)
        mask = None if action_mask is None else self.read_masks(action_mask if batched else [action_mask], len(flat))
        memory = self.read_state(state, len(flat), batched)
        chosen, memory = self.choose(torch.from_numpy(flat).unsqueeze(0), memory, sampled=sampled, mask=mask)
        choices = chosen[0].numpy()
        action = self.factored.decode(choices) if batched else self.factored.decode_each(choices)[0]
        return action if state is None else (action, (memory[0] if batched else memory[0, 0]).numpy())

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """Action and next state, as models of Stable-Baselines3 return them: for what takes such a model.

        Args:
            observation: one, or a batch.
            state: as the last call returned it; None at the start, and without a memory always.
            episode_start: of each observation, whether an episode begins with it: its state is zero then.
            deterministic: the most probable action, else one drawn from the policy.
        """
        num_envs = None
        if self.observations.is_batch(observation):
            num_envs = len(self.observations.flatten(observation))
        if state is None:
            state = self.initial_state(num_envs)
        elif episode_start is not None:
            state = np.where(np.expand_dims(np.asarray(episode_start, dtype=bool), -1), 0.0, state).reshape(state.shape)
        action, state = self.act(observation, state, sampled=not deterministic)
        return action, state if self.actor.state_size else None

    def to_module(self, *, sampled: bool = False) -> PolicyModule:
        """The policy of one member as a torch module that torch.export takes; `sampled` as in `act`."""
        self.require_one_member()
        weights = {name: tensor[0].cpu() for name, tensor in self.tensors().items()}
        spec = self.info.network_spec()
        return PolicyModule(spec, self.observations, self.factored, weights, self.normalizer, sampled=sampled)

    def require_one_member(self) -> None:
        if self.num_members != 1:
            raise PolicyError(f"this policy holds {self.num_members} members; load one: Policy.load(run, member=0)")

    def read_state(self, state: Any, num_obs: int, batched: bool) -> Float[Tensor, "1 E H"]:
        """A memory's state as the user has it.  PolicyError where it does not fit, or where it is missing."""
        size = self.actor.state_size
        if state is None:
            if size:
                raise PolicyError(
                    "this policy has a memory and needs its state with every observation: action, state = "
                    "policy.act(obs, state), at the start of an episode policy.initial_state()"
                )
            state = self.initial_state(num_obs if batched else None)
        expected = (num_obs, size) if batched else (size,)
        try:
            found = np.asarray(state, dtype=np.float32)
        except (TypeError, ValueError):
            raise PolicyError(f"got a state that is {describe_value(state)}, must be numbers") from None
        if found.shape != expected or not np.isfinite(found).all():
            raise PolicyError(f"got a state {list(found.shape)}, must be finite numbers of shape {list(expected)}")
        return torch.from_numpy(found).view(1, num_obs, size)

    def read_masks(self, masks: Any, num_obs: int) -> Bool[Tensor, "1 E K N"]:
        """Masks as the user has them; PolicyError where they do not fit the actions or leave none."""
        reader = self.mask_reader
        try:
            read = reader.read_batch(masks) if reader.is_batch(masks) else reader.read_each(masks)
        except UserError as error:
            raise PolicyError(f"got {error}") from None
        if len(read) != num_obs:
            raise PolicyError(f"got {len(read)} action masks for {num_obs} observations")
        if not read.any(-1).all():
            number, factor = np.argwhere(~read.any(-1))[0]
            raise PolicyError(f"action mask {number} leaves action factor {factor} no legal choice")
        return torch.from_numpy(read).unsqueeze(0)

    @torch.no_grad()
    def choose(
        self,
        obs: Float[Tensor, "P E D"],
        state: Float[Tensor, "P E H"],
        *,
        sampled: bool = False,
        mask: Bool[Tensor, "P E K N"] | None = None,
    ) -> tuple[Int[Tensor, "P E K"], Float[Tensor, "P E H"]]:
        """The most probable choice of each factor, or one drawn from the policy; of the legal ones with a mask.

        Also the memory's next state; `state`: the last one, at the start of an episode `actor.initial_state`.
        """
        if mask is None and (key := self.info.action_mask_key) is not None:
            raise PolicyError(
                f"this policy was trained with masks of legal choices and needs one with every observation: in it as "
                f"obs['{key}'], in info['{key}'], or by env.action_masks(); Policy.act takes it as action_mask"
            )
        logits, state = self.actor.step(self.normalizer(obs), state, mask)
        if sampled:
            logits = logits + gumbel(self.streams.uniform(*logits.shape[1:]))
        return logits.argmax(-1), state

    def tensors(self) -> dict[str, Tensor]:
        """All weights by name; each has the members along its first axis."""
        return {**self.actor.tensors(), "normalizer.mean": self.normalizer.mean, "normalizer.var": self.normalizer.var}

    def copy_from_(
        self, actor: Actor, normalizer: ObservationNormalizer, members: list[int] | slice = slice(None)
    ) -> None:
        """Takes over the weights of all members, or some."""
        for own, other in zip(self.actor.tensors().values(), actor.tensors().values(), strict=True):
            own[members] = other[members]
        self.normalizer.mean[members] = normalizer.mean[members]
        self.normalizer.var[members] = normalizer.var[members]

    def record_evaluation_(self, env_steps: int, returns: Sequence[float | None]) -> None:
        """Notes when the weights were taken and what each member's greedy episodes brought; None: not known yet."""
        self.info = self.info.model_copy(
            update={
                "members": [
                    member.model_copy(update={"env_steps": env_steps, "eval_return": value})
                    for member, value in zip(self.info.members, returns, strict=True)
                ]
            }
        )

    def take_members_(self, other: "Policy", members: list[int]) -> None:
        """Replaces some members, weights and record, by those of a policy of the same shape."""
        for name, tensor in self.tensors().items():
            tensor[members] = other.tensors()[name][members]
        chosen = [(other if i in members else self).info.members[i] for i in range(self.num_members)]
        self.info = self.info.model_copy(update={"members": chosen})

    def save(self, folder: Path) -> None:
        """Writes weights.safetensors and policy.json, each whole or not at all: what is there stays readable."""
        folder.mkdir(parents=True, exist_ok=True)
        with replaced(folder / "policy.json") as info:
            info.write_text(self.info.model_dump_json(indent=2), encoding="utf-8")
            save_weights(self.tensors(), folder / "weights.safetensors")

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        *,
        member: int | Literal["best", "all"] = "best",
        weights: Literal["final", "best"] = "final",
        network: str | None = None,
        trust: bool = False,
    ) -> "Policy":
        """Reads a policy from a run folder or a policy folder. Nothing is unpickled.

        A network of your own is imported only where you name it: a file alone never decides what is imported.

        Args:
            member: one by number, the one with the highest evaluation, or all of them.
            weights: of a run folder, those at the end of training or those of each member's best evaluation.
            network: the "module:Class" that the policy's file names, to allow its import.
            trust: allows the import of whatever the file names: network, environment, wrappers.
        """
        folder = find_policy(Path(path), weights)
        info = read_info(folder)
        require_network(info, path, network, trust)
        keep = chosen_members(info, member, folder)
        try:
            policy = cls(info, source=path, trust=trust)
        except UserError as error:
            raise PolicyError(f"{folder / 'policy.json'}: {error}") from None
        weights_file = folder / "weights.safetensors"
        try:
            stored = in_new_format(load_weights(weights_file), "actor.", "actor.")
        except UserError as error:
            raise PolicyError(str(error)) from None
        expected = policy.tensors()
        if {k: v.shape for k, v in stored.items()} != {k: v.shape for k, v in expected.items()}:
            raise PolicyError(f"{weights_file}: the tensors do not fit the networks that policy.json describes")
        for name, tensor in expected.items():
            tensor.copy_(stored[name])
        return policy.select(keep)

    def make_env(
        self, render_mode: str | None = None, *, trust: bool = False, **changes: Any
    ) -> gymnasium.Env[Any, Any]:
        """One environment as the policy was trained in, with its arguments, wrappers and preprocessing.

        Observations have the shapes of their space, and a mask that the environment gives by action_masks() is in info,
        so that `policy.act(obs, action_mask=info.get("action_mask"))` acts in any.

        Args:
            trust: allows the import of whatever the policy's file names.
            changes: other values for the settings under env., for example wrappers=[...] or id="my_package:MyEnv-v0".

        Raises:
            PolicyError: a module would be imported that only the file names, or the environment does not fit.
        """
        made = self.env_settings(trust=trust, **changes).for_make()
        arguments = {key: made[key] for key in ("env_id", "kwargs", "wrappers", "preprocessing")}
        env = make_single(render_mode=render_mode, **arguments)
        try:
            encoded = FlatObservations(env.observation_space, made["action_mask_key"]).space
            self.check_spaces(encoded, env.action_space, arguments["env_id"])
        except UserError:
            env.close()
            raise
        return EnvOfPolicy(env, self.info.action_mask_key)

    def env_settings(self, *, trust: bool = False, **changes: Any) -> EnvSettings:
        """The settings of its environment, with other values for some.

        PolicyError where they are none, or where a module would be imported that the policy's file names and the user
        does not: neither in `changes` nor by `trust`.
        """
        try:
            own = WithEnv.model_validate({"env": self.info.env.model_dump() | changes}).env
        except ValidationError as error:
            raise PolicyError(str(InvalidConfig(error, [key for key, _ in settings(WithEnv)], "environment"))) from None
        if is_of_factory(self.info.env.id) and "id" not in changes:
            raise PolicyError(f"{self.source}: {needs_factory(self.info.env.id)}")
        if not (trust or self.trust):
            named = {} if "id" in changes else {"environment": [own.id]}
            if "wrappers" not in changes:
                named["wrapper"] = [wrapper.name for wrapper in own.wrappers]
            require_trust(self.info, self.source, named)
        return own

    def check_fits(self, env: VectorEnvironment) -> None:
        """PolicyError where the environment's spaces are not those of the policy."""
        self.check_spaces(env.observations.space, env.actions.space, env.spec_id)

    def check_spaces(self, observation_space: spaces.Space, action_space: spaces.Space, env_id: str) -> None:
        """`observation_space`: of what is encoded."""
        for what, own, other in (
            ("observations", self.observations.space, observation_space),
            ("actions", self.factored.space, action_space),
        ):
            if not are_same(own, other):
                hint = ""
                if self.info.env.id.rpartition(":")[2] == env_id.rpartition(":")[2]:
                    hint = "; settings under env. change what it gives: kwargs, wrappers, preprocessing"
                if hint and self.info.env.vectorization_mode == "vector_entry_point":
                    hint = "; it was trained in the vector class, a single environment differs" + hint[1:]
                raise PolicyError(f"this policy has {what} {own}, but {env_id} has {other}{hint}")

    def select(self, members: list[int]) -> "Policy":
        """The policy of some members alone."""
        info = self.info.model_copy(update={"members": [self.info.members[i] for i in members]})
        selected = Policy(info, self.streams.key.device, source=self.source, trust=self.trust)
        for name, tensor in selected.tensors().items():
            tensor.copy_(self.tensors()[name][members])
        return selected


def describe_policy(config: Config, env: VectorEnvironment, members: list[MemberInfo]) -> PolicyInfo:
    """What policy.json says of policies trained in `env`, which has been reset."""
    return PolicyInfo(
        algorithm=config.algorithm,
        env=EnvSettings.model_validate(config.env.model_dump(exclude={"num_envs"})),
        observation_space=space_to_json(env.observations.space),
        action_space=space_to_json(env.actions.space),
        action_mask_key=None if env.masks is None else config.env.action_mask_key,
        network=network_info(network_spec(config, env.observations.parts, config.actor.layer_norm)),
        normalize_obs=config.normalize_obs,
        members=members,
    )


def network_info(spec: NetworkSpec) -> NetworkInfo:
    memory = None if spec.memory is None else MemoryInfo(**spec.memory._asdict())
    return NetworkInfo(name=spec.name, kwargs=spec.kwargs, memory=memory)


def find_policy(path: Path, weights: str) -> Path:
    """The folder that holds policy.json: `path` itself, policy/<weights> of a run folder, or zoo/NAME."""
    for folder in (path, path / "policy" / weights, in_zoo(path)):
        if folder is not None and (folder / "policy.json").is_file():
            return folder
    if not path.exists():
        hint = ""
        if path.parts[0] == ZOO:
            near = nearest(path.name, [entry.name for entry in zoo_entries()]).replace("'", f"'{ZOO}/", 1)
            hint = near or "; gumbel zoo lists the zoo"
        raise PolicyError(f"{path}: no such folder{hint}")
    raise PolicyError(f"{path}: no policy here: expected policy/{weights}/policy.json, which training writes")


def read_info(folder: Path) -> PolicyInfo:
    file = folder / "policy.json"
    try:
        return PolicyInfo.model_validate(info_in_new_format(json.loads(file.read_text(encoding="utf-8"))))
    except ValidationError as error:
        fault = error.errors()[0]
        raise PolicyError(f"{file}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise PolicyError(f"{file}: not readable as JSON: {error}") from None


def info_in_new_format(info: Any) -> Any:
    """policy.json of format 2 or 3 in format 4.

    Format 2 knew the built-in network only, format 3 the environment's id, arguments and bins only.
    """
    if not isinstance(info, dict):
        return info
    if info.get("format", 2) == 2 and "network" not in info:
        kwargs = {"hidden_sizes": info.get("hidden_sizes"), "layer_norm": info.get("layer_norm", False)}
        info = {key: value for key, value in info.items() if key not in kwargs}
        info |= {"format": 3, "network": {"name": "mlp", "kwargs": kwargs}}
    if info.get("format") == 3 and "env" not in info:
        of_env = {"env_id": "id", "env_kwargs": "kwargs", "action_bins": "action_bins"}
        env = {new: info[old] for old, new in of_env.items() if old in info}
        env["action_mask_key"] = info.get("action_mask_key")  # without one, a mask in the observation was a feature
        info = {key: value for key, value in info.items() if key not in of_env} | {"format": 4, "env": env}
    return info


def require_network(info: PolicyInfo, path: str | PathLike[str], network: str | None, trust: bool) -> None:
    """PolicyError where a file names a network of the user's own and the user did not."""
    name = info.network.name
    if network is not None and network != name:
        raise PolicyError(f"{path}: the policy's network is '{name}', not '{network}'")
    if network is None and not trust:
        require_trust(info, path, {"network": [name]})


def require_trust(info: PolicyInfo, path: str | PathLike[str], named: Mapping[str, Sequence[str]]) -> None:
    """PolicyError where these names, by what they name, are of modules that are neither Gymnasium's nor ours."""
    foreign = [(what, name) for what, names in named.items() for name in names if not may_be_imported(name)]
    if not foreign:
        return
    wrappers = [wrapper.name for wrapper in info.env.wrappers]
    options = ["--trust"]
    if all(map(may_be_imported, wrappers)):  # each thing can be named
        of = {"--network": info.network.name, "--env": info.env.id}
        options = [text for option, name in of.items() if not may_be_imported(name) for text in (option, name)]
    what, name = foreign[0]
    raise PolicyError(
        f"this policy names the {what} '{name}', which imports the Python module '{name.rpartition(':')[0]}'; if you "
        f"trust it, allow it: {command('evaluate', path, *options)} (in Python: trust=True)"
    )


def may_be_imported(name: str) -> bool:
    """Whether a file alone may name it: a plain id, a class of Gymnasium's or ours that writes no files."""
    module, _, attribute = name.rpartition(":")
    return not module or (is_ours(module) and attribute != "RecordVideo")


def chosen_members(info: PolicyInfo, member: int | str, folder: Path) -> list[int]:
    if member == "all":
        return list(range(len(info.members)))
    if member == "best":
        scores = [-np.inf if m.eval_return is None else m.eval_return for m in info.members]
        return [int(np.argmax(scores))]
    if not isinstance(member, int) or not 0 <= member < len(info.members):
        raise PolicyError(
            f"{folder}: member {member} does not exist; there are 0 to {len(info.members) - 1}, 'best' and 'all'"
        )
    return [member]
