"""Config: layers, numbers, and errors that say where, what and what instead."""

import math
from pathlib import Path

import pytest

from agent import config_loader
from agent.config import about, changes_learning, is_read_by, settings
from agent.config_faults import yaml_scalar
from agent.config_fields import ConfigError
from agent.config_loader import flat, help_text, load_config
from agent.config_sections import ALGORITHMS

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
        ("sweep={tau.start: [1, -2]}", "sweep: tau.start: got -2, must be greater than 0"),
        ("sweep={tau.start: []}", "sweep: tau.start: got no values, must be a list of one or more"),
        ("sweep={tau.start: 2}", "sweep: tau.start: got 2, must be a list of values, for example [2]"),
        ("sweep={tau.start: [[2, 1]]}", "sweep: tau.start: got [2, 1], must be a valid number"),
        ("sweep={n_step: [3, [3, 0]]}", "sweep: n_step: got [3, 0], where 0 must be greater than or equal to 1"),
        ("sweep={n_step: [3, 1.5]}", "sweep: n_step: got 1.5, must be a valid integer"),
        ("sweep={learning_rate: [.inf]}", "sweep: learning_rate: got inf, must be a finite number"),
        ("critic={structure: joint}", "estimator.name=exact needs critic.structure=per_action"),
        ("seed=4294967296", "seed: got 4294967296"),
        ("env.kwargs={a: {0: b}}", "kwargs: the key 0 is no text"),
        ("env.kwargs={a: [{b: !!timestamp 2024-01-05}]}", "is a date, which the files of a run cannot hold"),
        ("alpha.start=1e-4", "start: got 0.0001, must lie between min=0.001 and max=10"),
        ("sweep={alpha.start: [1, 20]}", "sweep: start: got 20, must lie between"),
        ("noise_persistence=[0.5,0.9]", "noise_persistence: got [0.5, 0.9], but a member has env.num_envs=1"),
        ("sweep={noise_persistence: [0.5, [0.5, 0.9]]}", "sweep: noise_persistence: got [0.5, 0.9], but a member has"),
        ("noise_persistence=[0.5,1]", "noise_persistence: got [0.5, 1], where 1 must be less than 1"),
        ("noise_persistence=[]", "must be one number, or two: [of a member's first environment, of its last]"),
        ("n_step=[3,2,1]", "n_step: got [3, 2, 1], must be one number, or two: [at the start of the run, at its end]"),
        ("n_step=0", "n_step: got 0, must be greater than or equal to 1"),
        ("n_step_end=0", "n_step: got [3, 0], where 0 must be greater than or equal to 1"),
        ("algorithm=reinforc", "algorithm: got 'reinforc', must be 'gumbel_actor_critic', 'reinforce' or module:Class"),
        ("algorithm=reinforc", "; did you mean 'reinforce'?"),
        ("algorithm=my_module:2x", "algorithm: got 'my_module:2x', must be"),
        ("algorithm_kwargs={a: 1}", "algorithm_kwargs: got {'a': 1}, but algorithm=gumbel_actor_critic takes none"),
        ("algorithm_kwargs={a: !!timestamp 2024-01-05}", "algorithm_kwargs: datetime.date(2024, 1, 5) is a date"),
        (
            "network.name=mpl",
            "network.name: got 'mpl', must be auto, mlp, conv, nature, impala or module:Class of your own; did you "
            "mean 'mlp'?",
        ),
        ("network.kwargs={a: 1}", "network.kwargs: got {'a': 1}, but network.name=auto takes none"),
        ("network.kwargs={a: {0: 1}}", "network.kwargs: the key 0 is no text"),
        ("seed=1:30", "seed: got '1:30', must be a valid integer"),
        ("seed=1_000", "seed: got '1_000', must be a valid integer"),
        ("seed='10'", "seed: got '10', must be a valid integer"),
        ("seed=true", "seed: got True, must be a valid integer"),
        ("seeds=2.5", "seeds: got 2.5, must be a valid integer"),
        ("gamma=false", "gamma: got False, must be a valid number"),
        ("gamma=off", "gamma: got 'off', must be a valid number"),
        ("return_threshold=true", "return_threshold: got True, must be a valid number"),
        ("noise_persistence=false", "noise_persistence: got False, must be a valid number"),
        ("n_step=[3, true]", "n_step: got [3, True], where True must be a valid integer"),
        ("hidden_sizes=[64, true]", "hidden_sizes: got [64, True], where True must be a valid integer"),
        ("sweep={gamma: [true]}", "sweep: gamma: got True, must be a valid number"),
        ("sweep={n_step: [[3, true]]}", "sweep: n_step: got [3, True], where True must be a valid integer"),
        ("sweep={gamma: ['0.9']}", "sweep: gamma: got '0.9', must be a valid number"),
        ("compile=1", "compile: got 1, must be true or false"),
        ("compile=yes", "compile: got 'yes', must be true or false"),
        ("normalize_obs=0.0", "normalize_obs: got 0.0, must be true or false"),
        (
            "wandb.name=2024",
            "wandb.name: got 2024, must be a valid string; in quotes it is a text: wandb.name='\"2024\"'",
        ),
        ("env.kwargs={a: 1, b: 2, a: 3}", "command line: env.kwargs: the key 'a' is given twice"),
        ("env.kwargs={max_steps:200}", "a space is missing after the colon of 'max_steps:200'; write max_steps: 200"),
        ("env.kwargs={a: {b:1, c: 2}}", "a space is missing after the colon of 'b:1'; write b: 1"),
        ("env.kwargs=max_steps:200", "a space is missing after the colon of 'max_steps:200'; write max_steps: 200"),
        ("tau=start:2", "it holds tau.schedule, tau.start, tau.end, tau.fraction, tau.env_steps; a space is missing"),
        ("hidden_sizes=64", "hidden_sizes: got 64, must be a valid list; for example hidden_sizes=[64, 64]"),
        ("hidden_sizes=64,32", "; for example hidden_sizes=[64,32]"),
        ("wandb.tags=first", "; for example wandb.tags=[first]"),
        ("env.kwargs=3", "; for example env.kwargs={name: value}"),
        ("sweep=3", "; for example sweep={tau.start: [2.0, 1.0]}"),
        (
            "device=cuda:1",
            "device: got 'cuda:1', must be 'auto', 'cpu' or 'cuda'; choose a GPU by the environment variable",
        ),
        ("device=mps", "device: got 'mps', must be 'auto', 'cpu' or 'cuda'"),
        ("lr=0.1", "unknown key 'lr'; did you mean 'learning_rate'?"),
        ("network.nam=mlp", "unknown key 'network.nam'; did you mean 'network.name'?"),
    ],
)
def test_error_says_where_what_and_what_is_allowed(override: str, message: str) -> None:
    overrides = [*CARTPOLE, "env.num_envs=1", override] + (["estimator.name=exact"] if "joint" in override else [])
    with pytest.raises(ConfigError) as error:
        load_config(None, overrides)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10), ("008", 8), ("0x10", 16), ("0o17", 15), ("1e3", 1000.0), ("-.inf", -math.inf), ("1.", 1.0),
        ("true", True), ("null", None), ("~", None),
        *((text, text) for text in ("yes", "off", "1:30", "1_000", "0b1", "2024-01-05", "08x08")),
    ],
)  # fmt: skip
def test_values_are_read_as_yaml_1_2_reads_them(tmp_path: Path, text: str, value: object) -> None:
    file = write(tmp_path / "c.yaml", f"env: {{id: CartPole-v1, kwargs: {{x: {text}}}}}\n")
    for config in (load_config(file), load_config(None, [*CARTPOLE, f"env.kwargs.x={text}"])):
        found = config.env.kwargs["x"]
        assert found == value and type(found) is type(value)
        assert load_config(write(tmp_path / "d.yaml", config.to_yaml())) == config


def test_leading_zeros_and_whole_numbers_are_integers() -> None:
    config = load_config(None, [*CARTPOLE, "seed=010", "seeds=3.0", "n_step=008", "hidden_sizes=[016, 1e2]"])
    assert (config.seed, config.seeds, config.n_step, config.hidden_sizes) == (10, 3, 8, [16, 100])


@pytest.mark.parametrize("value", ["010", "0o17", "1e3", "yes", "true", "1_000", "", "~", "a: b", "2024-01-05"])
def test_a_text_that_looks_like_another_value_comes_back_as_text(tmp_path: Path, value: str) -> None:
    config = load_config(None, CARTPOLE)
    config = config.model_copy(update={"env": config.env.model_copy(update={"kwargs": {"x": value}})})
    assert load_config(write(tmp_path / "c.yaml", config.to_yaml())).env.kwargs == {"x": value}
    assert load_config(None, [*CARTPOLE, f"env.kwargs={yaml_scalar({'x': value})}"]).env.kwargs == {"x": value}


@pytest.mark.parametrize("given", ["gpu", "GPU", "CUDA", "cuda"])
def test_gpu_means_cuda(given: str) -> None:
    assert load_config(None, [*CARTPOLE, f"device={given}"]).device == "cuda"


@pytest.mark.parametrize("setting", ["noise_persistence=[0.95, 0.9]", "sweep={noise_persistence: [[0.95, 0.9]]}"])
def test_longest_persistence_is_not_below_the_shortest(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"noise_persistence: got \[0\.95, 0\.9\].* did you mean \[0\.9, 0\.95\]\?"):
        load_config(None, [*CARTPOLE, "env.num_envs=2", setting])


OWN_NETWORK = [*CARTPOLE, "network.name=my_package.nets:Torso", "network.kwargs={width: 8}"]


@pytest.mark.parametrize(
    "setting", ["hidden_sizes=[8]", "actor.layer_norm=true", "critic.layer_norm=false", "hidden_sizes=[8, 8]"]
)
def test_settings_of_the_mlp_are_refused_with_another_network(setting: str) -> None:
    key = setting.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"{key}: got .* network.name=my_package.nets:Torso does not read it"):
        load_config(None, [*OWN_NETWORK, setting])
    assert load_config(None, OWN_NETWORK).network.kwargs == {"width": 8}
    if key == "actor.layer_norm":
        with pytest.raises(ConfigError, match="actor.layer_norm: got True"):
            load_config(None, [*OWN_NETWORK, setting, "critic.structure=joint"])
    else:
        load_config(None, [*OWN_NETWORK, setting, "critic.structure=joint"])


def test_an_algorithm_of_your_own_has_settings_of_its_own() -> None:
    config = load_config(None, [*CARTPOLE, "algorithm=my_package.learners:Dqn", "algorithm_kwargs={epsilon: 0.1}"])
    assert (config.algorithm, config.algorithm_name) == ("my_package.learners:Dqn", "Dqn")
    assert config.algorithm_kwargs == {"epsilon": 0.1}


def test_a_pair_loads_to_itself_and_equal_numbers_are_one(tmp_path: Path) -> None:
    config = load_config(None, [*CARTPOLE, "env.num_envs=2", "noise_persistence=[0.5, 0.95]", "n_step=[3, 1]"])
    assert (config.noise_persistence, config.n_step) == ([0.5, 0.95], [3, 1])
    assert load_config(write(tmp_path / "c.yaml", config.to_yaml())) == config
    assert load_config(None, [*CARTPOLE, "noise_persistence=[0.5, 0.5]"]).noise_persistence == 0.5


def test_pairs_are_swept_like_numbers(tmp_path: Path) -> None:
    sweep = "sweep={noise_persistence: [0, [0.5, 0.95]], n_step: [3, [3, 1]]}"
    config = load_config(None, [*CARTPOLE, "env.num_envs=2", sweep])
    assert config.per_member_pairs("n_step") == [(3, 3), (3, 1), (3, 3), (3, 1)]
    assert config.per_member_pairs("noise_persistence") == [(0, 0), (0, 0), (0.5, 0.95), (0.5, 0.95)]
    assert config.per_member_pairs("gamma") == [(0.997, 0.997)] * 4
    assert [member.settings for member in config.members()][1:3] == [
        {"noise_persistence": 0.0, "n_step": [3, 1]},
        {"noise_persistence": [0.5, 0.95], "n_step": 3},
    ]
    assert [type(member.settings["n_step"]) for member in config.members()] == [int, list, int, list]
    assert load_config(write(tmp_path / "c.yaml", config.to_yaml())) == config
    with pytest.raises(AssertionError, match="n_step holds a pair"):
        config.per_member("n_step")


@pytest.fixture
def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_loader, "told", set())


@pytest.mark.usefixtures("untold")
def test_old_keys_of_a_file_become_pairs_and_the_new_key_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "env: {id: CartPole-v1, num_envs: 2}\nnoise_persistence: 0.7\nnoise_persistence_max: 0.95\nn_step_end: 1\n"
    file = write(tmp_path / "c.yaml", text)
    config = load_config(file)
    assert (config.noise_persistence, config.n_step) == ([0.7, 0.95], [3, 1])
    assert load_config(file) == config
    (record,) = caplog.records
    assert f"{file}: noise_persistence_max is part of noise_persistence now" in record.getMessage()
    assert "write noise_persistence: [0.7, 0.95]; n_step_end" in record.getMessage()
    assert load_config(file, ["noise_persistence=0.9"]).noise_persistence == 0.9  # the command line replaces the pair


def test_a_setting_that_is_gone_is_told_unless_a_run_of_old_has_it(tmp_path: Path) -> None:
    """The config.yaml of every run of old has its default, and may be the start of another run."""
    file = write(tmp_path / "config.yaml", "env: {id: CartPole-v1}\nframe_stack: 4\n")
    gone = "config.yaml: frame_stack was removed: the replay finds stacked frames itself; leave it out$"
    with pytest.raises(ConfigError, match=gone):
        load_config(file)
    assert load_config(file, of_run=True) == load_config(None, CARTPOLE)
    with pytest.raises(ConfigError, match="command line: frame_stack was removed"):
        load_config(file, ["frame_stack=4"], of_run=True)
    assert load_config(write(file, "env: {id: CartPole-v1}\nframe_stack: 1\n")) == load_config(None, CARTPOLE)


@pytest.mark.usefixtures("untold")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["noise_persistence_max=0.9"], ["noise_persistence=[0.5, 0.9]"]),
        (["noise_persistence=0.7", "noise_persistence_max=null"], ["noise_persistence=0.7"]),
        (["noise_persistence=[0.7, 0.95]", "noise_persistence_max=null"], ["noise_persistence=0.7"]),
        (["n_step=5", "n_step_end=2"], ["n_step=[5, 2]"]),
        (["n_step=5", "n_step_end=5"], ["n_step=5"]),
        (
            ["sweep={noise_persistence: [0.5, 0.7], gamma: [0.9]}", "noise_persistence_max=0.9"],
            ["sweep={noise_persistence: [[0.5, 0.9], [0.7, 0.9]], gamma: [0.9]}", "noise_persistence=[0.5, 0.9]"],
        ),
    ],
)
def test_old_keys_of_the_command_line_become_pairs(
    old: list[str], new: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(None, [*CARTPOLE, "env.num_envs=2", *old])
    assert config == load_config(None, [*CARTPOLE, "env.num_envs=2", *new])
    assert list(config.sweep) == list(load_config(None, [*CARTPOLE, "env.num_envs=2", *new]).sweep)
    assert [record.getMessage().startswith("command line: ") for record in caplog.records] == [True]


def test_saved_settings_with_old_keys_are_read_as_those_of_today() -> None:
    saved = flat({"n_step": 5, "n_step_end": 5, "noise_persistence_max": 0.9})
    assert (saved["n_step"], saved["noise_persistence"]) == (5, [0.5, 0.9])


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
        ("env: {id: x}\nseed: 1\nseed: 2\n", "c.yaml: the key 'seed' is given twice, in lines 2 and 3"),
        ("env:\n  id: x\n  num_envs: 1\n  id: y\n", "the key 'id' is given twice, in lines 2 and 4"),
        ("env: {id: x}\nseeds:3\ngamma: 0.9\n", "c.yaml: line 2: a space is missing after the colon of 'seeds:3'"),
        ("env: {id: x, num_envs:3}\n", "line 1: a space is missing after the colon of 'num_envs:3'; write num_envs: 3"),
        ("env:\n  id: x\n  kwargs:\n    max_steps:200\n", "write max_steps: 200"),
        ("seeds:3", "got str; a space is missing after the colon of 'seeds:3'; write seeds: 3"),
        ("env: {id: x}\ntau.start: 2\n", "'tau.start' stands in a section of its own in a file; write tau: {start: …}"),
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


def test_what_is_known_of_a_section_holds_for_its_settings() -> None:
    assert is_read_by("reinforce", "reinforce.baseline") and not is_read_by("gumbel_actor_critic", "reinforce.baseline")
    assert is_read_by("gumbel_actor_critic", "tau.start") and not is_read_by("reinforce", "tau.start")
    assert about("tau.start")["per_member"] and not about("tau.schedule").get("per_member")
    assert not changes_learning("wandb.mode") and not changes_learning("compile_guards")
    assert not changes_learning("env.timeout_seconds")
    assert changes_learning("gamma") and changes_learning("env.kwargs.sutton_barto_reward")


def test_an_algorithm_of_your_own_may_read_every_setting() -> None:
    assert all(is_read_by("my_package:Dqn", key) for key, _ in settings())
    assert not any(is_read_by(name, "algorithm_kwargs") for name in ALGORITHMS)


@pytest.mark.parametrize(
    ("total", "updates_per_step", "learning_starts"),
    [(10_000, 1.0, 500), (50_000, 1.0, 2500), (200_000, 0.5, 5000), (1_000_000, 0.224, 5000), (10, 1.0, 1)],
)
def test_updates_and_warm_up_follow_from_the_budget(total: int, updates_per_step: float, learning_starts: int) -> None:
    config = load_config(None, ["env.id=CartPole-v1", f"total_env_steps={total}"])
    assert (config.updates_per_step, config.learning_starts) == (updates_per_step, learning_starts)
    again = load_config(None, ["env.id=CartPole-v1", f"total_env_steps={total}", "updates_per_step=0.3"])
    assert (again.updates_per_step, again.learning_starts) == (0.3, learning_starts)


@pytest.mark.parametrize(("num_envs", "rho"), [(1, 0.7), (2, [0.5, 0.95]), (4, [0.5, 0.95])])
def test_persistence_follows_from_the_environments(num_envs: int, rho: object) -> None:
    assert load_config(None, [*CARTPOLE, f"env.num_envs={num_envs}"]).noise_persistence == rho
