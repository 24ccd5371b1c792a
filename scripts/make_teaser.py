"""Draw the README's teaser: photographs, and beside them what a model makes of them.

python scripts/make_teaser.py street.jpg kitchen.jpg --classes road car person "traffic light" sky building
"""

import argparse

from PIL import Image, ImageOps

import sed_hf
from sed_hf.image_processing_sed import read_rgb
from sed_hf.inference.class_embeddings import encode_classes
from sed_hf.inference.segmenter import Segmenter
from sed_hf.visualization import draw_overlay

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("images", nargs="+")
parser.add_argument("--classes", nargs="+", required=True)
parser.add_argument("--model", default="sed-b")
parser.add_argument("--output", default="docs/images/teaser.jpg")
arguments = parser.parse_args()
model, processor = sed_hf.load(arguments.model)
segmenter = Segmenter(model, processor, arguments.classes, encode_classes(model, processor, arguments.classes))
teaser = Image.new("RGB", (960, 420 * len(arguments.images)), "white")
for row, image in enumerate(map(read_rgb, arguments.images)):
    overlay = draw_overlay(image, segmenter([image])[0]["segmentation"], arguments.classes)
    for column, drawn in enumerate((image, overlay)):
        teaser.paste(ImageOps.pad(drawn, (480, 420), color="white"), (480 * column, 420 * row))
teaser.save(arguments.output, quality=92)
