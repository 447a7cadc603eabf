"""Config: layers, numbers, and errors that say where, what and what instead."""

from pathlib import Path

import pytest

from agent.config import ConfigError, settings
from agent.config_loader import help_text, load_config

CARTPOLE = ["env.id=CartPole-v1"]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_command_line_beats_file_beats_default(tmp_path: Path) -> None:
    file = write(tmp_path / "c.yaml", "env: {id: CartPole-v1}\ngamma: 0.9\ntau: {start: 2.0}\n")
    config = load_config(file, ["gamma=0.8"])
    assert (config.gamma, config.tau.start, config.tau.end) == (0.8, 2.0, 0.5)


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "0.001", "1.0e-3", "+1e-3"])
def test_scientific_notation_is_a_number(tmp_path: Path, text: str) -> None:
    file = write(tmp_path / "c.yaml", f"env: {{id: CartPole-v1, kwargs: {{x: {text}}}}}\nlearning_rate: {text}\n")
    config = load_config(file)
    assert config.learning_rate == pytest.approx(1e-3)
    assert config.env.kwargs["x"] == pytest.approx(1e-3)
    assert load_config(None, [*CARTPOLE, f"learning_rate={text}"]).learning_rate == pytest.approx(1e-3)


def test_large_counts_may_be_written_in_scientific_notation() -> None:
    assert load_config(None, [*CARTPOLE, "total_env_steps=1e6"]).total_env_steps == 1_000_000


def test_resolved_config_loads_to_itself(tmp_path: Path) -> None:
    config = load_config(None, [*CARTPOLE, "sweep={tau.start: [2.0, 0.5]}", "seeds=2", "hidden_sizes=[8]"])
    assert load_config(write(tmp_path / "c.yaml", config.to_yaml())) == config


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda p: p.stem)
@pytest.mark.parametrize("algorithm", ["gumbel_actor_critic", "reinforce"])
def test_shipped_configs_are_valid_for_both_algorithms(path: Path, algorithm: str) -> None:
    assert load_config(path, [f"algorithm={algorithm}"]).algorithm == algorithm


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gama=0.9", "command line: unknown key 'gama'; did you mean 'gamma'?"),
        ("tau.strat=1", "unknown key 'tau.strat'; did you mean 'tau.start'?"),
        ("env.idd=x", "unknown key 'env.idd'; did you mean 'env.id'?"),
        ("batch_size=big", "batch_size: got 'big', must be a valid integer"),
        ("tau.start=-1", "tau.start: got -1, must be greater than 0"),
        ("gamma=1", "gamma: got 1, must be less than 1"),
        ("tau=0.5", "'tau' is a section, not a value; it holds tau.schedule"),
        ("tau.schedule=lin", "must be 'constant', 'linear', 'exponential', 'cosine' or 'adaptive'"),
        ("learning_rate=.nan", "learning_rate: got nan, must be a finite number"),
        ("gamma", "'gamma' is not of the form key=value"),
        ("sweep={tau.strt: [1]}", "cannot sweep 'tau.strt'; did you mean 'tau.start'?"),
        ("sweep={batch_size: [1]}", "cannot sweep 'batch_size'"),
        ("sweep={tau.start: [1, -2]}", "sweep: tau.start: got -2.0, must be greater than 0"),
        ("sweep={tau.start: []}", "sweep of 'tau.start' has no values"),
        ("critic={structure: joint}", "estimator.name=exact needs critic.structure=per_action"),
        ("seed=4294967296", "seed: got 4294967296"),
        ("env.kwargs={a: {0: b}}", "kwargs: the key 0 is no text"),
        ("env.kwargs={a: [{b: 2024-01-05}]}", "is a date, which the files of a run cannot hold"),
        ("alpha.start=1e-4", "start: got 0.0001, must lie between min=0.001 and max=10"),
        ("sweep={alpha.start: [1, 20]}", "sweep: start: got 20, must lie between"),
        ("noise_persistence_max=0.9", "noise_persistence_max: got 0.9, but a member has env.num_envs=1"),
    ],
)
def test_error_says_where_what_and_what_is_allowed(override: str, message: str) -> None:
    overrides = [*CARTPOLE, override] + (["estimator.name=exact"] if "joint" in override else [])
    with pytest.raises(ConfigError) as error:
        load_config(None, overrides)
    assert message in str(error.value)


@pytest.mark.parametrize("settings", [["noise_persistence=0.95"], ["sweep={noise_persistence: [0.5, 0.95]}"]])
def test_longest_persistence_is_not_below_the_shortest(settings: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"noise_persistence_max: got 0\.9, which is below noise_persistence=0\.95"):
        load_config(None, [*CARTPOLE, "env.num_envs=2", "noise_persistence_max=0.9", *settings])


def test_error_names_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "c.yaml", "env: {id: CartPole-v1}\ntau: {start: 0}\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: tau\.start: got 0, must be greater than 0"):
        load_config(file, ["gamma=0.9"])


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, ["gamma=2", "n_step=0"])
    assert all(key in str(error.value) for key in ("env", "gamma", "n_step"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty; it needs at least env.id"),
        ("- 1\n- 2\n", "expected settings as 'key: value' lines, got list"),
        ("env: [", "not readable as YAML"),
    ],
)
def test_unusable_file_is_explained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path / "c.yaml", text))


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "cartpole.yaml", "env: {id: CartPole-v1}")
    with pytest.raises(ConfigError, match=r"cartpol\.yaml: no such config file; did you mean '.*cartpole\.yaml'"):
        load_config(tmp_path / "cartpol.yaml")


def test_help_shows_every_setting_with_default_and_allowed_values() -> None:
    text = " ".join(help_text().split())
    assert all(f" {key} = " in text for key, _ in settings())
    assert "tau.start = 1.0" in text and "[constant | linear | exponential | cosine]" in text
    assert "env.id = required" in text and "[>= 0, < 1]" in text


def test_sweep_multiplies_with_seeds() -> None:
    config = load_config(None, [*CARTPOLE, "seed=5", "seeds=2", "sweep={tau.start: [2.0, 0.5], gamma: [0.9]}"])
    members = [(m.seed, m.settings["tau.start"], m.settings["gamma"]) for m in config.members()]
    assert members == [(5, 2.0, 0.9), (6, 2.0, 0.9), (5, 0.5, 0.9), (6, 0.5, 0.9)]
    assert config.per_member("tau.start") == [2.0, 2.0, 0.5, 0.5]
    assert config.per_member("learning_rate") == [config.learning_rate] * 4
