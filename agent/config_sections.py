"""The sections of the config: each a group of settings, typed, validated, documented."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from agent.config_fields import (
    NOT_LEARNING,
    PER_MEMBER,
    Kwargs,
    Section,
    nearest,
    read_by,
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
