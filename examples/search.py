"""Searches settings with Optuna, on CartPole-v1 or any config.

    python examples/search.py                        30 trials of CartPole-v1
    python examples/search.py --config acrobot --trials 50

Every process that runs this command works on the same study, in search.db: start it twice and two trials run at once.
Killed, the same command continues the study. Machines share a study by `--storage journal`, a file on a shared disk, or
by `--storage postgresql+psycopg2://…`, a database. A trial whose returns are below the median of the others' is pruned
at an evaluation.
`configs/sweeps/cartpole.yaml` is the same search as a W&B sweep.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from agent import Callback, load_config, train
from agent.exit_codes import Stopped
from agent.training.callbacks import EvaluationView


class Pruner(Callback):
    """Tells Optuna the mean greedy return of every evaluation, and stops a trial that is pruned."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial, self.pruned = trial, False

    def on_evaluation(self, evaluation: EvaluationView) -> bool:
        self.trial.report(mean_return(evaluation.members), evaluation.env_steps)
        self.pruned = self.trial.should_prune()
        return not self.pruned


def mean_return(members: Any) -> float:
    """Over the members, each a seed."""
    return float(sum(member["greedy"]["mean"] for member in members) / len(members))


def suggest(trial: optuna.Trial) -> list[str]:
    """The settings of a trial. Change this to search others."""
    settings = {
        "learning_rate": trial.suggest_float("learning_rate", 3e-4, 1e-2, log=True),
        "gamma": trial.suggest_categorical("gamma", [0.98, 0.99, 0.995, 0.997]),
        "tau.start": trial.suggest_float("tau.start", 0.3, 3.0, log=True),
        "n_step": trial.suggest_int("n_step", 1, 5),
    }
    return [f"{key}={value}" for key, value in settings.items()]


def objective(trial: optuna.Trial, options: argparse.Namespace) -> float:
    """The mean greedy return at the end, over seeds."""
    run_dir = options.runs / Path(options.config).stem / f"trial_{trial.number:04}"
    own = ["wandb.mode=disabled", f"run_dir={run_dir}", "checkpoint.every_env_steps=null"]
    pruner = Pruner(trial)
    config = load_config(options.config, [*options.settings, *own, *suggest(trial)])
    run = train(config, callbacks=[pruner], progress=False)
    if pruner.pruned:
        raise optuna.TrialPruned
    return mean_return(run.result["members"])


def search(options: argparse.Namespace) -> optuna.Study:
    """Runs trials until the study has as many as asked for, in this process and all others."""
    options.runs.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=options.config,
        storage=storage_of(options),
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(n_startup_trials=10),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=options.warm_up),
    )
    finished = (TrialState.COMPLETE, TrialState.PRUNED)
    done = optuna.study.MaxTrialsCallback(options.trials, states=finished)
    if len(study.get_trials(deepcopy=False, states=finished)) < options.trials:
        study.optimize(lambda trial: objective(trial, options), callbacks=[done])
    return study


def storage_of(options: argparse.Namespace) -> str | JournalStorage:
    """Where the study is: SQLite for the processes of one machine, a journal for a shared disk, or a database's URL."""
    if options.storage == "journal":
        return JournalStorage(JournalFileBackend(str(options.runs / "search.journal")))
    return options.storage or f"sqlite:///{options.runs / 'search.db'}"


def report(study: optuna.Study) -> None:
    """Prints the best trials."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    pruned = len(study.get_trials(deepcopy=False, states=(TrialState.PRUNED,)))
    print(f"{len(trials)} trials ran to their end, {pruned} were pruned; the best:")
    for trial in sorted(trials, key=lambda trial: -float(trial.value or 0.0))[:5]:
        settings = " ".join(
            f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in trial.params.items()
        )
        print(f"  {trial.value:8.1f}  {settings}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="cartpole", help="a config file or the name of one (default: cartpole)")
    parser.add_argument("--trials", type=int, default=30, help="of the whole study (default: 30)")
    parser.add_argument("--runs", type=Path, default=Path("runs/search"), help="folder of the study and its runs")
    parser.add_argument(
        "--storage", metavar="WHERE", help="journal, or the URL of a database (default: search.db in the folder)"
    )
    parser.add_argument("--warm-up", type=int, default=2_000, metavar="STEPS", help="no trial is pruned before")
    parser.add_argument(
        "settings", nargs="*", default=["seeds=2"], metavar="key=value", help="of every trial (default: seeds=2)"
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    try:
        report(search(options))
    except (Stopped, KeyboardInterrupt):
        print("stopped; the same command continues the study")


if __name__ == "__main__":
    main()
