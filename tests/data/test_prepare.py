"""Benchmarks as Parquet files: what is written, how an interrupted run goes on, and that `load_benchmark` reads it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import fsspec
import numpy as np
import PIL.Image
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from raw_copies import write_ade20k_150, write_ade20k_847, write_coco_stuff, write_own_data, write_pascal_voc

from sed_hf.data import prepare
from sed_hf.data.benchmarks import load_benchmark
from sed_hf.data.parquet import METADATA_KEY
from sed_hf.data.prepare import prepare_benchmark

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(autouse=True)
def _empty_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def two_image_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "IMAGES_PER_SHARD", 2)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw copy of A-150 with five images, whose labels are the classes 0 to 4."""
    labels = {f"ADE_val_0000000{index}": np.full((2, 3), index) for index in range(1, 6)}
    write_ade20k_150(tmp_path / "raw", labels)
    return tmp_path / "raw"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "prepared"


def labels_of(dataset: datasets.Dataset | datasets.IterableDataset) -> list[NDArray[np.integer]]:
    return [np.asarray(example["label"]) for example in dataset]


def damage(path: Path) -> bytes:
    """Cut a file in half, and return what it held."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return content


class TestRoundTrip:
    @pytest.mark.parametrize("streaming", [False, True])
    def test_gives_the_examples_of_the_raw_data(self, streaming: bool, raw: Path, output: Path) -> None:
        prepare_benchmark("ade20k_150", raw, output)
        expected = load_benchmark("ade20k_150", raw)
        examples = list(load_benchmark("ade20k_150", output, streaming=streaming))
        assert [example["file_name"] for example in examples] == expected["file_name"]
        for example, raw_example in zip(examples, expected, strict=True):
            np.testing.assert_array_equal(np.asarray(example["image"]), np.asarray(raw_example["image"]))
            np.testing.assert_array_equal(np.asarray(example["label"]), np.asarray(raw_example["label"]))

    @pytest.mark.parametrize("streaming", [False, True])
    def test_keeps_class_names_and_ignore_index(self, streaming: bool, raw: Path, output: Path) -> None:
        prepare_benchmark("ade20k_150", raw, output)
        label = load_benchmark("ade20k_150", output, streaming=streaming).features["label"]
        assert label == load_benchmark("ade20k_150", raw).features["label"].prepared()

    def test_keeps_16_bit_labels_and_the_capped_size(self, tmp_path: Path, output: Path) -> None:
        write_ade20k_847(tmp_path / "raw", {"ADE_val_00000001": np.full((300, 1024), 3148)})
        prepare_benchmark("ade20k_847", tmp_path / "raw", output)
        example = load_benchmark("ade20k_847", output)[0]
        np.testing.assert_array_equal(np.asarray(example["label"]), np.full((150, 512), 846, np.uint16))
        expected = load_benchmark("ade20k_847", tmp_path / "raw")[0]["image"]
        np.testing.assert_array_equal(np.asarray(example["image"]), np.asarray(expected))

    def test_keeps_the_background_of_voc_20b(self, tmp_path: Path, output: Path) -> None:
        write_pascal_voc(tmp_path / "raw", {"2007_000033": np.array([[0, 1]])})
        prepare_benchmark("pascal_voc_20b", tmp_path / "raw", output)
        dataset = load_benchmark("pascal_voc_20b", output)
        assert dataset.features["label"].background_index == 20
        np.testing.assert_array_equal(labels_of(dataset)[0], [[20, 0]])

    def test_drops_voc_images_without_a_labelled_pixel(self, tmp_path: Path, output: Path) -> None:
        labels = {"2007_000033": np.array([[0, 255]]), "2007_000042": np.array([[0, 1]])}
        write_pascal_voc(tmp_path / "raw", labels)
        prepare_benchmark("pascal_voc_20", tmp_path / "raw", output)
        assert load_benchmark("pascal_voc_20", output)["file_name"] == ["2007_000042.jpg"]

    def test_may_begin_with_any_number_of_images_without_a_labelled_pixel(
        self, tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(prepare, "IMAGES_PER_ROW_GROUP", 1)
        write_pascal_voc(tmp_path, {"2007_000033": np.zeros((2, 2)), "2007_000042": np.ones((2, 2))})
        prepare_benchmark("pascal_voc_20", tmp_path, output)
        for streaming in (False, True):
            (example,) = load_benchmark("pascal_voc_20", output, streaming=streaming)
            assert example["file_name"] == "2007_000042.jpg"

    def test_holds_several_splits_in_one_folder(self, tmp_path: Path, output: Path) -> None:
        for split in ("train", "val"):
            write_coco_stuff(tmp_path / "raw", {f"{split}_image": np.array([[0, 1]])}, split=split)
            prepare_benchmark("coco_stuff_171", tmp_path / "raw", output, split)
        assert load_benchmark("coco_stuff_171", output, "train")["file_name"] == ["train_image.jpg"]
        assert load_benchmark("coco_stuff_171", output, "val")["file_name"] == ["val_image.jpg"]

    def test_works_for_own_data(self, tmp_path: Path, output: Path) -> None:
        write_own_data(tmp_path / "raw", {"a": np.array([[0, 1, 255]], np.uint8)}, ["cat", "dog"])
        prepare_benchmark("custom", tmp_path / "raw", output)
        dataset = load_benchmark("custom", output)
        assert dataset.features["label"].names == ["cat", "dog"]
        np.testing.assert_array_equal(labels_of(dataset)[0], [[0, 1, 255]])

    def test_embeds_image_files_unchanged(self, raw: Path, output: Path) -> None:
        prepare_benchmark("ade20k_150", raw, output)
        dataset = load_benchmark("ade20k_150", output).cast_column("image", datasets.Image(decode=False))
        (path,) = raw.rglob("ADE_val_00000001.jpg")
        assert dataset[0]["image"]["bytes"] == path.read_bytes()

    def test_is_found_in_a_folder_of_the_benchmarks_name(self, raw: Path, tmp_path: Path) -> None:
        prepare_benchmark("ade20k_150", raw, tmp_path / "ade20k_150")
        assert len(load_benchmark("ade20k_150", tmp_path)) == 5

    @pytest.mark.parametrize("streaming", [False, True])
    def test_is_found_in_a_folder_whose_name_looks_like_a_pattern(
        self, streaming: bool, raw: Path, tmp_path: Path
    ) -> None:
        prepare_benchmark("ade20k_150", raw, tmp_path / "run [1]*")
        assert len(list(load_benchmark("ade20k_150", tmp_path / "run [1]*", streaming=streaming))) == 5

    def test_is_streamed_from_any_file_system_of_fsspec(self, raw: Path, output: Path) -> None:
        prepare_benchmark("ade20k_150", raw, output)
        fsspec.filesystem("memory").put(str(output), "/remote", recursive=True)
        stream = load_benchmark("ade20k_150", "memory://remote", streaming=True)
        assert [label[0, 0] for label in labels_of(stream)] == [0, 1, 2, 3, 4]

    def test_is_a_folder_that_load_dataset_reads_without_this_package(self, raw: Path, output: Path) -> None:
        prepare_benchmark("ade20k_150", raw, output)
        dataset = datasets.load_dataset(str(output), split="val")
        assert dataset.features["label"] == datasets.Image()
        np.testing.assert_array_equal(labels_of(dataset)[4], np.full((2, 3), 4))


class TestInterruption:
    @pytest.mark.usefixtures("two_image_shards")
    def test_keeps_complete_shards_and_writes_the_rest(self, raw: Path, output: Path) -> None:
        (label,) = raw.rglob("ADE_val_00000003.png")
        content = damage(label)
        with pytest.raises(ValueError, match=r"ADE_val_00000003\.png"):
            prepare_benchmark("ade20k_150", raw, output)
        first = output / "data" / "val-00000-of-00003.parquet"
        written_at = first.stat().st_mtime_ns

        label.write_bytes(content)
        prepare_benchmark("ade20k_150", raw, output)
        assert first.stat().st_mtime_ns == written_at
        assert [label[0, 0] for label in labels_of(load_benchmark("ade20k_150", output))] == [0, 1, 2, 3, 4]

    @pytest.mark.usefixtures("two_image_shards")
    def test_leaves_no_shard_under_its_name_before_it_is_complete(self, raw: Path, output: Path) -> None:
        damage(next(raw.rglob("ADE_val_00000004.png")))
        with pytest.raises(ValueError, match=r"ADE_val_00000004\.png"):
            prepare_benchmark("ade20k_150", raw, output)
        assert [path.name for path in (output / "data").iterdir()] == ["val-00000-of-00003.parquet"]

    @pytest.mark.usefixtures("two_image_shards")
    def test_leaves_a_folder_that_is_refused_as_incomplete(self, raw: Path, output: Path) -> None:
        prepare_benchmark("ade20k_150", raw, output)
        (output / "data" / "val-00001-of-00003.parquet").unlink()
        with pytest.raises(ValueError, match="2 of the 3 files of the split val: run scripts"):
            load_benchmark("ade20k_150", output)

    @pytest.mark.usefixtures("two_image_shards")
    def test_does_not_mix_shards_of_other_raw_data(self, raw: Path, output: Path) -> None:
        prepare_benchmark("ade20k_150", raw, output)
        write_ade20k_150(raw, {"ADE_val_00000006": np.full((2, 2), 1)})
        with pytest.raises(ValueError, match="was written from other raw files"):
            prepare_benchmark("ade20k_150", raw, output)


class TestSignals:
    @pytest.fixture
    def run(self, tmp_path: Path, output: Path) -> Any:
        """The script at work in two processes, as the leader of a session of its own."""
        labels = {f"ADE_val_{index:08d}": np.full((2, 3), index % 150) for index in range(1, 501)}
        write_ade20k_150(tmp_path / "raw", labels)
        arguments = ["ade20k_150", "--data-dir", tmp_path / "raw", "--output", output, "--num-proc", "2"]
        process = subprocess.Popen(
            [sys.executable, SCRIPTS / "prepare_dataset.py", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while not list(output.glob("data/.*.part")):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return process

    @staticmethod
    def wait_for_all_of_session(process: Any) -> None:
        deadline = time.monotonic() + 20
        while any(os.getsid(pid) == process.pid for pid in psutil.pids() if psutil.pid_exists(pid)):
            assert time.monotonic() < deadline, "a process lives on"
            time.sleep(0.05)

    def test_ctrl_c_ends_all_processes_with_one_line_and_nothing_half_written(self, run: Any, output: Path) -> None:
        os.killpg(run.pid, signal.SIGINT)
        last_line = run.stderr.read().splitlines()[-1]
        assert last_line == "prepare_dataset.py: interrupted; the same command goes on where it stopped"
        assert run.wait() == 130
        self.wait_for_all_of_session(run)
        assert not list(output.glob("data/.*"))

    def test_the_other_processes_end_with_one_that_is_killed(self, run: Any) -> None:
        run.kill()
        run.wait()
        self.wait_for_all_of_session(run)


class TestErrors:
    def test_two_benchmarks_in_one_folder_are_refused(self, raw: Path, output: Path) -> None:
        prepare_benchmark("ade20k_150", raw, output)
        write_ade20k_847(raw, {"ADE_val_00000001": np.full((2, 2), 2978)})
        with pytest.raises(ValueError, match="belongs to another benchmark"):
            prepare_benchmark("ade20k_847", raw, output)

    def test_reading_a_folder_as_another_benchmark_is_refused(self, raw: Path, output: Path) -> None:
        prepare_benchmark("ade20k_150", raw, output)
        with pytest.raises(ValueError, match="holds the benchmark ade20k_150, not ade20k_847"):
            load_benchmark("ade20k_847", output)

    def test_a_label_of_another_size_than_its_image_is_reported(self, raw: Path, output: Path) -> None:
        (path,) = raw.rglob("ADE_val_00000002.png")
        PIL.Image.new("L", (9, 9)).save(path)
        with pytest.raises(ValueError, match=r"ADE_val_00000002\.jpg has 3×2 pixels, but its label map 9×9"):
            prepare_benchmark("ade20k_150", raw, output)


def rewrite(shard: Path, change: Callable[[list[dict[str, Any]]], Any], metadata: dict[str, Any] | None = None) -> None:
    """Change the rows of a shard, or what its metadata say."""
    table = pq.read_table(shard)
    rows = table.to_pylist()
    change(rows)
    schema = table.schema
    if metadata is not None:
        stated = {**json.loads(schema.metadata[METADATA_KEY]), **metadata}
        schema = schema.with_metadata({**schema.metadata, METADATA_KEY: json.dumps(stated).encode()})
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), shard)


class TestForeignFiles:
    @pytest.fixture
    def shard(self, raw: Path, output: Path) -> Path:
        prepare_benchmark("ade20k_150", raw, output)
        return next(output.glob("data/*.parquet"))

    @pytest.mark.parametrize("streaming", [False, True])
    def test_a_path_in_place_of_a_picture_is_not_followed(self, shard: Path, output: Path, streaming: bool) -> None:
        rewrite(shard, lambda rows: rows[0].update(image={"path": "/etc/passwd", "bytes": None}))
        with pytest.raises(ValueError, match=rf"{shard.name}.* has rows without a picture or a label"):
            list(load_benchmark("ade20k_150", output, streaming=streaming))

    @pytest.mark.parametrize(
        "metadata",
        [{"names": "sky"}, {"names": [1]}, {"ignore_index": 7}, {"ignore_index": "255"}, {"background_index": -1}],
        ids=str,
    )
    def test_metadata_of_another_form_are_refused(self, shard: Path, output: Path, metadata: dict[str, Any]) -> None:
        rewrite(shard, lambda rows: None, metadata)
        with pytest.raises(ValueError, match=rf"{shard} was not written by scripts/prepare_dataset\.py: its metadata"):
            load_benchmark("ade20k_150", output)

    def test_other_columns_are_refused(self, shard: Path, output: Path) -> None:
        table = pq.read_table(shard)
        pq.write_table(table.drop_columns("label"), shard)
        with pytest.raises(ValueError, match=f"{shard} was not written by .*expected the columns image, label"):
            load_benchmark("ade20k_150", output)

    @pytest.mark.parametrize("streaming", [False, True])
    def test_a_damaged_shard_is_named(self, shard: Path, output: Path, streaming: bool) -> None:
        content = bytearray(shard.read_bytes())
        content[4:200] = b"\xff" * 196  # pages, while the schema at the end is whole
        shard.write_bytes(content)
        with pytest.raises(ValueError, match=shard.name):
            list(load_benchmark("ade20k_150", output, streaming=streaming))

    @pytest.mark.parametrize("streaming", [False, True])
    def test_a_cut_shard_is_named(self, shard: Path, output: Path, streaming: bool) -> None:
        damage(shard)
        with pytest.raises(ValueError, match=f"{shard} was not written by"):
            load_benchmark("ade20k_150", output, streaming=streaming)


class TestScript:
    @pytest.fixture
    def run(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.syspath_prepend(SCRIPTS)
        import prepare_dataset

        def run(*arguments: object) -> None:
            monkeypatch.setattr(sys, "argv", ["prepare_dataset.py", *map(str, arguments)])
            prepare_dataset.main()

        return run

    @pytest.mark.usefixtures("two_image_shards")
    def test_writes_the_same_in_several_processes(self, run: Any, raw: Path, output: Path) -> None:
        run("ade20k_150", "--data-dir", raw, "--output", output, "--num-proc", 2)
        assert [label[0, 0] for label in labels_of(load_benchmark("ade20k_150", output))] == [0, 1, 2, 3, 4]

    def test_ends_with_one_line_on_missing_data(self, run: Any, tmp_path: Path, output: Path) -> None:
        with pytest.raises(SystemExit, match=r"^error: ade20k_150: expected .*sceneparsing"):
            run("ade20k_150", "--data-dir", tmp_path, "--output", output)

    def test_uploads_the_card_and_the_shards_to_a_private_repository(
        self, run: Any, raw: Path, output: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: dict[str, dict[str, Any]] = {}

        class RecordingHub:
            def create_repo(self, repo_id: str, **options: Any) -> None:
                calls["create_repo"] = {"repo_id": repo_id, **options}

            def upload_folder(self, **options: Any) -> SimpleNamespace:
                calls["upload_folder"] = options
                return SimpleNamespace(commit_url="https://hub/commit")

        monkeypatch.setattr(prepare, "HfApi", RecordingHub)
        run("ade20k_150", "--data-dir", raw, "--output", output, "--push-to-hub", "user/ade20k")
        assert calls["create_repo"] == {
            "repo_id": "user/ade20k",
            "repo_type": "dataset",
            "private": True,
            "exist_ok": True,
        }
        assert calls["upload_folder"]["allow_patterns"] == ["README.md", "data/*.parquet"]
        assert calls["upload_folder"]["folder_path"] == output
