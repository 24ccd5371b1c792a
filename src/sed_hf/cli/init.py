"""Start a new model, to train, from CLIP weights of open_clip.

It gets the towers of a ConvNeXt of open_clip (convnext_base_w_320 makes SED-B,
convnext_large_d_320 SED-L) and a fresh decoder; "scenes" is the small random model that
learns generated scenes.

Examples:
  sed-hf init convnext_base_w_320 sed-base-start --pretrained laion_aesthetic_s13b_b82k
  sed-hf init convnext_large_d_320 sed-large-start --pretrained laion2b_s29b_b131k_ft_soup
  sed-hf init scenes outputs/scenes/start
"""

import argparse

from ..hub.save import check_new_folder, save_hub_folder
from ..terminal import printable
from .arguments import NEW_MODEL, argument

ARGUMENTS = [
    argument("variant", metavar="VARIANT", help="ConvNeXt model of open_clip, or scenes"),
    *NEW_MODEL,
    argument("--pretrained", metavar="TAG", help="weights in open_clip, or a file; by default they are random"),
]


def run(arguments: argparse.Namespace) -> int:
    """Start a new model."""
    check_new_folder(arguments.out, arguments.overwrite)
    pretrained = arguments.pretrained
    if arguments.variant == "scenes":
        if pretrained:
            raise ValueError(f"--pretrained {pretrained}: expected none with scenes")

        from ..data.scenes.model import build_scene_model

        model, processor = build_scene_model()
    else:
        from ..conversion import build_processor, from_open_clip

        model = from_open_clip(arguments.variant, pretrained=pretrained)
        processor = build_processor(model.config)
    weights = f"its decoder is random, its towers hold {pretrained}" if pretrained else "all its weights are random"
    state = f"The model is untrained: {weights}"
    save_hub_folder(model, processor, arguments.out, description=f"{state}.", overwrite=arguments.overwrite)
    print(f"sed-hf: model written to {printable(arguments.out)}. {state}; train it before use")
    return 0
