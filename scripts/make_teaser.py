#!/usr/bin/env python
"""Draw the README's teaser: photographs above what a model with the authors' weights makes of them.

python scripts/make_teaser.py street.jpg kitchen.jpg --classes road car person "traffic light" sky building
"""

import argparse

from PIL import Image, ImageOps

import sed_hf
from sed_hf.image_processing_sed import read_rgb
from sed_hf.inference.class_embeddings import encode_classes
from sed_hf.inference.segmenter import Segmenter
from sed_hf.visualization import draw_overlay

WIDTH, HEIGHT, MARGIN = 480, 360, 12


def main() -> None:
    """Segment each photograph, and save them side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+")
    parser.add_argument("--classes", nargs="+", required=True)
    parser.add_argument("--model", default="sed-b")
    parser.add_argument("--output", default="docs/images/teaser.jpg")
    args = parser.parse_args()
    model, processor = sed_hf.load(args.model)
    segmenter = Segmenter(model, processor, args.classes, encode_classes(model, processor, args.classes))
    columns = []
    for path in args.images:
        image = ImageOps.fit(read_rgb(path), (WIDTH, HEIGHT))
        overlay = draw_overlay(image, segmenter([image])[0]["segmentation"], args.classes)
        columns.append((image, overlay.resize((WIDTH, round(overlay.height * WIDTH / overlay.width)))))
    size = len(columns) * (WIDTH + MARGIN) - MARGIN, HEIGHT + MARGIN + max(overlay.height for _, overlay in columns)
    teaser = Image.new("RGB", size, "white")
    for index, (image, overlay) in enumerate(columns):
        teaser.paste(image, (index * (WIDTH + MARGIN), 0))
        teaser.paste(overlay, (index * (WIDTH + MARGIN), HEIGHT + MARGIN))
    teaser.save(args.output, quality=92)


if __name__ == "__main__":
    main()
