"""Benchmarks as Parquet files: what is written, how an interrupted run goes on, and that `load_benchmark` reads it."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import fsspec
import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
from planted import PLANTS, listing
from raw_copies import write_ade20k_150, write_ade20k_847, write_coco_stuff, write_own_data, write_pascal_voc

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
    def test_gives_the_examples_class_names_and_ignored_label_of_the_raw_data(
        self, streaming: bool, raw: Path, output: Path
    ) -> None:
        prepare_benchmark("ade20k_150", raw, output)
        prepared, expected = (
            load_benchmark("ade20k_150", output, streaming=streaming),
            load_benchmark("ade20k_150", raw),
        )
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
    def test_keeps_the_background_of_voc_20b_and_drops_images_without_a_labelled_pixel_though_they_fill_a_file(
        self, streaming: bool, tmp_path: Path, output: Path
    ) -> None:
        write_pascal_voc(tmp_path / "raw", {"2007_000033": np.full((1, 2), 255), "2007_000042": np.array([[0, 1]])})
        prepare_benchmark("pascal_voc_20b", tmp_path / "raw", output, images_per_shard=1)
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

    @pytest.mark.parametrize("kind", ["16-bit grey", "RGBA", "turned by EXIF"])
    def test_of_own_data_stores_classes_and_what_the_model_is_given(
        self, kind: str, tmp_path: Path, output: Path
    ) -> None:
        write_own_data(tmp_path / "raw", {"a": np.zeros((6, 4))}, ["cat", "dog"])
        rng, path = np.random.default_rng(0), tmp_path / "raw" / "images" / "a.jpg"
        if kind == "16-bit grey":
            PIL.Image.fromarray(rng.integers(0, 65536, (6, 4), dtype=np.uint16)).save(path, format="PNG")
        elif kind == "RGBA":
            PIL.Image.fromarray(rng.integers(0, 256, (6, 4, 4), dtype=np.uint8)).save(path, format="PNG")
        else:
            exif = PIL.Image.Exif()
            exif[0x0112] = 6
            PIL.Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)).save(path, exif=exif)
        given = load_benchmark("custom", tmp_path / "raw")
        prepare_benchmark("custom", tmp_path / "raw", output)
        prepared = load_benchmark("custom", output)
        assert_same_examples(prepared, given)
        assert prepared.features["label"].names == ["cat", "dog"]
        assert_same_examples(datasets.load_dataset(str(output), split="val"), given)  # without this package

    @pytest.mark.parametrize("folder", ["ade20k_150", "run [1]*"])
    def test_is_found_in_a_folder_of_the_benchmarks_name_or_one_that_looks_like_a_pattern(
        self, folder: str, raw: Path, tmp_path: Path
    ) -> None:
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

    @pytest.mark.parametrize("change", ["another benchmark", "other files", "other sizes of files"])
    def test_files_of_other_runs_are_not_mixed(self, change: str, raw: Path, output: Path) -> None:
        prepare_benchmark("ade20k_150", raw, output, images_per_shard=2)
        name, images_per_shard = "ade20k_150", 2
        if change == "another benchmark":
            name = "ade20k_847"
            write_ade20k_847(raw, {"ADE_val_00000001": np.full((2, 2), 2978)})
        elif change == "other files":
            write_ade20k_150(raw, {"ADE_val_00000006": np.full((2, 2), 1)})
        else:
            images_per_shard = 3
        with pytest.raises(ValueError, match="belongs to another benchmark, or was written from other files"):
            prepare_benchmark(name, raw, output, images_per_shard=images_per_shard)

    def test_reading_a_folder_as_another_benchmark_is_refused(self, raw: Path, output: Path) -> None:
        prepare_benchmark("ade20k_150", raw, output)
        with pytest.raises(ValueError, match="holds the benchmark ade20k_150, not ade20k_847"):
            load_benchmark("ade20k_847", output)

    def test_a_label_of_another_size_than_its_image_is_reported(self, raw: Path, output: Path) -> None:
        PIL.Image.new("L", (9, 9)).save(next(raw.rglob("ADE_val_00000002.png")))
        with pytest.raises(ValueError, match=r"ADE_val_00000002\.jpg has 3×2 pixels, but its label map 9×9"):
            prepare_benchmark("ade20k_150", raw, output)

    @pytest.mark.parametrize("change", ["of another version", "damaged"])
    def test_a_file_that_cannot_be_read_is_named(self, change: str, raw: Path, output: Path) -> None:
        prepare_benchmark("ade20k_150", raw, output)
        (shard,) = output.glob("data/*.parquet")
        if change == "damaged":
            shard.write_bytes(shard.read_bytes()[:1000])
        else:
            table = pq.read_table(shard)
            metadata = json.loads(table.schema.metadata[b"sed_hf"]) | {"format": 1}
            pq.write_table(table.replace_schema_metadata({"sed_hf": json.dumps(metadata)}), shard)
        message = f"{shard} was (not written by scripts|written by another version)"
        with pytest.raises(ValueError, match=message):
            load_benchmark("ade20k_150", output)
        with pytest.raises(ValueError, match=message):
            prepare_benchmark("ade20k_150", raw, output)


class TestForeignFiles:
    """Nothing outside the folder and nothing foreign in it is touched."""

    @pytest.mark.parametrize("kind", PLANTS)
    @pytest.mark.parametrize("name", ["README.md", "data", "data/val-00000-of-00001.parquet"])
    def test_at_a_name_of_the_run_are_refused_and_kept(
        self, name: str, kind: str, raw: Path, output: Path, precious: Path, tmp_path: Path
    ) -> None:
        if (name, kind) == ("data", "folder"):
            pytest.skip("a folder of that name is filled")
        planted = output / name
        planted.parent.mkdir(parents=True)
        PLANTS[kind](planted, precious)
        before = listing(tmp_path)
        with pytest.raises((ValueError, OSError), match=str(planted)):
            prepare_benchmark("ade20k_150", raw, output)
        assert listing(tmp_path) == before

    def test_beside_the_files_of_the_run_stay(self, raw: Path, output: Path, precious: Path) -> None:
        (output / "data").mkdir(parents=True)
        PLANTS["folder"](output / "data" / ".x.part", precious)
        PLANTS["link to a folder"](output / "data" / ".val-00000-of-00001.parquet.part", precious)
        prepare_benchmark("ade20k_150", raw, output)
        assert listing(output / "data" / ".x.part") == listing(precious) == {"thesis.txt": b"mine"}
        assert len(load_benchmark("ade20k_150", output)) == 5


class TestScript:
    @pytest.fixture
    def run(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
        def run(*arguments: object) -> int:
            monkeypatch.setattr(sys, "argv", ["prepare_dataset.py", *map(str, arguments)])
            return runpy.run_path(str(SCRIPT))["main"]()

        return run

    def test_writes_the_same_in_several_processes(self, run: Callable[..., int], tmp_path: Path) -> None:
        labels = {f"ADE_val_{index:08d}": np.full((2, 3), index % 150) for index in range(300)}
        write_ade20k_150(tmp_path / "raw", labels)
        for folder, num_proc in (("one", 1), ("two", 2)):
            arguments = ["--data-dir", tmp_path / "raw", "--output", tmp_path / folder, "--num-proc", num_proc]
            assert run("ade20k_150", *arguments) == 0
        for path in (tmp_path / "one").rglob("*.*"):
            assert (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes() == path.read_bytes()

    def test_uploads_the_card_and_the_files_to_a_private_repository(
        self, run: Callable[..., int], raw: Path, output: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: dict[str, dict[str, Any]] = {}

        class RecordingHub:
            def create_repo(self, repo_id: str, **options: Any) -> None:
                calls["create_repo"] = {"repo_id": repo_id, **options}

            def upload_folder(self, **options: Any) -> SimpleNamespace:
                calls["upload_folder"] = options
                return SimpleNamespace(commit_url="https://hub/commit")

        monkeypatch.setattr("sed_hf.data.prepare.HfApi", RecordingHub)
        run("ade20k_150", "--data-dir", raw, "--output", output, "--push-to-hub", "user/ade20k")
        options = {"repo_id": "user/ade20k", "repo_type": "dataset"}
        assert calls["create_repo"] == {**options, "private": True, "exist_ok": True}
        uploaded = {"folder_path": output, "allow_patterns": ["README.md", "data/*.parquet"]}
        assert calls["upload_folder"] == options | uploaded
