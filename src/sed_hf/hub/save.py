"""Complete Hub folders: weights, configuration, processor, tokenizer, and the code that `trust_remote_code` runs."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import HfApi, ModelCardData
from safetensors import SafetensorError
from torch import Tensor

from .. import SEDForSemanticSegmentation, SEDProcessor
from ..utils import atomic_path

WIDGET_PICTURE = "https://huggingface.co/datasets/mishig/sample_images/resolve/main/cats.jpg"
MODEL_CARD = """---
{metadata}
---

# SED: open-vocabulary semantic segmentation

Labels every pixel of an image with one of any list of class names
([SED, CVPR 2024](https://arxiv.org/abs/2311.15537); code: sed-hf).

```python
from transformers import pipeline

segmenter = pipeline("open-vocabulary-segmentation", model="PATH_OR_REPO", trust_remote_code=True)
segments = segmenter("photo.jpg", candidate_labels=["cat", "dog, puppy", "grass"])
```

{description}
"""


def model_card(description: str = "", datasets: Sequence[str] = ()) -> str:
    """The text of a model card, with the metadata that the Hub reads.

    Args:
        description: Data, recipe, results.
        datasets: Names of the data sets that the model was trained on.
    """
    metadata = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["open-vocabulary", "semantic-segmentation", "sed"],
        datasets=list(datasets) or None,
        metrics=["mean_iou"],
        widget=[{"src": WIDGET_PICTURE, "parameters": {"candidate_labels": ["cat", "remote control", "sofa, couch"]}}],
    )
    return MODEL_CARD.format(metadata=metadata.to_yaml(), description=description)


def save_hub_folder(
    model: SEDForSemanticSegmentation,
    processor: SEDProcessor,
    directory: str | os.PathLike,
    description: str = "",
    datasets: Sequence[str] = (),
    max_shard_size: str = "5GB",
    state_dict: Mapping[str, Tensor] | None = None,
    overwrite: bool = False,
) -> None:
    """Write everything that others need to load the model with `trust_remote_code=True`, and a model card.

    The folder appears at once when it is complete; one that it replaces is there until then.

    Args:
        model: The model.
        processor: Its processor.
        directory: Folder to make; it may exist if it is empty.
        description: Text for the model card: data, recipe, results.
        datasets: Names of the data sets that the model was trained on, for the model card.
        max_shard_size: Largest size of one weights file.
        state_dict: Weights to write; by default those of the model, which distributed training may have sharded.
        overwrite: Replace a folder with all that it holds.

    Raises:
        FileExistsError: `directory` exists and is a file, or without `overwrite` a folder that is not empty.
        OSError: The folder cannot be written.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or (any(directory.iterdir()) and not overwrite)):
        raise FileExistsError(f"directory: expected a new or empty folder, got {directory}")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(directory.resolve()) as folder:
        try:
            model.save_pretrained(folder, max_shard_size=max_shard_size, state_dict=state_dict)
        except SafetensorError as error:  # its word for a full disk
            raise OSError(error) from error
        processor.save_pretrained(folder)
        (folder / "README.md").write_text(model_card(description, datasets))
        readable = (folder / "README.md").stat().st_mode
        for file in folder.glob("*.safetensors"):
            file.chmod(readable)  # safetensors lets only the owner read what it writes


def push_hub_folder(directory: str | os.PathLike, repo_id: str, private: bool | None = None) -> str:
    """Upload a folder of [`save_hub_folder`] to a model repository, and return its address.

    Args:
        directory: The folder.
        repo_id: OWNER/NAME; it is made if it is missing.
        private: Whether a new repository is private; by default as your account is configured.

    Raises:
        ValueError: The folder is no model folder.
    """
    if not Path(directory, "config.json").is_file():
        raise ValueError(f"{directory}: expected a model folder, and there is no config.json in it")
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repo_id, folder_path=str(directory), commit_message="Upload SED with sed-hf"))
