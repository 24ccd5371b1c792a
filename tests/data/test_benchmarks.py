"""The benchmarks, read from small copies in their layouts, against section 9 of the specification; and own data."""

import subprocess
import sys
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
    def test_follow_the_benchmarks_rule_and_know_its_classes(self, name: str, layout: str, write_copy: Copy) -> None:
        data_dir, (_, labels) = write_copy(name, layout), RULES[name]
        dataset = load_benchmark(name, data_dir)
        np.testing.assert_array_equal(label_of(dataset, 0), labels)
        np.testing.assert_array_equal(label_of(dataset, 1), labels[::-1])
        is_16_bit = name in ("ade20k_847", "pascal_context_459")
        assert label_of(dataset).dtype == (np.uint16 if is_16_bit else np.uint8)
        assert dataset.features["label"].ignore_index == (65535 if is_16_bit else 255)
        assert dataset.features["label"].names == load_vocabulary(name)
        assert dataset[0]["image"].size == dataset[0]["label"].size
        assert dataset["file_name"] == [f"{stem}.jpg" for stem in STEMS[name]]
        assert dataset.split == "val"
        assert len(load_benchmark(name, data_dir / DETECTRON2_TREES[name][0])) == 2  # its root folder

    def test_are_exact_in_torch_tensors_of_16_bits(self, write_copy: Copy) -> None:
        dataset = load_benchmark("ade20k_847", write_copy("ade20k_847")).with_format("torch")
        assert dataset[0]["label"].tolist() == [RULES["ade20k_847"][1]]

    @pytest.mark.slow
    def test_survive_saving_and_loading_in_another_process(self, tmp_path: Path, write_copy: Copy) -> None:
        load_benchmark("ade20k_847", write_copy("ade20k_847")).save_to_disk(tmp_path / "saved")
        program = (  # with the import that the documentation asks for
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
        [((700, 1400), (512, 1024)), ((600, 513), (599, 512)), ((2000, 700), (1463, 512)), ((400, 900), (400, 900))],
    )
    def test_has_at_most_512_pixels_on_its_shortest_side(self, tmp_path: Path, shape: tuple, expected: tuple) -> None:
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

    @pytest.mark.parametrize(
        ("images", "labels"), [("images/{}2017", "annotations/{}2017"), ("{}2017", "stuffthingmaps/{}2017")]
    )
    def test_of_coco_stuff_come_in_splits_and_several_layouts(self, images: str, labels: str, tmp_path: Path) -> None:
        for split in ("train", "val"):
            write_coco_stuff(tmp_path, {f"of_{split}": np.zeros((1, 1))}, split=split)
            for old, new in ((f"images/{split}2017", images), (f"stuffthingmaps/{split}2017", labels)):
                target = tmp_path / "coco-stuff" / new.format(split)
                target.parent.mkdir(exist_ok=True)
                (tmp_path / "coco-stuff" / old).rename(target)
        for split in ("train", "val"):
            assert load_benchmark("coco_stuff_171", tmp_path, split)["file_name"] == [f"of_{split}.jpg"]

    def test_outlive_a_change_of_the_working_directory(self, write_copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(write_copy("ade20k_150"))
        dataset = load_benchmark("ade20k_150", ".")
        monkeypatch.chdir("/")
        assert dataset[0]["image"].size == dataset[0]["label"].size

    def test_are_streamed(self, tmp_path: Path) -> None:
        write_pascal_voc(tmp_path, {"2007_000033": np.array([[0, 255]]), "2007_000042": np.array([[0, 1]])})
        stream = load_benchmark("pascal_voc_20", tmp_path, streaming=True)
        assert [np.asarray(example["label"]).tolist() for example in stream] == [[[255, 255]], [[255, 0]]]


class TestErrors:
    def test_an_unknown_name_or_split_is_answered_with_the_known_ones(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"unknown benchmark 'cityscapes'.*coco_stuff_171, ade20k_150"):
            load_benchmark("cityscapes", tmp_path)
        with pytest.raises(ValueError, match=r"coco_stuff_171 has no split 'test': expected train or val"):
            load_benchmark("coco_stuff_171", tmp_path, "test")

    def test_an_empty_data_folder_is_answered_with_what_is_missing_and_where_it_is(self, tmp_path: Path) -> None:
        info = benchmark_info("pascal_voc_20")
        with pytest.raises(FileNotFoundError) as error:
            load_benchmark("pascal_voc_20", tmp_path)
        assert str(error.value).startswith(f"pascal_voc_20: expected {tmp_path}/")
        assert f"must be, or hold, {info.roots[0]}: see docs/data.md and {info.homepage}" in str(error.value)

    @pytest.mark.parametrize("kind", ["image", "label"])
    @pytest.mark.parametrize("name", ["coco_stuff_171", "ade20k_847"])
    def test_a_missing_image_or_label_is_named(self, name: str, kind: str, write_copy: Copy) -> None:
        data_dir, missing = write_copy(name), STEMS[name][1]
        next(data_dir.rglob(f"{missing}.jpg" if kind == "image" else f"{missing}*.png")).unlink()
        with pytest.raises(FileNotFoundError, match=rf"{name}: expected the {kind}s.* in .*; missing: {missing}"):
            load_benchmark(name, data_dir)

    def test_a_label_outside_the_class_range_is_named_with_file_and_value(self, tmp_path: Path) -> None:
        write_pascal_voc(tmp_path, {"2007_000033": np.array([[0, 254]])})
        message = r"2007_000033\.png: label values outside the class range: 254 \(expected 0 to 20, 255\)"
        with pytest.raises(ValueError, match=message):
            load_benchmark("pascal_voc_20b", tmp_path)[0]

    @pytest.mark.parametrize(
        "file_name", ["ADE_val_00000001.jpg", "ADE_val_00000001.png", "2008_000002.mat", "trainval_merged.json"]
    )
    def test_a_damaged_file_is_named(self, file_name: str, write_copy: Copy) -> None:
        name = {".mat": "pascal_context_459", ".json": "pascal_context_59"}.get(Path(file_name).suffix, "ade20k_150")
        data_dir = write_copy(name)
        (path,) = data_dir.rglob(file_name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=str(path)):
            load_benchmark(name, data_dir)[0]


class TestOwnData:
    @pytest.fixture
    def mask(self, tmp_path: Path) -> Path:
        """The mask `a.png` of a small data set of four classes, in `tmp_path`."""
        write_own_data(tmp_path, {"a": np.array([[0, 1, 2]])}, ["cat", "dog", "cow", "hen"])
        return tmp_path / "masks" / "a.png"

    @pytest.mark.parametrize(
        ("suffix", "shown", "tags"),
        [
            pytest.param(".tif", np.array([[0, 1, 255]], ">u2"), {}, id="16 bits, big-endian"),
            pytest.param(".png", np.array([[False, True, True]]), {}, id="1 bit"),
            # Pillow inverts what it writes with this PhotometricInterpretation, and what it reads once more.
            pytest.param(".tif", np.array([[True, False, False]]), {262: 0}, id="1 bit, 0 is white"),
            pytest.param(".tif", np.array([[255, 254, 254]], np.uint8), {262: 0}, id="8 bits, 0 is white"),
        ],
    )
    def test_masks_hold_stored_ids(self, suffix: str, shown: RawIds, tags: dict, mask: Path, tmp_path: Path) -> None:
        mask.unlink()
        PIL.Image.fromarray(shown).save(mask.with_suffix(suffix), **({"tiffinfo": tags} if tags else {}))
        expected = [[0, 1, 1]] if tags or shown.dtype == np.bool_ else shown
        np.testing.assert_array_equal(label_of(load_benchmark("custom", tmp_path)), expected)

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
        for options, expected in (({"split": "train"}, "train"), ({}, "val"), ({"default_split": "train"}, "train")):
            dataset = load_benchmark("custom", tmp_path, **options)
            assert dataset["file_name"] == [f"of_{expected}.jpg"]
            assert dataset.features["label"].names == ["cat, kitten"]

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("classes.txt", None, r"expected the class names in .*classes\.json or .*classes\.txt"),
            ("classes.json", '[{"id": 1, "name": "cat"}]', r"classes\.json: expected the ids 0 to 0, .* got 1 to 1"),
            ("classes.json", '["cat"]', r"classes\.json and classes\.txt both list the classes: remove one"),
            ("masks/a.png", None, r"expected the labels \(PNG or TIFF\) in .*masks; missing: a"),
            ("masks/a.png", "RGB", r"a\.png: expected one channel of class ids, got an image of mode RGB"),
            ("images/a.png", "RGB", r"a\.\w+ and .*a\.\w+ have the same name"),
        ],
    )
    def test_a_mistake_is_named(self, name: str, content: str | None, message: str, mask: Path, tmp_path: Path) -> None:
        if content is None:
            (tmp_path / name).unlink()
        elif content == "RGB":
            write_image(tmp_path / name, (3, 1))
        else:
            if "id" in content:
                (tmp_path / "classes.txt").unlink()
            (tmp_path / name).write_text(content)
        with pytest.raises((FileNotFoundError, ValueError), match=message):
            load_benchmark("custom", tmp_path)[0]
