"""Benchmarks as Parquet files: what is written, how an interrupted run goes on, and that `load_benchmark` reads it."""

import runpy
import sys
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import datasets
import fsspec
import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
from planted import PLANTS, listing
from raw_copies import write_ade20k_150, write_ade20k_847, write_coco_stuff, write_own_data, write_pascal_voc

from sed_hf import SEDImageProcessor
from sed_hf.data import load_benchmark
from sed_hf.data.prepare import prepare_benchmark

SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare_dataset.py"

each_way = pytest.mark.parametrize("streaming", [False, True])


@pytest.fixture(autouse=True)
def _empty_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw copy of A-150 with five images, whose labels are the classes 0 to 4."""
    labels = {f"ADE_val_0000000{index}": np.full((2, 3), index) for index in range(1, 6)}
    write_ade20k_150(tmp_path / "raw", labels)
    return tmp_path / "raw"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "prepared"


def first_labels(dataset: Any) -> list[int]:
    return [np.asarray(example["label"])[0, 0] for example in dataset]


def assert_same_examples(dataset: Any, expected: Any) -> None:
    for example, other in zip(dataset, expected, strict=True):
        assert example["file_name"] == other["file_name"]
        for column in ("image", "label"):
            np.testing.assert_array_equal(np.asarray(example[column]), np.asarray(other[column]))


class TestRoundTrip:
    @each_way
    def test_gives_the_examples_and_classes_of_the_raw_data(self, streaming: bool, raw: Path, output: Path) -> None:
        prepare_benchmark("ade20k_150", raw, output)
        prepared = load_benchmark("ade20k_150", output, streaming=streaming)
        expected = load_benchmark("ade20k_150", raw)
        assert_same_examples(prepared, expected)
        label, expected_label = prepared.features["label"], expected.features["label"]
        assert (label.names, label.ignore_index) == (expected_label.names, expected_label.ignore_index)

    def test_keeps_the_size_compression_and_16_bit_labels_of_a_847(self, tmp_path: Path, output: Path) -> None:
        labels = np.random.default_rng(0).choice([3148, 312], (700, 1024))
        write_ade20k_847(tmp_path / "raw", {"ADE_val_00000001": labels})
        prepare_benchmark("ade20k_847", tmp_path / "raw", output)
        prepared = load_benchmark("ade20k_847", output)
        assert prepared[0]["label"].size == (749, 512)
        assert_same_examples(prepared, load_benchmark("ade20k_847", tmp_path / "raw"))

    @each_way
    def test_keeps_the_background_of_voc_20b(self, streaming: bool, tmp_path: Path, output: Path) -> None:
        write_pascal_voc(tmp_path / "raw", {"2007_000042": np.array([[0, 1]])})
        prepare_benchmark("pascal_voc_20b", tmp_path / "raw", output)
        dataset = load_benchmark("pascal_voc_20b", output, streaming=streaming)
        (example,) = dataset
        assert dataset.features["label"].background_index == 20
        np.testing.assert_array_equal(np.asarray(example["label"]), [[20, 0]])

    def test_holds_several_splits_in_one_folder(self, tmp_path: Path, output: Path) -> None:
        for split in ("train", "val"):
            write_coco_stuff(tmp_path / "raw", {f"of_{split}": np.array([[0, 1]])}, split=split)
            prepare_benchmark("coco_stuff_171", tmp_path / "raw", output, split)
        for split in ("train", "val"):
            assert load_benchmark("coco_stuff_171", output, split)["file_name"] == [f"of_{split}.jpg"]

    def test_embeds_image_files_unchanged_where_all_readers_see_the_same(self, raw: Path, output: Path) -> None:
        prepare_benchmark("ade20k_150", raw, output)
        dataset = load_benchmark("ade20k_150", output).cast_column("image", datasets.Image(decode=False))
        assert dataset[0]["image"]["bytes"] == next(raw.rglob("ADE_val_00000001.jpg")).read_bytes()

    @pytest.mark.parametrize(
        ("shape", "dtype", "orientation"),
        [
            pytest.param((6, 4), np.uint16, 1, id="16-bit grey"),
            pytest.param((6, 4, 4), np.uint8, 1, id="RGBA"),
            pytest.param((4, 6, 3), np.uint8, 6, id="turned by EXIF"),
        ],
    )
    def test_of_own_data_gives_classes_and_images_as_the_processor_reads_their_files(
        self, shape: tuple[int, ...], dtype: type[np.integer], orientation: int, tmp_path: Path, output: Path
    ) -> None:
        write_own_data(tmp_path / "raw", {"a": np.zeros((6, 4))}, ["cat", "dog"])
        path, exif = tmp_path / "raw" / "images" / "a.jpg", PIL.Image.Exif()
        exif[0x0112] = orientation
        pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype)
        PIL.Image.fromarray(pixels).save(path, format="PNG", exif=exif)
        processor = SEDImageProcessor(do_resize=False, do_input_resize=False, do_normalize=False, do_rescale=False)
        expected = processor(images=str(path), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)

        given = load_benchmark("custom", tmp_path / "raw")
        np.testing.assert_array_equal(np.asarray(given[0]["image"]), expected)
        prepare_benchmark("custom", tmp_path / "raw", output)
        prepared = load_benchmark("custom", output)
        assert_same_examples(prepared, given)
        assert prepared.features["label"].names == ["cat", "dog"]
        assert_same_examples(datasets.load_dataset(str(output), split="val"), given)  # without this package

    @pytest.mark.parametrize("folder", ["ade20k_150", "run [1]*"])
    def test_is_found_in_a_folder_of_any_name_and_beside_others(self, folder: str, raw: Path, tmp_path: Path) -> None:
        prepare_benchmark("ade20k_150", raw, tmp_path / folder)
        data_dir = tmp_path if folder == "ade20k_150" else tmp_path / folder
        assert len(load_benchmark("ade20k_150", data_dir)) == 5

    def test_is_streamed_from_any_file_system_of_fsspec(self, raw: Path, output: Path) -> None:
        prepare_benchmark("ade20k_150", raw, output)
        fsspec.filesystem("memory").put(str(output), "/remote", recursive=True)
        assert first_labels(load_benchmark("ade20k_150", "memory://remote", streaming=True)) == [0, 1, 2, 3, 4]


def test_after_an_error_complete_files_are_kept_and_the_rest_is_written(raw: Path, output: Path) -> None:
    label = next(raw.rglob("ADE_val_00000003.png"))
    content = label.read_bytes()
    label.write_bytes(content[:50])
    with pytest.raises(ValueError, match=r"ADE_val_00000003\.png"):
        prepare_benchmark("ade20k_150", raw, output, images_per_shard=2)
    (first,) = (output / "data").iterdir()
    assert first.name == "val-00000-of-00003.parquet"
    written_at = first.stat().st_mtime_ns

    label.write_bytes(content)
    prepare_benchmark("ade20k_150", raw, output, images_per_shard=2)
    assert first.stat().st_mtime_ns == written_at
    assert first_labels(load_benchmark("ade20k_150", output)) == [0, 1, 2, 3, 4]


class TestErrors:
    def test_an_incomplete_folder_is_refused(self, raw: Path, output: Path) -> None:
        prepare_benchmark("ade20k_150", raw, output, images_per_shard=2)
        (output / "data" / "val-00001-of-00003.parquet").unlink()
        with pytest.raises(ValueError, match="2 of the 3 files of the split val: run scripts"):
            load_benchmark("ade20k_150", output)

    @pytest.mark.parametrize(("name", "size"), [(6, 2), (5, 2), (1, 3)], ids=["images", "masks", "sizes"])
    def test_files_of_other_data_or_sizes_are_not_mixed(self, name: int, size: int, raw: Path, output: Path) -> None:
        prepare_benchmark("ade20k_150", raw, output, images_per_shard=2)
        write_ade20k_150(raw, {f"ADE_val_0000000{name}": np.full((2, 3), 1)})
        with pytest.raises(ValueError, match="belongs to another benchmark, or was written from other images, masks"):
            prepare_benchmark("ade20k_150", raw, output, images_per_shard=size)

    def test_reading_a_folder_as_another_benchmark_is_refused(self, raw: Path, output: Path) -> None:
        prepare_benchmark("ade20k_150", raw, output)
        with pytest.raises(ValueError, match="holds the benchmark ade20k_150, not ade20k_847"):
            load_benchmark("ade20k_847", output)

    def test_a_label_of_another_size_than_its_image_is_reported(self, raw: Path, output: Path) -> None:
        PIL.Image.new("L", (9, 9)).save(next(raw.rglob("ADE_val_00000002.png")))
        with pytest.raises(ValueError, match=r"ADE_val_00000002\.jpg has 3×2 pixels, but its label map 9×9"):
            prepare_benchmark("ade20k_150", raw, output)

    @pytest.mark.parametrize("metadata", [None, "{}"], ids=["damaged", "of another version"])
    def test_a_file_that_cannot_be_read_is_named(self, metadata: str | None, raw: Path, output: Path) -> None:
        prepare_benchmark("ade20k_150", raw, output)
        (shard,) = output.glob("data/*.parquet")
        if metadata is None:
            shard.write_bytes(shard.read_bytes()[:1000])
        else:
            pq.write_table(pq.read_table(shard).replace_schema_metadata({"sed_hf": metadata}), shard)
        message = f"{shard} was (not written by scripts|written by another version)"
        with pytest.raises(ValueError, match=message):
            load_benchmark("ade20k_150", output)
        with pytest.raises(ValueError, match=message):
            prepare_benchmark("ade20k_150", raw, output)


PLANTED = list(product(["README.md", "data", "data/val-00000-of-00001.parquet"], PLANTS))
PLANTED.remove(("data", "folder"))  # which is filled


@pytest.mark.parametrize(("name", "kind"), PLANTED)
def test_foreign_files_at_a_name_of_the_run_are_refused_and_kept(
    name: str, kind: str, raw: Path, output: Path, precious: Path, tmp_path: Path
) -> None:
    planted = output / name
    planted.parent.mkdir(parents=True)
    PLANTS[kind](planted, precious)
    before = listing(tmp_path)
    with pytest.raises((ValueError, OSError), match=str(planted)):
        prepare_benchmark("ade20k_150", raw, output)
    assert listing(tmp_path) == before


def test_several_processes_write_the_same_as_one(tmp_path: Path) -> None:
    labels = {f"ADE_val_{index:08d}": np.full((2, 3), index % 150) for index in range(300)}
    write_ade20k_150(tmp_path / "raw", labels)
    for num_proc in (1, 2):
        prepare_benchmark("ade20k_150", tmp_path / "raw", tmp_path / f"{num_proc}", num_proc=num_proc)
    for path in (tmp_path / "1").rglob("*.*"):
        assert (tmp_path / "2" / path.relative_to(tmp_path / "1")).read_bytes() == path.read_bytes()


def test_the_script_uploads_to_a_private_repository(raw: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Mock()
    monkeypatch.setattr("sed_hf.data.prepare.HfApi", lambda: hub)
    arguments = ["ade20k_150", "--data-dir", str(raw), "--output", str(output), "--push-to-hub", "user/ade20k"]
    monkeypatch.setattr(sys, "argv", ["prepare_dataset.py", *arguments])
    assert runpy.run_path(str(SCRIPT))["main"]() == 0
    hub.create_repo.assert_called_once_with("user/ade20k", repo_type="dataset", private=True, exist_ok=True)
    files = {"folder_path": output, "allow_patterns": ["README.md", "data/*.parquet"]}
    hub.upload_folder.assert_called_once_with(repo_id="user/ade20k", repo_type="dataset", **files)


def test_the_script_prepares_all_splits_of_own_data(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "val"):
        write_own_data(tmp_path / "own", {f"of_{split}": np.zeros((1, 1))}, ["cat"], split)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "custom", f"--data-dir={tmp_path / 'own'}", f"--output={output}"])
    assert runpy.run_path(str(SCRIPT))["main"]() == 0
    assert len(list(output.glob("data/*.parquet"))) == 2
