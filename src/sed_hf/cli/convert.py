"""`sed-hf convert`: turn an official checkpoint into a model folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..hub.save import check_new_folder, save_hub_folder
from ..terminal import printable
from ..utils import short_error
from .arguments import add_command, add_model_folder_arguments

if TYPE_CHECKING:
    from .. import SEDConfig

EPILOG = """\
examples:
  sed-hf convert model_final.pth sed-base
  sed-hf segment photo.jpg --model sed-base --classes sky grass dog
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "convert",
        run,
        help="convert an official checkpoint to a model folder",
        description="Convert an official SED checkpoint to a model folder for --model, from_pretrained or the Hub.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="official .pth, .pkl or .safetensors; no code is run"
    )
    add_model_folder_arguments(parser)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="JSON",
        help="config.json of the model (default: SED-B or SED-L, whichever fits the checkpoint)",
    )
    parser.add_argument(
        "--ignore-extra", action="store_true", help="drop tensors that the model has no place for (default: refuse)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Convert an official checkpoint."""
    check_new_folder(arguments.out, arguments.overwrite)

    from ..conversion import build_processor, convert_official_checkpoint

    config = read_config(arguments.config) if arguments.config else None
    model = convert_official_checkpoint(arguments.checkpoint, config, arguments.ignore_extra)
    save_hub_folder(model, build_processor(model.config), arguments.out, overwrite=arguments.overwrite)
    print(f"sed-hf: model written to {printable(arguments.out)}")
    return 0


def read_config(path: Path) -> SEDConfig:
    """Read a configuration.

    Raises:
        OSError: There is no such file.
        ValueError: It is not JSON, or its values are not those of a model.
    """
    from huggingface_hub.errors import StrictDataclassError

    from .. import SEDConfig

    try:
        return SEDConfig.from_json_file(path)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ValueError(f"--config {path}: {short_error(error)}") from error
