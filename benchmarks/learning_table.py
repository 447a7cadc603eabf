"""Finished runs as one Markdown table: python benchmarks/learning_table.py RUN ...

One row per run: greedy return at the end (100 episodes a seed), IQM over seeds with its 95 % bootstrap interval.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

from agent.analysis.comparison import summarize
from agent.analysis.run_folder import load_run

HEAD = ["environment", "algorithm", "seeds", "steps a seed", "greedy return", "worst", "seed by seed", "wall time"]


def rows(run: Path) -> list[list[str]]:
    table = []
    for entry in load_run(run):
        summary = summarize(entry, entry.threshold)
        low, high = summary.final_interval
        table.append(
            [
                entry.env_id,
                entry.label,
                str(summary.num_seeds),
                f"{entry.env_steps:,}",
                f"{summary.final_iqm:.1f} [{low:.1f}, {high:.1f}]",
                f"{summary.final_worst:.1f}",
                " ".join(f"{x:.0f}" for x in entry.final_returns),
                f"{entry.wall_seconds:.0f} s",
            ]
        )
    return table


if __name__ == "__main__":
    print(" | ".join(["", *HEAD, ""]).strip())
    print("|" + "---|" * len(HEAD))
    for run in map(Path, sys.argv[1:]):
        for row in rows(run):
            print(" | ".join(["", *row, ""]).strip())
