"""Labels for whole data sets: the same from any number of processes, and read back by the libraries of each format."""

import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import datasets
import numpy as np
import psutil
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO
from small_models import make_small_model, small_processor

from sed_hf.data.benchmarks import load_benchmark
from sed_hf.data.scenes import SceneDataset
from sed_hf.hub.load import load
from sed_hf.inference.class_embeddings import encode_classes
from sed_hf.inference.label import Counts, label_dataset
from sed_hf.inference.segmenter import Segmenter

NAMES = ["sky", "water", "gravel", "red triangle", "orange star"]
SCRIPT = Path(__file__).parents[1] / "scripts" / "label_dataset.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of a model that takes milliseconds, and whose classes mix."""
    folder = tmp_path_factory.mktemp("model")
    make_small_model().save_pretrained(folder)
    small_processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of several sizes, in folders with files of the same names."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(7):
        image = SceneDataset("test", 7, size=32 + 32 * (number % 3))[number]["image"]
        folder = root / "ab"[number % 2]
        folder.mkdir(exist_ok=True)
        image.crop((0, 0, image.width, image.height - 5 * number)).save(folder / f"{number // 2}.png")
    return root


def label(data: Any, output: Path, model: str, **options: Any) -> Counts:
    return label_dataset(data, NAMES, output, model=model, **{"num_workers": 0, "shard_size": 3, **options})


def expected_labels(photos: Path, model: str, **options: Any) -> list[np.ndarray]:
    """The labels of each image by itself, in the order of the names."""
    network, processor = load(model)
    segmenter = Segmenter(network, processor, NAMES, encode_classes(network, processor, NAMES), **options)
    paths = sorted(photos.rglob("*.png"))
    return [segmenter([Image.open(path).convert("RGB")])[0]["segmentation"] for path in paths]


def files(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    """All files below a folder, but for those that a killed process leaves."""
    paths = [path for path in folder.rglob(pattern) if path.is_file() and ".part/" not in str(path)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def write_tar(path: Path, images: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in images.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


class TestFormats:
    def test_parquet_is_read_by_load_benchmark_and_by_datasets(self, photos: Path, model: str, tmp_path: Path) -> None:
        assert label(photos, tmp_path, model) == Counts(7, 0)
        expected = expected_labels(photos, model)
        for streaming in (False, True):
            dataset = load_benchmark("custom", tmp_path, streaming=streaming)
            assert dataset.features["label"].names == NAMES
            for example, labels in zip(dataset, expected, strict=True):
                assert np.array_equal(np.asarray(example["label"]), labels)
        plain = datasets.load_dataset("parquet", data_files=f"{tmp_path}/data/*.parquet", split="train", streaming=True)
        assert plain.features["classes"].feature.names == NAMES
        names = set()
        for example, labels in zip(plain, expected, strict=True):
            assert sorted(example["classes"]) == np.unique(labels).tolist()
            assert all(0 < score < 1 for score in example["scores"])
            names.add(example["file_name"])
        assert len(names) == 7  # of a/0.png and b/0.png too

    def test_pngs_show_the_classes_in_colour_and_are_own_data(self, photos: Path, model: str, tmp_path: Path) -> None:
        label(photos, tmp_path, model, format="png", threshold=0.75)
        dataset = load_benchmark("custom", tmp_path)
        expected = expected_labels(photos, model, threshold=0.75)
        assert 255 in np.concatenate([labels.ravel() for labels in expected])
        for example, labels in zip(dataset, expected, strict=True):
            assert np.array_equal(np.asarray(example["label"]), labels)
        assert Image.open(next((tmp_path / "masks").iterdir())).mode == "P"

    def test_coco_decodes_to_the_label_map(self, photos: Path, model: str, tmp_path: Path) -> None:
        label(photos, tmp_path, model, format="coco")
        coco = COCO(tmp_path / "annotations.json")
        assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == NAMES
        for image_id, labels in enumerate(expected_labels(photos, model), start=1):
            decoded = np.full(labels.shape, -1)
            for annotation in coco.loadAnns(coco.getAnnIds([image_id])):
                mask = coco.annToMask(annotation).astype(bool)
                assert annotation["area"] == mask.sum()
                assert 0 < annotation["score"] < 1
                decoded[mask] = annotation["category_id"] - 1
            assert np.array_equal(decoded, labels)
            assert (tmp_path / "images" / coco.loadImgs(image_id)[0]["file_name"]).is_file()

    def test_yolo_polygons_draw_the_masks(self, photos: Path, model: str, tmp_path: Path) -> None:
        label(photos, tmp_path, model, format="yolo")
        assert list(yaml.safe_load((tmp_path / "data.yaml").read_text())["names"].values()) == NAMES
        lines = [path.read_text().splitlines() for path in sorted((tmp_path / "labels").iterdir())]
        for labels, segments in zip(expected_labels(photos, model), lines, strict=True):
            for index in np.unique(labels).tolist():
                drawn = np.zeros(labels.shape, np.uint8)
                for class_index, *coordinates in map(str.split, segments):
                    if int(class_index) == index:
                        corners = np.array(coordinates, float).reshape(-1, 2) * labels.shape[::-1]
                        cv2.fillPoly(drawn, [corners.astype(np.int32)], 1)
                mask = labels == index
                assert (mask & (drawn > 0)).sum() >= 0.98 * (mask | (drawn > 0)).sum()

    def test_scores_and_shares_stand_on_the_card(self, photos: Path, model: str, tmp_path: Path) -> None:
        label(photos, tmp_path, model, topk=2, everything_else="pascal_voc_20")
        card = (tmp_path / "README.md").read_text()
        expected = ["# 7 images", "everything_else: pascal_voc_20", "early_rejection_topk: 2", "| orange star |"]
        assert all(text in card for text in [*expected, "| everything else |"])


class TestInput:
    def test_webdataset_in_parquet_out(self, photos: Path, model: str, tmp_path: Path) -> None:
        images = [path.read_bytes() for path in sorted(photos.rglob("*.png"))]
        samples = {f"{number}.{kind}": content for number, image in enumerate(images) for kind, content in
                   (("png", image), ("json", b"{}"))}  # fmt: skip
        (tmp_path / "in").mkdir()
        write_tar(tmp_path / "in" / "0.tar", dict(list(samples.items())[:8]))
        write_tar(tmp_path / "in" / "1.tar", dict(list(samples.items())[8:]))
        assert label(tmp_path / "in", tmp_path / "out", model) == Counts(7, 0)
        found = [np.asarray(example["label"]) for example in load_benchmark("custom", tmp_path / "out")]
        assert all(map(np.array_equal, found, expected_labels(photos, model)))

    def test_labels_of_parquet_can_be_made_again(self, photos: Path, model: str, tmp_path: Path) -> None:
        label(photos, tmp_path / "once", model)
        label(tmp_path / "once" / "data", tmp_path / "twice", model, image_column="image")
        once, twice = (load_benchmark("custom", tmp_path / name)["label"] for name in ("once", "twice"))
        assert all(map(np.array_equal, map(np.asarray, once), map(np.asarray, twice)))

    def test_a_column_that_is_not_an_image_is_refused(self, photos: Path, model: str, tmp_path: Path) -> None:
        label(photos, tmp_path / "once", model)
        with pytest.raises(ValueError, match=r"--image-column\), got file_name; there are image "):
            label(tmp_path / "once" / "data", tmp_path / "twice", model, image_column="file_name")
        assert not (tmp_path / "twice").exists()

    def test_rows_of_the_hub_cannot_ask_for_files_of_this_machine(
        self, photos: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = next(photos.rglob("*.png"))
        rows = {"photo": [{"bytes": path.read_bytes(), "path": "a.png"}, {"bytes": None, "path": str(path)}]}
        features = datasets.Features(photo=datasets.Image(decode=False))
        file = tmp_path / "validation.parquet"
        datasets.Dataset.from_dict(rows, features).to_parquet(file)
        builder = datasets.load_dataset_builder("parquet", data_files={"validation": str(file)})
        monkeypatch.setattr(datasets, "load_dataset_builder", lambda name: {"someone/photos": builder}[name])
        assert label("someone/photos", tmp_path / "out", model, split="validation") == Counts(1, 1)
        assert "the row holds none" in (tmp_path / "out" / "skipped.jsonl").read_text()
        assert len(load_benchmark("custom", tmp_path / "out", "validation")) == 1

    @pytest.mark.parametrize("format", ["parquet", "coco", "yolo", "png"])
    def test_files_that_are_not_images_are_listed_and_the_rest_is_labelled(
        self, format: str, photos: Path, model: str, tmp_path: Path
    ) -> None:
        whole = next(photos.rglob("*.png")).read_bytes()
        contents = {"a.png": whole, "b.png": whole[: len(whole) // 2], "c.jpg": b"text", "d.png": b"", "e.png": whole}
        (tmp_path / "in").mkdir()
        for name, content in contents.items():
            (tmp_path / "in" / name).write_bytes(content)
        (tmp_path / "in" / "notes.txt").touch()
        assert label(tmp_path / "in", tmp_path / "out", model, format=format, shard_size=1) == Counts(2, 3)
        skipped = list(map(json.loads, (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()))
        assert [entry["source"] for entry in skipped] == ["b.png", "c.jpg", "d.png"]
        assert all(entry["source"] in entry["reason"] for entry in skipped)
        if format in ("parquet", "png"):
            names = load_benchmark("custom", tmp_path / "out")["file_name"]
            assert list(names) == ["00000000-a.png", "00000004-e.png"]

    @pytest.mark.parametrize(
        ("names", "message"),
        [([], "got none"), (["a.txt"], "got none"), (["a.png", "b.tar"], "got image and tar")],
    )
    def test_a_folder_without_images_or_of_several_kinds_is_refused(
        self, names: list[str], message: str, model: str, tmp_path: Path
    ) -> None:
        (tmp_path / "in").mkdir()
        for name in names:
            (tmp_path / "in" / name).touch()
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            label(tmp_path / "in", tmp_path / "out", model)


class TestAgain:
    def test_a_missing_shard_is_written_again_and_others_are_kept(
        self, photos: Path, model: str, tmp_path: Path
    ) -> None:
        label(photos, tmp_path, model, format="coco")
        before = files(tmp_path)
        for name in ("shards/00001.json", "README.md", "annotations.json"):
            (tmp_path / name).unlink()
        kept = (tmp_path / "shards" / "00000.json").stat().st_mtime_ns
        label(photos, tmp_path, model, format="coco")
        assert files(tmp_path) == before
        assert (tmp_path / "shards" / "00000.json").stat().st_mtime_ns == kept

    @pytest.mark.parametrize(
        ("options", "setting"),
        [({"threshold": 0.2}, "threshold"), ({"topk": 2}, "early_rejection_topk"), ({"format": "png"}, "format")],
    )
    def test_another_option_is_refused_by_name(
        self, options: dict[str, Any], setting: str, photos: Path, model: str, tmp_path: Path
    ) -> None:
        label(photos, tmp_path, model)
        with pytest.raises(ValueError, match=f"{setting} was .* and is "):
            label(photos, tmp_path, model, **options)

    def test_another_vocabulary_and_other_weights_and_images_are_refused(
        self, photos: Path, model: str, tmp_path: Path
    ) -> None:
        label(photos, tmp_path / "out", model)
        with pytest.raises(ValueError, match="vocabulary was"):
            label_dataset(photos, ["cat"], tmp_path / "out", model=model, shard_size=3)
        with pytest.raises(ValueError, match="data_sha256 was"):
            label(photos / "a", tmp_path / "out", model)
        network, processor = load(model)
        network.sed.logit_scale.data += 1
        for part in (network, processor):
            part.save_pretrained(tmp_path / "other")
        with pytest.raises(ValueError, match="weights_sha256 was"):
            label(photos, tmp_path / "out", str(tmp_path / "other"))

    def test_a_folder_of_other_files_and_one_inside_the_data_are_refused(
        self, photos: Path, model: str, tmp_path: Path
    ) -> None:
        (tmp_path / "README.md").write_text("mine")
        with pytest.raises(ValueError, match="holds other files"):
            label(photos, tmp_path, model)
        with pytest.raises(ValueError, match="choose another output folder"):
            label(photos, photos / "out", model)

    def test_a_preview_only_writes_a_sheet_and_counts_what_is_on_it(
        self, photos: Path, model: str, tmp_path: Path
    ) -> None:
        data, output = shutil.copytree(photos, tmp_path / "photos"), tmp_path / "output"
        assert label(data, output, model, preview=4) == (4, 0)
        assert list(files(output)) == ["preview.jpg"]
        assert Image.open(output / "preview.jpg").size == (960, 960)
        (data / "empty.png").write_bytes(b"")
        assert label(data, output, model, preview=100) == (7, 1)


def start(num_processes: int, *arguments: object) -> subprocess.Popen:
    launcher = [sys.executable]
    if num_processes > 1:
        port = random.SystemRandom().randrange(20000, 30000)
        launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={num_processes}", f"--master_port={port}"]
    command = [*launcher, SCRIPT, "--shard-size", 1, "--num-workers", 1, *arguments]
    return subprocess.Popen(list(map(str, command)), env=ENVIRONMENT, stderr=subprocess.PIPE)


@pytest.mark.slow
class TestProcesses:
    def test_one_two_and_three_processes_write_the_same_also_when_killed(
        self, photos: Path, model: str, tmp_path: Path
    ) -> None:
        names = tmp_path / "names.txt"
        names.write_text("\n".join(NAMES))
        arguments = ["--data", photos, "--vocabulary", names, "--model", model, "--output"]
        for number in (1, 2, 3):
            process = start(number, *arguments, tmp_path / str(number))
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
        expected = files(tmp_path / "1")
        assert files(tmp_path / "2") == files(tmp_path / "3") == expected

        for number in (2, 1, 3):
            process = start(number, *arguments, tmp_path / "killed")
            deadline = time.monotonic() + 200
            shards = tmp_path / "killed" / "shards"
            before = len(list(shards.glob("0*.json")))
            while len(list(shards.glob("0*.json"))) == before and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            with suppress(psutil.NoSuchProcess):  # it may have done all
                started = psutil.Process(process.pid)
                for each in [*started.children(recursive=True), started]:
                    each.kill()
            process.communicate()
            written = files(tmp_path / "killed", "0*.json")
            assert written.items() <= files(tmp_path / "1", "0*.json").items()
        process = start(2, *arguments, tmp_path / "killed")
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert files(tmp_path / "killed") == expected

    def test_status_1_says_that_images_are_skipped(self, photos: Path, model: str, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a.png").write_bytes(next(photos.rglob("*.png")).read_bytes())
        (tmp_path / "in" / "b.png").touch()
        process = start(
            1,
            "--data",
            tmp_path / "in",
            "--vocabulary",
            "pascal_voc_20",
            "--model",
            model,
            "--output",
            tmp_path / "out",
        )
        process.communicate(timeout=300)
        assert process.returncode == 1
