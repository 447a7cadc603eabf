"""Every setting of a run: typed, validated, documented."""

import difflib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.fields import FieldInfo

from envs.errors import UserError
from envs.masks import ACTION_MASK_KEY

MAX_SEED = 2**32 - 1
PER_MEMBER: dict[str, Any] = {"per_member": True}  # a setting that `sweep` may give each member its own value of


class ConfigError(UserError):
    """A setting that the user can mend: the text says where it stands, what was given and what is allowed."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class EnvConfig(Section):
    id: str = Field(description="Gymnasium id, or module:Id to import the module that registers it first")
    num_envs: int = Field(1, ge=1, description="environments of each member, stepped side by side")
    kwargs: dict[str, Any] = Field({}, description="keyword arguments of the environment's constructor")
    action_bins: int | None = Field(
        None, ge=2, description="choices per dimension of a Box action space, ends included"
    )
    vectorization_mode: Literal["auto", "sync", "async", "vector_entry_point"] = Field(
        "auto", description="auto: the environment's own vector version where it has one, else sync"
    )
    on_error: Literal["stop", "restart"] = Field(
        "stop",
        description="where an environment raises, or gives a wrong shape or a number that is not finite: stop the run "
        "with an error that names it, or put a new one in its place and end the episode as by a time limit",
    )
    timeout_seconds: float | None = Field(
        300.0, gt=0, description="longest wait for an answer of environments in processes of their own (async)"
    )
    action_mask_key: str | None = Field(
        ACTION_MASK_KEY,
        description="key of info under which the environment gives the mask of its legal choices, if it does: others "
        "are never taken, nor count in the critic's target. Bool or int8; [n] for Discrete; [sum of n_k], or an array "
        "[n_k] for each factor, for MultiDiscrete; [2n] or [n, 2] for MultiBinary; null: masks are ignored",
    )

    @field_validator("kwargs")
    @classmethod
    def files_of_a_run_can_hold_kwargs(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        if (fault := not_in_json(kwargs)) is not None:
            raise ValueError(f"kwargs: {fault}, which the files of a run cannot hold; use texts, numbers and lists")
        return kwargs


def not_in_json(value: Any) -> str | None:
    """What of it would not come back from JSON as it was; infinity does, as Python reads it."""
    if isinstance(value, dict):
        keys = [f"the key {key!r} is no text" for key in value if not isinstance(key, str)]
        return next(filter(None, [*keys, *map(not_in_json, value.values())]), None)
    if isinstance(value, list):
        return next(filter(None, map(not_in_json, value)), None)
    return None if isinstance(value, str | int | float | None) else f"{value!r} is a {type(value).__name__}"


class ScheduleConfig(Section):
    """A setting that moves from start to end during the run."""

    schedule: str
    start: float
    end: float
    fraction: float = Field(gt=0, le=1)
    env_steps: int | None = Field(
        None, ge=1, description="the same as fraction, in environment steps of a member; null: fraction decides"
    )

    def part_of_run(self, total_env_steps: int) -> float:
        """Over which it moves; above 1 where the run ends before."""
        return self.fraction if self.env_steps is None else self.env_steps / total_env_steps


class TauConfig(ScheduleConfig):
    """Gumbel-softmax temperature. It shapes the gradient only: the draw follows the policy at every tau."""

    schedule: Literal["constant", "linear", "exponential", "cosine", "adaptive"] = Field(
        "exponential",
        description="how tau moves from start to end; constant: stays at start; adaptive: from start to where bias^2 + "
        "variance / batch_size of the gradient at replayed states is smallest, measured 50 times, within [0.05, 5]",
    )
    start: float = Field(1.0, gt=0, description="tau at the first step", json_schema_extra=PER_MEMBER)
    end: float = Field(0.5, gt=0, description="tau once annealed", json_schema_extra=PER_MEMBER)
    fraction: float = Field(0.5, gt=0, le=1, description="part of the run over which tau moves")


class TargetEntropyConfig(ScheduleConfig):
    """Target of the policy's entropy, as a fraction of the largest possible, sum_k log n_k.

    n_k counts legal choices where the environment gives masks; the sum is then the mean over the batch.
    """

    schedule: Literal["constant", "linear", "exponential", "cosine"] = Field(
        "linear", description="how the target moves from start to end; constant: stays at start"
    )
    start: float = Field(0.7, ge=0, lt=1, description="target at the first step", json_schema_extra=PER_MEMBER)
    end: float = Field(0.1, ge=0, lt=1, description="target once annealed", json_schema_extra=PER_MEMBER)
    fraction: float = Field(0.5, gt=0, le=1, description="part of the run over which the target moves")

    @model_validator(mode="after")
    def exponential_needs_positive_ends(self) -> "TargetEntropyConfig":
        if self.schedule == "exponential" and min(self.start, self.end) <= 0:
            raise ValueError("an exponential schedule needs start and end above 0")
        return self


class AlphaConfig(Section):
    """Entropy coefficient, moved so that the policy's entropy meets target_entropy."""

    start: float = Field(
        1.0, gt=0, description="alpha at the first update [reward per nat]", json_schema_extra=PER_MEMBER
    )
    learning_rate: float = Field(1e-2, ge=0, description="Adam step of log alpha; 0 fixes alpha at start")
    min: float = Field(1e-3, gt=0, description="smallest alpha")
    max: float = Field(10.0, gt=0, description="largest alpha")

    @model_validator(mode="after")
    def start_lies_between_min_and_max(self) -> "AlphaConfig":
        if not self.min <= self.start <= self.max:
            raise ValueError(f"start: got {self.start:g}, must lie between min={self.min:g} and max={self.max:g}")
        return self


class EstimatorConfig(Section):
    name: Literal[
        "straight_through_gumbel_softmax",
        "relaxed_gumbel_softmax",
        "straight_through_softmax",
        "gumbel_rao",
        "gapped_straight_through",
        "reinmax",
        "score_function",
        "local_expectation",
        "exact",
    ] = Field("straight_through_gumbel_softmax", description="how the critic's gradient passes the discrete sample")
    num_samples: int = Field(
        8,
        ge=1,
        description="gumbel_rao: draws of noise averaged; score_function: actions drawn, at least 2 for its "
        "leave_one_out baseline",
    )
    gap: float = Field(1.0, gt=0, description="gapped_straight_through: lead of the choice drawn, in logits")
    baseline: Literal["leave_one_out", "value"] = Field(
        "leave_one_out", description="score_function: mean Q of the other actions drawn, or Q at the policy's mean"
    )

    @property
    def depends_on_tau(self) -> bool:
        return self.name not in ("straight_through_softmax", "score_function", "local_expectation", "exact")

    @model_validator(mode="after")
    def leave_one_out_needs_others(self) -> "EstimatorConfig":
        if self.name == "score_function" and self.baseline == "leave_one_out" and self.num_samples < 2:
            raise ValueError("baseline=leave_one_out needs num_samples of at least 2; use baseline=value for 1")
        return self


class ActorConfig(Section):
    layer_norm: bool = Field(False, description="layer normalisation after each hidden layer of the actor")


class CriticConfig(Section):
    structure: Literal["per_action", "multilinear", "joint"] = Field(
        "multilinear",
        description="per_action: one value per choice, Q their mean over factors; multilinear: that and an interaction "
        "of each pair of factors, none where there is one factor; joint: an MLP on [obs, action]",
    )
    rank: int = Field(16, ge=1, description="multilinear: numbers that describe a choice to the other factors")
    reduce: Literal["auto", "min", "mean"] = Field(
        "auto", description="how the twin critics become one value; auto: min for joint, else mean"
    )
    layer_norm: bool = Field(True, description="layer normalisation after each hidden layer of the critics")
    entropy_in_target: bool = Field(False, description="add alpha * entropy to the critic's target, as SAC does")


class ReinforceConfig(Section):
    """Settings of algorithm=reinforce alone."""

    learning_rate: float = Field(
        3e-3, gt=0, description="Adam step of policy and baseline", json_schema_extra=PER_MEMBER
    )
    rollout_steps: int = Field(512, ge=1, description="environment steps of a member between two policy updates")
    max_episode_steps: int = Field(2000, ge=1, description="an episode longer than this loses its first steps")
    baseline: bool = Field(True, description="subtract a learned value; off: subtract the batch mean")
    baseline_updates: int = Field(10, ge=1, description="gradient steps of the baseline per policy update")
    normalize_returns: bool = Field(True, description="divide advantages by their standard deviation")
    entropy_coefficient: float = Field(
        0.01, ge=0, description="weight of the entropy bonus", json_schema_extra=PER_MEMBER
    )


class EvaluationConfig(Section):
    every_env_steps: int | None = Field(
        None, ge=1, description="steps of a member between evaluations; null: 1/20 of the run"
    )
    episodes: int = Field(10, ge=1, description="episodes of an evaluation during training, greedy and sampled each")
    final_episodes: int = Field(100, ge=1, description="episodes of the evaluation at the end, greedy and sampled each")


class CheckpointConfig(Section):
    """Full training states under checkpoints/, from which a run goes on as if it had never stopped."""

    every_env_steps: int | None = Field(
        20_000,
        ge=1,
        description="steps of a member between checkpoints; there, environments that are no tensors begin new "
        "episodes, and those under way end as by a time limit; null: none are written",
    )
    keep: int = Field(1, ge=1, description="newest checkpoints that stay, besides that of the highest return")
    replay_gib: float = Field(
        4.0,
        ge=0,
        description="a larger replay stays out of the checkpoints: a run that goes on collects learning_starts steps "
        "with its policy before it learns on, and is not the same bit for bit",
    )


class WandbConfig(Section):
    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto: online where a login is found, else offline; never asks"
    )
    project: str = Field("gumbel-actor-critic", description="W&B project")
    group: str | None = Field(None, description="W&B group; null: the environment's id")
    name: str | None = Field(None, description="W&B run name; null: the run folder's name")
    tags: list[str] = Field([], description="W&B tags")


class Config(Section):
    algorithm: Literal["gumbel_actor_critic", "reinforce"] = Field("gumbel_actor_critic", description="what is trained")
    env: EnvConfig
    seed: int = Field(
        0, ge=0, le=MAX_SEED, description="seed of the first member; decides every random draw of the run"
    )
    seeds: int = Field(1, ge=1, le=100_000, description="members with seeds seed, seed+1, … trained as one program")
    sweep: dict[str, list[float]] = Field({}, description="per-member setting: values; multiplies with seeds")
    total_env_steps: int = Field(
        50_000, ge=1, description="environment steps of each member, over all its environments"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one")
    num_threads: int = Field(1, ge=1, description="CPU threads of torch; small networks are fastest with 1")
    compile: bool | None = Field(
        None,
        description="turn the update into C++ first; null: on a CPU with a C++ compiler, where the run is long enough; "
        "REINFORCE's varies in size and never is",
    )
    run_dir: str | None = Field(None, description="folder of the run, exactly; null: a new one under runs/")

    hidden_sizes: list[Annotated[int, Field(ge=1)]] = Field([128, 128], description="width of each hidden layer")
    normalize_obs: bool = Field(True, description="scale observations by their running mean and deviation")
    gamma: float = Field(0.99, ge=0, lt=1, description="discount per environment step", json_schema_extra=PER_MEMBER)
    max_grad_norm: float = Field(10.0, gt=0, description="largest L2 norm of each network's gradient, per member")

    learning_rate: float = Field(3e-3, gt=0, description="Adam step of actor and critics", json_schema_extra=PER_MEMBER)
    learning_rate_end: float = Field(
        0.1, ge=0, le=1, description="learning rate at the end of the run, as a fraction; moves linearly"
    )
    n_step: int = Field(3, ge=1, description="rewards summed before the target bootstraps")
    n_step_end: int | None = Field(
        None, ge=1, description="n_step at the end of the run; moves linearly, rounded at random; null: as n_step"
    )
    batch_size: int = Field(128, ge=1, description="transitions of an update, per member")
    updates_per_step: float = Field(1.0, gt=0, description="gradient updates per environment step of a member")
    learning_starts: int = Field(
        1000, ge=1, description="environment steps with random actions before the first update"
    )
    replay_capacity: int = Field(100_000, ge=2, description="steps kept in the replay of each member")
    frame_stack: int = Field(
        1, ge=1, description="frames that an observation stacks, oldest first: the replay keeps each frame once"
    )
    target_update_rate: float = Field(0.05, gt=0, le=1, description="fraction the target critics move per update")
    policy_average_rate: float = Field(
        0.01, gt=0, le=1, description="fraction the evaluated policy moves to the trained one per update; 1: the same"
    )
    noise_persistence: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="probability rho of keeping the Gumbel noise for one more step",
        json_schema_extra=PER_MEMBER,
    )
    noise_persistence_max: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="rho of the last environment of a member, noise_persistence being that of the first; between "
        "them 1 / (1 - rho) grows geometrically; null: all have noise_persistence",
    )
    estimator: EstimatorConfig = EstimatorConfig()
    tau: TauConfig = TauConfig()
    alpha: AlphaConfig = AlphaConfig()
    target_entropy: TargetEntropyConfig = TargetEntropyConfig()
    actor: ActorConfig = ActorConfig()
    critic: CriticConfig = CriticConfig()
    reinforce: ReinforceConfig = ReinforceConfig()

    evaluation: EvaluationConfig = EvaluationConfig()
    log_every_env_steps: int | None = Field(
        None, ge=1, description="steps of a member between log lines; null: 1/100 of the run"
    )
    return_threshold: float | None = Field(None, description="greedy return that counts as solved")
    checkpoint: CheckpointConfig = CheckpointConfig()
    wandb: WandbConfig = WandbConfig()

    @model_validator(mode="after")
    def sweep_names_per_member_settings(self) -> "Config":
        allowed = [key for key, field in settings() if is_per_member(field)]
        for key, values in self.sweep.items():
            if key not in allowed:
                raise ValueError(
                    f"cannot sweep '{key}'{nearest(key, allowed)} Per-member settings: {', '.join(allowed)}"
                )
            if not values:
                raise ValueError(f"sweep of '{key}' has no values")
        return self

    @model_validator(mode="after")
    def a_range_of_persistences_needs_environments(self) -> "Config":
        if (highest := self.noise_persistence_max) is None:
            return self
        if self.env.num_envs < 2:
            raise ValueError(
                f"noise_persistence_max: got {highest:g}, but a member has env.num_envs={self.env.num_envs}; a range "
                "needs 2 or more, null leaves it out"
            )
        if highest < self.noise_persistence:
            raise ValueError(
                f"noise_persistence_max: got {highest:g}, which is below noise_persistence={self.noise_persistence:g}"
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

    def members(self) -> "list[Member]":
        """One member per seed and combination of swept values, seeds fastest."""
        combinations = itertools.product(*self.sweep.values())
        settings = [dict(zip(self.sweep, values, strict=True)) for values in combinations]
        return [Member(self.seed + i, chosen) for chosen in settings for i in range(self.seeds)]

    def per_member(self, key: str) -> list[float]:
        """The value of a setting for each member, swept or not."""
        value: Any = self
        for part in key.split("."):
            value = getattr(value, part)
        return [member.settings.get(key, value) for member in self.members()]

    def to_yaml(self) -> str:
        """The resolved config; loading it gives this config again."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class Member:
    """One member of the population: its seed and the swept settings it has of its own."""

    seed: int
    settings: dict[str, float]


def nearest(key: str, known: Sequence[str]) -> str:
    """'; did you mean …?' for a typo, also where only the last part of a dotted key was given."""
    by_last_part = {k.rsplit(".", 1)[-1]: k for k in reversed(known)}
    for candidates in (known, list(by_last_part)):
        if found := difflib.get_close_matches(key if candidates is known else key.rsplit(".", 1)[-1], candidates, n=1):
            return f"; did you mean '{by_last_part.get(found[0], found[0])}'?"
    return ""


def settings(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting with its dotted key, in the order of the schema."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def is_per_member(field: FieldInfo) -> bool:
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("per_member"))
