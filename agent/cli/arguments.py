"""What the commands' parsers share: their form, and the arguments that choose a policy of a run."""

import argparse

from agent.commands import as_called, in_short
from agent.policy import Policy


def make_parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """`epilog`: as the user calls the commands, gumbel or scripts."""
    return argparse.ArgumentParser(
        prog=in_short(name),
        description=description,
        epilog=as_called(epilog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_policy_arguments(parser: argparse.ArgumentParser, members: str) -> None:
    """`members`: what --member may be, in words."""
    parser.add_argument("run", metavar="RUN", help="a run folder, or a policy folder")
    parser.add_argument("--member", default="best", type=member, help=members)
    parser.add_argument(
        "--weights",
        default="final",
        choices=["final", "best"],
        help="those at the end of training, or those of each member's best evaluation (default: final)",
    )
    parser.add_argument(
        "--network", metavar="module:Class", help="the network of your own that the policy names, to allow its import"
    )
    parser.add_argument("--trust", action="store_true", help="allow the import of whatever modules the policy names")


def member(text: str) -> int | str:
    return text if text in ("best", "all") else int(text)


def load_policy(options: argparse.Namespace) -> Policy:
    return Policy.load(
        options.run,
        member=options.member,
        weights=options.weights,
        network=options.network,
        trust=options.trust,
    )
