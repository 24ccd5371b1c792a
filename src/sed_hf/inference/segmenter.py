"""[`Segmenter`], from images to labels, and the names of the class "everything else" for it."""

from collections.abc import Sequence

from ..data.distractors import distractors
from ..pipeline_sed import EVERYTHING_ELSE
from ..pipeline_sed import Segmenter as Segmenter
from ..pipeline_sed import unused_label as unused_label


def competing_names(class_names: Sequence[str], vocabulary: str | None) -> list[str]:
    """The names of a vocabulary, by name or path, that make up the class "everything else" beside these, if any."""
    if vocabulary is None:
        return []
    if EVERYTHING_ELSE in class_names:
        raise ValueError(f"--everything-else adds a class of the name {EVERYTHING_ELSE!r}, which is one of yours")
    return distractors(class_names, [vocabulary])
