"""The benchmarks, read from small copies in their layouts, against section 9 of the specification; and own data."""

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import cv2
import datasets
import numpy as np
import PIL.Image
import pytest
from raw_copies import (
    DETECTRON2_TREES,
    STEMS,
    WRITERS,
    RawIds,
    write_ade20k_847,
    write_coco_stuff,
    write_detectron2,
    write_image,
    write_index_image,
    write_own_data,
    write_pascal_voc,
)

from sed_hf import SEDImageProcessor
from sed_hf.data import benchmark_info, load_benchmark, load_vocabulary

# Ids as downloaded, and the labels that the specification gives them.
RULES = {
    "coco_stuff_171": ([[0, 10, 11, 12], [26, 91, 181, 255]], [[0, 10, 255, 11], [24, 80, 170, 255]]),
    "ade20k_150": ([[0, 1, 2], [75, 149, 150]], [[255, 0, 1], [74, 148, 149]]),
    "ade20k_847": ([[0, 2978, 312], [2420, 3148, 1]], [[65535, 0, 1], [2, 846, 65535]]),
    "pascal_context_59": ([[0, 2, 9], [458, 1, 25]], [[255, 0, 1], [58, 255, 6]]),
    "pascal_context_459": ([[0, 1, 2], [459, 460, 65535]], [[65535, 0, 1], [458, 65535, 65535]]),
    "pascal_voc_20": ([[0, 1, 2], [19, 20, 255]], [[255, 0, 1], [18, 19, 255]]),
    "pascal_voc_20b": ([[0, 1, 2], [19, 20, 255]], [[20, 0, 1], [18, 19, 255]]),
}
ADE_IMAGE = STEMS["ade20k_847"][0]

each_benchmark = pytest.mark.parametrize("name", RULES)
each_layout = pytest.mark.parametrize("layout", ["raw", "detectron2"])
Copy = Callable[..., Path]


@pytest.fixture
def write_copy(tmp_path: Path) -> Copy:
    """Writes a benchmark's copy of two examples, the second being the first turned upside down."""

    def write(name: str, layout: str = "raw") -> Path:
        raw_ids, labels = map(np.array, RULES[name])
        ids = raw_ids if layout == "raw" else labels
        if layout == "detectron2" and name == "pascal_context_459":
            # This script subtracts 1 from all ids, in 16 bits, and leaves those beyond the classes.
            ids = (raw_ids - 1) % 2**16
        maps = dict(zip(STEMS[name], (ids, ids[::-1]), strict=True))
        WRITERS[name](tmp_path, maps) if layout == "raw" else write_detectron2(name, tmp_path, maps)
        return tmp_path

    return write


def label_of(dataset: datasets.Dataset, index: int = 0) -> RawIds:
    return np.asarray(dataset[index]["label"])


class TestLabels:
    @each_layout
    @each_benchmark
    def test_follow_the_rule_of_the_benchmark_and_know_its_classes(
        self, name: str, layout: str, write_copy: Copy
    ) -> None:
        dataset, (_, labels) = load_benchmark(name, write_copy(name, layout)), RULES[name]
        np.testing.assert_array_equal(label_of(dataset, 0), labels)
        np.testing.assert_array_equal(label_of(dataset, 1), labels[::-1])
        is_16_bit = name in ("ade20k_847", "pascal_context_459")
        assert label_of(dataset).dtype == (np.uint16 if is_16_bit else np.uint8)
        assert dataset.features["label"].ignore_index == (65535 if is_16_bit else 255)
        assert dataset.features["label"].names == load_vocabulary(name)
        assert dataset[0]["image"].size == dataset[0]["label"].size
        assert dataset["file_name"] == [f"{stem}.jpg" for stem in STEMS[name]]
        assert dataset.split == "val"

    def test_of_voc_20b_tell_background_from_the_59_names_of_its_vocabulary(self, write_copy: Copy) -> None:
        label = load_benchmark("pascal_voc_20b", write_copy("pascal_voc_20b")).features["label"]
        assert (len(label.names), label.background_index) == (59, 20)
        assert label.class_names == [*load_vocabulary("pascal_voc_20"), "background"]

    def test_are_exact_in_torch_tensors_of_16_bits(self, write_copy: Copy) -> None:
        dataset = load_benchmark("ade20k_847", write_copy("ade20k_847")).with_format("torch")
        assert dataset[0]["label"].tolist() == [RULES["ade20k_847"][1]]

    @pytest.mark.slow
    def test_survive_saving_to_disk_and_loading_in_a_process_with_the_documented_import(
        self, tmp_path: Path, write_copy: Copy
    ) -> None:
        load_benchmark("ade20k_847", write_copy("ade20k_847")).save_to_disk(tmp_path / "saved")
        program = (
            "import sys, datasets, numpy; from sed_hf.data import load_benchmark;"
            "dataset = datasets.load_from_disk(sys.argv[1]);"
            "print(numpy.asarray(dataset[0]['label']).tolist(), dataset.features['label'].ignore_index)"
        )
        command = [sys.executable, "-c", program, tmp_path / "saved"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert printed.strip() == f"{RULES['ade20k_847'][1]} 65535"


class TestAde20k847:
    @pytest.mark.parametrize(
        ("shape", "expected"),
        [
            ((700, 1400), (512, 1024)),
            ((600, 513), (599, 512)),
            ((400, 900), (400, 900)),
            ((512, 2000), (512, 2000)),
            ((2000, 700), (1463, 512)),
        ],
    )
    def test_has_512_pixels_on_the_shortest_side_where_that_is_larger(
        self, tmp_path: Path, shape: tuple[int, int], expected: tuple[int, int]
    ) -> None:
        raw_ids = np.random.default_rng(0).choice([2978, 312, 2420, 3148, 1], shape)
        write_ade20k_847(tmp_path, {ADE_IMAGE: raw_ids})
        dataset = load_benchmark("ade20k_847", tmp_path)
        assert dataset[0]["image"].size == dataset[0]["label"].size == expected[::-1]

        # The plain rule: the nearest source pixel at the floor of its position, then the class of its id.
        class_of = {2978: 0, 312: 1, 2420: 2, 3148: 846, 1: 65535}
        (height, width), (new_height, new_width) = shape, expected
        source_rows = [min(height - 1, int(row * (1 / (new_height / height)))) for row in range(new_height)]
        source_columns = [min(width - 1, int(column * (1 / (new_width / width)))) for column in range(new_width)]
        label = [[class_of[raw_id] for raw_id in raw_ids[row, source_columns].tolist()] for row in source_rows]
        np.testing.assert_array_equal(label_of(dataset), label)

    @pytest.mark.parametrize("shape", [(700, 1400), (400, 900)])
    def test_has_images_compressed_as_jpeg_at_any_size(self, tmp_path: Path, shape: tuple[int, int]) -> None:
        write_ade20k_847(tmp_path, {ADE_IMAGE: np.full(shape, 2978)})
        pixels = np.asarray(PIL.Image.open(next(tmp_path.rglob(f"{ADE_IMAGE}.jpg"))))
        if shape == (700, 1400):
            pixels = cv2.resize(pixels, (1024, 512), interpolation=cv2.INTER_LINEAR)
        compressed = BytesIO()
        PIL.Image.fromarray(pixels).save(compressed, format="JPEG")
        expected = np.asarray(PIL.Image.open(compressed))
        assert (expected != pixels).any()
        dataset = load_benchmark("ade20k_847", tmp_path)
        np.testing.assert_array_equal(np.asarray(dataset[0]["image"]), expected)
        mapped = dataset.map(lambda example: {**example}, keep_in_memory=True)  # does not compress it once more
        np.testing.assert_array_equal(np.asarray(mapped[0]["image"]), expected)
        np.testing.assert_array_equal(label_of(mapped), label_of(dataset))

    def test_is_left_as_it_is_where_detectron2s_script_has_prepared_it(self, tmp_path: Path) -> None:
        write_detectron2("ade20k_847", tmp_path, {ADE_IMAGE: np.zeros((600, 700))})
        image = np.asarray(load_benchmark("ade20k_847", tmp_path)[0]["image"])
        np.testing.assert_array_equal(image, np.asarray(PIL.Image.open(next(tmp_path.rglob("*.jpg")))))


class TestExamples:
    @each_benchmark
    def test_come_from_the_root_folder_as_from_the_data_folder(self, name: str, write_copy: Copy) -> None:
        dataset = load_benchmark(name, write_copy(name) / DETECTRON2_TREES[name][0])
        assert dataset["file_name"] == [f"{stem}.jpg" for stem in STEMS[name]]

    @each_benchmark
    def test_are_read_as_downloaded_where_both_layouts_are_there(self, name: str, write_copy: Copy) -> None:
        write_copy(name)
        data_dir = write_copy(name, "detectron2")
        for path in (data_dir / DETECTRON2_TREES[name][0]).glob("annotations_detectron2*/**/*.*"):
            path.unlink()  # as of a script that was interrupted
        assert len(load_benchmark(name, data_dir)) == 2

    def test_pass_over_hidden_files_and_those_of_mmseg(self, write_copy: Copy) -> None:
        data_dir = write_copy("coco_stuff_171")
        for path in [*data_dir.rglob("*.jpg"), *data_dir.rglob("*.png")]:
            path.with_name(f"._{path.name}").write_bytes(b"of macOS")
        for path in data_dir.rglob("0*.png"):
            write_index_image(path.with_name(f"{path.stem}_labelTrainIds.png"), np.zeros((2, 4), np.uint8))
        assert load_benchmark("coco_stuff_171", data_dir)["file_name"] == ["000000000139.jpg", "000000000285.jpg"]

    def test_are_listed_without_reading_an_image_a_label_or_a_pickle(self, write_copy: Copy) -> None:
        names = [name for name in RULES if name != "pascal_context_59"]
        for name in names:
            data_dir = write_copy(name)
        for path in [*data_dir.rglob("*.jpg"), *data_dir.rglob("*.png"), *data_dir.rglob("*.mat")]:
            path.write_bytes(b"not an image")
        assert [len(load_benchmark(name, data_dir)) for name in names] == [2] * len(names)

    @pytest.mark.parametrize(
        ("images", "labels"), [("images/{}2017", "annotations/{}2017"), ("{}2017", "stuffthingmaps/{}2017")]
    )
    def test_of_coco_stuff_come_in_two_splits_and_several_layouts(
        self, images: str, labels: str, tmp_path: Path
    ) -> None:
        for split in ("train", "val"):
            write_coco_stuff(tmp_path, {f"of_{split}": np.zeros((1, 1))}, split=split)
            for old, new in ((f"images/{split}2017", images), (f"stuffthingmaps/{split}2017", labels)):
                target = tmp_path / "coco-stuff" / new.format(split)
                target.parent.mkdir(exist_ok=True)
                (tmp_path / "coco-stuff" / old).rename(target)
        assert load_benchmark("coco_stuff_171", tmp_path, "train")["file_name"] == ["of_train.jpg"]
        assert load_benchmark("coco_stuff_171", tmp_path, "val")["file_name"] == ["of_val.jpg"]

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
        first, second = STEMS[name]
        write_pascal_voc(tmp_path, {first: np.array([unlabelled]), second: np.array([labelled])})
        stream = load_benchmark(name, tmp_path, streaming=True)
        assert [example["file_name"] for example in stream] == [f"{second}.jpg"]


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "split", "message"),
        [
            ("cityscapes", None, r"unknown benchmark 'cityscapes'.*coco_stuff_171, ade20k_150"),
            ("coco_stuff_171", "test", r"coco_stuff_171 has no split 'test': expected train or val"),
        ],
    )
    def test_an_unknown_name_or_split_is_answered_with_the_known_ones(
        self, name: str, split: str | None, message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match=message):
            load_benchmark(name, tmp_path, split)

    def test_an_empty_data_folder_is_answered_with_what_is_missing_and_where_it_is(self, tmp_path: Path) -> None:
        info = benchmark_info("pascal_voc_20")
        with pytest.raises(FileNotFoundError) as error:
            load_benchmark("pascal_voc_20", tmp_path)
        assert str(error.value).startswith(f"pascal_voc_20: expected {tmp_path}/")
        assert f"must be, or hold, {info.roots[0]}: see docs/data.md and {info.homepage}" in str(error.value)

    @pytest.mark.parametrize(
        ("name", "kind"),
        [*((name, "image") for name in RULES), *((name, "label") for name in RULES if not name.startswith("pascal"))],
    )
    def test_a_missing_image_or_label_is_named(self, name: str, kind: str, write_copy: Copy) -> None:
        data_dir, missing = write_copy(name), STEMS[name][1]
        next(data_dir.rglob(f"{missing}.jpg" if kind == "image" else f"{missing}*.png")).unlink()
        with pytest.raises(FileNotFoundError, match=rf"{name}: expected the {kind}s in .*; missing: {missing}"):
            load_benchmark(name, data_dir)

    @pytest.mark.parametrize("content", ['{"images": [], ', '{"images": [], "annos_segmentation": [5]}'])
    def test_a_damaged_json_file_is_named(self, write_copy: Copy, content: str) -> None:
        data_dir = write_copy("pascal_context_59")
        (path,) = data_dir.rglob("trainval_merged.json")
        path.write_text(content)
        with pytest.raises(ValueError, match=f"{path} is damaged, or not PASCAL-Context's JSON file"):
            load_benchmark("pascal_context_59", data_dir)

    @pytest.mark.parametrize(
        ("name", "raw_id", "expected"), [("ade20k_150", 151, "0 to 150"), ("pascal_voc_20b", 254, "0 to 20, 255")]
    )
    def test_a_label_outside_the_class_range_is_reported_with_file_and_value(
        self, name: str, raw_id: int, expected: str, tmp_path: Path
    ) -> None:
        stem = STEMS[name][0]
        WRITERS[name](tmp_path, {stem: np.array([[0, raw_id]])})
        message = rf"{stem}\.png: label values outside the class range: {raw_id} \(expected {expected}\)"
        with pytest.raises(ValueError, match=message):
            load_benchmark(name, tmp_path)[0]

    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".mat"])
    def test_a_damaged_file_is_named_when_it_is_read(self, suffix: str, write_copy: Copy) -> None:
        name = "pascal_context_459" if suffix == ".mat" else "ade20k_150"
        data_dir = write_copy(name)
        path = next(data_dir.rglob(f"{STEMS[name][0]}{suffix}"))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=str(path)):
            load_benchmark(name, data_dir)[0]


def write_packed_png(path: Path, ids: RawIds, bits: int) -> None:
    """Write ids as a grey PNG of 1, 2 or 4 bits a pixel, as programs that draw masks do and Pillow does not."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = ids.shape
    digits = np.unpackbits(ids.astype(np.uint8)[..., None], axis=-1)[..., -bits:].reshape(height, -1)
    lines = b"".join(b"\0" + line.tobytes() for line in np.packbits(digits, axis=-1))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b""))


class TestOwnData:
    @pytest.fixture
    def mask(self, tmp_path: Path) -> Path:
        """The mask `a.png` of a small data set of four classes, in `tmp_path`."""
        write_own_data(tmp_path, {"a": np.array([[0, 1, 2]])}, ["cat", "dog", "cow", "hen"])
        return tmp_path / "masks" / "a.png"

    @pytest.mark.parametrize("dtype", ["<u2", ">u2"])
    def test_masks_hold_class_indices_in_16_bits_of_any_byte_order(
        self, dtype: str, mask: Path, tmp_path: Path
    ) -> None:
        mask.unlink()
        write_index_image(mask.with_suffix(".tif"), np.array([[0, 1, 255]], dtype=dtype))
        np.testing.assert_array_equal(label_of(load_benchmark("custom", tmp_path)), [[0, 1, 255]])

    @pytest.mark.parametrize(("bits", "ids"), [(1, [0, 1, 1]), (2, [0, 1, 3]), (4, [0, 1, 2])])
    def test_masks_of_few_bits_hold_the_ids_that_are_stored(
        self, bits: int, ids: list[int], mask: Path, tmp_path: Path
    ) -> None:
        write_packed_png(mask, np.array([ids]), bits)
        np.testing.assert_array_equal(label_of(load_benchmark("custom", tmp_path)), [ids])

    @pytest.mark.parametrize("dtype", [np.uint8, np.bool_])
    def test_masks_that_show_0_as_white_hold_the_ids_that_are_stored(
        self, dtype: type[np.generic], mask: Path, tmp_path: Path
    ) -> None:
        mask.unlink()
        shown = PIL.Image.fromarray(~np.array([[0, 1, 1]]).astype(dtype))  # Pillow inverts it once more
        shown.save(mask.with_suffix(".tif"), tiffinfo={262: 0})  # PhotometricInterpretation
        np.testing.assert_array_equal(label_of(load_benchmark("custom", tmp_path)), [[0, 1, 1]])

    @pytest.mark.parametrize(("shape", "dtype"), [((8, 8), np.uint16), ((8, 8, 4), np.uint8)])
    def test_images_of_any_kind_are_given_as_the_processor_reads_their_files(
        self, shape: tuple[int, ...], dtype: type[np.integer], mask: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "images" / "a.jpg").unlink()
        path = tmp_path / "images" / "a.png"
        pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype)
        PIL.Image.fromarray(pixels).save(path)
        processor = SEDImageProcessor(do_resize=False, do_input_resize=False, do_normalize=False, do_rescale=False)
        expected = processor(images=str(path), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        image = load_benchmark("custom", tmp_path)[0]["image"]
        assert 60 < np.asarray(image).mean() < 220
        np.testing.assert_array_equal(np.asarray(image), expected)

    def test_more_than_255_classes_are_ignored_at_65535(self, mask: Path, tmp_path: Path) -> None:
        ids = np.array([[0, 255, 299, 65535]], dtype=np.uint16)
        write_index_image(mask, ids)
        (tmp_path / "classes.txt").write_text("\n".join(f"class {index}" for index in range(300)))
        dataset = load_benchmark("custom", tmp_path)
        assert dataset.features["label"].ignore_index == 65535
        np.testing.assert_array_equal(label_of(dataset), ids)

    @pytest.mark.parametrize("folder", ["masks", "labels"])
    def test_splits_are_folders_inside_images_and_masks_or_labels(self, folder: str, tmp_path: Path) -> None:
        for split in ("train", "val"):
            write_own_data(tmp_path, {f"of_{split}": np.zeros((1, 1))}, ["cat, kitten"], split)
        (tmp_path / "masks").rename(tmp_path / folder)
        dataset = load_benchmark("custom", tmp_path, "train")
        assert dataset["file_name"] == ["of_train.jpg"]
        assert dataset.features["label"].names == ["cat, kitten"]

    def test_a_missing_class_list_is_reported(self, mask: Path, tmp_path: Path) -> None:
        (tmp_path / "classes.txt").unlink()
        with pytest.raises(FileNotFoundError, match=r"expected the class names in .*classes\.json or .*classes\.txt"):
            load_benchmark("custom", tmp_path)

    def test_a_class_list_with_other_ids_than_0_to_n_is_refused(self, mask: Path, tmp_path: Path) -> None:
        (tmp_path / "classes.json").write_text(json.dumps([{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]))
        with pytest.raises(ValueError, match=r"classes\.json: expected the ids 0 to 1, .* got 1 to 2"):
            load_benchmark("custom", tmp_path)

    def test_a_mask_in_colour_is_refused(self, mask: Path, tmp_path: Path) -> None:
        write_image(mask, (3, 1))
        with pytest.raises(ValueError, match=r"a\.png: expected one channel of class ids, got an image of mode RGB"):
            load_benchmark("custom", tmp_path)[0]

    def test_two_images_of_one_name_are_refused(self, mask: Path, tmp_path: Path) -> None:
        write_image(tmp_path / "images" / "a.png", (3, 1))
        with pytest.raises(ValueError, match="have the same name"):
            load_benchmark("custom", tmp_path)
