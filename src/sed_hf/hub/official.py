"""The authors' weights by name: downloaded once, checked, converted, and kept in the cache of Hugging Face."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..terminal import progress_bar
from ..utils import short_error

logger = logging.getLogger(__name__)

BENCHMARKS = ("A-847", "PC-459", "A-150", "PC-59", "PAS-20")
ADDRESS = "https://drive.google.com/file/d/{}/view"
SECONDS_WITHOUT_AN_ANSWER = 30
CARD = """SED with {clip} as CLIP, trained on COCO-Stuff by the authors of the paper, converted from {address}.

The authors publish the weights with their [code](https://github.com/xb534/SED), which is licensed under Apache-2.0
(Copyright 2023 Megvii Inc.). If you use them, please cite

```bibtex
@inproceedings{{xie2024sed,
  title     = {{{{SED}}: A Simple Encoder-Decoder for Open-Vocabulary Semantic Segmentation}},
  author    = {{Xie, Bin and Cao, Jiale and Xie, Jin and Khan, Fahad Shahbaz and Pang, Yanwei}},
  booktitle = {{CVPR}},
  year      = {{2024}}
}}
```

Mean IoU, measured by the authors: {scores}."""


@dataclass(frozen=True)
class OfficialModel:
    """Weights that the authors publish."""

    name: str
    file_id: str  # on Google Drive
    clip: str  # the open_clip model that it is built on
    scores: tuple[float, ...]  # mean IoU on `BENCHMARKS`, as the authors report it
    topk: int | None = None  # early rejection

    @property
    def folder(self) -> Path:
        """Where the converted model lies when it has been downloaded; the checkpoint lies beside it until then."""
        from huggingface_hub import constants

        return Path(constants.HF_HOME, "sed_hf", "official", self.name)


BASE = ("sed-b", "1qx6zGZgSPkF6TObregRz4uzQqSRHrgUw", "convnext_base_w_320")
LARGE = ("sed-l", "1zAXE0QXy47n0cVn7j_2cSR85eqxdDGg8", "convnext_large_d_320")
OFFICIAL = {
    "sed-b": OfficialModel(*BASE, scores=(11.2, 18.6, 31.8, 57.7, 94.4)),
    "sed-b-fast": OfficialModel(*BASE, scores=(11.4, 18.6, 31.6, 57.3, 94.4), topk=8),
    "sed-l": OfficialModel(*LARGE, scores=(13.7, 22.1, 35.3, 60.9, 96.1)),
    "sed-l-fast": OfficialModel(*LARGE, scores=(13.9, 22.6, 35.2, 60.6, 96.1), topk=8),
}


def official_folder(model: OfficialModel) -> Path:
    """The folder of an official model, downloaded and converted if it is not in the cache.

    Environment variables, of `sed-b` for example: `SED_HF_REPO_SED_B` names a Hub repository that holds the converted
    model, which is tried first; `SED_HF_URL_SED_B` is another address of the authors' file.
    """
    from filelock import FileLock
    from huggingface_hub import snapshot_download

    variable = model.name.upper().replace("-", "_")
    if repository := os.environ.get(f"SED_HF_REPO_{variable}"):
        try:
            return Path(snapshot_download(repository, allow_patterns=["*.json", "*.safetensors"]))
        except (OSError, ValueError) as error:
            logger.warning(f"{repository}: {short_error(error)}; taking the authors' file")
    if model.folder.exists():
        return model.folder
    model.folder.parent.mkdir(parents=True, exist_ok=True)
    by_hand, downloaded = (model.folder.with_suffix(suffix) for suffix in (".pth", ".downloaded.pth"))
    with FileLock(f"{model.folder}.lock"):
        if model.folder.exists():  # which another process has made
            return model.folder
        if not by_hand.exists() and not downloaded.exists():
            download(model, os.environ.get(f"SED_HF_URL_{variable}"), downloaded)
        checkpoint = by_hand if by_hand.exists() else downloaded
        try:
            convert(model, checkpoint)
        except ValueError as error:
            downloaded.unlink(missing_ok=True)
            state = "does not serve; replace it" if checkpoint == by_hand else "did not serve and was removed"
            raise ValueError(f"{checkpoint} {state}: {short_error(error)}") from error
        downloaded.unlink(missing_ok=True)
    return model.folder


def download(model: OfficialModel, address: str | None, path: Path) -> None:
    """Download a file, or what is missing of it."""
    import gdown
    from gdown.exceptions import DownloadError
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    address = address or ADDRESS.format(model.file_id)
    bar = progress_bar(desc=f"Downloading {model.name}", unit="B", unit_scale=True, leave=False)

    def show(received: int, total: int | None) -> None:
        bar.total = total
        bar.update(received - bar.n)

    try:
        if constants.HF_HUB_OFFLINE:
            raise OfflineModeIsEnabled
        options: Any = {"progress": show, "timeout": SECONDS_WITHOUT_AN_ANSWER, "retries": 2, "use_cookies": False}
        gdown.download(address, str(path), quiet=True, resume=True, **options)
    except (DownloadError, OSError) as error:
        reason = type(error.__cause__ or error).__name__
        kept = f", with {bar.n / 1e6:.0f} MB, which are kept" if bar.n else ""
        raise OSError(
            f"{model.name}: no download ({reason}{kept}): try again, or open {address} in a browser, save the file as"
            f" {model.folder}.pth, and then run: sed-hf models {model.name}"
        ) from error
    finally:
        bar.close()


def convert(model: OfficialModel, checkpoint: Path) -> None:
    """Convert a checkpoint to the model's folder, if it is of its architecture."""
    from ..conversion import build_processor, config_from_open_clip, convert_official_checkpoint
    from .save import save_hub_folder

    converted = convert_official_checkpoint(checkpoint, config_from_open_clip(model.clip))
    scores = OFFICIAL[model.name].scores  # of dense decoding, as the folder's configuration has it
    text = ", ".join(f"{score} on {name}" for name, score in zip(BENCHMARKS, scores, strict=True))
    card = CARD.format(clip=model.clip, address=ADDRESS.format(model.file_id), scores=text)
    processor = build_processor(converted.config)
    save_hub_folder(converted, processor, model.folder, card, datasets=["coco-stuff"])
