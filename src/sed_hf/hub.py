"""Complete Hub folders: weights, configuration, processor, tokenizer, and the code that `trust_remote_code` runs."""

import os
import shutil
import tempfile
from pathlib import Path

from . import SEDForSemanticSegmentation, SEDProcessor, pipeline_sed

PIPELINE_TASK = "zero-shot-image-segmentation"

MODEL_CARD = """---
library_name: transformers
pipeline_tag: image-segmentation
license: apache-2.0
tags:
- open-vocabulary
- semantic-segmentation
- sed
---

# SED: open-vocabulary semantic segmentation

Labels every pixel of an image with one of any list of class names
([SED, CVPR 2024](https://arxiv.org/abs/2311.15537); code: sed-hf).

```python
from transformers import pipeline

segmenter = pipeline("{task}", model="PATH_OR_REPO", trust_remote_code=True)
segmenter("photo.jpg", candidate_labels=["cat", "dog, puppy", "grass"])
```

{description}
"""


def save_hub_folder(
    model: SEDForSemanticSegmentation,
    processor: SEDProcessor,
    directory: str | os.PathLike,
    description: str = "",
    max_shard_size: str = "5GB",
) -> None:
    """Write everything that others need to load the model with `trust_remote_code=True`, and a model card.

    The folder appears at once when it is complete.

    Args:
        model: The model.
        processor: Its processor.
        directory: Folder to make; it may exist if it is empty.
        description: Text for the model card: data, recipe, results.
        max_shard_size: Largest size of one weights file.

    Raises:
        FileExistsError: `directory` exists and is not an empty folder.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"directory: expected a new or empty folder, got {directory}")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as parent:
        folder = Path(parent) / directory.name
        model.config.custom_pipelines = {
            PIPELINE_TASK: {"impl": "pipeline_sed.SEDPipeline", "pt": ["AutoModelForSemanticSegmentation"]}
        }
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        processor.save_pretrained(folder)
        shutil.copy(pipeline_sed.__file__, folder)
        (folder / "README.md").write_text(MODEL_CARD.format(task=PIPELINE_TASK, description=description))
        folder.replace(directory)
