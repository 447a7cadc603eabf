"""Lists the trained policies that come with the library: gumbel zoo"""

import sys

from rich.console import Console

from agent.cli.arguments import make_parser
from agent.commands import command, in_short
from agent.exit_codes import exit_code, replace_what_cannot_be_shown
from agent.policy_zoo import ZOO, zoo_entries
from agent.tables import new_table, number

EXAMPLES = """examples:
  gumbel zoo                                       every policy, with its return and what its environment needs
  gumbel evaluate zoo/cartpole                     its returns in fresh episodes
  gumbel evaluate zoo/lunar_lander --video videos  an MP4 of one episode
"""


def run() -> None:
    """Prints a table: what each policy was trained on, its return over 100 greedy episodes, and what it needs."""
    table = new_table("policy", "environment", "return", "env steps", "needs")
    for entry in zoo_entries():
        result = entry.result
        extra = f"\\[{result['needs']}]" if result["needs"] else ""
        table.add_row(
            f"{ZOO}/{entry.name}",
            result["env_id"].rpartition(":")[2],
            number(result["greedy"]["mean"]),
            f"{result['env_steps']:,}",
            extra,
        )
    console = Console()
    console.print(table)
    console.print(
        "return: mean of 100 greedy episodes. Each policy is the best of its run's seeds; a typical seed may do less. "
        "needs: the extra of this library, and \\[video] for videos."
    )
    console.print("next")
    console.print(f"  {command('evaluate', f'{ZOO}/cartpole')}", soft_wrap=True, highlight=False)


def main(arguments: list[str]) -> int:
    replace_what_cannot_be_shown(sys.stdout)
    parser = make_parser("zoo", "Lists the trained policies that come with the library.", EXAMPLES)
    parser.parse_args(arguments)
    return exit_code(in_short("zoo"), run)
