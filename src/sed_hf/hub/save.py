"""Complete Hub folders: weights, configuration, processor, tokenizer, and the code that `trust_remote_code` runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

    from .. import SEDForSemanticSegmentation, SEDProcessor

MODEL_CARD = """---
{metadata}
---

# SED: open-vocabulary semantic segmentation

Labels every pixel of an image with one of any list of class names
([SED, CVPR 2024](https://arxiv.org/abs/2311.15537); code: sed-hf).

```python
from transformers import pipeline

segmenter = pipeline("open-vocabulary-segmentation", model="PATH_OR_REPO", trust_remote_code=True)
segments = segmenter("photo.jpg", candidate_labels={class_names})
```

{description}
"""


def check_new_folder(directory: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Refuse to write where something is, unless it is a model folder that may be replaced."""
    path = Path(directory)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{path}: expected a new or empty folder")
    # It will be removed with all that it holds, so a slip of the keyboard must not name any folder.
    if not (path / "config.json").is_file():
        raise FileExistsError(f"{path}: expected a model folder to replace, but it has no config.json")


def save_hub_folder(
    model: SEDForSemanticSegmentation,
    processor: SEDProcessor,
    directory: str | os.PathLike[str],
    description: str = "",
    datasets: Sequence[str] = (),
    state_dict: Mapping[str, Tensor] | None = None,
    overwrite: bool = False,
    class_names: Sequence[str] = ("cat", "dog, puppy", "grass"),
) -> None:
    """Write everything that others need to load the model with `trust_remote_code=True`, and a model card.

    The folder appears when it is complete. A link in its place is replaced, not followed.

    Args:
        directory: Folder to make; it may exist if it is empty.
        description: Data, recipe and results, for the model card.
        datasets: Names of the data sets that the model was trained on, for the model card.
        state_dict: By default that of the model, which distributed training may have sharded.
        overwrite: Replace a model folder, with all that it holds.
        class_names: Of which the first three are the example of the model card.
    """
    from huggingface_hub import ModelCardData
    from safetensors import SafetensorError

    check_new_folder(directory, overwrite)
    metadata = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["open-vocabulary", "semantic-segmentation", "sed"],
        datasets=list(datasets) or None,
        metrics=["mean_iou"],
    )
    directory = Path(os.path.abspath(directory))  # which, unlike `resolve`, follows no link
    with atomic_path(directory) as folder:
        try:
            model.save_pretrained(folder, state_dict=state_dict)
        except SafetensorError as error:  # its word for a full disk
            raise OSError(f"{directory}: {error}") from error
        if not (folder / "config.json").exists():
            raise ValueError("expected a model, got adapters only: save model.merge_and_unload()")
        processor.save_pretrained(folder)
        card = folder / "README.md"
        example = json.dumps(class_names[:3], ensure_ascii=False)
        text = MODEL_CARD.format(metadata=metadata.to_yaml(), class_names=example, description=description)
        card.write_text(text, encoding="utf-8")
        for file in folder.glob("*.safetensors"):
            file.chmod(card.stat().st_mode)  # safetensors lets only the owner read what it writes
