"""The benchmarks, read from small raw copies in their official layouts, against section 9 of the specification."""

import json
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import scipy.io
import torch
from raw_copies import (
    RawIds,
    write_ade20k_150,
    write_ade20k_847,
    write_coco_stuff,
    write_own_data,
    write_pascal_context_59,
    write_pascal_context_459,
    write_pascal_voc,
    write_picture,
)

from sed_hf.data.benchmarks import BENCHMARKS, benchmark_info, load_benchmark
from sed_hf.data.raw_labels import read_mat_label_map
from sed_hf.data.vocabularies import load_vocabulary


@dataclass(frozen=True)
class RuleCase:
    """Raw ids and the label values that the specification gives them, each (height, width)."""

    write: Callable[[Path, dict[str, RawIds]], None]
    file_names: tuple[str, str]
    raw_ids: RawIds
    expected: RawIds


def rows(*values: list[int]) -> RawIds:
    return np.array(values, dtype=np.int32)


RULE_CASES = {
    "coco_stuff_171": RuleCase(
        write_coco_stuff,
        ("000000000139", "000000000285"),
        rows([0, 10, 11, 12], [26, 91, 181, 255]),
        rows([0, 10, 255, 11], [24, 80, 170, 255]),
    ),
    "ade20k_150": RuleCase(
        write_ade20k_150,
        ("ADE_val_00000001", "ADE_val_00000002"),
        rows([0, 1, 2], [75, 149, 150]),
        rows([255, 0, 1], [74, 148, 149]),
    ),
    "ade20k_847": RuleCase(
        write_ade20k_847,
        ("ADE_val_00000001", "ADE_val_00000002"),
        rows([0, 2978, 312], [2420, 3148, 1]),
        rows([65535, 0, 1], [2, 846, 65535]),
    ),
    "pascal_context_59": RuleCase(
        write_pascal_context_59,
        ("2008_000002", "2008_000003"),
        rows([0, 2, 9], [458, 1, 25]),
        rows([255, 0, 1], [58, 255, 6]),
    ),
    "pascal_context_459": RuleCase(
        write_pascal_context_459,
        ("2008_000002", "2008_000003"),
        rows([0, 1, 2], [459, 460, 65535]),
        rows([65535, 0, 1], [458, 65535, 65535]),
    ),
    "pascal_voc_20": RuleCase(
        write_pascal_voc,
        ("2007_000033", "2007_000042"),
        rows([0, 1, 2], [19, 20, 255]),
        rows([255, 0, 1], [18, 19, 255]),
    ),
    "pascal_voc_20b": RuleCase(
        write_pascal_voc,
        ("2007_000033", "2007_000042"),
        rows([0, 1, 2], [19, 20, 255]),
        rows([20, 0, 1], [18, 19, 255]),
    ),
}

each_benchmark = pytest.mark.parametrize("name", RULE_CASES)


@pytest.fixture
def write_raw_copy(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a benchmark's raw copy of two examples, the second being the first turned upside down."""

    def write(name: str) -> Path:
        case = RULE_CASES[name]
        first, second = case.file_names
        case.write(tmp_path, {first: case.raw_ids, second: case.raw_ids[::-1]})
        return tmp_path

    return write


def decoded(label: PIL.Image.Image) -> RawIds:
    return np.asarray(label)


class TestLabels:
    @each_benchmark
    def test_follow_the_rule_of_the_benchmark(self, name: str, write_raw_copy: Callable[[str], Path]) -> None:
        dataset = load_benchmark(name, write_raw_copy(name))
        np.testing.assert_array_equal(decoded(dataset[0]["label"]), RULE_CASES[name].expected)
        np.testing.assert_array_equal(decoded(dataset[1]["label"]), RULE_CASES[name].expected[::-1])

    @each_benchmark
    def test_have_the_type_that_the_ignore_index_needs(self, name: str, write_raw_copy: Callable[[str], Path]) -> None:
        dataset = load_benchmark(name, write_raw_copy(name))
        expected = np.uint16 if dataset.features["label"].ignore_index == 65535 else np.uint8
        assert decoded(dataset[0]["label"]).dtype == expected

    def test_of_voc_are_read_without_a_palette_too(self, tmp_path: Path) -> None:
        write_pascal_voc(tmp_path, {"2007_000033": rows([0, 1, 255])}, palette=False)
        label = load_benchmark("pascal_voc_20", tmp_path)[0]["label"]
        np.testing.assert_array_equal(decoded(label), [[255, 0, 255]])

    def test_of_pascal_context_59_are_read_from_uncompressed_run_lengths_too(self, tmp_path: Path) -> None:
        raw_ids = rows([2, 2, 9], [0, 2, 458])
        write_pascal_context_59(tmp_path, {"2008_000002": raw_ids}, compressed=False)
        label = load_benchmark("pascal_context_59", tmp_path)[0]["label"]
        np.testing.assert_array_equal(decoded(label), [[0, 0, 1], [255, 0, 58]])

    def test_of_ade20k_847_are_capped_at_512_pixels_together_with_their_image(self, tmp_path: Path) -> None:
        raw_ids = np.full((300, 1024), 2978)
        raw_ids[:, 512:] = 312
        write_ade20k_847(tmp_path, {"ADE_val_00000001": raw_ids})
        example = load_benchmark("ade20k_847", tmp_path)[0]
        assert example["image"].size == example["label"].size == (512, 150)
        np.testing.assert_array_equal(decoded(example["label"]), np.repeat([[0, 1]], 256, axis=1).repeat(150, axis=0))

    def test_of_ade20k_847_keep_their_size_up_to_512_pixels(self, tmp_path: Path) -> None:
        write_ade20k_847(tmp_path, {"ADE_val_00000001": np.full((512, 300), 2978)})
        assert load_benchmark("ade20k_847", tmp_path)[0]["label"].size == (300, 512)

    def test_capped_images_are_sampled_bilinearly_without_antialiasing(self, tmp_path: Path) -> None:
        write_ade20k_847(tmp_path, {"ADE_val_00000001": np.full((300, 1000), 2978)})
        image = load_benchmark("ade20k_847", tmp_path)[0]["image"]
        (path,) = tmp_path.rglob("ADE_val_00000001.jpg")
        original = torch.from_numpy(np.array(PIL.Image.open(path))).permute(2, 0, 1)[None].float()
        expected = torch.nn.functional.interpolate(original, (154, 512), mode="bilinear", align_corners=False)
        difference = torch.from_numpy(np.array(image)).permute(2, 0, 1) - expected[0]
        assert difference.abs().max() <= 1  # PIL truncates where OpenCV and torch round


class TestFeatures:
    @each_benchmark
    def test_name_the_classes_of_the_vocabulary(self, name: str, write_raw_copy: Callable[[str], Path]) -> None:
        assert load_benchmark(name, write_raw_copy(name)).info.features["label"].names == load_vocabulary(name)

    @pytest.mark.parametrize(
        ("name", "ignore_index"),
        [(name, 65535 if name in ("ade20k_847", "pascal_context_459") else 255) for name in BENCHMARKS],
    )
    def test_give_the_ignore_index(self, name: str, ignore_index: int, write_raw_copy: Callable[[str], Path]) -> None:
        assert load_benchmark(name, write_raw_copy(name)).info.features["label"].ignore_index == ignore_index

    def test_of_voc_20b_tell_background_from_the_59_names_of_its_vocabulary(self) -> None:
        label = benchmark_info("pascal_voc_20b").features["label"]
        assert (len(label.names), label.background_index, label.num_classes) == (59, 20, 21)
        assert label.class_names == [*load_vocabulary("pascal_voc_20"), "background"]

    def test_survive_saving_to_disk(self, tmp_path: Path, write_raw_copy: Callable[[str], Path]) -> None:
        dataset = load_benchmark("ade20k_150", write_raw_copy("ade20k_150"))
        dataset.save_to_disk(tmp_path / "saved")
        restored = datasets.load_from_disk(tmp_path / "saved")
        assert restored.features == dataset.features
        np.testing.assert_array_equal(decoded(restored[0]["label"]), RULE_CASES["ade20k_150"].expected)

    def test_prepare_a_label_once_where_map_writes_it_back(self, write_raw_copy: Callable[[str], Path]) -> None:
        dataset = load_benchmark("ade20k_150", write_raw_copy("ade20k_150"))
        mapped = dataset.map(lambda example: {"label": example["label"]}, keep_in_memory=True)
        np.testing.assert_array_equal(decoded(mapped[0]["label"]), RULE_CASES["ade20k_150"].expected)

    def test_give_torch_tensors_of_exact_16_bit_labels(self, write_raw_copy: Callable[[str], Path]) -> None:
        dataset = load_benchmark("ade20k_847", write_raw_copy("ade20k_847")).with_format("torch")
        assert dataset[0]["label"].tolist() == [RULE_CASES["ade20k_847"].expected.tolist()]


class TestExamples:
    @each_benchmark
    def test_are_those_of_the_split_in_order(self, name: str, write_raw_copy: Callable[[str], Path]) -> None:
        dataset = load_benchmark(name, write_raw_copy(name))
        assert dataset["file_name"] == [f"{stem}.jpg" for stem in RULE_CASES[name].file_names]
        assert dataset.split == "val"

    def test_have_rgb_images_even_where_the_file_is_grey(self, tmp_path: Path) -> None:
        write_ade20k_150(tmp_path, {"ADE_val_00000001": rows([0, 1])})
        (path,) = tmp_path.rglob("*.jpg")
        PIL.Image.open(path).convert("L").save(path)
        assert load_benchmark("ade20k_150", tmp_path)[0]["image"].mode == "RGB"

    def test_are_listed_without_reading_an_image_or_a_label(self, write_raw_copy: Callable[[str], Path]) -> None:
        names = ["coco_stuff_171", "ade20k_150", "ade20k_847", "pascal_context_459", "pascal_voc_20"]
        for name in names:
            data_dir = write_raw_copy(name)
        for path in [*data_dir.rglob("*.jpg"), *data_dir.rglob("*.png"), *data_dir.rglob("*.mat")]:
            path.write_bytes(b"not an image")
        assert [len(load_benchmark(name, data_dir)) for name in names] == [2] * len(names)

    def test_of_coco_stuff_come_in_train_and_val(self, tmp_path: Path) -> None:
        write_coco_stuff(tmp_path, {"000000000009": rows([0])}, split="train")
        write_coco_stuff(tmp_path, {"000000000139": rows([0])}, split="val")
        assert load_benchmark("coco_stuff_171", tmp_path, "train")["file_name"] == ["000000000009.jpg"]
        assert load_benchmark("coco_stuff_171", tmp_path, "val")["file_name"] == ["000000000139.jpg"]

    @each_benchmark
    def test_are_found_from_the_root_folder_of_the_download_too(
        self, name: str, write_raw_copy: Callable[[str], Path]
    ) -> None:
        data_dir = write_raw_copy(name)
        (root,) = (data_dir / root for root in benchmark_info(name).roots if (data_dir / root).is_dir())
        assert len(load_benchmark(name, root)) == 2

    @pytest.mark.parametrize("index", [False, True])
    def test_of_ade20k_847_are_the_same_with_and_without_its_index(self, index: bool, tmp_path: Path) -> None:
        write_ade20k_847(tmp_path, {"ADE_val_00000001": rows([2978])}, index=index)
        assert load_benchmark("ade20k_847", tmp_path)["file_name"] == ["ADE_val_00000001.jpg"]

    def test_outlive_a_change_of_the_working_directory(
        self, write_raw_copy: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_raw_copy("ade20k_150")
        monkeypatch.chdir(tmp_path)
        dataset = load_benchmark("ade20k_150", ".")
        monkeypatch.chdir("/")
        assert dataset[0]["image"].size == dataset[0]["label"].size

    def test_of_ade20k_847_are_listed_without_unpickling_its_index(self, tmp_path: Path) -> None:
        write_ade20k_847(tmp_path, {"ADE_val_00000001": rows([2978])})
        ends_the_process = b"cos\nabort\n(tR."
        (tmp_path / "ADE20K_2021_17_01" / "index_ade20k.pkl").write_bytes(ends_the_process)
        assert len(load_benchmark("ade20k_847", tmp_path)) == 1

    def test_of_voc_without_a_labelled_pixel_are_skipped_by_a_stream(self, tmp_path: Path) -> None:
        write_pascal_voc(tmp_path, {"2007_000033": rows([0, 255]), "2007_000042": rows([0, 1])})
        stream = load_benchmark("pascal_voc_20", tmp_path, streaming=True)
        assert [example["file_name"] for example in stream] == ["2007_000042.jpg"]

    def test_of_voc_with_background_alone_count_where_background_is_a_class(self, tmp_path: Path) -> None:
        write_pascal_voc(tmp_path, {"2007_000033": rows([0, 255]), "2007_000042": rows([255, 255])})
        stream = load_benchmark("pascal_voc_20b", tmp_path, streaming=True)
        assert [example["file_name"] for example in stream] == ["2007_000033.jpg"]


class TestErrors:
    def test_an_unknown_name_is_answered_with_the_known_ones(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"unknown benchmark 'cityscapes'.*coco_stuff_171, ade20k_150"):
            load_benchmark("cityscapes", tmp_path)

    def test_an_unknown_split_is_answered_with_the_known_ones(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"coco_stuff_171 has no split 'test': expected train or val"):
            load_benchmark("coco_stuff_171", tmp_path, "test")

    @each_benchmark
    def test_an_empty_data_folder_is_answered_with_the_layout_and_the_download_page(
        self, name: str, tmp_path: Path
    ) -> None:
        with pytest.raises(FileNotFoundError) as error:
            load_benchmark(name, tmp_path)
        assert str(tmp_path) in str(error.value)
        assert benchmark_info(name).layout in str(error.value)
        assert benchmark_info(name).homepage in str(error.value)

    def test_a_folder_without_images_is_named(self, tmp_path: Path) -> None:
        write_ade20k_150(tmp_path, {"ADE_val_00000001": rows([0])})
        (image,) = tmp_path.rglob("*.jpg")
        image.unlink()
        with pytest.raises(FileNotFoundError, match=f"found no file in {image.parent}"):
            load_benchmark("ade20k_150", tmp_path)

    # Nothing but the images themselves lists those of A-847.
    @pytest.mark.parametrize("name", [name for name in RULE_CASES if name != "ade20k_847"])
    def test_a_missing_image_is_named(self, name: str, write_raw_copy: Callable[[str], Path]) -> None:
        data_dir = write_raw_copy(name)
        missing = RULE_CASES[name].file_names[1]
        next(data_dir.rglob(f"{missing}.jpg")).unlink()
        with pytest.raises(FileNotFoundError, match=f"missing: {missing}"):
            load_benchmark(name, data_dir)

    @pytest.mark.parametrize("name", ["coco_stuff_171", "ade20k_150", "ade20k_847", "pascal_voc_20"])
    def test_a_missing_label_is_named(self, name: str, write_raw_copy: Callable[[str], Path]) -> None:
        data_dir = write_raw_copy(name)
        missing = next(data_dir.rglob(f"{RULE_CASES[name].file_names[1]}*.png"))
        missing.unlink()
        with pytest.raises(FileNotFoundError, match=RULE_CASES[name].file_names[1]):
            load_benchmark(name, data_dir)

    def test_ashortened_json_file_is_named(self, write_raw_copy: Callable[[str], Path]) -> None:
        data_dir = write_raw_copy("pascal_context_59")
        path = data_dir / "VOCdevkit" / "VOC2010" / "trainval_merged.json"
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(ValueError, match=r"trainval_merged\.json is no JSON, or was not downloaded completely"):
            load_benchmark("pascal_context_59", data_dir)

    @pytest.mark.parametrize(
        "content",
        [
            "5",
            "{}",
            '{"images": [], "annos_segmentation": [5]}',
            '{"images": [{"file_name": 1, "image_id": 1, "height": 2, "width": 2, "phase": "val"}],'
            ' "annos_segmentation": []}',
            "[" * 100_000,
        ],
    )
    def test_json_of_another_form_is_named(self, write_raw_copy: Callable[[str], Path], content: str) -> None:
        data_dir = write_raw_copy("pascal_context_59")
        (path,) = data_dir.rglob("trainval_merged.json")
        path.write_text(content)
        with pytest.raises(ValueError, match=rf"{path} (has not the form|is no JSON)"):
            load_benchmark("pascal_context_59", data_dir)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"size": [60_000, 60_000]}, "more than the 178,956,970 that are read"),
            ({"size": [-1, 2]}, "expected a size of whole numbers above 0"),
            ({"segments": [{"category_id": "9", "segmentation": {}}]}, "expected a whole number as category_id"),
            (
                {"segments": [{"category_id": 9, "segmentation": {"size": [10**5, 10**5], "counts": [10**10]}}]},
                r"expected a segment of size \[2, 2\]",
            ),
            (
                {"segments": [{"category_id": 9, "segmentation": {"size": [2, 2], "counts": [0, 10**8]}}]},
                "cannot read the label x.json",
            ),
        ],
    )
    def test_run_lengths_that_do_not_fit_are_refused(self, change: dict[str, Any], message: str) -> None:
        label = json.dumps({"size": [2, 2], "segments": [], **change}).encode()
        feature = BENCHMARKS["pascal_context_59"].features["label"]
        with pytest.raises(ValueError, match=message):
            feature.decode_example({"path": "x.json", "bytes": label})

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"other": np.zeros((2, 3))}, "expected a variable LabelMap"),
            ({"LabelMap": np.zeros((2, 3, 4))}, r"expected numbers of \(height, width\) as LabelMap"),
            ({"LabelMap": {"a": 1}}, r"expected numbers of \(height, width\) as LabelMap"),
            ({"LabelMap": np.full((2, 3), 0.5)}, "expected 2 × 3 whole numbers as LabelMap"),
            ({"LabelMap": np.full((2, 3), np.nan)}, "expected 2 × 3 whole numbers as LabelMap"),
            ({"LabelMap": np.array([["a", "b"]], dtype=object)}, r"expected numbers of \(height, width\)"),
        ],
    )
    def test_a_matlab_file_without_a_label_map_is_refused(
        self, tmp_path: Path, content: dict[str, Any], message: str
    ) -> None:
        scipy.io.savemat(tmp_path / "x.mat", content)
        feature = BENCHMARKS["pascal_context_459"].features["label"]
        with pytest.raises(ValueError, match=rf"cannot read the label .*x\.mat: {message}"):
            feature.decode_example({"path": str(tmp_path / "x.mat"), "bytes": None})

    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64"])
    def test_matlab_files_are_read_as_scipy_reads_them(self, tmp_path: Path, dtype: str, packed: bool) -> None:
        ids = np.random.default_rng(0).integers(0, 200, (30, 50)).astype(dtype)
        variables = {"names": np.array(["a"], dtype=object), "LabelMap": ids, "other": np.zeros(3)}
        scipy.io.savemat(tmp_path / "x.mat", variables, do_compression=packed)
        with (tmp_path / "x.mat").open("rb") as file:
            assert np.array_equal(read_mat_label_map(file), scipy.io.loadmat(tmp_path / "x.mat")["LabelMap"])

    def test_a_matlab_file_that_crashes_scipy_is_refused(self, tmp_path: Path) -> None:
        scipy.io.savemat(tmp_path / "x.mat", {"LabelMap": np.ones((2, 3))})
        content = bytearray((tmp_path / "x.mat").read_bytes())
        content[184:188] = struct.pack("<I", 4100)  # the type of the numbers, of which MATLAB has 18
        with pytest.raises(ValueError, match="expected numbers as LabelMap, got MATLAB's type 4100"):
            read_mat_label_map(BytesIO(content))

    def test_a_matlab_file_that_unpacks_to_more_than_its_label_map_is_refused(self, tmp_path: Path) -> None:
        scipy.io.savemat(tmp_path / "x.mat", {"LabelMap": np.ones((2, 3))}, do_compression=True)
        content = (tmp_path / "x.mat").read_bytes()
        packed = zlib.compress(zlib.decompress(content[136:]) + bytes(10**7))
        (tmp_path / "x.mat").write_bytes(content[:128] + struct.pack("<II", 15, len(packed)) + packed)
        feature = BENCHMARKS["pascal_context_459"].features["label"]
        with pytest.raises(ValueError, match="LabelMap unpacks to more than the 4,144 bytes that its size takes"):
            feature.decode_example({"path": str(tmp_path / "x.mat"), "bytes": None})

    def test_a_listing_that_is_no_text_is_named(self, write_raw_copy: Callable[[str], Path]) -> None:
        data_dir = write_raw_copy("pascal_voc_20")
        (path,) = data_dir.rglob("val.txt")
        path.write_bytes(b"\xff\xfe")
        with pytest.raises(ValueError, match=f"{path} is no list of file names"):
            load_benchmark("pascal_voc_20", data_dir)

    def test_a_pipe_in_place_of_a_picture_is_not_waited_for(self, write_raw_copy: Callable[[str], Path]) -> None:
        data_dir = write_raw_copy("ade20k_150")
        path = min(data_dir.rglob("*.jpg"))
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(ValueError, match=f"{path}: expected a file, found something else"):
            load_benchmark("ade20k_150", data_dir)[0]

    @pytest.mark.parametrize(
        ("name", "raw_id", "expected"),
        [
            ("ade20k_150", 151, "0 to 150"),
            ("pascal_voc_20", 21, "0 to 20, 255"),
            ("pascal_voc_20b", 254, "0 to 20, 255"),
        ],
    )
    def test_a_label_outside_the_class_range_is_reported_with_file_and_value(
        self, name: str, raw_id: int, expected: str, tmp_path: Path
    ) -> None:
        case = RULE_CASES[name]
        case.write(tmp_path, {case.file_names[0]: rows([0, raw_id])})
        dataset = load_benchmark(name, tmp_path)
        message = rf"{case.file_names[0]}\.png: label values outside the class range: {raw_id} \(expected {expected}\)"
        with pytest.raises(ValueError, match=message):
            dataset[0]

    @pytest.mark.parametrize("kind", ["image", "label"])
    @pytest.mark.parametrize("name", ["ade20k_150", "pascal_context_459"])
    def test_a_damaged_file_is_named_when_it_is_read(
        self, name: str, kind: str, write_raw_copy: Callable[[str], Path]
    ) -> None:
        data_dir = write_raw_copy(name)
        dataset = load_benchmark(name, data_dir)
        path = Path(dataset.cast_column(kind, datasets.Image(decode=False))[0][kind]["path"])
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=f"cannot read the {kind} {path}"):
            dataset[0]


class TestOwnData:
    @pytest.mark.parametrize(("suffix", "dtype"), [(".png", np.uint8), (".png", np.uint16), (".tif", np.uint16)])
    def test_masks_hold_class_indices_in_8_or_16_bits(
        self, suffix: str, dtype: type[np.integer], tmp_path: Path
    ) -> None:
        write_own_data(tmp_path, {"a": np.array([[0, 1, 255]], dtype=dtype)}, ["cat", "dog"], suffix=suffix)
        dataset = load_benchmark("custom", tmp_path)
        np.testing.assert_array_equal(decoded(dataset[0]["label"]), [[0, 1, 255]])

    def test_more_than_255_classes_are_ignored_at_65535(self, tmp_path: Path) -> None:
        mask = np.array([[0, 255, 299, 65535]], dtype=np.uint16)
        write_own_data(tmp_path, {"a": mask}, [f"class {index}" for index in range(300)])
        dataset = load_benchmark("custom", tmp_path)
        assert dataset.features["label"].ignore_index == 65535
        np.testing.assert_array_equal(decoded(dataset[0]["label"]), mask)

    def test_class_names_come_from_the_list_in_the_folder(self, tmp_path: Path) -> None:
        write_own_data(tmp_path, {"a": np.zeros((1, 1), np.uint8)}, ["cat, kitten", "dog"])
        assert load_benchmark("custom", tmp_path).features["label"].names == ["cat, kitten", "dog"]

    def test_splits_are_folders_inside_images_and_masks(self, tmp_path: Path) -> None:
        mask = np.zeros((1, 1), np.uint8)
        write_own_data(tmp_path, {"a": mask}, ["cat"], split="train")
        write_own_data(tmp_path, {"b": mask}, ["cat"], split="val")
        assert load_benchmark("custom", tmp_path, "train")["file_name"] == ["a.jpg"]

    def test_masks_may_lie_in_a_folder_called_labels(self, tmp_path: Path) -> None:
        write_own_data(tmp_path, {"a": np.zeros((1, 1), np.uint8)}, ["cat"])
        (tmp_path / "masks").rename(tmp_path / "labels")
        assert len(load_benchmark("custom", tmp_path)) == 1

    def test_a_missing_class_list_is_reported(self, tmp_path: Path) -> None:
        write_own_data(tmp_path, {"a": np.zeros((1, 1), np.uint8)}, ["cat"])
        (tmp_path / "classes.txt").unlink()
        with pytest.raises(FileNotFoundError, match=r"expected the class names in .*classes\.json or .*classes\.txt"):
            load_benchmark("custom", tmp_path)

    def test_a_value_without_a_class_is_reported_with_file_and_value(self, tmp_path: Path) -> None:
        write_own_data(tmp_path, {"a": np.array([[0, 2]], dtype=np.uint8)}, ["cat", "dog"])
        dataset = load_benchmark("custom", tmp_path)
        with pytest.raises(
            ValueError, match=r"a\.png: label values outside the class range: 2 \(expected 0 to 1, 255\)"
        ):
            dataset[0]

    def test_a_mask_in_colour_is_refused(self, tmp_path: Path) -> None:
        write_own_data(tmp_path, {"a": np.zeros((4, 4), np.uint8)}, ["cat"])
        write_picture(tmp_path / "masks" / "a.png", (4, 4))
        dataset = load_benchmark("custom", tmp_path)
        with pytest.raises(ValueError, match=r"a\.png: expected one channel of class ids, got an image of mode RGB"):
            dataset[0]

    def test_two_images_of_one_name_are_refused(self, tmp_path: Path) -> None:
        write_own_data(tmp_path, {"a": np.zeros((1, 1), np.uint8)}, ["cat"])
        write_picture(tmp_path / "images" / "a.png", (1, 1))
        with pytest.raises(ValueError, match="have the same name"):
            load_benchmark("custom", tmp_path)
