"""The installed command: gumbel train | evaluate | compare | export | zoo."""

import sys
from importlib import import_module

COMMANDS = {
    "train": "trains agents on a Gymnasium environment",
    "evaluate": "evaluates saved policies, films them, measures their gradients",
    "compare": "compares algorithms, settings or finished runs",
    "export": "writes a policy as ONNX, for programs without PyTorch",
    "zoo": "lists the trained policies that come with the library",
}
USAGE = "\n".join(
    [
        "usage: gumbel COMMAND ...",
        "",
        "Reinforcement learning in discrete action spaces of any size with straight-through Gumbel-softmax actors.",
        "",
        *(f"  {name:10}{text}" for name, text in COMMANDS.items()),
        "",
        "gumbel COMMAND --help describes a command; gumbel --version prints the version. A first run:",
        "  gumbel train cartpole",
    ]
)


def main() -> int:
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(USAGE)
        return 0
    if name == "--version":
        from agent.versions import project_version  # only now: it imports torch

        print(f"gumbel-actor-critic {project_version()}")
        return 0
    if name not in COMMANDS:
        from agent.config_fields import nearest  # likewise

        print(
            f"gumbel: error: no command '{name}'{nearest(name, list(COMMANDS)) or '; see gumbel --help'}",
            file=sys.stderr,
        )
        return 2
    return int(import_module(f"agent.cli.{name}").main(arguments))
