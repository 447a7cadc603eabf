"""Every metric a run logs: its name, formula and unit, as data.

One value per member. The x-axis is always `env_steps`: environment steps of one member, summed over its environments.
Metrics of an update are means over the updates since the last log line. The symbols are those of
`agent/algorithms/gumbel_actor_critic.py` and `reinforce.py`: s, a a stored step, B the rows of an update.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """How a metric is computed, what it is measured in ("1": a pure number) and how to read it."""

    formula: str
    unit: str
    meaning: str


METRICS: dict[str, Metric] = {
    "train/episode_return": Metric(
        "mean of sum_t r_t over the training episodes ended since the last log line",
        "reward",
        "undiscounted, before any scaling, with exploration; absent where no episode ended",
    ),
    "train/episode_length": Metric(
        "mean number of steps of the training episodes ended since the last log line",
        "env steps",
        "absent where no episode ended",
    ),
    "env/restarts": Metric(
        "environments put in place of one that failed, since the run began",
        "1",
        "env.on_error=restart; absent while there was none",
    ),
    "eval/return_greedy": Metric(
        "mean of sum_t r_t over evaluation episodes, a = argmax pi(.|s)",
        "reward",
        "the policy's worth; an episode cut at evaluation.max_episode_steps counts with its return so far",
    ),
    "eval/return_sampled": Metric(
        "mean of sum_t r_t over evaluation episodes, a ~ pi(.|s)",
        "reward",
        "nears eval/return_greedy as the policy becomes deterministic",
    ),
    "eval/length_greedy": Metric(
        "mean number of steps of the evaluation episodes, a = argmax pi(.|s)",
        "env steps",
        "time to the end or time limit",
    ),
    "eval/length_sampled": Metric(
        "mean number of steps of evaluation episodes, a ~ pi(.|s)", "env steps", "to the end or the time limit"
    ),
    "critic/loss": Metric(
        "mean_B sum_C (Q_c(s, a) - z)^2", "reward^2", "summed over the twin critics; bounded, not zero, while pi moves"
    ),
    "critic/q": Metric("mean_{C,B} Q_c(s, a)", "reward", "online critics, replayed action; tracks critic/td_target"),
    "critic/td_target": Metric(
        "mean_B z,  z = sum_{i<m} gamma^i r_i + gamma^m (1 - terminated) V(s_m)",
        "reward",
        "V by the target critics; within the discounted returns the task allows",
    ),
    "critic/grad_norm": Metric(
        "L2 norm of the gradient of critic/loss", "reward^2", "both critics together, before clipping at max_grad_norm"
    ),
    "actor/loss": Metric(
        "gumbel_actor_critic: -mean_B [Q(s, a~) + alpha H(pi(.|s))];  "
        "reinforce: -mean_B [log pi(a|s) A + c H(pi(.|s))]",
        "reward; reinforce with normalized returns: 1",
        "its level says little: minus the policy's value, or a surrogate for its gradient",
    ),
    "actor/entropy": Metric(
        "mean_B H(pi(.|s)) = -sum_k sum_a pi_k(a|s) log pi_k(a|s)",
        "nats",
        "0 ... sum_k log n_k, n_k legal choices; gumbel_actor_critic: follows target_entropy",
    ),
    "actor/grad_norm": Metric("L2 norm of the gradient of actor/loss", "unit of actor/loss", "before clipping"),
    "alpha/value": Metric(
        "alpha = exp(log_alpha), as used in the update",
        "reward per nat",
        "falls while the entropy is above its target; stuck at alpha.min or alpha.max: the target is out of reach",
    ),
    "estimator/tau": Metric(
        "tau of the update", "1", "from tau.start to tau.end on its schedule, or adaptive; some estimators use none"
    ),
    "gradient/relative_bias": Metric(
        "|E g - g*| / |g*|,  g the estimator's gradient of Q for the logits at 64 replayed states, g* the exact one",
        "1",
        "g* by local expectation where the critics are joint or reduced by min; measured 50 times in a run",
    ),
    "gradient/relative_variance": Metric(
        "E |g - E g|^2 / |g*|^2, of one draw", "1", "a batch divides it by its size; the bias stays"
    ),
    "gradient/cosine_to_exact": Metric("E g . g* / (|E g| |g*|)", "1", "1: the mean gradient has the right direction"),
    "baseline/loss": Metric(
        "mean_B (b(s) - G / scale)^2,  scale the largest root mean square of G so far",
        "1",
        "last gradient step of the update; below mean_B (G / scale)^2 where the baseline helps; 0 without baseline",
    ),
    "baseline/return": Metric(
        "mean_B G,  G_t = r_t + gamma G_{t+1}",
        "reward",
        "discounted; continued by scale gamma b(s') where a time limit truncated the episode and there is a baseline",
    ),
    "pbt/parent": Metric(
        "number of the member whose weights and settings this one has taken over; its own number where it kept its own",
        "1",
        "at each exchange of pbt.every_env_steps",
    ),
    **{
        f"pbt/{setting}": Metric(
            f"what {setting} has been multiplied by since the run began, at its ancestors and here", "1", "likewise"
        )
        for setting in ("learning_rate", "tau", "target_entropy", "noise_persistence", "entropy_coefficient")
    },
    "time/env_steps_per_second": Metric(
        "env_steps since the last log line / seconds of training since then",
        "1/s",
        "of one member; evaluation excluded",
    ),
    "time/updates_per_second": Metric(
        "updates since the last log line / seconds of training since then",
        "1/s",
        "an update trains all members at once; evaluation excluded",
    ),
    "time/elapsed_seconds": Metric("seconds since the run began", "s", "wall clock, evaluation included"),
}

FINAL: dict[str, Metric] = {  # of the last evaluation: in result.json episode by episode, in W&B's summary as means
    "eval/final_return_greedy": Metric(
        "mean of sum_t r_t over the episodes of the last evaluation, a = argmax pi(.|s)",
        "reward",
        "evaluation.final_episodes of them, on fresh environments",
    ),
    "eval/final_return_sampled": Metric(
        "mean of sum_t r_t over the episodes of the last evaluation, a ~ pi(.|s)", "reward", "likewise"
    ),
}
