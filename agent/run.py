"""A run folder, for use from Python: its config, results, metrics and policies."""

import importlib.util
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from agent.config import Config
from agent.config_loader import load_config
from agent.policy import Policy
from agent.tables import number
from envs.errors import UserError


class Run(os.PathLike[str]):
    """What training left in a folder.

        run = train(config)                   # or Run("runs/x"), of an earlier one
        run.policy("best").act(obs)
        run.metrics()                         # every metric on the way, a row per member and time
        run.result["members"][0]["greedy"]["mean"]

    Functions that take a run folder take a Run.
    """

    def __init__(self, folder: str | os.PathLike[str], *, trust: bool = False) -> None:
        """`trust`: its policies may import whatever modules they name.  UserError where no run is in the folder."""
        self.folder, self.trust = Path(folder), trust
        if not (self.folder / "config.yaml").is_file():
            raise UserError(f"{self.folder}: not a run folder: no config.yaml, which training writes")

    @classmethod
    def of_rank(cls, folder: Path) -> "Run":
        """What a rank other than the first returns, which may not reach the disk that the folder is on."""
        run = cls.__new__(cls)
        run.folder, run.trust = folder, True
        return run

    @cached_property
    def config(self) -> Config:
        """Every setting, resolved."""
        return load_config(self.folder / "config.yaml", of_run=True)

    @property
    def result(self) -> dict[str, Any]:
        """The returns at the end, as in result.json.  UserError where the run has not come to its end."""
        path = self.folder / "result.json"
        if not path.is_file():
            raise UserError(f"{self.folder}: the run did not finish: no result.json")
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return result

    def policy(
        self, weights: Literal["final", "best"] = "final", *, member: int | Literal["best", "all"] = "best"
    ) -> Policy:
        """A member's policy, by default of the member with the highest evaluation, as `Policy.load` reads it.

        Args:
            weights: those at the end of training, or those of each member's best evaluation.
            member: one by number, the one with the highest evaluation, or all of them.
        """
        return Policy.load(self.folder, member=member, weights=weights, trust=self.trust)

    def metrics(self) -> Any:
        """Every metric, as a pandas DataFrame where pandas is installed, else as a list of dicts.

        A row is of one member at one time: `member`, `seed`, its swept settings, `env_steps`, and the metrics that were
        measured then, in the last log line and in an evaluation. agent/metrics.py says what each is.
        """
        rows = self.rows()
        if importlib.util.find_spec("pandas") is None:
            return rows
        import pandas

        return pandas.DataFrame(rows)

    def rows(self) -> list[dict[str, Any]]:
        """The same as a list of dicts."""
        members = self.config.members()
        rows: dict[tuple[int, int], dict[str, Any]] = {}
        path = self.folder / "metrics.jsonl"
        if not path.is_file():
            raise UserError(f"{path}: no such file; it holds the metrics of the run")
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                try:
                    found = json.loads(line)
                except ValueError:
                    continue  # cut short by a crash
                number, env_steps = found["member"], found["env_steps"]
                about = {"member": number, "seed": members[number].seed, **members[number].settings}
                rows.setdefault((env_steps, number), about).update(found)
        return list(rows.values())

    def __fspath__(self) -> str:
        return str(self.folder)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.folder.resolve() == other.folder.resolve()

    def __hash__(self) -> int:
        return hash(self.folder.resolve())

    def __repr__(self) -> str:
        config = self.config
        count = len(config.members())
        about = [config.env.id, config.algorithm, f"{count} member{'s' * (count > 1)}"]
        try:
            result = self.result
            returns = [member["greedy"]["mean"] for member in result["members"]]
            about += [f"{result['env_steps']} env steps", f"greedy return {number(sum(returns) / len(returns))}"]
        except UserError:
            about.append("not finished")
        return f"Run('{self.folder}': {', '.join(about)})"
