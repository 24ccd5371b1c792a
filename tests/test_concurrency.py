"""One model used by several threads, and one folder by several writers, give what one after the other gives."""

import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from raw_copies import write_ade20k_150
from torch import Tensor

from sed_hf import SEDForSemanticSegmentation, SEDProcessor, pipeline_sed
from sed_hf.class_embeddings import ClassEmbeddingCache
from sed_hf.cli import MODEL_IN_THE_BOX
from sed_hf.data import prepare
from sed_hf.data.benchmarks import load_benchmark
from sed_hf.data.prepare import prepare_benchmark
from sed_hf.evaluation.report import EvaluationReport
from sed_hf.files import written_at_once
from sed_hf.pipeline_sed import SEDPipeline
from sed_hf.segmentation import Job, plan_jobs, write_results

NUM_THREADS = 6
NAMES = ["sky", "grass, lawn", "gravel", "water", "red triangle", "blue ring", "white bar", "sand"]
PICTURES = [np.random.default_rng(seed).integers(0, 256, (64 + 32 * seed, 96, 3), dtype=np.uint8) for seed in range(3)]


@pytest.fixture(autouse=True)
def _threads_take_turns_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture
def fresh() -> tuple[SEDForSemanticSegmentation, SEDProcessor]:
    """A model and a processor that nobody has used yet."""
    model = SEDForSemanticSegmentation.from_pretrained(MODEL_IN_THE_BOX).eval()
    return model, SEDProcessor.from_pretrained(MODEL_IN_THE_BOX)


def at_once(function: Callable[[int], Any], repetitions: int = 1) -> list[Any]:
    """What a function returns for each number of a thread, when all threads start together."""
    barrier = threading.Barrier(NUM_THREADS)

    def call(number: int) -> list[Any]:
        barrier.wait()
        return [function(number) for _ in range(repetitions)]

    with ThreadPoolExecutor(NUM_THREADS) as executor:
        return [result for results in executor.map(call, range(NUM_THREADS)) for result in results]


def test_threads_that_share_a_model_get_its_results_from_the_first_call_on(
    fresh: tuple[SEDForSemanticSegmentation, SEDProcessor],
) -> None:
    model, processor = fresh

    @torch.no_grad()
    def logits(number: int) -> Tensor:
        inputs = processor(images=PICTURES[number % 3], text=NAMES[: 3 + number], return_tensors="pt")
        return model(**inputs, early_rejection_topk=number % 2).logits

    together = at_once(logits)
    for number, result in enumerate(together):
        torch.testing.assert_close(result, logits(number), rtol=0, atol=1e-5)


@pytest.fixture
def segmenter(fresh: tuple[SEDForSemanticSegmentation, SEDProcessor]) -> SEDPipeline:
    """A pipeline that nobody has used yet."""
    model, processor = fresh
    return SEDPipeline(model=model, processor=processor, image_processor=processor.image_processor)


def test_threads_that_share_a_pipeline_get_its_results(segmenter: SEDPipeline) -> None:
    def label_map(number: int) -> np.ndarray:
        return segmenter(Image.fromarray(PICTURES[number % 3]), candidate_labels=NAMES[: 2 + number]).label_map

    together = at_once(label_map)
    assert all(np.array_equal(result, label_map(number)) for number, result in enumerate(together))


def test_threads_that_share_a_pipeline_may_ask_for_more_vocabularies_than_it_keeps(
    segmenter: SEDPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_sed, "VOCABULARIES_IN_MEMORY", 1)
    monkeypatch.setattr(pipeline_sed, "encode_classes", lambda model, processor, names, cache: torch.zeros(len(names)))

    def encode(number: int) -> None:
        for num_classes in (2 + number, 3 + number):
            names, embeddings = segmenter._encode(tuple(NAMES[:num_classes]))
            assert len(names) == len(embeddings) == num_classes

    at_once(encode, repetitions=5000)


def test_a_cached_embedding_is_never_read_half_or_lost(tmp_path: Path) -> None:
    embedding = torch.randn(80, 640, generator=torch.Generator().manual_seed(0))
    ClassEmbeddingCache(tmp_path).save("encoder", "cat", embedding)

    def write_and_read(number: int) -> bool:
        cache = ClassEmbeddingCache(tmp_path)
        cache.save("encoder", "cat", embedding)
        found = cache.load("encoder", "cat")
        return found is not None and torch.equal(found, embedding)

    assert all(at_once(write_and_read, repetitions=10))
    assert [path.suffix for path in (tmp_path / "encoder").iterdir()] == [".safetensors"]


def test_results_that_several_write_at_once_are_always_whole(tmp_path: Path) -> None:
    [job] = plan_jobs([Path("photo.png")], tmp_path)
    assert isinstance(job, Job)

    def write_and_read(number: int) -> None:
        picture = Image.fromarray(PICTURES[number % 3])
        labels = np.full(PICTURES[number % 3].shape[:2], number % 3)
        result = {"segmentation": labels, "probability": np.ones(labels.shape)}
        write_results(job, picture, result, NAMES, None, "stub")
        with Image.open(job.labels) as image:
            assert len(np.unique(np.asarray(image))) == 1
        with Image.open(job.overlay) as image:
            image.load()

    at_once(write_and_read, repetitions=4)
    json.loads(job.summary.read_text())
    assert {path.name for path in tmp_path.iterdir()} == {job.overlay.name, job.labels.name, job.summary.name}


def test_a_file_is_that_of_one_of_its_writers(tmp_path: Path) -> None:
    def write(number: int) -> None:
        with written_at_once(tmp_path / "file") as path, path.open("w") as file:
            for _ in range(50):
                file.write(str(number))
                file.flush()

    at_once(write, repetitions=5)
    content = (tmp_path / "file").read_text()
    assert (len(content), len(set(content))) == (50, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_benchmark_that_is_prepared_twice_at_once_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(prepare, "IMAGES_PER_SHARD", 2)
    write_ade20k_150(tmp_path / "raw", {f"ADE_val_0000000{index}": np.full((2, 3), index) for index in range(1, 6)})
    at_once(lambda number: prepare_benchmark("ade20k_150", tmp_path / "raw", tmp_path / "out", progress=False))
    dataset = load_benchmark("ade20k_150", tmp_path / "out")
    assert [int(np.asarray(example["label"])[0, 0]) for example in dataset] == [0, 1, 2, 3, 4]
    assert sorted(path.name for path in (tmp_path / "out" / "data").iterdir()) == [
        f"val-0000{index}-of-00003.parquet" for index in range(3)
    ]


def test_evaluations_of_different_sets_into_one_folder_keep_the_results_of_both(tmp_path: Path) -> None:
    def finish(report: EvaluationReport, names: Sequence[str]) -> None:
        report.benchmarks |= {name: {"num_images": 1, "figures": {"mIoU": 1.0}} for name in names}
        report.save()

    first, second = (EvaluationReport.open(tmp_path, {"model": "sed"}) for _ in range(2))
    finish(first, ["ade20k_150"])
    finish(second, ["scenes"])
    assert list(EvaluationReport.open(tmp_path, {"model": "sed"}).benchmarks) == ["ade20k_150", "scenes"]
