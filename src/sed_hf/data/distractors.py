"""Names that no image of a data set is labelled with."""

from collections.abc import Iterable, Sequence

from ..processing_sed import synonyms_of
from .vocabularies import load_vocabulary


def distractors(class_names: Sequence[str], vocabularies: Iterable[str]) -> list[str]:
    """The classes of vocabularies, by name or path, that share no synonym with `class_names`, nor with one another."""
    taken = {synonym for name in class_names for synonym in synonyms_of(name)}
    others = []
    for vocabulary in vocabularies:
        for class_name in load_vocabulary(vocabulary):
            synonyms = synonyms_of(class_name)
            if taken.isdisjoint(synonyms):
                others.append(class_name)
                taken.update(synonyms)
    return others
