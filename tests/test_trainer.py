"""`transformers.Trainer`: held classes, exact losses in any number of parts and processes, evaluation, checkpoints."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import trainer_run
from accelerate import Accelerator
from small_models import make_small_model, small_processor
from torch import Tensor
from torch.utils.data import DataLoader
from trainer_run import NAMES, Samples, make_trainer, train
from transformers import EvalPrediction

from sed_hf.metrics.mean_iou import MeanIoU

EXACT = 1e-5


class TestTraining:
    @pytest.mark.parametrize(
        "options",
        [
            {"stream": True},
            {"remove_unused_columns": False},
            {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
            {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "stream": True},
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "gradient_checkpointing": True},
        ],
        ids=str,
    )
    @pytest.mark.parametrize(
        "config", [{}, {"ignored_as_negative": False, "ignore_index": -100}], ids=["negative", "uncounted"]
    )
    def test_losses_equal_those_of_the_plain_run(
        self, options: dict[str, Any], config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if config:
            with_255 = trainer_run.sample
            monkeypatch.setattr(trainer_run, "sample", lambda index: ignore_as(-100, with_255(index)))
        expected = train(tmp_path, config=config)
        assert train(tmp_path, config=config, **options) == pytest.approx(expected, rel=EXACT)

    @pytest.mark.slow
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("accumulation", [1, 2])
    def test_two_processes_equal_one(self, stream: bool, accumulation: int, tmp_path: Path) -> None:
        options = {
            "per_device_train_batch_size": 2 // accumulation,
            "gradient_accumulation_steps": accumulation,
            "stream": stream,
        }
        assert train_on_two_processes(tmp_path, options) == pytest.approx(train(tmp_path), rel=EXACT)

    def test_bf16_is_close(self, tmp_path: Path) -> None:
        assert train(tmp_path, bf16=True)[:-1] == pytest.approx(train(tmp_path)[:-1], rel=0.02)

    def test_a_resumed_run_ends_as_one_that_never_stopped(self, tmp_path: Path) -> None:
        options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
        expected = train(tmp_path / "whole", **options)
        assert train(tmp_path / "whole", resume=str(tmp_path / "whole/checkpoint-2"), **options) == expected


def ignore_as(index: int, sample: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**sample, "labels": sample["labels"].where(sample["labels"] != 255, index)}


def train_on_two_processes(folder: Path, options: dict[str, Any]) -> list[float]:
    result = folder / "result.json"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29572"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [*launcher, trainer_run.__file__, str(result), json.dumps(options)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return json.loads(result.read_text())


class TestEvaluation:
    def metrics(self) -> Any:
        """What the documentation shows: a confusion matrix, which grows with nothing."""
        metric = MeanIoU(NAMES)

        def compute(prediction: EvalPrediction, compute_result: bool) -> dict[str, float | None]:
            metric.add_batch(predictions=prediction.predictions, references=prediction.label_ids)
            return metric.compute() if compute_result else {}

        return compute

    def test_metrics_are_those_of_every_image(self, tmp_path: Path) -> None:
        trainer = make_trainer(
            tmp_path, batch_eval_metrics=True, eval_dataset=Samples(), compute_metrics=self.metrics()
        )
        gathered = []

        def most_probable(logits: Tensor, labels: Tensor) -> Tensor:
            gathered.append(logits.shape)
            return logits.argmax(1).repeat_interleave(2, 1).repeat_interleave(2, 2)

        trainer.preprocess_logits_for_metrics = most_probable
        figures = trainer.evaluate()
        assert gathered == [(8, 3, 8, 8)]
        metric = MeanIoU(NAMES)
        for sample in Samples():
            with torch.no_grad():
                logits = trainer.model(sample["pixel_values"][None]).logits
            metric.add_batch(predictions=most_probable(logits, logits), references=sample["labels"][None])
        assert figures["eval_mIoU"] == pytest.approx(metric.compute()["mIoU"])

    def test_the_best_model_is_loaded_at_the_end(self, tmp_path: Path) -> None:
        strategy = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
        trainer = make_trainer(
            tmp_path, **strategy, eval_dataset=Samples(), load_best_model_at_end=True, learning_rate=-0.5
        )
        trainer.train()  # uphill, so that the first checkpoint is the best
        assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
        losses = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
        assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[0], rel=EXACT)

    def test_predictions_with_early_rejection_have_a_column_for_each_class(self, tmp_path: Path) -> None:
        names = [f"thing {number}" for number in range(12)]
        trainer = make_trainer(tmp_path, config={"early_rejection_topk": 1}, per_device_eval_batch_size=1)
        model = trainer.model
        model.set_classes(**small_processor()(text=names))
        images = [{"pixel_values": sample["pixel_values"]} for sample in Samples()]
        logits = torch.from_numpy(trainer.predict(images).predictions)
        assert logits.shape == (8, 12, 8, 8)
        for image, actual in zip(images, logits, strict=True):
            with torch.no_grad():
                expected = model(image["pixel_values"][None], early_rejection_topk=1)
            assert expected.logits.shape[1] < 12
            torch.testing.assert_close(actual, expected.all_logits()[0])


class TestCutClasses:
    """What hands out a batch by its first axis cuts class inputs too, which is never taken for fewer classes."""

    def batches(self, **class_inputs: Tensor) -> Iterator[dict[str, Tensor]]:
        for start in (0, 2):
            samples = [trainer_run.sample(index) for index in (start, start + 1)]
            yield {**trainer_run.without_index(samples), **class_inputs}

    def class_inputs(self, kind: str) -> dict[str, Tensor]:
        text_inputs = dict(small_processor()(text=NAMES))
        if kind == "names":
            return text_inputs
        with torch.no_grad():
            return {"class_embeddings": make_small_model().get_class_embeddings(**text_inputs)}

    @pytest.mark.parametrize("kind", ["names", "embeddings"])
    def test_trainer_with_an_iterable_dataset(self, kind: str, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, stream=True, per_device_train_batch_size=2)
        class_inputs = self.class_inputs(kind)
        trainer.data_collator = lambda samples: {**trainer_run.without_index(samples), **class_inputs}
        with pytest.raises(ValueError, match=r"model\.set_classes"):
            trainer.train()

    @pytest.mark.parametrize("kind", ["names", "embeddings"])
    def test_dispatched_batches(self, kind: str) -> None:
        loader = DataLoader(list(self.batches(**self.class_inputs(kind))), batch_size=None)
        accelerator = Accelerator(cpu=True)
        accelerator.dataloader_config.dispatch_batches = True
        batch = next(iter(accelerator.prepare(loader)))
        assert len(batch["labels"]) == 2
        with pytest.raises(ValueError, match=r"model\.set_classes"):
            make_small_model()(**batch)

    @pytest.mark.parametrize("kind", ["names", "embeddings"])
    def test_a_dict_that_is_cut_by_hand(self, kind: str) -> None:
        batch = {name: value[:2] for name, value in next(self.batches(**self.class_inputs(kind))).items()}
        with pytest.raises(ValueError, match=r"model\.set_classes"):
            make_small_model()(**batch)

    @pytest.mark.parametrize("kind", ["names", "embeddings"])
    def test_data_parallel(self, kind: str) -> None:
        replica = make_small_model()._replicate_for_data_parallel()  # which needs no GPU
        with pytest.raises(ValueError, match=r"model\.set_classes"):
            replica(torch.zeros(1, 3, 32, 32), **self.class_inputs(kind))

    def test_classes_that_are_chosen_are_taken(self) -> None:
        embeddings = self.class_inputs("embeddings")["class_embeddings"]
        model, batch = make_small_model(), next(self.batches())
        labels = batch.pop("labels").clamp(max=0)
        assert model(**batch, class_embeddings=embeddings[:2]).logits.shape[1] == 2
        assert model(**batch, labels=labels, class_embeddings=embeddings[:1]).logits.shape[1] == 1
        assert model(**batch, labels=labels, class_embeddings=embeddings[[0, 1]]).logits.shape[1] == 2
