"""A small run of `transformers.Trainer`; as a script, one process of it: `trainer_run.py RESULT_FILE OPTIONS`."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from small_models import make_small_model, small_processor
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from transformers import Trainer, TrainingArguments

NAMES = ["sky", "grass", "red fox, fox"]


def sample(index: int) -> dict[str, Tensor]:
    """An image and its labels, some of them ignored, and a column that the model does not know."""
    generator = torch.Generator().manual_seed(index)
    labels = torch.randint(0, 3, (16, 16), generator=generator)
    labels[: index % 4] = 255
    return {"pixel_values": torch.randn(3, 32, 32, generator=generator), "labels": labels, "index": torch.tensor(index)}


class Samples(Dataset):
    """Eight of them."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return sample(index)


class Stream(IterableDataset):
    """The same, one after the other."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return map(sample, range(8))


def make_trainer(
    output_dir: Path, stream: bool = False, config: dict[str, Any] | None = None, **options: Any
) -> Trainer:
    """Four steps of four images by default; in double precision, and with SGD, so that rounding does not add up."""
    torch.manual_seed(0)
    model = make_small_model(**(config or {})).double()
    model.set_classes(**small_processor()(text=NAMES))
    keep = options.get("remove_unused_columns") is False
    trainer_options = {name: options.pop(name) for name in ("eval_dataset", "compute_metrics") if name in options}
    arguments = TrainingArguments(
        str(output_dir),
        **{
            **{"use_cpu": True, "max_steps": 4, "per_device_train_batch_size": 4, "optim": "sgd", "learning_rate": 0.1},
            **{"lr_scheduler_type": "constant", "logging_steps": 1, "report_to": "none", "save_strategy": "no"},
            **{"train_sampling_strategy": "sequential", "disable_tqdm": True, "max_grad_norm": 0.0},
            **options,
        },
    )
    return Trainer(
        model,
        arguments,
        data_collator=without_index if keep else None,
        train_dataset=Stream() if stream else Samples(),
        **trainer_options,
    )


def without_index(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A collator of one's own."""
    return {name: torch.stack([sample[name] for sample in samples]) for name in ("pixel_values", "labels")}


def train(output_dir: Path, resume: Any = None, **options: Any) -> list[float]:
    """The losses of a run, and at last the sum of the trained weights."""
    trainer = make_trainer(output_dir, **options)
    trainer.train(resume_from_checkpoint=resume)
    weights = sum(parameter.abs().sum().item() for parameter in trainer.model.parameters())
    return [line["loss"] for line in trainer.state.log_history if "loss" in line] + [weights]


if __name__ == "__main__":
    figures = train(Path(sys.argv[1]).parent, **json.loads(sys.argv[2]))
    if torch.distributed.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(figures))
