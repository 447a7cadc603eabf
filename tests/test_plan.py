"""What a comparison trains, and where."""

import re
from pathlib import Path
from typing import Any

import pytest

from agent.analysis.plan import axes_of, name_of, plan, train_missing
from agent.config import Config, is_read_by, settings
from agent.config_sections import ALGORITHMS
from envs import UserError

CARTPOLE = "configs/cartpole.yaml"
BOTH = {"algorithm": ["gumbel_actor_critic", "reinforce"]}


def test_plan_gives_each_configuration_a_folder_of_its_own() -> None:
    both = plan(CARTPOLE, BOTH, 3, ["wandb.mode=disabled"])
    again = plan(CARTPOLE, {}, 3, ["wandb.mode=disabled"])
    changed = plan(CARTPOLE, {}, 3, ["wandb.mode=disabled", "gamma=0.9"])
    assert [c.seeds for c in both] == [3, 3] and [c.algorithm for c in both] == ["gumbel_actor_critic", "reinforce"]
    assert both[0].run_dir == again[0].run_dir
    assert len({both[0].run_dir, both[1].run_dir, changed[0].run_dir}) == 3


def test_axes_multiply() -> None:
    axes = axes_of([], ["exact", "score_function"], ["tau.start=2.0,1e-1", "hidden_sizes=[8],[8, 8]"])
    configs = plan(CARTPOLE, axes, None, [])
    assert [(c.estimator.name, c.tau.start, c.hidden_sizes) for c in configs] == [
        (estimator, tau, sizes)
        for estimator in ("exact", "score_function")
        for tau in (2.0, 0.1)
        for sizes in ([8], [8, 8])
    ]


def test_keyword_arguments_of_the_environment_can_be_varied() -> None:
    configs = plan(CARTPOLE, axes_of([], [], ["env.kwargs.sutton_barto_reward=true,false"]), None, [])
    assert [c.env.kwargs for c in configs] == [{"sutton_barto_reward": True}, {"sutton_barto_reward": False}]


def test_a_setting_that_an_algorithm_does_not_read_is_not_varied_for_it() -> None:
    configs = plan(CARTPOLE, BOTH | {"estimator.name": ["exact", "score_function"]}, None, [])
    assert [(c.algorithm, c.estimator.name) for c in configs[:2]] == [
        ("gumbel_actor_critic", "exact"),
        ("gumbel_actor_critic", "score_function"),
    ]
    assert [c.algorithm for c in configs[2:]] == ["reinforce"]


def test_a_sweep_of_what_an_algorithm_does_not_read_is_none_for_it() -> None:
    configs = plan(CARTPOLE, BOTH, 3, ["sweep={tau.start: [2, 1], gamma: [0.9, 0.99]}"])
    assert [list(config.sweep) for config in configs] == [["tau.start", "gamma"], ["gamma"]]
    assert [len(config.members()) for config in configs] == [12, 6]


def test_what_each_algorithm_is_said_not_to_read_is_not_read() -> None:
    for algorithm in ALGORITHMS:
        source = Path(f"agent/algorithms/{algorithm}.py").read_text()
        keys = [key for key, _ in settings() if not is_read_by(algorithm, key)]
        assert len(keys) > 5
        for key in keys:
            section = key.partition(".")[0]
            assert f'per_member("{key}' not in source and f'per_member_pairs("{key}' not in source
            assert not re.search(rf"config\.({re.escape(key)}|{section})\b", source), key


def test_pairs_can_be_varied() -> None:
    axes = axes_of([], [], ["n_step=3,[3,1]", "noise_persistence=[0.5, 0.95]"])
    assert axes == {"n_step": [3, [3, 1]], "noise_persistence": [[0.5, 0.95]]}
    configs = plan(CARTPOLE, axes, None, ["env.num_envs=2"])
    assert [(c.n_step, c.noise_persistence) for c in configs] == [(3, [0.5, 0.95]), ([3, 1], [0.5, 0.95])]


def test_built_in_algorithms_are_compared_without_the_settings_of_your_own() -> None:
    own = ["my_package:Dqn", "reinforce"]
    configs = plan(CARTPOLE, axes_of(own, [], ["algorithm_kwargs.epsilon=0.1,0.2"]), None, ["algorithm_kwargs={a: 1}"])
    assert [(c.algorithm, c.algorithm_kwargs) for c in configs] == [
        ("my_package:Dqn", {"a": 1, "epsilon": 0.1}),
        ("my_package:Dqn", {"a": 1, "epsilon": 0.2}),
        ("reinforce", {}),
    ]
    assert Path(str(configs[0].run_dir)).name.startswith("compare-cartpole-Dqn-")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"varied": ["gama=1,2"]}, "unknown key 'gama'; did you mean 'gamma'"),
        ({"varied": ["gamma"]}, "not of the form key=v1,v2"),
        ({"varied": ["gamma="]}, "no values"),
        ({"varied": ["gamma=[1"]}, "cannot read the values"),
        ({"varied": ["gamma=0.9", "gamma=0.8"]}, "varied twice"),
        ({"varied": ["algorithm=reinforce"], "algorithms": ["reinforce"]}, "varied twice"),
        ({"varied": ["seed=0,1"]}, "use --seeds"),
        ({"varied": ["compile_guards=true,false"]}, "does not change what is learned"),
        ({"varied": ["n_step_end=1,3"]}, r"--vary: n_step_end=1,3: n_step_end is the second number of n_step now"),
        ({"varied": ["wandb.mode=disabled,offline"]}, "does not change what is learned"),
        ({"algorithms": ["reinforce", "gamma=0.9"]}, "settings go before the options"),
    ],
)
def test_unusable_axes_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        axes_of(
            options.get("algorithms", []),
            options.get("estimators", []),
            options["varied"] if "varied" in options else [],
        )


@pytest.mark.parametrize(
    ("axes", "overrides", "message"),
    [
        ({"algorithm": ["reinforc"]}, [], "did you mean 'reinforce'"),
        ({"estimator.name": ["exat"]}, [], "did you mean 'exact'"),
        ({"gamma": [2]}, [], "gamma: got 2, must be less than 1"),
        ({"gamma": [0.9]}, ["sweep={gamma: [0.8, 0.9]}"], "both varied and swept"),
        ({"estimator.name": ["exact"]}, ["algorithm=reinforce"], "reinforce does not read it"),
    ],
)
def test_unusable_values_are_refused_before_anything_is_trained(axes: Any, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(CARTPOLE, axes, None, overrides)


@pytest.mark.parametrize(("path", "name"), [(CARTPOLE, "cartpole"), ("runs/x/config.yaml", "x"), ("runs/x", "x")])
def test_comparison_is_named_after_its_first_input(path: str, name: str) -> None:
    assert name_of(path) == name


def test_only_missing_runs_are_trained_and_unfinished_ones_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = plan(CARTPOLE, BOTH, 1, [])
    monkeypatch.chdir(tmp_path)
    done, broken = (Path(str(config.run_dir)) for config in configs)
    done.mkdir(parents=True)
    (done / "result.json").touch()
    broken.mkdir(parents=True)
    (broken / "config.yaml").touch()
    trained: list[tuple[Config, bool]] = []

    def train(config: Config, *, resume: bool = False, **options: object) -> Path:
        trained.append((config, resume))
        return Path(str(config.run_dir))

    train_missing(configs, train, lambda text: None)
    assert [(config.algorithm, resume) for config, resume in trained] == [("reinforce", True)]
