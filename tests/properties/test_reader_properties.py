"""Any label map, written in any raw layout, reads back as its rule says; and what is prepared reads back as it was."""

import json
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from raw_copies import (
    RawIds,
    run_lengths,
    write_ade20k_150,
    write_ade20k_847,
    write_coco_stuff,
    write_pascal_context_59,
    write_pascal_context_459,
    write_pascal_voc,
)
from strategies import examples, label_maps

import sed_hf.data
from sed_hf.data.benchmarks import load_benchmark
from sed_hf.data.prepare import prepare_benchmark
from sed_hf.data.raw_labels import read_rle_annotations
from sed_hf.data.vocabularies import load_vocabulary

PUBLISHED = json.loads((Path(sed_hf.data.__file__).parent / "label_maps" / "raw_label_to_train_id.json").read_text())


class Layout(NamedTuple):
    """A raw layout.

    Attributes:
        write: Writes raw ids by the name of the picture.
        file_names: Two names that the split lists.
        ids: Raw ids that its files can hold.
        class_index: The class or the ignored label of a raw id, by the specification.
    """

    write: Callable[..., None]
    file_names: tuple[str, str]
    ids: st.SearchStrategy[int]
    class_index: Callable[[int], int]


def published(name: str, ignored: int) -> Callable[[int], int]:
    table = {int(raw_id): index for raw_id, index in PUBLISHED[name].items()}
    return lambda raw_id: table.get(raw_id, ignored)


def counted_from_one(num_classes: int, ignored: int, zero: int | None = None) -> Callable[[int], int]:
    def class_index(raw_id: int) -> int:
        if raw_id == 0 and zero is not None:
            return zero
        return raw_id - 1 if 1 <= raw_id <= num_classes else ignored

    return class_index


ADE_NAMES = ("ADE_val_00000001", "ADE_val_00000002")
CONTEXT_NAMES = ("2008_000002", "2008_000003")
VOC_NAMES = ("2007_000033", "2007_000042")
voc_ids = st.integers(0, 20) | st.just(255)
LAYOUTS = {
    "coco_stuff_171": Layout(
        write_coco_stuff,
        ("000000000139", "000000000285"),
        st.integers(0, 255),
        published("coco_stuff_171", 255),
    ),
    "ade20k_150": Layout(write_ade20k_150, ADE_NAMES, st.integers(0, 150), counted_from_one(150, 255)),
    "ade20k_847": Layout(write_ade20k_847, ADE_NAMES, st.integers(0, 3688), published("ade20k_847", 65535)),
    "pascal_context_59": Layout(
        write_pascal_context_59, CONTEXT_NAMES, st.integers(0, 459), published("pascal_context_59", 255)
    ),
    "pascal_context_459": Layout(
        write_pascal_context_459, CONTEXT_NAMES, st.integers(0, 65535), counted_from_one(459, 65535)
    ),
    "pascal_voc_20": Layout(write_pascal_voc, VOC_NAMES, voc_ids, counted_from_one(20, 255)),
    "pascal_voc_20b": Layout(write_pascal_voc, VOC_NAMES, voc_ids, counted_from_one(20, 255, zero=20)),
}
each_layout = pytest.mark.parametrize("name", LAYOUTS)


def expected_labels(layout: Layout, ids: RawIds) -> list[list[int]]:
    return [[layout.class_index(raw_id) for raw_id in row] for row in ids.tolist()]


def labels_of(dataset: Any) -> list[list[list[int]]]:
    return [np.asarray(example["label"]).tolist() for example in dataset]


def some_of(ids: st.SearchStrategy[int]) -> st.SearchStrategy[RawIds]:
    return label_maps(ids, 6, np.int32)


class TestBenchmarks:
    @each_layout
    @given(data=st.data())
    @examples(6)
    def test_any_labels_in_the_raw_layout_read_as_the_rule_says(self, name: str, data: st.DataObject) -> None:
        layout = LAYOUTS[name]
        maps = dict(zip(layout.file_names, data.draw(st.tuples(some_of(layout.ids), some_of(layout.ids))), strict=True))
        options = {"compressed": data.draw(st.booleans())} if name == "pascal_context_59" else {}
        with TemporaryDirectory() as folder:
            layout.write(Path(folder), maps, **options)
            dataset = load_benchmark(name, folder)
            assert labels_of(dataset) == [expected_labels(layout, ids) for ids in maps.values()]
            assert [example["image"].size for example in dataset] == [ids.shape[::-1] for ids in maps.values()]

    @each_layout
    @given(data=st.data())
    @examples(2)
    def test_what_is_prepared_as_parquet_reads_as_the_raw_files(self, name: str, data: st.DataObject) -> None:
        layout = LAYOUTS[name]
        maps = dict(zip(layout.file_names, data.draw(st.tuples(some_of(layout.ids), some_of(layout.ids))), strict=True))
        with TemporaryDirectory() as folder:
            layout.write(Path(folder, "raw"), maps)
            raw = load_benchmark(name, Path(folder, "raw"))
            is_kept = [
                not name.startswith("pascal_voc") or raw.features["label"].has_labelled_pixel(example["label"])
                for example in raw
            ]
            prepare_benchmark(name, Path(folder, "raw"), output=Path(folder, "prepared"))
            prepared = load_benchmark(name, Path(folder, "prepared"), streaming=True)
            assert prepared.features["label"].names == load_vocabulary(name)
            expected = [example for example, kept in zip(raw, is_kept, strict=True) if kept]
            assert labels_of(prepared) == labels_of(expected)
            for example, original in zip(prepared, expected, strict=True):
                np.testing.assert_array_equal(np.asarray(example["image"]), np.asarray(original["image"]))


@given(label_maps(st.integers(0, 7), 8, np.int32), st.booleans())
def test_of_run_lengths_that_overlap_the_last_wins(bits: NDArray[np.int32], compressed: bool) -> None:
    masks = [bits >> bit & 1 == 1 for bit in range(3)]
    segments = [
        {"category_id": bit + 1, "segmentation": run_lengths(mask, compressed)} for bit, mask in enumerate(masks)
    ]
    label = json.dumps({"size": bits.shape, "segments": segments}).encode()
    expected = np.select(masks[::-1], [3, 2, 1], 0)
    np.testing.assert_array_equal(read_rle_annotations(BytesIO(label)), expected)


class TestVocabularies:
    names = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1).filter(str.strip)

    @given(st.lists(names, min_size=1), st.booleans())
    def test_any_names_survive_json(self, names: list[str], ascii_only: bool) -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder, "names.json")
            path.write_text(json.dumps(names, ensure_ascii=ascii_only), encoding="utf-8")
            assert load_vocabulary(path) == [name.strip() for name in names]

    @given(
        st.lists(names, min_size=1),
        st.sampled_from(["\n", "\r\n", "\n\n", "\n \n"]),
        st.sampled_from(["utf-8", "utf-8-sig"]),
    )
    def test_any_names_survive_a_line_each(self, names: list[str], line_end: str, encoding: str) -> None:
        assume(not names[0].startswith("\ufeff"))  # which begins a file, and no name
        assume(not any(re.match(r"\s*\d", name) for name in names[1:]))  # which would be a table
        with TemporaryDirectory() as folder:
            path = Path(folder, "names.txt")
            path.write_bytes(line_end.join(names).encode(encoding))
            assert load_vocabulary(path) == [name.strip() for name in names]
