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
from agent.derived_defaults import (
    TOTAL_ENV_STEPS,
    batch_of_the_network,
    persistence_of_the_environments,
    updates_of_the_budget,
    warm_up_of_the_budget,
)
from envs.frame_stack import MAX_FRAMES
from envs.importing import OWN_CLASS
from envs.masks import ACTION_MASK_KEY

MAX_SEED = 2**32 - 1
MAX_EPISODE_STEPS = 20_000  # a greedy policy can stand still for ever where the environment has no time limit
ALGORITHMS = ("gumbel_actor_critic", "reinforce")  # the built-in ones
NETWORKS = ("auto", "mlp", "conv", "nature", "impala")  # the built-in ones
ACTOR_CRITIC = read_by("gumbel_actor_critic")


class WrapperConfig(Section):
    name: str
    kwargs: Kwargs = {}

    @model_validator(mode="before")
    @classmethod
    def a_name_alone_has_no_kwargs(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("name")
    @classmethod
    def name_is_of_a_class(cls, name: str) -> str:
        if not OWN_CLASS.fullmatch(name):
            raise ValueError(
                f"env.wrappers: got {name!r}, must be module:Class, for example gymnasium.wrappers:FlattenObservation"
            )
        return name


class EnvSettings(Section):
    """All that makes an environment what it is. A policy keeps them."""

    id: str = Field(
        description="Gymnasium id; or module:Id, or folder/file.py:Id, to import first what registers it. A module is "
        "looked for among the installed ones, then in the current folder"
    )
    kwargs: Kwargs = Field({}, description="keyword arguments of the environment's constructor")
    action_bins: int | None = Field(
        None,
        ge=2,
        le=65_536,
        description="choices per dimension of a Box action space, or of each Box in a Tuple or Dict, ends included",
    )
    wrappers: list[WrapperConfig] = Field(
        [],
        description="wrappers of each single environment, the innermost first: module:Class or folder/file.py:Class of "
        "a gymnasium.Wrapper, or {name: module:Class, kwargs: {…}}. With wrappers no vector class is used",
    )
    obs_history: int = Field(
        1,
        ge=1,
        le=MAX_FRAMES,
        description="observations that the policy sees together: the newest and those before it, as "
        "gymnasium.wrappers:FrameStackObservation around env.wrappers gives them; the replay keeps each once",
    )
    preprocessing: Literal["auto", "none", "atari", "minigrid"] = Field(
        "auto",
        description="before the wrappers; atari: 84x84 grey frames, four of them stacked, each action repeated for "
        "four frames, up to 30 no-ops at a reset, sticky actions as the id has them (v5: 0.25), rewards not clipped, a "
        "lost life does not end an episode; for other values, none and env.wrappers. minigrid: codes of cells are "
        "one-hot. auto: atari for ids of ALE whose observations are frames, minigrid for its ids, none for others",
    )
    vectorization_mode: Literal["auto", "sync", "async", "vector_entry_point"] = Field(
        "auto",
        description="auto: the environment's own vector class where it has one with the same arguments and spaces, "
        "else sync; vector_entry_point: its own vector class, which takes no env.wrappers",
    )
    on_error: Literal["stop", "restart"] = Field(
        "stop",
        description="if an environment raises, or returns a wrong shape, a wrong mask, NaN or infinity; stop: end the "
        "run with an error that names it; restart: replace the environment and truncate the episode",
    )
    timeout_seconds: float | None = Field(
        300.0,
        gt=0,
        description="longest wait for an answer of environments in processes of their own (async)",
        json_schema_extra=NOT_LEARNING,
    )
    reward_weights: list[float] | None = Field(
        None, min_length=1, description="weights of an environment's several rewards; the reward is the weighted sum"
    )
    action_mask_key: str | None = Field(
        ACTION_MASK_KEY,
        description="key under which the environment gives the mask of its legal choices, if it does: others are never "
        "taken, nor count in the critic's target. Looked up in Dict observations, where the mask is then no feature, "
        "else in info; else the environment's method action_masks() is called, unless another key is set. Bool, or "
        "numbers 0 and 1; [n] for Discrete; [sum of n_k], or an array [n_k] for each factor, for MultiDiscrete; [2n] "
        "or [n, 2] for MultiBinary; for Tuple and Dict a mask for each part; null: masks are ignored",
    )

    @model_validator(mode="after")
    def wrappers_need_single_environments(self) -> "EnvSettings":
        wrapping = "env.wrappers are" if self.wrappers else "env.obs_history is" if self.obs_history > 1 else ""
        if wrapping and self.vectorization_mode == "vector_entry_point":
            raise ValueError(
                f"env.vectorization_mode: got 'vector_entry_point', but {wrapping} put around single environments; use "
                "auto, sync or async"
            )
        return self

    def for_make(self) -> dict[str, Any]:
        """As arguments of envs.make."""
        settings = self.model_dump(exclude={"num_envs"})
        if (stack_size := settings.pop("obs_history")) > 1:
            stack = {"name": "gymnasium.wrappers:FrameStackObservation", "kwargs": {"stack_size": stack_size}}
            settings["wrappers"] = [*settings["wrappers"], stack]
        return {"env_id": settings.pop("id"), **settings}


class EnvConfig(EnvSettings):
    id: str = Field("", description=EnvSettings.model_fields["id"].description)
    num_envs: int = Field(4, ge=1, description="environments of each member, stepped side by side")


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
        "variance / batch_size of the gradient at replayed states is smallest, within [0.05, 5]; measured 50 times, at "
        "fewer states (8 at least) where that would take more than 1 % of the run",
    )
    start: float = Field(1.0, gt=0, description="tau at the first step", json_schema_extra=PER_MEMBER)
    end: float = Field(0.5, gt=0, description="tau once annealed", json_schema_extra=PER_MEMBER)
    fraction: float = Field(0.5, gt=0, le=1, description="part of the run over which tau moves")


class TargetEntropyConfig(ScheduleConfig):
    """Target of the policy's entropy, as a fraction of the largest entropy possible.

    The largest is sum_k log n_k, where n_k counts the legal choices of factor k: all of them without masks. With masks
    it differs from state to state, and the target is the fraction of its mean over the batch.
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


class ParallelConfig(Section):
    """How the ranks share a run that torchrun starts."""

    data: bool = Field(
        False,
        description="false: each rank trains some of the members; true: all of them, with a part of their "
        "environments, replay and batch, and gradients of the whole batch",
    )


class PBTConfig(Section):
    """Population-based training: members with low returns take over weights and settings of those with high ones."""

    every_env_steps: int | None = Field(
        None, ge=1, description="environment steps of a member between two exchanges; null: members stay as they are"
    )
    fraction: float = Field(
        0.25, gt=0, le=0.5, description="part of the members that is replaced at each, by members of as large a part"
    )
    settings: list[str] | None = Field(
        None,
        description="settings that a copy perturbs, of learning_rate, tau, target_entropy, noise_persistence, with "
        "REINFORCE learning_rate, entropy_coefficient; null: all of them",
    )
    factors: list[Annotated[float, Field(gt=0)]] = Field(
        [0.8, 1.25], min_length=1, description="what each of them is multiplied by, one drawn for each copy and setting"
    )


class NetworkConfig(Section):
    """What turns observations into features, in the actor and in each critic."""

    name: str = Field(
        "auto",
        description="mlp: hidden_sizes; conv, nature, impala: convolutions of images before them; auto: mlp where "
        "there are no images, conv for those below 36 pixels, else nature (docs/images_and_memory.md); or module:Class "
        "of your own torch.nn.Module (docs/extending.md)",
    )
    kwargs: Kwargs = Field({}, description="keyword arguments of your own network's constructor")
    memory: Literal["none", "gru", "mingru"] = Field(
        "none",
        description="what the policy remembers of the observations before; gru: a gated recurrent unit; mingru: one "
        "whose gates see the observation alone, computed for all steps of a sequence at once",
    )
    memory_size: int = Field(128, ge=1, description="size of the memory's state")

    @property
    def state_size(self) -> int:
        return 0 if self.memory == "none" else self.memory_size

    @field_validator("name")
    @classmethod
    def network_is_known(cls, name: str) -> str:
        if name not in NETWORKS and not OWN_CLASS.fullmatch(name):
            known = ", ".join(NETWORKS)
            raise ValueError(f"got {name!r}, must be {known} or module:Class of your own{nearest(name, NETWORKS)}")
        return name

    @model_validator(mode="after")
    def built_in_ones_have_no_kwargs(self) -> "NetworkConfig":
        if self.name in NETWORKS and self.kwargs:
            raise ValueError(
                f"network.kwargs: got {self.kwargs!r}, but network.name={self.name} takes none; its settings are "
                "hidden_sizes, actor.layer_norm and critic.layer_norm"
            )
        return self


class ActorConfig(Section):
    layer_norm: bool = Field(False, description="layer normalisation after each hidden layer of the actor")


class CriticConfig(Section):
    structure: Literal["per_action", "multilinear", "joint"] = Field(
        "multilinear",
        description="per_action: one value per choice, Q their mean over factors; multilinear: that and an interaction "
        "of each pair of factors, none where there is one factor; joint: an MLP on [obs, action]",
    )
    rank: int = Field(16, ge=1, description="multilinear: size of the vector that describes a choice to other factors")
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
    max_episode_steps: int = Field(
        MAX_EPISODE_STEPS,
        ge=1,
        description="a longer episode of an evaluation is cut there: it counts with its return so far, and is marked",
    )


class CheckpointConfig(Section):
    """Full training states under checkpoints/, from which a run resumes as if it had never stopped."""

    every_env_steps: int | None = Field(
        20_000,
        ge=1,
        description="steps of a member between checkpoints; null: none are written",
    )
    keep: int = Field(
        1,
        ge=1,
        description="newest checkpoints that are kept; also kept are the one with the highest return and the last one "
        "before a member failed",
    )
    replay_gib: float = Field(
        4.0,
        ge=0,
        description="a replay that has filled more stays out of the checkpoints: a resumed run collects "
        "learning_starts steps with its policy before it learns again, and is not the same bit for bit",
    )


class WandbConfig(Section):
    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto: online where a login is found, else offline; never asks"
    )
    project: str = Field("gumbel-actor-critic", description="W&B project")
    entity: str | None = Field(None, description="W&B team or user; null: your default")
    group: str | None = Field(
        None, description="W&B group; null: the run's name where members have W&B runs of their own, else env.id"
    )
    name: str | None = Field(None, description="W&B run name; null: the run folder's name")
    tags: list[str] = Field([], description="W&B tags")
    log_policy: bool = Field(False, description="upload the policies at the end as an artifact")
    log_video: bool = Field(False, description="upload a video of the best policy at the end; needs the extra video")


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
