"""Finished runs whose numbers are chosen, as folders."""

import json
from pathlib import Path
from typing import Any

from agent.analysis.comparison import Comparison, compare

STEPS = (100, 200, 300)


def fake_run(
    folder: Path,
    algorithm: str,
    curves: list[list[float]],
    env_id: str = "CartPole-v1",
    sweep: list | None = None,
    first_seed: int = 0,
    settings: str = "return_threshold: 50",
    metrics: dict[str, list[float]] | None = None,
) -> Path:
    """A finished run: member i evaluated at STEPS with curves[i], the last of them being its final return.

    Args:
        settings: more lines of config.yaml.
        metrics: values at STEPS, the same for all members.
    """
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"algorithm: {algorithm}\nenv: {{id: {env_id}}}\n{settings}\n")
    rows: list[dict[str, Any]] = [
        {"env_steps": step, "member": i, "eval/return_greedy": float(curve[k])}
        | {name: values[k] for name, values in (metrics or {}).items()}
        for k, step in enumerate(STEPS)
        for i, curve in enumerate(curves)
    ]
    broken = ["5", '{"env_steps": 300, "member": 0, "actor/entropy": null}', '{"member": 0}', '{"env_st']
    (folder / "metrics.jsonl").write_text("\n".join([*map(json.dumps, rows), *broken]))
    members = [
        {
            "member": i,
            "seed": first_seed + i,
            "settings": sweep[i] if sweep else {},
            "greedy": {"mean": float(curve[-1])},
        }
        for i, curve in enumerate(curves)
    ]
    result = {"env_id": env_id, "env_steps": 300, "wall_seconds": 12.0, "members": members}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def compare_runs(runs: list[Path]) -> Comparison:
    return compare(*runs)
