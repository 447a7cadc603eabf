"""What a comparison trains: each combination of the varied settings, in a folder that its settings decide."""

import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from agent import yaml12
from agent.algorithms.base import require_updates
from agent.analysis.filters import free_form_of
from agent.config import Config, changes_learning, is_read_by, settings
from agent.config_faults import yaml_scalar
from agent.config_fields import nearest
from agent.config_loader import load_config, require_today
from agent.config_sections import ALGORITHMS
from agent.ranks import ALONE, Ranks
from envs.errors import UserError

OF_COMPARISON = re.compile(r"compare-(.+)-\w+-[0-9a-f]{8}")  # the folder of a run that a comparison trains

Axes = dict[str, list[Any]]  # dotted key: values


def axes_of(algorithms: Sequence[str], estimators: Sequence[str], varied: Sequence[str]) -> Axes:
    """The settings to vary, from the command line's options."""
    axes: Axes = {}
    for option, key, values in (
        ("--algorithms", "algorithm", algorithms),
        ("--estimators", "estimator.name", estimators),
    ):
        if values:
            axes[key] = list(values)
        if settings_among := [value for value in values if "=" in value]:
            raise UserError(
                f"{option}: got '{settings_among[0]}'; settings go before the options: CONFIG key=value {option} …"
            )
    for key, values in map(parse_axis, varied):
        if key in axes:
            raise UserError(f"--vary: {key} is varied twice; give all its values at once: {key}=v1,v2")
        axes[key] = values
    return axes


def parse_axis(text: str) -> tuple[str, list[Any]]:
    """--vary key=v1,v2: the values as YAML. UserError for what cannot be compared."""
    key, separator, listed = text.partition("=")
    if not separator or not key:
        raise UserError(f"--vary: '{text}' is not of the form key=v1,v2; for example tau.start=2.0,1.0,0.5")
    try:
        values = yaml12.load(f"[{listed}]")
    except yaml12.Fault as fault:
        raise UserError(f"--vary: {key}: {str(fault).removeprefix('line 1: ')}") from None
    except yaml.YAMLError:
        raise UserError(f"--vary: {key}: cannot read the values '{listed}'; separate them by commas") from None
    if not values:
        raise UserError(f"--vary: {key}: no values; for example {key}=v1,v2")
    require_today(key, f"--vary: {text}")
    known = [k for k, _ in settings()]
    if key not in known and free_form_of(key) is None:
        raise UserError(f"--vary: unknown key '{key}'{nearest(key, known)}")
    if key in ("seed", "seeds"):
        raise UserError(f"--vary: {key}: seeds are replications, not something to compare; use --seeds N")
    if not changes_learning(key):
        raise UserError(f"--vary: {key} does not change what is learned; set it for all runs: CONFIG {key}=…")
    return key, values


def plan(
    config_file: str, axes: Mapping[str, Sequence[Any]], seeds: int | None, overrides: Sequence[str]
) -> list[Config]:
    """The runs that a comparison needs, one per combination, each in a folder that its settings alone decide.

    Every combination is a run of its own even where a sweep could train several in one process: then one more value
    trains one more run, and leaves the others as they are.
    A setting that an algorithm does not read is not varied for it.
    """
    configs: dict[str, Config] = {}
    own = [] if seeds is None else [f"seeds={seeds}"]
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        algorithm = [f"algorithm={yaml_scalar(chosen['algorithm'])}"] if "algorithm" in chosen else []
        if chosen.get("algorithm") in ALGORITHMS:
            algorithm.append("algorithm_kwargs={}")  # are those of another algorithm
        base = load_config(config_file, [*overrides, *algorithm, *own, "run_dir=null"])
        read = [f"{key}={yaml_scalar(value)}" for key, value in chosen.items() if is_read_by(base.algorithm, key)]
        config = load_config(config_file, [*overrides, *algorithm, *own, *read, "run_dir=null"])
        if both := set(axes) & set(config.sweep):
            raise UserError(f"{', '.join(sorted(both))}: both varied and swept; choose one")
        swept = {key: values for key, values in config.sweep.items() if is_read_by(config.algorithm, key)}
        config = config.model_copy(update={"sweep": swept})
        folder = str(run_folder(config_file, config))
        configs[folder] = config.model_copy(update={"run_dir": folder})
    algorithms = sorted({config.algorithm for config in configs.values()})
    for key in axes:
        if not any(is_read_by(algorithm, key) for algorithm in algorithms):
            raise UserError(f"{key}: nothing to vary, {' and '.join(algorithms)} does not read it")
    return list(configs.values())


def run_folder(config_file: str, config: Config) -> Path:
    digest = hashlib.sha256(config.model_copy(update={"device": "auto"}).to_yaml().encode()).hexdigest()[:8]
    return Path("runs") / f"compare-{name_of(config_file)}-{config.algorithm_name}-{digest}"


def name_of(path: str) -> str:
    """What to call a config file or run: its name; a run's config.yaml by its folder, a comparison's by its config."""
    if Path(path).name == "config.yaml":
        path = str(Path(path).parent)
    if of_comparison := OF_COMPARISON.fullmatch(Path(path).name):
        return of_comparison[1]
    return Path(path).stem if Path(path).suffix == ".yaml" else Path(path).name


def train_missing(
    configs: Sequence[Config],
    train: Callable[..., object],
    announce: Callable[[str], None],
    ranks: Ranks = ALONE,
) -> None:
    """Trains those of the runs that are not finished; one that was stopped is resumed. Each is trained by one rank.

    ConfigError before the first of them where any could not learn.
    """
    for config in configs:
        if not (Path(str(config.run_dir)) / "result.json").is_file():
            require_updates(config)
    for number in ranks.take(len(configs)):
        config, count = configs[number], f"[{number + 1}/{len(configs)}]"
        folder = Path(str(config.run_dir))
        if (folder / "result.json").is_file():
            announce(f"{count} {folder}: trained before")
            continue
        announce(f"{count} training {config.algorithm}, {len(config.members())} members: {folder}")
        quiet = {} if ranks.size == 1 else {"progress": False}
        train(config, resume=True, ranks=ALONE, **quiet)
