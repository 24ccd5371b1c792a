"""The sets of images that a model can be evaluated on, by name."""

from os import PathLike
from typing import TypeAlias

import datasets

from ..data.benchmarks import BENCHMARKS, OWN_DATA, load_benchmark
from ..data.scenes import SceneDataset

EvaluationSet: TypeAlias = datasets.Dataset | SceneDataset

ZERO_SHOT_BENCHMARKS = (
    "ade20k_847",
    "pascal_context_459",
    "ade20k_150",
    "pascal_context_59",
    "pascal_voc_20",
    "pascal_voc_20b",
)
"""The benchmarks of the official table, in its order. COCO-Stuff is not among them: SED is trained on its classes."""

SCENES = "scenes"
"""The name of the generated test scenes, which need no data folder."""

NUM_SCENES = 500

EVALUATION_SETS = (*BENCHMARKS, OWN_DATA, SCENES)


def load_evaluation_set(
    name: str, data_dir: str | PathLike[str] | None = None, limit: int | None = None
) -> EvaluationSet:
    """Load the validation split of a benchmark, the images of a user's own data, or the 500 test scenes.

    Args:
        name: One of `EVALUATION_SETS`.
        data_dir: Where the data are, as for `load_benchmark`; scenes need none.
        limit: Only take the first images, so many.

    Raises:
        ValueError: The name is unknown, or there is no `data_dir` for a set that needs one.
        FileNotFoundError: A file or folder is missing; the message names it, and the page to download it from.
    """
    if name == SCENES:
        return SceneDataset("test", NUM_SCENES if limit is None else min(limit, NUM_SCENES))
    if data_dir is None:
        raise ValueError(f"{name}: expected the folder of its data as data_dir (--data-dir)")
    dataset = load_benchmark(name, data_dir)
    assert isinstance(dataset, datasets.Dataset)  # since it is not streamed
    return dataset if limit is None else dataset.select(range(min(limit, len(dataset))))


def set_title(name: str) -> str:
    """What papers call a benchmark, or the name itself."""
    return BENCHMARKS[name].title if name in BENCHMARKS else name
