"""The `sed-hf` command. A subcommand is a module: its docstring is the help, `ARGUMENTS` are parsed, `run` runs it.

torch and transformers take seconds to import. Everything that needs them is imported inside functions, so that help
and refused arguments are immediate.
"""

import argparse
import logging
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from ..terminal import run_command, say
from . import convert, demo, encode, explain, export, init, models, segment

COMMANDS = (segment, explain, encode, models, convert, init, export, demo)


class Parser(argparse.ArgumentParser):
    """Says where an argument that is missing belongs."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        if message.endswith(("INPUT", "IMAGE")):
            message += " (before --classes, which takes all that follows it)"
        super().error(message)


class MessageHandler(logging.Handler):
    """Shows the package's warnings as messages of the command."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show one."""
        say(record.getMessage())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default those of the process, and return its exit status."""
    logger = logging.getLogger(__package__.partition(".")[0])
    if not logger.handlers:
        logger.addHandler(MessageHandler())

    def run() -> int:
        arguments, unknown = build_parser().parse_known_args(argv)
        if unknown:  # which argparse would report with the usage of `sed-hf` itself
            arguments.command.error(f"unknown arguments: {' '.join(unknown)}; --help lists those that there are")
        return arguments.run(arguments)

    return run_command("sed-hf", run)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line; the parsed arguments hold the command's function as `run`."""
    parser = Parser(prog="sed-hf", description="Open-vocabulary semantic segmentation with SED (CVPR 2024).")
    parser.add_argument("--version", action="version", version=f"sed-hf {version('sed-hf')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in COMMANDS:
        summary, _, details = str(module.__doc__).partition("\n\n")
        positional = [options["metavar"] for (name, *_), options in module.ARGUMENTS if not name.startswith("-")]
        command = commands.add_parser(
            module.__name__.rpartition(".")[2],
            # argparse's own has them last, where --classes takes them
            usage=" ".join(["%(prog)s", *positional, "[options]"]),
            help=summary,
            description=summary,
            epilog=details,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for names, options in module.ARGUMENTS:
            command.add_argument(*names, **options)
        command.set_defaults(run=module.run, command=command)
    return parser
