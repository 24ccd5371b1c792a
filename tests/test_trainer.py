"""`transformers.Trainer`: held classes, exact losses in any number of parts and processes, evaluation, checkpoints."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from conftest import run_on_two_processes
from small_models import make_small_model, small_model, small_processor
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import EvalPrediction, Trainer, TrainingArguments

from sed_hf.metrics.mean_iou import MeanIoU

EXACT = 1e-5
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


class TestTraining:
    @pytest.mark.parametrize("config", [{}, {"ignored_as_negative": False, "ignore_index": -100}], ids=str)
    def test_losses_do_not_depend_on_how_the_samples_come(self, config: dict[str, Any], tmp_path: Path) -> None:
        expected = train(tmp_path, config=config)
        for options in (
            {"stream": True, "remove_unused_columns": False},
            {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "gradient_checkpointing": True},
        ):
            assert train(tmp_path, config=config, **options) == pytest.approx(expected, rel=EXACT), options

    @pytest.mark.slow
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("accumulation", [1, 2])
    def test_two_processes_equal_one(self, stream: bool, accumulation: int, tmp_path: Path) -> None:
        sizes = {"per_device_train_batch_size": 2 // accumulation, "gradient_accumulation_steps": accumulation}
        result = tmp_path / "result.json"
        options = json.dumps({**sizes, "stream": stream})
        run_on_two_processes("import test_trainer; test_trainer.main()", str(result), options)
        assert json.loads(result.read_text()) == pytest.approx(train(tmp_path), rel=EXACT)

    def test_bf16_is_close(self, tmp_path: Path) -> None:
        assert train(tmp_path, bf16=True, double=False)[:-1] == pytest.approx(train(tmp_path)[:-1], rel=0.02)

    def test_a_resumed_run_ends_as_one_that_never_stopped(self, tmp_path: Path) -> None:
        options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
        expected = train(tmp_path, **options)
        assert train(tmp_path, resume=tmp_path / "checkpoint-1", **options) == expected


class Images(Dataset):
    """Random images and labels, each made when it is asked for."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        labels = torch.randint(0, 3, (64, 64), generator=generator)
        return {"pixel_values": torch.randn(3, 64, 64, generator=generator), "labels": labels}


def most_probable(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.argmax(1).repeat_interleave(4, 1).repeat_interleave(4, 2)


class TestEvaluation:
    def evaluate(self, folder: Path, images: Images) -> tuple[dict[str, float], Trainer, list[float]]:
        """Metrics by the mean IoU metric, the trainer, and the megabytes of memory after the last batch."""
        metric, memory = MeanIoU(NAMES), []

        def count(prediction: EvalPrediction, compute_result: bool) -> dict[str, float | None]:
            metric.add_batch(predictions=prediction.predictions, references=prediction.label_ids)
            memory.append(psutil.Process().memory_info().rss / 2**20)  # while what is kept of all images is there
            return metric.compute() if compute_result else {}

        options = {"batch_eval_metrics": True, "compute_metrics": count, "per_device_eval_batch_size": 3}
        trainer = make_trainer(folder, preprocess_logits_for_metrics=most_probable, **options)
        return trainer.evaluate(images), trainer, memory

    def test_metrics_are_those_of_every_image(self, tmp_path: Path) -> None:
        images, metric = Images(8), MeanIoU(NAMES)
        metrics, trainer, _ = self.evaluate(tmp_path, images)
        batch = collate([images[index] for index in range(8)])
        with torch.no_grad():
            logits = trainer.model(batch["pixel_values"]).logits
        metric.add_batch(predictions=most_probable(logits, logits), references=batch["labels"])
        assert metrics["eval_mIoU"] == pytest.approx(metric.compute()["mIoU"])

    @pytest.mark.slow
    def test_two_thousand_images_take_the_memory_of_two_hundred(self, tmp_path: Path) -> None:
        few, many = (self.evaluate(tmp_path, Images(number))[2][-1] for number in (200, 2000))
        assert many - few < 40  # labels and predictions of 2,000 are 131 MB

    def test_the_best_model_is_loaded_at_the_end(self, tmp_path: Path) -> None:
        strategy = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
        trainer = make_trainer(tmp_path, **strategy, load_best_model_at_end=True, greater_is_better=True)
        trainer.train()  # the best is here the greatest loss, of the first checkpoint
        assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
        losses = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
        assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[0], rel=EXACT)

    def test_predictions_with_early_rejection_have_a_column_for_each_class(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, config={"early_rejection_topk": 1}, per_device_eval_batch_size=1)
        model, pixel_values = trainer.model, torch.randn(4, 3, 64, 96, generator=torch.Generator().manual_seed(0))
        model.set_classes(**small_processor()(text=[f"thing {number}" for number in range(20)]))
        logits = torch.from_numpy(trainer.predict([{"pixel_values": image} for image in pixel_values]).predictions)
        assert logits.shape == (4, 20, 16, 24)
        counts = set()
        for image, actual in zip(pixel_values, logits, strict=True):
            with torch.no_grad():
                expected = model(image[None], early_rejection_topk=1)
            counts.add(expected.logits.shape[1])
            torch.testing.assert_close(actual, expected.all_logits()[0])
        assert len(counts) > 1


class TestCutClasses:
    """What hands out a batch by its first axis cuts class inputs too, which is never taken for fewer classes."""

    @pytest.fixture(params=["names", "embeddings"])
    def class_inputs(self, request: pytest.FixtureRequest) -> dict[str, Tensor]:
        names = dict(small_processor()(text=NAMES))
        return names if request.param == "names" else {"class_embeddings": small_model().get_class_embeddings(**names)}

    def test_trainer_with_an_iterable_dataset(self, class_inputs: dict[str, Tensor], tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, stream=True, per_device_train_batch_size=2)
        trainer.data_collator = lambda samples: {**collate(samples), **class_inputs}
        with pytest.raises(ValueError, match=r"model\.set_classes"):
            trainer.train()

    def test_dispatched_batches(self, class_inputs: dict[str, Tensor]) -> None:
        batch = {**collate(make_samples()[:2]), **class_inputs}
        accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=True))
        (batch,) = accelerator.prepare(DataLoader([batch], batch_size=None))
        with pytest.raises(ValueError, match=r"model\.set_classes"):
            small_model()(**batch)

    def test_a_dict_that_is_cut_by_hand(self, class_inputs: dict[str, Tensor]) -> None:
        batch = {**collate(make_samples()), **class_inputs}
        with pytest.raises(ValueError, match=r"model\.set_classes"):
            small_model()(**{name: value[:2] for name, value in batch.items()})

    def test_data_parallel(self, class_inputs: dict[str, Tensor]) -> None:
        replica = small_model()._replicate_for_data_parallel()  # which needs no GPU
        with pytest.raises(ValueError, match=r"model\.set_classes"):
            replica(torch.zeros(1, 3, 32, 32), **class_inputs)

    def test_chosen_classes_are_taken(self) -> None:
        embeddings = small_model().get_class_embeddings(**small_processor()(text=NAMES))
        batch = collate(make_samples()[:2])
        batch["labels"][:] = 0
        for count, chosen in ((1, embeddings[:1]), (2, embeddings[[0, 1]]), (3, embeddings)):
            assert small_model()(**batch, class_embeddings=chosen).logits.shape[1] == count
