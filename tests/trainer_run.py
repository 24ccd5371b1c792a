"""A small run of `transformers.Trainer`, in this process or as one of several."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from small_models import make_small_model, small_processor
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments

NAMES = ["sky", "grass", "red fox, fox"]


def make_samples(ignore_index: int = 255) -> list[dict[str, Tensor]]:
    """Images, labels, of which each image ignores another number, and a column that the model does not know."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (8, 16, 16), generator=generator)
    for index in range(8):
        labels[index, :index] = ignore_index
    images = torch.randn(8, 3, 32, 32, generator=generator)
    return [{"pixel_values": images[i], "labels": labels[i], "index": torch.tensor(i)} for i in range(8)]


class Stream(IterableDataset):
    """Samples one after the other."""

    def __init__(self, samples: list[dict[str, Tensor]]) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(self.samples)


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch of what the model knows."""
    return {name: torch.stack([sample[name] for sample in samples]) for name in ("pixel_values", "labels")}


def make_trainer(
    output_dir: Path, stream: bool = False, config: dict[str, Any] | None = None, double: bool = True, **options: Any
) -> Trainer:
    """Two steps of four images by default; in double precision and with SGD, so that rounding does not add up."""
    config = config or {}
    model = make_small_model(**config).to(torch.float64 if double else torch.float32)
    model.set_classes(**small_processor()(text=NAMES))
    samples = make_samples(config.get("ignore_index", 255))
    own = {name: options.pop(name) for name in ("compute_metrics", "preprocess_logits_for_metrics") if name in options}
    defaults = {
        "use_cpu": True, "max_steps": 2, "per_device_train_batch_size": 4, "optim": "sgd", "learning_rate": 0.1,
        "lr_scheduler_type": "constant", "logging_steps": 1, "report_to": "none", "save_strategy": "no",
        "train_sampling_strategy": "sequential", "disable_tqdm": True, "max_grad_norm": 0.0,
    }  # fmt: skip
    return Trainer(
        model,
        TrainingArguments(str(output_dir), **{**defaults, **options}),
        data_collator=None if options.get("remove_unused_columns", True) else collate,
        train_dataset=Stream(samples) if stream else samples,
        eval_dataset=samples,
        **own,
    )


def train(output_dir: Path, resume: Path | None = None, **options: Any) -> list[float]:
    """The losses of a run, and at last the sum of the trained weights."""
    trainer = make_trainer(output_dir, **options)
    trainer.train(resume_from_checkpoint=resume and str(resume))
    weights = sum(parameter.abs().sum().item() for parameter in trainer.model.parameters())
    return [line["loss"] for line in trainer.state.log_history if "loss" in line] + [weights]


def main() -> None:
    """One process of a run, with the arguments RESULT_FILE and OPTIONS."""
    figures = train(Path(sys.argv[1]).parent, **json.loads(sys.argv[2]))
    if torch.distributed.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(figures))
