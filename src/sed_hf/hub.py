"""Complete Hub folders: weights, configuration, processor, tokenizer, and the code that `trust_remote_code` runs."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import HfApi
from torch import Tensor

from . import SEDForSemanticSegmentation, SEDProcessor

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

segmenter = pipeline("open-vocabulary-segmentation", model="PATH_OR_REPO", trust_remote_code=True)
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
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Write everything that others need to load the model with `trust_remote_code=True`, and a model card.

    The folder appears at once when it is complete.

    Args:
        model: The model.
        processor: Its processor.
        directory: Folder to make; it may exist if it is empty.
        description: Text for the model card: data, recipe, results.
        max_shard_size: Largest size of one weights file.
        state_dict: Weights to write; by default those of the model, which distributed training may have sharded.

    Raises:
        FileExistsError: `directory` exists and is not an empty folder.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"directory: expected a new or empty folder, got {directory}")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as parent:
        folder = Path(parent) / directory.name
        model.save_pretrained(folder, max_shard_size=max_shard_size, state_dict=state_dict)
        processor.save_pretrained(folder)
        (folder / "README.md").write_text(MODEL_CARD.format(description=description))
        folder.replace(directory)


def push_hub_folder(directory: str | os.PathLike, repo_id: str) -> str:
    """Upload a folder of [`save_hub_folder`] to a model repository, made if it is missing; return its address."""
    api = HfApi()
    api.create_repo(repo_id, exist_ok=True)
    return str(api.upload_folder(repo_id=repo_id, folder_path=str(directory), commit_message="Upload SED with sed-hf"))
