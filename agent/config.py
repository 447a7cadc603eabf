"""Every setting of a run: typed, validated, documented."""

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from agent import yaml12
from agent.config_faults import InvalidConfig
from agent.config_fields import (
    NOT_LEARNING,
    PER_MEMBER,
    Kwargs,
    Pair,
    Section,
    Value,
    allowed_in,
    nearest,
    put,
    read_by,
    require_kind,
)
from agent.config_sections import (
    ACTOR_CRITIC,
    ALGORITHMS,
    MAX_SEED,
    NETWORKS,
    ActorConfig,
    AlphaConfig,
    CheckpointConfig,
    CriticConfig,
    EnvConfig,
    EstimatorConfig,
    EvaluationConfig,
    NetworkConfig,
    ParallelConfig,
    PBTConfig,
    ReinforceConfig,
    TargetEntropyConfig,
    TauConfig,
    WandbConfig,
)
from agent.derived_defaults import (
    TOTAL_ENV_STEPS,
    batch_of_the_network,
    persistence_of_the_environments,
    updates_of_the_budget,
    warm_up_of_the_budget,
)
from envs.importing import OWN_CLASS


class Config(Section):
    algorithm: str = Field(
        "gumbel_actor_critic",
        description="what is trained: gumbel_actor_critic, reinforce, or module:Class of your own; see "
        "docs/extending.md",
    )
    algorithm_kwargs: Kwargs = Field(
        {}, description="settings of an algorithm of your own", json_schema_extra=read_by("module:Class")
    )
    env: EnvConfig = EnvConfig()
    seed: int = Field(
        0,
        ge=0,
        le=MAX_SEED,
        description="seed of the first member; a member's random draws all follow from its own seed",
        json_schema_extra=NOT_LEARNING,
    )
    seeds: int = Field(
        1,
        ge=1,
        le=100_000,
        description="members with seeds seed, seed+1, … trained as one program",
        json_schema_extra=NOT_LEARNING,
    )
    sweep: dict[str, list[Value]] = Field(
        {},
        description="values of per-member settings, as {tau.start: [2.0, 1.0]}; every combination is trained with "
        "every seed; a value may be a pair where the setting takes one",
        json_schema_extra=NOT_LEARNING,
    )
    total_env_steps: int = Field(
        TOTAL_ENV_STEPS, ge=1, description="environment steps of each member, over all its environments"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="auto: cuda where there is one; gpu is read as cuda. CUDA_VISIBLE_DEVICES=1 chooses the second GPU",
        json_schema_extra=NOT_LEARNING,
    )
    num_threads: int = Field(
        1,
        ge=1,
        description="CPU threads of torch; small networks are fastest with 1",
        json_schema_extra=NOT_LEARNING,
    )
    compile: bool | None = Field(
        None,
        description="compile the training step to C++ before it runs, on a CPU; null: if there is a C++ compiler and "
        "the run is long enough to gain time; has no effect on REINFORCE, whose batches vary in size",
        json_schema_extra=NOT_LEARNING,
    )
    compile_guards: bool = Field(
        False,
        description="for debugging: keep the compiler's checks, and fail where an assumption of the compiled program "
        "does not hold",
        json_schema_extra=NOT_LEARNING,
    )
    run_dir: str | None = Field(
        None,
        description="folder of the run, exactly; null: a new one under runs/",
        json_schema_extra=NOT_LEARNING,
    )

    parallel: ParallelConfig = ParallelConfig()
    pbt: PBTConfig = PBTConfig()
    network: NetworkConfig = NetworkConfig()
    hidden_sizes: list[Annotated[int, Field(ge=1)]] = Field([128, 128], description="width of each hidden layer")
    normalize_obs: bool = Field(True, description="scale observations by their running mean and deviation")
    clip_reward: float | None = Field(
        None,
        gt=0,
        description="learn from rewards clipped to [-clip_reward, clip_reward]; returns are reported as they are",
    )
    gamma: float = Field(0.997, ge=0, lt=1, description="discount per environment step", json_schema_extra=PER_MEMBER)
    max_grad_norm: float = Field(10.0, gt=0, description="largest L2 norm of each network's gradient, per member")

    learning_rate: float = Field(
        3e-3, gt=0, description="Adam step of actor and critics", json_schema_extra=PER_MEMBER | ACTOR_CRITIC
    )
    learning_rate_end: float = Field(
        0.1,
        ge=0,
        le=1,
        description="learning rate at the end of the run, as a fraction of that at the start; changes linearly",
    )
    n_step: Annotated[int | list[int], Pair(int, "at the start of the run, at its end", ge=1)] = Field(
        3,
        description="rewards summed before the target bootstraps; or [at the start of the run, at its end]: moves "
        "linearly, rounded at random",
        json_schema_extra=PER_MEMBER | ACTOR_CRITIC,
    )
    batch_size: int = Field(
        default_factory=batch_of_the_network,
        ge=1,
        description="transitions of an update, per member; left out: 128, or 512 with network.memory",
        json_schema_extra=ACTOR_CRITIC,
    )
    sequence_length: int = Field(
        32,
        ge=1,
        description="with network.memory: steps in a row that are learned from together; batch_size is a multiple",
    )
    burn_in: int = Field(
        8,
        ge=0,
        description="with network.memory: steps before them that bring the stored state up to date",
        json_schema_extra=ACTOR_CRITIC,
    )
    updates_per_step: float = Field(
        default_factory=updates_of_the_budget,
        gt=0,
        description="gradient updates per environment step of a member; left out: 1, or sqrt(50,000 / "
        "total_env_steps) in runs of more than 50,000 steps",
        json_schema_extra=ACTOR_CRITIC,
    )
    learning_starts: int = Field(
        default_factory=warm_up_of_the_budget,
        ge=1,
        description="environment steps with random actions before the first update; left out: 5 % of "
        "total_env_steps, at most 5,000",
        json_schema_extra=ACTOR_CRITIC,
    )
    replay_capacity: int = Field(
        1_000_000,
        ge=2,
        description="slots of the replay of each member: a step takes one, the end of an episode another, or as many "
        "as an observation stacks frames; no more are made than the run can fill",
        json_schema_extra=ACTOR_CRITIC,
    )
    target_update_rate: float = Field(
        0.05, gt=0, le=1, description="fraction the target critics move per update", json_schema_extra=ACTOR_CRITIC
    )
    policy_average_rate: float = Field(
        0.01,
        gt=0,
        le=1,
        description="fraction by which the evaluated policy moves towards the trained one per update; 1: they are "
        "the same",
        json_schema_extra=ACTOR_CRITIC,
    )
    noise_persistence: Annotated[
        float | list[float], Pair(float, "of a member's first environment, of its last", ge=0, lt=1)
    ] = Field(
        default_factory=persistence_of_the_environments,
        description="probability rho of keeping the Gumbel noise for one more step of an episode; or [of a member's "
        "first environment, of its last]: between them 1 / (1 - rho) grows geometrically; left out: [0.5, 0.95], or "
        "0.7 with env.num_envs=1",
        json_schema_extra=PER_MEMBER | ACTOR_CRITIC,
    )
    estimator: EstimatorConfig = Field(EstimatorConfig(), json_schema_extra=ACTOR_CRITIC)
    tau: TauConfig = Field(TauConfig(), json_schema_extra=ACTOR_CRITIC)
    alpha: AlphaConfig = Field(AlphaConfig(), json_schema_extra=ACTOR_CRITIC)
    target_entropy: TargetEntropyConfig = Field(TargetEntropyConfig(), json_schema_extra=ACTOR_CRITIC)
    actor: ActorConfig = ActorConfig()
    critic: CriticConfig = Field(CriticConfig(), json_schema_extra=ACTOR_CRITIC)
    reinforce: ReinforceConfig = Field(ReinforceConfig(), json_schema_extra=read_by("reinforce"))

    evaluation: EvaluationConfig = Field(EvaluationConfig(), json_schema_extra=NOT_LEARNING)
    log_every_env_steps: int | None = Field(
        None,
        ge=1,
        description="steps of a member between log lines; null: 1/100 of the run",
        json_schema_extra=NOT_LEARNING,
    )
    return_threshold: float | None = Field(
        None, description="greedy return that counts as solved", json_schema_extra=NOT_LEARNING
    )
    checkpoint: CheckpointConfig = Field(CheckpointConfig(), json_schema_extra=NOT_LEARNING)
    wandb: WandbConfig = Field(WandbConfig(), json_schema_extra=NOT_LEARNING)

    _only: range | None = PrivateAttr(None)  # members
    _data_part: tuple[int, int] = PrivateAttr((0, 1))  # which of how many

    def __init__(self, **values: Any) -> None:
        """Sections may be dicts: Config(env={"id": "CartPole-v1"}).  InvalidConfig with every fault at once."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InvalidConfig(error, [key for key, _ in settings()], "Config") from None

    @field_validator("algorithm")
    @classmethod
    def algorithm_is_known(cls, algorithm: str) -> str:
        if algorithm not in ALGORITHMS and not OWN_CLASS.fullmatch(algorithm):
            raise ValueError(
                f"got {algorithm!r}, must be {', '.join(map(repr, ALGORITHMS))} or module:Class of your own"
                f"{nearest(algorithm, ALGORITHMS)}"
            )
        return algorithm

    @field_validator("device", mode="before")
    @classmethod
    def device_is_a_kind(cls, device: Any) -> Any:
        if isinstance(device, str) and re.fullmatch(r"(gpu|cuda):\d+", device, re.IGNORECASE):
            raise ValueError(
                f"got {device!r}, must be 'auto', 'cpu' or 'cuda'; choose a GPU by the environment variable "
                f"CUDA_VISIBLE_DEVICES={device.partition(':')[2]}, with device=cuda"
            )
        return {"gpu": "cuda"}.get(device.lower(), device.lower()) if isinstance(device, str) else device

    @field_validator("sweep", mode="before")
    @classmethod
    def sweep_holds_values_of_per_member_settings(cls, sweep: Any) -> Any:
        """Each value as the setting itself would hold it."""
        return {key: swept(key, values) for key, values in sweep.items()} if isinstance(sweep, dict) else sweep

    @model_validator(mode="after")
    def only_an_algorithm_of_your_own_has_kwargs(self) -> "Config":
        if self.algorithm in ALGORITHMS and self.algorithm_kwargs:
            raise ValueError(
                f"algorithm_kwargs: got {self.algorithm_kwargs!r}, but algorithm={self.algorithm} takes none; they are "
                "for an algorithm of your own, algorithm=module:Class"
            )
        return self

    @model_validator(mode="after")
    def an_exchange_needs_two_members(self) -> "Config":
        if self.pbt.every_env_steps is not None and self.population_size < 2:
            raise ValueError(
                "pbt.every_env_steps: members take over from each other, but there is one; raise seeds or add a sweep"
            )
        return self

    @model_validator(mode="after")
    def a_batch_holds_whole_sequences(self) -> "Config":
        length = self.sequence_length
        if self.network.memory != "none" and self.batch_size % length:
            whole = max(1, round(self.batch_size / length)) * length
            raise ValueError(
                f"batch_size: got {self.batch_size}, but with network.memory={self.network.memory} it must be a "
                f"multiple of sequence_length={length}, for example {whole}"
            )
        return self

    @model_validator(mode="after")
    def settings_of_the_mlp_need_the_mlp(self) -> "Config":
        if self.network.name in NETWORKS:
            return self
        read_by_joint = () if self.critic.structure != "joint" else ("hidden_sizes", "critic.layer_norm")
        given = [k for k in ("hidden_sizes", "actor.layer_norm", "critic.layer_norm") if k not in read_by_joint]
        defaults = {key: field.default for key, field in settings()}
        changed = [f"{key}: got {self.value_of(key)!r}" for key in given if self.value_of(key) != defaults[key]]
        if changed:
            raise ValueError(
                f"{'; '.join(changed)}; but network.name={self.network.name} does not read it, only the built-in "
                "ones do (and a critic with critic.structure=joint reads hidden_sizes and critic.layer_norm); leave it "
                "out"
            )
        return self

    @model_validator(mode="after")
    def a_range_of_persistences_needs_environments(self) -> "Config":
        rho = self.noise_persistence
        if not isinstance(rho, list):
            return self
        if rho[1] < rho[0]:
            raise ValueError(
                f"noise_persistence: got {rho}, but rho of a member's last environment must not be below that of its "
                f"first; did you mean {rho[::-1]}?"
            )
        if self.env.num_envs < 2:
            raise ValueError(
                f"noise_persistence: got {rho}, but a member has env.num_envs={self.env.num_envs}; a range needs 2 or "
                "more environments: give one number, or raise env.num_envs"
            )
        return self

    @model_validator(mode="after")
    def adaptive_tau_needs_an_estimator_with_tau(self) -> "Config":
        if self.tau.schedule == "adaptive" and not self.estimator.depends_on_tau:
            raise ValueError(f"tau.schedule: got 'adaptive', but estimator.name={self.estimator.name} uses no tau")
        return self

    @model_validator(mode="after")
    def exact_needs_multilinear(self) -> "Config":
        if self.estimator.name == "exact" and self.critic.structure == "joint":
            raise ValueError(
                "estimator.name=exact needs critic.structure=per_action or multilinear: at the probabilities a joint "
                "critic is not the expectation over actions; estimator.name=local_expectation serves any critic"
            )
        return self

    @model_validator(mode="after")
    def swept_values_are_valid_where_they_will_stand(self) -> "Config":
        for member in self.members()[:: self.seeds] if self.sweep else []:
            values = self.model_dump(exclude={"sweep"})
            for key, own in member.settings.items():
                put(values, key, own)
            try:
                Config(**values)
            except InvalidConfig as error:
                raise ValueError(error.located(lambda _: "sweep")) from None
        return self

    def __repr__(self) -> str:
        """The settings that are not the defaults, as they would be written."""
        given = self.model_dump(exclude_unset=True, exclude_defaults=True)
        return f"Config({', '.join(f'{key}={value!r}' for key, value in given.items())})"

    def members(self) -> "list[Member]":
        """One member per seed and combination of swept values, seeds fastest; where only some are trained here, those.

        `with_members` says which.
        """
        combinations = itertools.product(*self.sweep.values())
        settings = [dict(zip(self.sweep, values, strict=True)) for values in combinations]
        members = [Member(self.seed + i, chosen) for chosen in settings for i in range(self.seeds)]
        return members if self._only is None else members[self._only.start : self._only.stop]

    def with_members(self, only: range) -> "Config":
        """The same config, of which `members` are only these: what one process of several trains."""
        part = self.model_copy()
        part._only = only
        return part

    def with_part_of_data(self, part: int, num_parts: int) -> "Config":
        """The same config, of one part of the environments of each member."""
        own = self.model_copy()
        own._data_part = part, num_parts
        return own

    @property
    def data_part(self) -> tuple[int, int]:
        """Which part of a member's environments this is about, of how many."""
        return self._data_part

    @property
    def streams_of_part(self) -> tuple[int, ...]:
        """What tells the random numbers of a part's environments and replay from those of others (`member_seeds`)."""
        return self._data_part[:1] if self._data_part[0] else ()

    def whole(self) -> "Config":
        """The same config, of all members, wherever they are trained."""
        population = self.model_copy()
        population._only = None
        return population

    @property
    def population_size(self) -> int:
        """All members, wherever they are trained."""
        return self.seeds * math.prod(map(len, self.sweep.values()))

    @property
    def last_env_step(self) -> int:
        """The steps of a member at the end of the run: all its environments step together, perhaps beyond the total."""
        return -(-self.total_env_steps // self.env.num_envs) * self.env.num_envs

    @property
    def algorithm_name(self) -> str:
        """Of a built-in algorithm, or the class of one of the user's own; as part of a folder's name."""
        return self.algorithm.rpartition(":")[2]

    def value_of(self, key: str) -> Any:
        """The value of a setting by its dotted key."""
        value: Any = self
        for part in key.split("."):
            value = getattr(value, part)
        return value

    def per_member(self, key: str) -> list[float]:
        """The value of a setting for each member, swept or not; of one that cannot be a pair."""
        pairs = self.per_member_pairs(key)
        assert all(first == second for first, second in pairs), f"{key} holds a pair: use per_member_pairs"
        return [first for first, _ in pairs]

    def per_member_pairs(self, key: str) -> list[tuple[float, float]]:
        """The value of a setting for each member, swept or not; a single value v counts as (v, v)."""
        values = [member.settings.get(key, self.value_of(key)) for member in self.members()]
        pairs = [value if isinstance(value, list) else [value, value] for value in values]
        return [(float(first), float(second)) for first, second in pairs]

    def to_yaml(self) -> str:
        """The resolved config; loading it gives this config again."""
        return yaml12.dump(self.model_dump())


@dataclass(frozen=True)
class Member:
    """One member of the population: its seed and the swept settings it has of its own."""

    seed: int
    settings: dict[str, Value]


def settings(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting with its dotted key, in the order of the schema."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def is_per_member(field: FieldInfo) -> bool:
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("per_member"))


def about(key: str) -> dict[str, Any]:
    """What is known of a setting besides its type; from its sections what it does not say itself."""
    known: dict[str, Any] = {}
    section: Any = Config
    for part in key.split("."):
        is_section = isinstance(section, type) and issubclass(section, BaseModel)
        if not is_section or part not in section.model_fields:
            break  # a key of a free-form setting, as env.kwargs
        field = section.model_fields[part]
        known |= field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        section = field.annotation
    return known


def changes_learning(key: str) -> bool:
    """Whether a setting makes a difference to what is learned."""
    return bool(about(key).get("changes_learning", True))


def is_read_by(algorithm: str, key: str) -> bool:
    """Whether a setting makes a difference to an algorithm. One of the user's own may read any."""
    readers = about(key).get("read_by")
    return readers is None or algorithm in readers or algorithm not in ALGORITHMS


def swept(key: str, values: Any) -> list[Value]:
    """The values of a swept setting, each as the setting itself would hold it. ValueError where it would not."""
    allowed = {name: field for name, field in settings() if is_per_member(field)}
    if key not in allowed:
        hint = nearest(str(key), list(allowed)) or "."
        raise ValueError(f"cannot sweep '{key}'{hint} Per-member settings: {', '.join(allowed)}")
    if not isinstance(values, list):
        raise ValueError(f"{key}: got {values!r}, must be a list of values, for example [{values}]")
    if not values:
        raise ValueError(f"{key}: got no values, must be a list of one or more")
    annotated: Any = Annotated[allowed[key].annotation, *allowed[key].metadata]
    setting: TypeAdapter[Value] = TypeAdapter(annotated, config=ConfigDict(allow_inf_nan=False))
    found = []
    for value in values:
        try:
            require_kind(value, allowed[key].annotation)
            found.append(setting.validate_python(value))
        except ValidationError as error:
            fault = error.errors()[0]
            own = fault["ctx"]["error"] if fault["type"] == "value_error" else None
            raise ValueError(f"{key}: {own or f'got {value!r}, must be {allowed_in(fault)}'}") from None
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
    return found
