"""Labels for whole data sets: the same from any number of processes, and read back by the libraries of each format."""

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

from sed_hf import read_rgb
from sed_hf.data.benchmarks import load_benchmark
from sed_hf.data.images import open_images
from sed_hf.data.scenes import SceneDataset
from sed_hf.hub.load import load
from sed_hf.inference.class_embeddings import encode_classes
from sed_hf.inference.label import Counts, label_dataset
from sed_hf.inference.segmenter import Segmenter

NAMES = ["sky", "water", "gravel", "red triangle", "orange star"]
SCRIPT = Path(__file__).parents[1] / "scripts" / "label_dataset.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
Settings = dict[str, Any]


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Scenes of several sizes, in folders with files of the same names, and a fast model whose classes mix."""
    photos, model = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("model")
    for number in range(7):
        image = SceneDataset("test", 7, size=32 + 32 * (number % 3))[number]["image"]
        folder = photos / "ab"[number % 2]
        folder.mkdir(exist_ok=True)
        image.crop((0, 0, image.width, image.height - 5 * number)).save(folder / f"{number // 2}.png")
    make_small_model().save_pretrained(model)
    small_processor().save_pretrained(model)
    return {"data": photos, "vocabulary": NAMES, "model": str(model), "num_workers": 0, "shard_size": 3}


def label(settings: Settings, output: Path, **options: Any) -> Counts:
    return label_dataset(**{**settings, "output": output, **options})


def expected_labels(settings: Settings, **options: Any) -> list[np.ndarray]:
    """The labels of each image by itself, in the order of the names."""
    model, processor = load(settings["model"])
    segmenter = Segmenter(model, processor, NAMES, encode_classes(model, processor, NAMES), **options)
    paths = sorted(settings["data"].rglob("*.png"))
    return [segmenter([Image.open(path).convert("RGB")])[0]["segmentation"] for path in paths]


def labels_in(folder: Path) -> list[np.ndarray]:
    """The labels of a folder of Parquet files or PNG."""
    return [np.asarray(example["label"]) for example in load_benchmark("custom", folder)]


def files(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    """All files below a folder, but for those that a killed process leaves."""
    paths = [path for path in folder.rglob(pattern) if path.is_file() and ".part/" not in str(path)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


class TestFormats:
    def test_parquet_is_read_by_load_benchmark_and_by_datasets(self, settings: Settings, tmp_path: Path) -> None:
        assert label(settings, tmp_path) == Counts(7, 0)
        expected = expected_labels(settings)
        assert all(map(np.array_equal, labels_in(tmp_path), expected))
        assert load_benchmark("custom", tmp_path, streaming=True).features["label"].names == NAMES
        plain = datasets.load_dataset("parquet", data_files=f"{tmp_path}/data/*.parquet", split="train", streaming=True)
        assert plain.features["classes"].feature.names == NAMES
        examples = list(plain)
        assert len({example["file_name"] for example in examples}) == 7  # of a/0.png and b/0.png too
        for example, labels in zip(examples, expected, strict=True):
            assert sorted(example["classes"]) == np.unique(labels).tolist()
            assert all(0 < score < 1 for score in example["scores"])

    def test_pngs_show_the_classes_in_colour_and_are_own_data(self, settings: Settings, tmp_path: Path) -> None:
        label(settings, tmp_path, format="png", threshold=0.75)
        expected = expected_labels(settings, threshold=0.75)
        assert 255 in np.concatenate([labels.ravel() for labels in expected])
        assert all(map(np.array_equal, labels_in(tmp_path), expected))
        assert Image.open(next((tmp_path / "masks").iterdir())).mode == "P"

    def test_coco_decodes_to_the_label_map(self, settings: Settings, tmp_path: Path) -> None:
        label(settings, tmp_path, format="coco")
        coco = COCO(tmp_path / "annotations.json")
        assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == NAMES
        for image_id, labels in enumerate(expected_labels(settings), start=1):
            decoded = np.full(labels.shape, -1)
            for annotation in coco.loadAnns(coco.getAnnIds([image_id])):
                mask = coco.annToMask(annotation).astype(bool)
                assert annotation["area"] == mask.sum()
                assert 0 < annotation["score"] < 1
                decoded[mask] = annotation["category_id"] - 1
            assert np.array_equal(decoded, labels)
            assert (tmp_path / "images" / coco.loadImgs(image_id)[0]["file_name"]).is_file()

    def test_pixels_without_a_class_have_a_colour_of_their_own(self, settings: Settings, tmp_path: Path) -> None:
        label(settings, tmp_path, format="png", vocabulary=["white"], threshold=1.0)
        with Image.open(next(tmp_path.glob("masks/*.png"))) as mask:
            palette = np.reshape(mask.getpalette(), (-1, 3)).tolist()
        assert palette[0] == [255, 255, 255] != palette[255]

    def test_yolo_polygons_draw_the_masks(self, settings: Settings, tmp_path: Path) -> None:
        label(settings, tmp_path, format="yolo")
        assert list(yaml.safe_load((tmp_path / "data.yaml").read_text())["names"].values()) == NAMES
        lines = [path.read_text().splitlines() for path in sorted((tmp_path / "labels").iterdir())]
        for labels, segments in zip(expected_labels(settings), lines, strict=True):
            for index in np.unique(labels).tolist():
                drawn = np.zeros(labels.shape, np.uint8)
                for class_index, *coordinates in map(str.split, segments):
                    if int(class_index) == index:
                        corners = np.array(coordinates, float).reshape(-1, 2) * labels.shape[::-1]
                        cv2.fillPoly(drawn, [corners.astype(np.int32)], 1)
                mask = labels == index
                assert (mask & (drawn > 0)).sum() >= 0.98 * (mask | (drawn > 0)).sum()

    def test_settings_and_shares_stand_on_the_card(self, settings: Settings, tmp_path: Path) -> None:
        label(settings, tmp_path, topk=2, everything_else="pascal_voc_20")
        card = (tmp_path / "README.md").read_text()
        expected = ["# 7 images", "everything_else: pascal_voc_20", "early_rejection_topk: 2", "| orange star |"]
        assert all(text in card for text in [*expected, "| everything else |"])


class TestInput:
    def test_webdataset_in_parquet_out(self, settings: Settings, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        for number, path in enumerate(sorted(settings["data"].rglob("*.png"))):
            with tarfile.open(tmp_path / "in" / f"{number // 4}.tar", "a") as archive:
                archive.add(path, f"{number}.png")
                archive.addfile(tarfile.TarInfo(f"{number}.txt"))
        assert label(settings, tmp_path / "out", data=tmp_path / "in") == Counts(7, 0)
        assert all(map(np.array_equal, labels_in(tmp_path / "out"), expected_labels(settings)))

    def test_labels_of_parquet_can_be_made_again_and_only_of_images(self, settings: Settings, tmp_path: Path) -> None:
        label(settings, tmp_path / "once")
        again = {**settings, "data": tmp_path / "once" / "data"}
        with pytest.raises(ValueError, match=r"--image-column\), got file_name; there are image "):
            label(again, tmp_path / "twice", image_column="file_name")
        assert not (tmp_path / "twice").exists()
        label(again, tmp_path / "twice", image_column="image")
        assert all(map(np.array_equal, labels_in(tmp_path / "once"), labels_in(tmp_path / "twice")))

    def test_rows_of_the_hub_cannot_ask_for_files_of_this_machine(
        self, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = next(settings["data"].rglob("*.png"))
        rows = {"photo": [{"bytes": path.read_bytes(), "path": "a.png"}, {"bytes": None, "path": str(path)}]}
        file = tmp_path / "validation.parquet"
        datasets.Dataset.from_dict(rows, datasets.Features(photo=datasets.Image(decode=False))).to_parquet(file)
        builder = datasets.load_dataset_builder("parquet", data_files={"validation": str(file)})
        monkeypatch.setattr(datasets, "load_dataset_builder", lambda name: {"someone/photos": builder}[name])
        assert label(settings, tmp_path / "out", data="someone/photos", split="validation") == Counts(1, 1)
        assert "the row holds none" in (tmp_path / "out" / "skipped.jsonl").read_text()
        assert len(load_benchmark("custom", tmp_path / "out", "validation")) == 1

    def test_rows_without_a_file_name_are_called_after_their_position(self, settings: Settings, tmp_path: Path) -> None:
        SceneDataset("test", 7, size=32)[0]["image"].save(tmp_path / "a.jp2")
        rows = {"image": [{"bytes": (tmp_path / "a.jp2").read_bytes(), "path": None}]}
        datasets.Dataset.from_dict(rows, datasets.Features(image=datasets.Image())).to_parquet(tmp_path / "a.parquet")
        assert label(settings, tmp_path / "out", data=tmp_path / "a.parquet") == Counts(1, 0)
        assert load_benchmark("custom", tmp_path / "out")[0]["file_name"] == "00000000.jp2"

    @pytest.mark.parametrize("format", ["coco", "png", "yolo"])
    def test_every_reader_of_folders_sees_upright_images(self, format: str, settings: Settings, tmp_path: Path) -> None:
        image, exif = SceneDataset("test", 7, size=32)[0]["image"].crop((0, 0, 32, 20)), Image.Exif()
        (tmp_path / "in").mkdir()
        exif[0x0112] = 6
        for name in ("a.gif", "b.jp2", "c.ppm", "d.jpg"):
            image.save(tmp_path / "in" / name, exif=exif)
        image.save(tmp_path / "in" / "e.jpg")
        label(settings, tmp_path / "out", data=tmp_path / "in", format=format)
        images = sorted((tmp_path / "out" / "images").iterdir())
        assert [path.name[9:] for path in images] == ["a.png", "b.png", "c.png", "d.png", "e.jpg"]
        for path, source in zip(images, sorted((tmp_path / "in").iterdir()), strict=True):
            assert np.array_equal(Image.open(path), read_rgb(source))

    @pytest.mark.parametrize("format", ["parquet", "png"])
    def test_files_that_are_not_images_are_listed_and_the_rest_is_labelled(
        self, format: str, settings: Settings, tmp_path: Path
    ) -> None:
        whole = next(settings["data"].rglob("*.png")).read_bytes()
        contents = {"a.png": whole, "b.png": whole[: len(whole) // 2], "c.jpg": b"text", "d.png": b"", "e.png": whole}
        (tmp_path / "in").mkdir()
        for name, content in {**contents, "notes.txt": b""}.items():
            (tmp_path / "in" / name).write_bytes(content)
        counts = label(settings, tmp_path / "out", data=tmp_path / "in", format=format, shard_size=1)
        skipped = list(map(json.loads, (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()))
        assert counts == Counts(2, 3)
        assert [entry["source"] for entry in skipped] == ["b.png", "c.jpg", "d.png"]
        assert all(entry["source"] in entry["reason"] for entry in skipped)
        names = load_benchmark("custom", tmp_path / "out")["file_name"]
        assert list(names) == ["00000000-a.png", "00000004-e.png"]

    def test_linked_folders_are_read_once(self, settings: Settings, tmp_path: Path) -> None:
        for name in ("in/z", "elsewhere/deeper"):
            shutil.copytree(settings["data"] / "a", tmp_path / name)
        links = {"in/link": "elsewhere", "in/z/again": "elsewhere", "in/b": "in/z", "elsewhere/deeper/loop": "in"}
        for link, target in links.items():
            (tmp_path / link).symlink_to(tmp_path / target)
        images = open_images(tmp_path / "in").images
        assert images == [f"{folder}/{number}.png" for folder in ("b", "b/again/deeper") for number in range(4)]

    def test_one_class_with_commas_brings_a_hint(self, settings: Settings, tmp_path: Path, capsys: Any) -> None:
        label(settings, tmp_path, vocabulary=["sky, water"], preview=1)
        assert "'sky, water' is one class; for 2, write" in capsys.readouterr().err

    def test_an_unknown_format_claims_no_folder(self, settings: Settings, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="format 'COCO': expected parquet, coco, yolo, png"):
            label(settings, tmp_path / "out", format="COCO")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(("names", "message"), [(["a.txt"], "got none"), (["a.png", "b.tar"], "got image and tar")])
    def test_a_folder_without_images_or_of_several_kinds_is_refused(
        self, names: list[str], message: str, settings: Settings, tmp_path: Path
    ) -> None:
        for name in names:
            (tmp_path / name).touch()
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            label(settings, tmp_path / "out", data=tmp_path)


class TestAgain:
    def test_a_missing_shard_is_written_again_and_others_are_kept(self, settings: Settings, tmp_path: Path) -> None:
        label(settings, tmp_path, format="coco")
        before = files(tmp_path)
        for name in ("shards/00001.json", "README.md", "annotations.json"):
            (tmp_path / name).unlink()
        kept = (tmp_path / "shards" / "00000.json").stat().st_mtime_ns
        label(settings, tmp_path, format="coco")
        assert files(tmp_path) == before
        assert (tmp_path / "shards" / "00000.json").stat().st_mtime_ns == kept

    def test_other_settings_are_refused_by_name(self, settings: Settings, tmp_path: Path) -> None:
        model, processor = load(settings["model"])
        model.sed.logit_scale.data += 1
        model.config.inference_pooling_size += 1
        for part in (model, processor):
            part.save_pretrained(tmp_path / "other")
        others = {
            "threshold": {"threshold": 0.2},
            "early_rejection_topk": {"topk": 2},
            "format": {"format": "png"},
            "vocabulary": {"vocabulary": ["cat"]},
            "data_sha256": {"data": settings["data"] / "a"},
            "weights_sha256": {"model": str(tmp_path / "other")},
            "network.inference_pooling_size": {"model": str(tmp_path / "other")},
        }
        label(settings, tmp_path / "out")
        for name, options in others.items():
            with pytest.raises(ValueError, match=f"{name} was .* and is "):
                label(settings, tmp_path / "out", **options)

    def test_a_folder_of_other_files_or_inside_the_data_is_refused(self, settings: Settings, tmp_path: Path) -> None:
        (tmp_path / "README.md").write_text("mine")
        for output, message in [(tmp_path, "holds other files"), (settings["data"] / "out", "choose another output")]:
            with pytest.raises(ValueError, match=message):
                label(settings, output)

    def test_a_preview_only_writes_a_sheet_and_counts_what_is_on_it(self, settings: Settings, tmp_path: Path) -> None:
        data, output = shutil.copytree(settings["data"], tmp_path / "photos"), tmp_path / "output"
        assert label(settings, output, data=data, preview=4) == (4, 0)
        assert list(files(output)) == ["preview.jpg"]
        assert Image.open(output / "preview.jpg").size == (960, 960)
        (data / "empty.png").write_bytes(b"")
        assert label(settings, output, data=data, preview=100) == (7, 1)


@pytest.mark.slow
def test_one_two_and_three_processes_write_the_same_also_when_killed(settings: Settings, tmp_path: Path) -> None:
    data, names = shutil.copytree(settings["data"], tmp_path / "photos"), tmp_path / "names.txt"
    (data / "empty.png").touch()  # so that the exit status is 1
    names.write_text("\n".join(NAMES))

    def start(num_processes: int, output: str) -> subprocess.Popen:
        launcher = [sys.executable]
        if num_processes > 1:
            port = random.SystemRandom().randrange(20000, 30000)
            launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={num_processes}", f"--master_port={port}"]
        options = ["--data", data, "--vocabulary", names, "--model", settings["model"], "--output", tmp_path / output]
        command = [*launcher, SCRIPT, *options, "--shard-size", 1, "--num-workers", 1]
        return subprocess.Popen(list(map(str, command)), env=ENVIRONMENT)

    assert [start(number, str(number)).wait(300) for number in (1, 2, 3)] == [1, 1, 1]
    expected = files(tmp_path / "1")
    assert "empty.png" in expected["skipped.jsonl"].decode()
    assert files(tmp_path / "2") == files(tmp_path / "3") == expected

    shards = tmp_path / "killed" / "shards"
    for number in (2, 1, 3):
        process = start(number, "killed")
        deadline = time.monotonic() + 200
        before = len(list(shards.glob("0*.json")))
        while len(list(shards.glob("0*.json"))) == before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        with suppress(psutil.NoSuchProcess):  # it may have done all
            started = psutil.Process(process.pid)
            for each in [*started.children(recursive=True), started]:
                each.kill()
        process.wait()
        assert files(tmp_path / "killed", "0*.json").items() <= files(tmp_path / "1", "0*.json").items()
    start(2, "killed").wait(300)
    assert files(tmp_path / "killed") == expected
