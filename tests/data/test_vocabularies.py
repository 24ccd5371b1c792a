import json
from pathlib import Path

import pytest

from sed_hf.data.vocabularies import load_vocabulary, vocabulary_names

NUMBER_OF_CLASSES = {
    "ade20k_150": 150,
    "ade20k_847": 847,
    "coco_stuff_171": 171,
    "pascal_context_459": 459,
    "pascal_context_59": 59,
    "pascal_voc_20": 20,
    "pascal_voc_20b": 59,
}


def test_built_in_names_are_listed_in_alphabetical_order() -> None:
    assert vocabulary_names() == list(NUMBER_OF_CLASSES)


@pytest.mark.parametrize(("name", "number_of_classes"), NUMBER_OF_CLASSES.items())
def test_built_in_vocabulary_has_the_benchmarks_number_of_distinct_classes(name: str, number_of_classes: int) -> None:
    assert len(set(load_vocabulary(name))) == number_of_classes


def test_built_in_vocabulary_keeps_the_order_of_the_class_indices() -> None:
    assert load_vocabulary("ade20k_150")[:3] == ["wall", "building", "sky"]


def test_built_in_vocabulary_keeps_synonyms_in_one_name() -> None:
    assert load_vocabulary("ade20k_847")[1] == "building, edifice"


def test_built_in_names_are_stripped() -> None:
    names = load_vocabulary("ade20k_150")  # the official file holds "bed "
    assert "bed" in names
    assert names == [name.strip() for name in names]


def test_text_file_has_one_class_on_each_line(tmp_path: Path) -> None:
    path = tmp_path / "pets.txt"
    path.write_text("cat\n\n  dog, puppy \n# grass\n", encoding="utf-8")
    assert load_vocabulary(path) == ["cat", "dog, puppy", "# grass"]


def test_text_file_may_come_from_windows(tmp_path: Path) -> None:
    path = tmp_path / "pets.txt"
    path.write_bytes("\ufeffcat\r\ncafé\r\n".encode())
    assert load_vocabulary(path) == ["cat", "café"]


def test_json_file_is_a_list_of_names(tmp_path: Path) -> None:
    path = tmp_path / "pets.JSON"
    path.write_text(json.dumps([" cat", "dog, puppy"]), encoding="utf-8")
    assert load_vocabulary(str(path)) == ["cat", "dog, puppy"]


def test_unknown_name_is_refused_with_the_built_in_names() -> None:
    with pytest.raises(FileNotFoundError, match=r"'ade20k'.*expected.*ade20k_150, ade20k_847, coco_stuff_171"):
        load_vocabulary("ade20k")


@pytest.mark.parametrize(
    ("file_name", "content", "message"),
    [
        ("broken.json", b'["cat",', "expected a JSON list of class names, but it is no JSON"),
        ("deep.json", b"[" * 100_000, "expected a JSON list of class names, but it is no JSON"),
        ("number.json", b"[" + b"9" * 5_000 + b"]", "expected a JSON list of class names, but it is no JSON"),
        ("surrogate.json", b'["cat", "\\ud800"]', "expected text, but entry 1 is none"),
        ("object.json", b'{"cat": 0}', "expected a JSON list of class names, got a JSON object"),
        ("mixed.json", b'["cat", 7]', "expected strings, but entry 1 is a JSON number"),
        ("empty.json", b"[]", "expected at least one class name, got an empty list"),
        ("empty.txt", b"\n \n", "expected one class name on each line, got an empty file"),
        ("latin1.txt", b"caf\xe9\n", "expected UTF-8 text, but byte 3 is not UTF-8"),
    ],
)
def test_bad_file_is_refused_with_what_was_expected(
    tmp_path: Path, file_name: str, content: bytes, message: str
) -> None:
    path = tmp_path / file_name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_vocabulary(path)
