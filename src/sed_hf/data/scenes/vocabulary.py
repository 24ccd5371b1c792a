"""What scenes are made of, what it is called, and which compositions training never sees.

A class is a background ("grass, lawn") or a composition of colour and shape ("red circle, red disc"). A class name
lists its synonyms, separated by ", ". Classes are numbered with those of training first, so that the label of a
training image means the same in the training vocabulary and in the full one.
"""

from typing import Literal, NamedTuple, TypeAlias

Split: TypeAlias = Literal["train", "test"]

BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "grass": ("grass", "lawn"),
    "sky": ("sky", "cloudy sky"),
    "sand": ("sand", "beach"),
    "water": ("water", "sea"),
    "brick": ("brick", "brick wall"),
    "wood": ("wood", "wooden planks"),
    "snow": ("snow", "snowfield"),
    "gravel": ("gravel", "pebbles"),
}
COLORS: tuple[str, ...] = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SHAPES: dict[str, tuple[str, ...]] = {
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


class Composition(NamedTuple):
    """An object's class: one of `COLORS` and one of `SHAPES`."""

    color: str
    shape: str

    @property
    def class_name(self) -> str:
        """All names of the shape, each with the colour: "red circle, red disc"."""
        return ", ".join(f"{self.color} {name}" for name in SHAPES[self.shape])


def _is_held_out(color_index: int, shape_index: int) -> bool:
    # The cells of one symbol of a 4 × 4 Latin square, repeated over colours and shapes: a quarter of all compositions,
    # three of each colour's twelve and two of each shape's eight.
    return (color_index + shape_index) % 4 == 0


def _compositions(held_out: bool) -> tuple[Composition, ...]:
    return tuple(
        Composition(color, shape)
        for color_index, color in enumerate(COLORS)
        for shape_index, shape in enumerate(SHAPES)
        if _is_held_out(color_index, shape_index) == held_out
    )


SEEN_COMPOSITIONS = _compositions(held_out=False)
UNSEEN_COMPOSITIONS = _compositions(held_out=True)
COMPOSITIONS = SEEN_COMPOSITIONS + UNSEEN_COMPOSITIONS

BACKGROUND_IDS: dict[str, int] = {name: class_id for class_id, name in enumerate(BACKGROUNDS)}
COMPOSITION_IDS: dict[Composition, int] = {
    composition: class_id for class_id, composition in enumerate(COMPOSITIONS, start=len(BACKGROUNDS))
}


def split_compositions(split: Split) -> tuple[Composition, ...]:
    """The compositions that occur in images of a split: in training only the seen ones, in test all.

    Raises:
        ValueError: If the split is neither "train" nor "test".
    """
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", not {split!r}.')
    return SEEN_COMPOSITIONS if split == "train" else COMPOSITIONS


def seen_classes() -> list[str]:
    """Names of the 80 classes of training, in the order of their ids 0 to 79: backgrounds, then compositions."""
    backgrounds = [", ".join(names) for names in BACKGROUNDS.values()]
    return backgrounds + [composition.class_name for composition in SEEN_COMPOSITIONS]


def unseen_classes() -> list[str]:
    """Names of the 24 compositions that training never shows or names, in the order of their ids 80 to 103."""
    return [composition.class_name for composition in UNSEEN_COMPOSITIONS]


def scene_vocabulary() -> list[str]:
    """Names of all 104 classes in the order of their ids: `seen_classes()`, then `unseen_classes()`."""
    return seen_classes() + unseen_classes()
