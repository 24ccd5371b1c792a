"""Upload a model folder, code and model card included, to the Hugging Face Hub; log in first, with `hf auth login`.

Example:
  sed-hf push sed-base YOU/sed-base --private
"""

import argparse
from pathlib import Path

from .arguments import argument

ARGUMENTS = [
    argument("folder", type=Path, metavar="FOLDER", help="model folder"),
    argument("repo_id", metavar="OWNER/NAME", help="model repository; made if it is missing"),
    argument("--private", action="store_true", help="make a new repository private"),
]


def run(arguments: argparse.Namespace) -> int:
    """Upload a model folder."""
    from ..hub.save import push_hub_folder

    address = push_hub_folder(arguments.folder, arguments.repo_id, private=arguments.private or None)
    print(f"sed-hf: uploaded to {address}")
    return 0
