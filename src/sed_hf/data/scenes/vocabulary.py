"""What scenes are made of, what it is called, and which compositions of colour and shape training never sees.

Classes are numbered with those of training first, so that a label means the same in both vocabularies.
"""

from typing import Literal, TypeAlias

Split: TypeAlias = Literal["train", "test"]
Composition: TypeAlias = tuple[str, str]  # a colour and a shape

BACKGROUNDS = {
    "grass": "grass, lawn",
    "sky": "sky, cloudy sky",
    "sand": "sand, beach",
    "water": "water, sea",
    "brick": "brick, brick wall",
    "wood": "wood, wooden planks",
    "snow": "snow, snowfield",
    "gravel": "gravel, pebbles",
}
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SHAPES = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
    "heart": ("heart",),
    "crescent": ("crescent", "moon"),
    "diamond": ("diamond", "rhombus"),
    "arrow": ("arrow", "pointer"),
    "bar": ("bar", "stick"),
    "semicircle": ("semicircle", "half circle"),
}

SEEN_COMPOSITIONS: list[Composition] = []
UNSEEN_COMPOSITIONS: list[Composition] = []
for color_index, color in enumerate(COLORS):
    for shape_index, shape in enumerate(SHAPES):
        # One symbol of a 4 × 4 Latin square: three of each colour's twelve compositions, two of each shape's eight.
        is_unseen = (color_index + shape_index) % 4 == 0
        (UNSEEN_COMPOSITIONS if is_unseen else SEEN_COMPOSITIONS).append((color, shape))
COMPOSITIONS = SEEN_COMPOSITIONS + UNSEEN_COMPOSITIONS


def scene_vocabulary() -> list[str]:
    """Names of all 104 classes in the order of their ids: backgrounds, seen compositions, unseen compositions."""
    compositions = [", ".join(f"{color} {name}" for name in SHAPES[shape]) for color, shape in COMPOSITIONS]
    return [*BACKGROUNDS.values(), *compositions]


def seen_classes() -> list[str]:
    """Names of the 80 classes of training, in the order of their ids 0 to 79."""
    return scene_vocabulary()[: -len(UNSEEN_COMPOSITIONS)]


def unseen_classes() -> list[str]:
    """Names of the 24 compositions that training never shows or names, in the order of their ids 80 to 103."""
    return scene_vocabulary()[-len(UNSEEN_COMPOSITIONS) :]
