"""Writes a policy as ONNX: gumbel export RUN FILE [--member i|best] [--weights final|best] [--sampled]"""

import argparse
import sys
from pathlib import Path

from agent.cli.arguments import add_policy_arguments, load_policy, make_parser
from agent.commands import in_short
from agent.exit_codes import exit_code, replace_what_cannot_be_shown
from agent.onnx_file import write_onnx
from envs.errors import UserError

EXAMPLES = """examples:
  gumbel export runs/x policy.onnx             the best member's most probable actions
  gumbel export runs/x policy.onnx --sampled   actions drawn from the policy
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = make_parser(
        "export",
        "Writes a policy as ONNX: observations in, actions out, with masks and a memory's state.",
        EXAMPLES,
    )
    add_policy_arguments(parser, "number, or best (default)")
    parser.add_argument("file", type=Path, metavar="FILE", help="ONNX file to write, for example policy.onnx")
    parser.add_argument("--sampled", action="store_true", help="draw actions from the policy")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    if options.file.suffix != ".onnx":
        raise UserError(f"{options.file}: must end in .onnx, for example {options.file.with_suffix('.onnx')}")
    if options.member == "all":
        raise UserError("--member all: a file holds one policy; give a number, or best")
    for line in write_onnx(load_policy(options), options.file, sampled=options.sampled):
        print(line)
    print(f"saved: {options.file}")


def main(arguments: list[str]) -> int:
    replace_what_cannot_be_shown(sys.stdout)
    return exit_code(in_short("export"), lambda: run(parse(arguments)))
