"""`sed-hf push`: upload a model folder to the Hugging Face Hub."""

import argparse
from pathlib import Path

from .arguments import add_command

EPILOG = """\
example:
  sed-hf push sed-base YOU/sed-base --private
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "push",
        run,
        help="upload a model folder to the Hugging Face Hub",
        description="Upload a model folder, code and model card included, to the Hugging Face Hub. Log in first, with"
        "\n`hf auth login`.",
        epilog=EPILOG,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="model folder")
    parser.add_argument("repo_id", metavar="OWNER/NAME", help="model repository; made if it is missing")
    parser.add_argument("--private", action="store_true", help="make a new repository private")


def run(arguments: argparse.Namespace) -> int:
    """Upload a model folder."""
    owner, _, name = arguments.repo_id.partition("/")
    if not owner or not name or "/" in name:
        raise ValueError(f"{arguments.repo_id}: expected a repository as OWNER/NAME")

    from ..hub.save import push_hub_folder

    address = push_hub_folder(arguments.folder, arguments.repo_id, private=arguments.private or None)
    print(f"sed-hf: uploaded to {address}")
    return 0
