"""Convert an official checkpoint to a model folder, for --model, from_pretrained or the Hub.

Examples:
  sed-hf convert model_final.pth sed-base
  sed-hf segment photo.jpg --model sed-base --classes sky grass dog
"""

import argparse
from pathlib import Path

from ..hub.save import check_new_folder, save_hub_folder
from ..terminal import printable
from ..utils import short_error
from .arguments import NEW_MODEL, argument

ARGUMENTS = [
    argument("checkpoint", type=Path, metavar="CHECKPOINT", help="official .pth, .pkl or .safetensors; no code is run"),
    *NEW_MODEL,
    argument("--config", type=Path, metavar="JSON", help="config.json of the model, if it is neither SED-B nor SED-L"),
    argument("--ignore-extra", action="store_true", help="drop tensors that the model has no place for"),
]


def run(arguments: argparse.Namespace) -> int:
    """Convert an official checkpoint."""
    check_new_folder(arguments.out, arguments.overwrite)

    from huggingface_hub.errors import StrictDataclassError

    from .. import SEDConfig
    from ..conversion import build_processor, convert_official_checkpoint

    try:
        config = SEDConfig.from_json_file(arguments.config) if arguments.config else None
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ValueError(f"--config {arguments.config}: {short_error(error)}") from error
    model = convert_official_checkpoint(arguments.checkpoint, config, arguments.ignore_extra)
    save_hub_folder(model, build_processor(model.config), arguments.out, overwrite=arguments.overwrite)
    print(f"sed-hf: model written to {printable(arguments.out)}")
    return 0
