"""The benchmarks, read from small copies in their layouts, against section 9 of the specification."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import datasets
import numpy as np
import PIL.Image
import pytest
import scipy.io
from raw_copies import (
    DETECTRON2_TREES,
    RawIds,
    write_ade20k_150,
    write_ade20k_847,
    write_coco_stuff,
    write_detectron2,
    write_image,
    write_index_image,
    write_own_data,
    write_packed_png,
    write_pascal_context_59,
    write_pascal_context_459,
    write_pascal_voc,
)

from sed_hf import SEDImageProcessor
from sed_hf.data.benchmarks import BENCHMARKS, benchmark_info, load_benchmark
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
each_layout = pytest.mark.parametrize("layout", ["raw", "detectron2"])
Copy = Callable[..., Path]


@pytest.fixture
def write_copy(tmp_path: Path) -> Copy:
    """Writes a benchmark's copy of two examples, the second being the first turned upside down."""

    def write(name: str, layout: str = "raw") -> Path:
        case = RULE_CASES[name]
        first, second = case.file_names
        if layout == "raw":
            case.write(tmp_path, {first: case.raw_ids, second: case.raw_ids[::-1]})
            return tmp_path
        # The script for PC-459 subtracts 1 from all ids, in 16 bits, and leaves those beyond the classes.
        indices = (case.raw_ids - 1) % 2**16 if name == "pascal_context_459" else case.expected
        write_detectron2(name, tmp_path, {first: indices, second: indices[::-1]})
        return tmp_path

    return write


def decoded(label: PIL.Image.Image) -> RawIds:
    return np.asarray(label)


class TestLabels:
    @each_layout
    @each_benchmark
    def test_follow_the_rule_of_the_benchmark(self, name: str, layout: str, write_copy: Copy) -> None:
        dataset = load_benchmark(name, write_copy(name, layout))
        for example, expected in zip(
            dataset, (RULE_CASES[name].expected, RULE_CASES[name].expected[::-1]), strict=True
        ):
            np.testing.assert_array_equal(decoded(example["label"]), expected)
            assert example["image"].size == example["label"].size
        expected_type = np.uint16 if dataset.features["label"].ignore_index == 65535 else np.uint8
        assert decoded(dataset[0]["label"]).dtype == expected_type


class TestSizeOfAde20k847:
    @pytest.mark.parametrize(
        ("shape", "expected"),
        [
            ((700, 1400), (512, 1024)),
            ((600, 513), (599, 512)),
            ((400, 900), (400, 900)),
            ((512, 2000), (512, 2000)),
            ((513, 513), (512, 512)),
            ((2000, 700), (1463, 512)),
        ],
    )
    def test_is_512_on_the_shortest_side_where_that_is_larger(
        self, tmp_path: Path, shape: tuple[int, int], expected: tuple[int, int]
    ) -> None:
        raw_ids = np.random.default_rng(0).choice([2978, 312, 2420, 3148, 1], shape)
        write_ade20k_847(tmp_path, {"ADE_val_00000001": raw_ids})
        example = load_benchmark("ade20k_847", tmp_path)[0]
        assert example["image"].size == example["label"].size == expected[::-1]

        # The plain rule: the nearest source pixel at the floor of its position, then the class of its id.
        class_of = {2978: 0, 312: 1, 2420: 2, 3148: 846, 1: 65535}
        (height, width), (new_height, new_width) = shape, expected
        source_rows = [min(height - 1, int(row * (1 / (new_height / height)))) for row in range(new_height)]
        source_columns = [min(width - 1, int(column * (1 / (new_width / width)))) for column in range(new_width)]
        label = [[class_of[raw_id] for raw_id in raw_ids[row, source_columns].tolist()] for row in source_rows]
        np.testing.assert_array_equal(decoded(example["label"]), label)

    @pytest.mark.parametrize("shape", [(700, 1400), (400, 900)])
    def test_comes_with_jpeg_compression_of_the_image_at_any_size(self, tmp_path: Path, shape: tuple[int, int]) -> None:
        write_ade20k_847(tmp_path, {"ADE_val_00000001": np.full(shape, 2978)})
        (path,) = tmp_path.rglob("ADE_val_00000001.jpg")
        pixels = np.asarray(PIL.Image.open(path))
        if shape == (700, 1400):
            pixels = cv2.resize(pixels, (1024, 512), interpolation=cv2.INTER_LINEAR)
        compressed = BytesIO()
        PIL.Image.fromarray(pixels).save(compressed, format="JPEG")
        expected = np.asarray(PIL.Image.open(compressed))
        assert (expected != pixels).any()
        np.testing.assert_array_equal(np.asarray(load_benchmark("ade20k_847", tmp_path)[0]["image"]), expected)

    def test_is_that_of_the_files_where_detectron2s_script_has_prepared_them(self, tmp_path: Path) -> None:
        write_detectron2("ade20k_847", tmp_path, {"ADE_val_00000001": np.zeros((600, 700))})
        example = load_benchmark("ade20k_847", tmp_path)[0]
        assert example["image"].size == example["label"].size == (700, 600)
        (path,) = tmp_path.rglob("*.jpg")
        np.testing.assert_array_equal(np.asarray(example["image"]), np.asarray(PIL.Image.open(path)))


class TestFeatures:
    @each_benchmark
    def test_give_the_class_names_and_the_ignore_index(self, name: str, write_copy: Copy) -> None:
        label = load_benchmark(name, write_copy(name)).features["label"]
        assert label.names == load_vocabulary(name)
        assert label.ignore_index == (65535 if name in ("ade20k_847", "pascal_context_459") else 255)

    def test_of_voc_20b_tell_background_from_the_59_names_of_its_vocabulary(self, write_copy: Copy) -> None:
        label = load_benchmark("pascal_voc_20b", write_copy("pascal_voc_20b")).features["label"]
        assert (len(label.names), label.background_index, label.num_classes) == (59, 20, 21)
        assert label.class_names == [*load_vocabulary("pascal_voc_20"), "background"]

    @pytest.mark.slow
    def test_survive_saving_to_disk_and_loading_in_a_process_with_the_documented_import(
        self, tmp_path: Path, write_copy: Copy
    ) -> None:
        names = ["ade20k_150", "ade20k_847"]
        for name in names:
            load_benchmark(name, write_copy(name)).save_to_disk(tmp_path / "saved" / name)
        program = (
            "import sys, datasets, numpy\n"
            "from sed_hf.data import load_benchmark\n"
            "for path in sys.argv[1:]:\n"
            "    dataset = datasets.load_from_disk(path)\n"
            "    print(numpy.asarray(dataset[0]['label']).tolist(), dataset.features['label'].ignore_index)"
        )
        command = [sys.executable, "-c", program, *(tmp_path / "saved" / name for name in names)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        expected = [f"{RULE_CASES[name].expected.tolist()} {BENCHMARKS[name].ignore_index}" for name in names]
        assert printed.splitlines() == expected

    def test_prepare_an_example_once_where_map_writes_it_back(self, tmp_path: Path) -> None:
        write_ade20k_847(tmp_path, {"ADE_val_00000001": np.full((600, 700), 2978)})
        dataset = load_benchmark("ade20k_847", tmp_path)
        mapped = dataset.map(lambda example: {**example}, keep_in_memory=True)
        for column in ("image", "label"):
            np.testing.assert_array_equal(np.asarray(mapped[0][column]), np.asarray(dataset[0][column]))

    def test_give_torch_tensors_of_exact_16_bit_labels(self, write_copy: Copy) -> None:
        dataset = load_benchmark("ade20k_847", write_copy("ade20k_847")).with_format("torch")
        assert dataset[0]["label"].tolist() == [RULE_CASES["ade20k_847"].expected.tolist()]


class TestExamples:
    @each_layout
    @each_benchmark
    def test_are_those_of_the_split_in_order_from_the_data_folder_or_the_root_folder(
        self, name: str, layout: str, write_copy: Copy
    ) -> None:
        data_dir = write_copy(name, layout)
        for folder in (data_dir, data_dir / DETECTRON2_TREES[name][0]):
            dataset = load_benchmark(name, folder)
            assert dataset["file_name"] == [f"{stem}.jpg" for stem in RULE_CASES[name].file_names]
            assert dataset.split == "val"

    @each_benchmark
    def test_are_read_as_downloaded_where_both_layouts_are_there(self, name: str, write_copy: Copy) -> None:
        write_copy(name)
        data_dir = write_copy(name, "detectron2")
        for path in (data_dir / DETECTRON2_TREES[name][0]).glob("annotations_detectron2*/**/*.*"):
            path.unlink()  # as of a script that was interrupted
        assert len(load_benchmark(name, data_dir)) == 2

    @each_layout
    def test_pass_over_files_that_are_no_data(self, layout: str, write_copy: Copy) -> None:
        data_dir = write_copy("coco_stuff_171", layout)
        for path in [*data_dir.rglob("*.jpg"), *data_dir.rglob("*.png")]:
            path.with_name(f"._{path.name}").write_bytes(b"of macOS")
        for path in data_dir.rglob("0*.png"):  # of mmseg
            write_index_image(path.with_name(f"{path.stem}_labelTrainIds.png"), np.zeros((2, 4), np.uint8))
        assert load_benchmark("coco_stuff_171", data_dir)["file_name"] == ["000000000139.jpg", "000000000285.jpg"]

    def test_are_listed_without_reading_an_image_a_label_or_a_pickle(self, write_copy: Copy) -> None:
        names = ["coco_stuff_171", "ade20k_150", "ade20k_847", "pascal_context_459", "pascal_voc_20"]
        for name in names:
            data_dir = write_copy(name)
        for path in [*data_dir.rglob("*.jpg"), *data_dir.rglob("*.png"), *data_dir.rglob("*.mat")]:
            path.write_bytes(b"not an image")
        assert [len(load_benchmark(name, data_dir)) for name in names] == [2] * len(names)

    @pytest.mark.parametrize(
        ("images", "labels"),
        [
            ("images/{}2017", "annotations/{}2017"),
            ("{}2017", "stuffthingmaps/{}2017"),
        ],
    )
    def test_of_coco_stuff_come_in_train_and_val_and_several_layouts(
        self, images: str, labels: str, tmp_path: Path
    ) -> None:
        for split, stem in (("train", "000000000009"), ("val", "000000000139")):
            write_coco_stuff(tmp_path, {stem: rows([0])}, split=split)
            for old, new in ((f"images/{split}2017", images), (f"stuffthingmaps/{split}2017", labels)):
                target = tmp_path / "coco-stuff" / new.format(split)
                target.parent.mkdir(exist_ok=True)
                (tmp_path / "coco-stuff" / old).rename(target)
        assert load_benchmark("coco_stuff_171", tmp_path, "train")["file_name"] == ["000000000009.jpg"]
        assert load_benchmark("coco_stuff_171", tmp_path, "val")["file_name"] == ["000000000139.jpg"]

    def test_outlive_a_change_of_the_working_directory(
        self, write_copy: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_copy("ade20k_150")
        monkeypatch.chdir(tmp_path)
        dataset = load_benchmark("ade20k_150", ".")
        monkeypatch.chdir("/")
        assert dataset[0]["image"].size == dataset[0]["label"].size

    @pytest.mark.parametrize(
        ("name", "unlabelled", "labelled"),
        [("pascal_voc_20", [0, 255], [0, 1]), ("pascal_voc_20b", [255, 255], [0, 255])],
    )
    def test_of_voc_without_a_labelled_pixel_are_skipped_by_a_stream(
        self, name: str, unlabelled: list[int], labelled: list[int], tmp_path: Path
    ) -> None:
        write_pascal_voc(tmp_path, {"2007_000033": rows(unlabelled), "2007_000042": rows(labelled)})
        stream = load_benchmark(name, tmp_path, streaming=True)
        assert [example["file_name"] for example in stream] == ["2007_000042.jpg"]


class TestErrors:
    def test_an_unknown_name_is_answered_with_the_known_ones(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"unknown benchmark 'cityscapes'.*coco_stuff_171, ade20k_150"):
            load_benchmark("cityscapes", tmp_path)

    def test_an_unknown_split_is_answered_with_the_known_ones(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"coco_stuff_171 has no split 'test': expected train or val"):
            load_benchmark("coco_stuff_171", tmp_path, "test")

    @each_benchmark
    def test_an_empty_data_folder_is_answered_with_what_is_missing_and_where_it_is(
        self, name: str, tmp_path: Path
    ) -> None:
        with pytest.raises(FileNotFoundError) as error:
            load_benchmark(name, tmp_path)
        benchmark = benchmark_info(name)
        labels = benchmark.layouts[0].labels.format(split="val")
        for part in (str(tmp_path / labels), benchmark.roots[0], benchmark.homepage):
            assert part in str(error.value)

    # Nothing but the images themselves lists those of A-847.
    @pytest.mark.parametrize("name", [name for name in RULE_CASES if name != "ade20k_847"])
    def test_a_missing_image_is_named(self, name: str, write_copy: Copy) -> None:
        data_dir = write_copy(name)
        missing = RULE_CASES[name].file_names[1]
        next(data_dir.rglob(f"{missing}.jpg")).unlink()
        with pytest.raises(FileNotFoundError, match=f"missing: {missing}"):
            load_benchmark(name, data_dir)

    @pytest.mark.parametrize(
        ("name", "layout"),
        [(name, "raw") for name in ("coco_stuff_171", "ade20k_150", "ade20k_847", "pascal_voc_20")]
        + [(name, "detectron2") for name in ("coco_stuff_171", "ade20k_150", "ade20k_847")],
    )
    def test_a_missing_label_is_named(self, name: str, layout: str, write_copy: Copy) -> None:
        data_dir = write_copy(name, layout)
        stem = RULE_CASES[name].file_names[1]
        for label in [*data_dir.rglob(f"{stem}*.png"), *data_dir.rglob(f"{stem}.tif")]:
            label.unlink()
        with pytest.raises(FileNotFoundError, match=rf"missing: .*{stem}"):
            load_benchmark(name, data_dir)

    @pytest.mark.parametrize("content", ['{"images": [], ', "{}", '{"images": [], "annos_segmentation": [5]}'])
    def test_a_damaged_json_file_is_named(self, write_copy: Copy, content: str) -> None:
        data_dir = write_copy("pascal_context_59")
        (path,) = data_dir.rglob("trainval_merged.json")
        path.write_text(content)
        with pytest.raises(ValueError, match=f"{path} is damaged, or not PASCAL-Context's JSON file"):
            load_benchmark("pascal_context_59", data_dir)

    @pytest.mark.parametrize(
        "content", [{"other": np.zeros((2, 3))}, {"LabelMap": {"a": 1}}, {"LabelMap": np.full((2, 3), 0.5)}]
    )
    def test_a_matlab_file_without_a_label_map_is_named(self, write_copy: Copy, content: dict[str, Any]) -> None:
        data_dir = write_copy("pascal_context_459")
        path = next(data_dir.rglob("2008_000002.mat"))
        scipy.io.savemat(path, content)
        message = rf"cannot read the label {path}: expected whole numbers as the variable LabelMap"
        with pytest.raises(ValueError, match=message):
            load_benchmark("pascal_context_459", data_dir)[0]

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
    def test_a_damaged_file_is_named_when_it_is_read(self, name: str, kind: str, write_copy: Copy) -> None:
        dataset = load_benchmark(name, write_copy(name))
        path = Path(dataset.cast_column(kind, datasets.Image(decode=False))[0][kind]["path"])
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=str(path)):
            dataset[0]


class TestOwnData:
    @pytest.mark.parametrize(("suffix", "dtype"), [(".png", "u1"), (".png", "u2"), (".tif", "<u2"), (".tif", ">u2")])
    def test_masks_hold_class_indices_in_8_or_16_bits_of_any_byte_order(
        self, suffix: str, dtype: str, tmp_path: Path
    ) -> None:
        write_own_data(tmp_path, {"a": np.array([[0, 1, 255]], dtype=dtype)}, ["cat", "dog"], suffix=suffix)
        dataset = load_benchmark("custom", tmp_path)
        np.testing.assert_array_equal(decoded(dataset[0]["label"]), [[0, 1, 255]])

    @pytest.mark.parametrize("palette", [False, True])
    @pytest.mark.parametrize(("bits", "ids"), [(1, [0, 1, 1]), (2, [0, 1, 3]), (4, [0, 1, 2])])
    def test_masks_of_few_bits_hold_the_ids_that_are_stored(
        self, bits: int, ids: list[int], palette: bool, tmp_path: Path
    ) -> None:
        write_own_data(tmp_path, {"a": np.array([ids], np.uint8)}, ["cat", "dog", "cow", "hen"])
        write_packed_png(tmp_path / "masks" / "a.png", np.array([ids]), bits, palette)
        np.testing.assert_array_equal(decoded(load_benchmark("custom", tmp_path)[0]["label"]), [ids])

    @pytest.mark.parametrize("dtype", [np.uint8, np.bool_])
    def test_masks_that_show_0_as_white_hold_the_ids_that_are_stored(
        self, dtype: type[np.generic], tmp_path: Path
    ) -> None:
        write_own_data(tmp_path, {"a": np.array([[0, 1, 1]], np.uint8)}, ["cat", "dog"], suffix=".tif")
        shown = ~np.array([[0, 1, 1]]).astype(dtype)  # Pillow inverts it once more
        PIL.Image.fromarray(shown).save(tmp_path / "masks" / "a.tif", tiffinfo={262: 0})  # PhotometricInterpretation
        stored = decoded(load_benchmark("custom", tmp_path)[0]["label"])
        np.testing.assert_array_equal(stored, [[0, 1, 1]])

    @pytest.mark.parametrize("mode", ["16-bit grey", "RGBA"])
    def test_images_of_any_kind_are_given_as_the_processor_reads_their_files(self, mode: str, tmp_path: Path) -> None:
        write_own_data(tmp_path, {"a": np.zeros((8, 8), np.uint8)}, ["cat"])
        (tmp_path / "images" / "a.jpg").unlink()
        pixels = np.random.default_rng(0).integers(0, 65536, (8, 8), dtype=np.uint16)
        if mode == "RGBA":
            pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
        image = load_benchmark("custom", tmp_path)[0]["image"]
        assert image.mode == "RGB"
        assert 60 < np.asarray(image).mean() < 220
        unchanged = {"do_resize": False, "do_input_resize": False, "do_normalize": False, "do_rescale": False}
        processor = SEDImageProcessor(**unchanged)
        of_file = processor(images=str(tmp_path / "images" / "a.png"), return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(np.asarray(image), of_file.transpose(1, 2, 0))

    def test_more_than_255_classes_are_ignored_at_65535(self, tmp_path: Path) -> None:
        mask = np.array([[0, 255, 299, 65535]], dtype=np.uint16)
        write_own_data(tmp_path, {"a": mask}, [f"class {index}" for index in range(300)])
        dataset = load_benchmark("custom", tmp_path)
        assert dataset.features["label"].ignore_index == 65535
        np.testing.assert_array_equal(decoded(dataset[0]["label"]), mask)

    @pytest.mark.parametrize("folder", ["masks", "labels"])
    def test_splits_are_folders_inside_images_and_masks_or_labels(self, folder: str, tmp_path: Path) -> None:
        mask = np.zeros((1, 1), np.uint8)
        write_own_data(tmp_path, {"a": mask}, ["cat, kitten"], split="train")
        write_own_data(tmp_path, {"b": mask}, ["cat, kitten"], split="val")
        if folder == "labels":
            (tmp_path / "masks").rename(tmp_path / "labels")
        dataset = load_benchmark("custom", tmp_path, "train")
        assert dataset["file_name"] == ["a.jpg"]
        assert dataset.features["label"].names == ["cat, kitten"]

    def test_a_missing_class_list_is_reported(self, tmp_path: Path) -> None:
        write_own_data(tmp_path, {"a": np.zeros((1, 1), np.uint8)}, ["cat"])
        (tmp_path / "classes.txt").unlink()
        with pytest.raises(FileNotFoundError, match=r"expected the class names in .*classes\.json or .*classes\.txt"):
            load_benchmark("custom", tmp_path)

    def test_a_class_list_with_other_ids_than_0_to_n_is_refused(self, tmp_path: Path) -> None:
        write_own_data(tmp_path, {"a": np.ones((1, 1), np.uint8)}, [])
        (tmp_path / "classes.json").write_text(json.dumps([{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]))
        with pytest.raises(ValueError, match=r"classes\.json: expected the ids 0 to 1, .* got 1 to 2"):
            load_benchmark("custom", tmp_path)

    def test_a_mask_in_colour_is_refused(self, tmp_path: Path) -> None:
        write_own_data(tmp_path, {"a": np.zeros((4, 4), np.uint8)}, ["cat"])
        write_image(tmp_path / "masks" / "a.png", (4, 4))
        dataset = load_benchmark("custom", tmp_path)
        with pytest.raises(ValueError, match=r"a\.png: expected one channel of class ids, got an image of mode RGB"):
            dataset[0]

    def test_two_images_of_one_name_are_refused(self, tmp_path: Path) -> None:
        write_own_data(tmp_path, {"a": np.zeros((1, 1), np.uint8)}, ["cat"])
        write_image(tmp_path / "images" / "a.png", (1, 1))
        with pytest.raises(ValueError, match="have the same name"):
            load_benchmark("custom", tmp_path)
