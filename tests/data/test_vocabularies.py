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


@pytest.mark.parametrize(
    "content",
    [
        {"1": "dog, puppy", "0": "cat"},
        {"model_type": "sed", "id2label": {"0": "cat", "1": "dog, puppy"}},
        [{"id": 17, "name": "cat", "supercategory": "animal"}, {"id": 18, "name": "dog, puppy"}],
        {"images": [], "categories": [{"id": 18, "name": "dog, puppy"}, {"id": 17, "name": "cat"}]},
    ],
    ids=["id2label", "configuration", "COCO's categories", "COCO's annotations"],
)
def test_json_of_other_libraries_is_read_in_the_order_of_its_ids(tmp_path: Path, content: object) -> None:
    path = tmp_path / "pets.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert load_vocabulary(path) == ["cat", "dog, puppy"]


def test_unknown_name_is_refused_with_the_built_in_names() -> None:
    with pytest.raises(FileNotFoundError, match=r"'ade20k'.*expected.*ade20k_150, ade20k_847, coco_stuff_171"):
        load_vocabulary("ade20k")


@pytest.mark.parametrize(
    ("file_name", "content", "message"),
    [
        ("broken.json", b'["cat",', "Expecting value"),
        ("text.json", b'"cat"', "got JSON of another form"),
        ("label2id.json", b'{"cat": 0}', "got JSON of another form"),
        ("mixed.json", b'["cat", 7]', "got JSON of another form"),
        ("ids.json", b'[{"id": 1}]', "got JSON of another form"),
        ("empty.json", b"[]", "the file is empty"),
        ("empty_name.json", b'["cat", " "]', "a name is empty"),
        ("empty.txt", b"\n \n", "the file is empty"),
        ("latin1.txt", b"caf\xe9\n", "can't decode byte 0xe9 in position 3"),
        ("classes.csv", b"Idx,Name\n1,sky\n2,water\n", "got a table or numbered lines: '2,water'"),
        ("names.CSV", b"name\nsky\n", "got a table or numbered lines: 'sky'"),
        ("objectInfo150.txt", b"Idx\tRatio\tName\n1\t0.1576\twall\n", "got a table or numbered lines"),
        ("labels.txt", b"0: empty\n1: accordion\n", "got a table or numbered lines: '1: accordion'"),
        ("pets.yaml", b"- cat\n- dog\n", "got a table or numbered lines: '- dog'"),
    ],
)
def test_other_files_are_refused_with_what_is_expected(
    tmp_path: Path, file_name: str, content: bytes, message: str
) -> None:
    path = tmp_path / file_name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_vocabulary(path)
    assert "expected one class name on each line, or JSON: a list of names, id2label" in str(error.value)
