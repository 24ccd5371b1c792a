"""[`Segmenter`], from images to labels, and what is said of its class names."""

import subprocess
from collections.abc import Sequence

from ..data.distractors import distractors
from ..pipeline_sed import EVERYTHING_ELSE
from ..pipeline_sed import Segmenter as Segmenter
from ..pipeline_sed import unused_label as unused_label
from ..terminal import say


def hint_at_synonyms(class_names: Sequence[str], everything_else: str | None = None) -> None:
    """Say so if all names are synonyms of one class, which may have been meant as classes."""
    if len(class_names) == 1 and "," in class_names[0] and everything_else is None:
        names = [name.strip() for name in class_names[0].split(",")]
        remedy = f"write each on a line of a vocabulary, or --classes {subprocess.list2cmdline(names)}"
        say(f"{class_names[0]!r} is one class; for {len(names)}, {remedy}")


def competing_names(class_names: Sequence[str], vocabulary: str | None) -> list[str]:
    """The names of a vocabulary, by name or path, that make up the class "everything else" beside these, if any."""
    if vocabulary is None:
        return []
    if EVERYTHING_ELSE in class_names:
        raise ValueError(f"--everything-else adds a class of the name {EVERYTHING_ELSE!r}, which is one of yours")
    others = distractors(class_names, [vocabulary])
    if not others:
        raise ValueError(f"--everything-else {vocabulary}: all its names are among yours; expected others that compete")
    return others
