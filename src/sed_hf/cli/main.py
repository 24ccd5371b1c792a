"""The `sed-hf` command: its arguments, and the module of each subcommand.

torch and transformers take seconds to import. Everything that needs them is imported inside functions, so that help
and refused arguments are immediate.
"""

import argparse
import logging
from collections.abc import Sequence
from importlib.metadata import version

from ..terminal import run_command, say
from . import cache, convert, demo, encode, explain, export, init, models, push, segment

COMMANDS = (segment, explain, encode, models, cache, convert, init, export, push, demo)


class MessageHandler(logging.Handler):
    """Shows the package's warnings as messages of the command."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show one."""
        say(record.getMessage())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default those of the process, and return its exit status.

    Raises:
        SystemExit: Arguments are wrong, or help was asked for.
    """
    logger = logging.getLogger(__package__.partition(".")[0])
    if not logger.handlers:
        logger.addHandler(MessageHandler())
    arguments = build_parser().parse_args(argv)
    return run_command("sed-hf", lambda: arguments.run(arguments))


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line; the parsed arguments hold the command's function as `run`."""
    parser = argparse.ArgumentParser(
        prog="sed-hf", description="Open-vocabulary semantic segmentation with SED (CVPR 2024)."
    )
    parser.add_argument("--version", action="version", version=f"sed-hf {version('sed-hf')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser
