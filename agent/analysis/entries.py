"""The lines of a comparison: runs that are replications of each other pooled, the others told apart by what differs."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.analysis.run_folder import Entry, Settings, load_run, require_one_env
from agent.config import changes_learning, is_read_by
from agent.config_loader import as_text

WORDS = {"gumbel_actor_critic": "Actor-critic", "reinforce": "REINFORCE"}  # for people
OWN_PART = ("algorithm", "estimator.name")  # named by their values alone, and always where they differ
MOST_DIFFERENCES = 3  # of other settings in a label; beyond them the config's or run's name says it shorter


def load_runs(folders: Mapping[Path, str]) -> list[Entry]:
    """The entries of several runs, each folder with the name of its config."""
    return [entry for folder, name in folders.items() for entry in load_run(folder, name)]


def arrange(entries: Sequence[Entry]) -> list[Entry]:
    """Entries pooled and labelled, none twice. UserError unless all have the same environment."""
    require_one_env({entry.runs[0].folder: entry.env_id for entry in entries})
    once = {(Path(e.runs[0].folder).resolve(), e.replications[0].member): e for e in entries}
    return labelled(pooled(list(once.values())))


def pooled(entries: Sequence[Entry]) -> list[Entry]:
    """Entries with the same settings and different seeds made one. The same seed twice is no replication."""
    pools: list[Entry] = []
    for entry in entries:
        for i, pool in enumerate(pools):
            if what_is_learned(pool) == what_is_learned(entry) and not set(pool.seeds) & set(entry.seeds):
                pools[i] = dataclasses.replace(pool, replications=pool.replications + entry.replications)
                break
        else:
            pools.append(entry)
    return pools


def what_is_learned(entry: Entry) -> Settings:
    """The settings that make a difference to what an entry learns."""
    return {k: v for k, v in entry.config.items() if changes_learning(k) and is_read_by(entry.algorithm, k)}


def differences(entries: Sequence[Entry]) -> list[str]:
    """Keys of settings that are not the same in all entries that read them."""
    learned = [what_is_learned(entry) for entry in entries]
    values: dict[str, list[Any]] = {}
    for key in dict.fromkeys(key for settings in learned for key in settings):
        values[key] = [settings[key] for settings in learned if key in settings]
    return [key for key, found in values.items() if any(value != found[0] for value in found)]


def labelled(entries: Sequence[Entry]) -> list[Entry]:
    """Each entry labelled by its values of what differs; by its name where that is too much, or does not do."""
    if len(entries) == 1:
        return [dataclasses.replace(entries[0], label=in_words(entries[0].algorithm))]
    keys = differences(entries)
    swept = {key for entry in entries for key in entry.swept}
    always = [key for key in keys if key in OWN_PART or key in swept]
    others = [key for key in keys if key not in always]
    candidates = [
        *([[describe(e, [*always, *others]) for e in entries]] if len(others) <= MOST_DIFFERENCES else []),
        [f"{describe(e, always)} {e.name}".strip() for e in entries],
        [describe(e, [*always, *others]) for e in entries],
        [f"{describe(e, always)} {e.runs[0].folder}".strip() for e in entries],
        [f"{describe(e, always)} {e.runs[0].folder} member {e.replications[0].member}".strip() for e in entries],
    ]
    labels = next((c for c in candidates if len(set(c)) == len(c) and all(c)), candidates[-1])
    return [dataclasses.replace(entry, label=label) for entry, label in zip(entries, labels, strict=True)]


def in_words(algorithm: str) -> str:
    """An algorithm as people call it."""
    return WORDS.get(algorithm, algorithm)


def describe(entry: Entry, keys: Sequence[str]) -> str:
    """'reinforce gamma=0.9': an entry's values of some settings, as far as it reads them."""
    settings = what_is_learned(entry)
    own = [in_words(str(settings[key])) for key in OWN_PART if key in keys and key in settings]
    return " ".join([*own, *(f"{k}={as_text(settings[k])}" for k in keys if k in settings and k not in OWN_PART)])
