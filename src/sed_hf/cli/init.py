"""`sed-hf init`: start a new model, from CLIP weights or small and random."""

import argparse

from ..hub.save import check_new_folder, save_hub_folder
from ..terminal import printable
from .arguments import add_command, add_model_folder_arguments

SCENES = "scenes"
EPILOG = """\
examples:
  sed-hf init convnext_base_w_320 sed-base-start --pretrained laion_aesthetic_s13b_b82k
  sed-hf init convnext_large_d_320 sed-large-start --pretrained laion2b_s29b_b131k_ft_soup
  sed-hf init scenes outputs/scenes/start
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "init",
        run,
        help="start a new model from CLIP weights of open_clip",
        description="Write a model folder to train from: the towers of an open_clip ConvNeXt and a fresh decoder;"
        "\nor the small random model that learns generated scenes.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "variant",
        metavar="VARIANT",
        help="ConvNeXt model of open_clip (convnext_base_w_320 makes SED-B, convnext_large_d_320 SED-L), or scenes",
    )
    add_model_folder_arguments(parser)
    parser.add_argument(
        "--pretrained", metavar="TAG", help="weights in open_clip, or a file (default: random weights, no download)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Start a new model."""
    check_new_folder(arguments.out, arguments.overwrite)
    if arguments.variant == SCENES:
        if arguments.pretrained:
            raise ValueError(f"--pretrained {arguments.pretrained}: expected none with {SCENES}")

        from ..data.scenes.model import build_scene_model

        model, processor = build_scene_model()
        state = "The model is untrained: all its weights are random"
    else:
        from ..conversion import build_processor, from_open_clip

        towers = f"its towers hold {arguments.pretrained}" if arguments.pretrained else "its towers are random"
        state = f"The model is untrained: its decoder is random, {towers}"
        model = from_open_clip(arguments.variant, pretrained=arguments.pretrained)
        processor = build_processor(model.config)
    save_hub_folder(model, processor, arguments.out, description=f"{state}.", overwrite=arguments.overwrite)
    print(f"sed-hf: model written to {printable(arguments.out)}. {state}; train it before use")
    return 0
