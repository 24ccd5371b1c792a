"""Lists of class names, and names that no image of a data set is labelled with."""

from pathlib import Path

import pytest

from sed_hf.data.distractors import distractors
from sed_hf.data.vocabularies import load_vocabulary, vocabulary_names


def test_built_in_vocabularies_have_the_number_of_distinct_classes_that_their_names_say() -> None:
    sizes = {name: len(set(load_vocabulary(name))) for name in vocabulary_names()}
    assert sizes.pop("pascal_voc_20b") == 59  # of which 39 mean background
    assert sizes == {name: int(name.rpartition("_")[2]) for name in sizes}
    assert len(sizes) == 6


def test_built_in_names_are_stripped_in_the_order_of_their_indices_with_their_synonyms() -> None:
    assert load_vocabulary("ade20k_150")[:3] == ["wall", "building", "sky"]
    assert "bed" in load_vocabulary("ade20k_150")  # the official file holds "bed "
    assert load_vocabulary("ade20k_847")[1] == "building, edifice"


CAT_AND_DOG = b'[{"id": 18, "name": "dog, puppy"}, {"id": 17, "name": "cat", "supercategory": "animal"}]'


@pytest.mark.parametrize(
    ("file_name", "content"),
    [
        ("lines.txt", b"cat\n\n  dog, puppy \n"),
        ("of_windows.txt", b"\xef\xbb\xbfcat\r\ndog, puppy\r\n"),
        ("list.JSON", b'[" cat", "dog, puppy"]'),
        ("id2label.json", b'{"1": "dog, puppy", "0": "cat"}'),
        ("config.json", b'{"model_type": "sed", "id2label": {"0": "cat", "1": "dog, puppy"}}'),
        ("categories.json", CAT_AND_DOG),
        ("coco.json", b'{"images": [], "categories": ' + CAT_AND_DOG + b"}"),
    ],
)
def test_files_of_many_forms_are_read_in_the_order_of_their_ids(tmp_path: Path, file_name: str, content: bytes) -> None:
    (tmp_path / file_name).write_bytes(content)
    assert load_vocabulary(tmp_path / file_name) == ["cat", "dog, puppy"]


@pytest.mark.parametrize("names", [["1 cent", "5 cents"], ["1.5 l bottle", "2.5 l bottle"], ["0", "1"]])
def test_names_may_begin_with_numbers(names: list[str], tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(names))
    assert load_vocabulary(tmp_path / "names.txt") == names


def test_unknown_name_is_refused_with_the_built_in_names() -> None:
    with pytest.raises(FileNotFoundError, match=r"'ade20k'.*expected.*ade20k_150, ade20k_847, coco_stuff_171"):
        load_vocabulary("ade20k")


@pytest.mark.parametrize(
    ("file_name", "content", "message"),
    [
        ("label2id.json", b'{"cat": 0}', "got another form"),
        ("mixed.json", b'["cat", 7]', "got another form"),
        ("empty_name.json", b'["cat", " "]', "a name is empty"),
        ("empty.txt", b"\n \n", "the file is empty"),
        ("latin1.txt", b"caf\xe9\n", "can't decode byte 0xe9 in position 3"),
        ("classes.csv", b"Idx,Name\n1,sky\n2,water\n", "a table or numbered lines: '2,water'"),
        ("labels.txt", b"0: empty\n1: accordion\n", "a table or numbered lines: '1: accordion'"),
        ("spaces.txt", b"0 background\n1 cat\n2 dog\n", "numbered lines: '2 dog'"),
        ("comment.txt", b"# animals\ncat\n", "a comment or a list with marks: '# animals'"),
        ("marks.txt", b"- cat\n- dog\n", "a comment or a list with marks: '- cat'"),
        ("dots.txt", b"1. cat\n 2.dog\n3) cow\n", r"numbered lines: '3\) cow'"),
    ],
)
def test_other_files_are_refused_with_what_is_expected(
    tmp_path: Path, file_name: str, content: bytes, message: str
) -> None:
    (tmp_path / file_name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_vocabulary(tmp_path / file_name)
    assert "expected one class name on each line, or JSON: a list of names, id2label" in str(error.value)


def test_distractors_share_no_synonym_with_the_classes_nor_with_one_another(tmp_path: Path) -> None:
    (tmp_path / "first.txt").write_text("puppy, young dog\nCat\ncar\nbus\n")
    (tmp_path / "second.txt").write_text("automobile, car\ntram\n")
    vocabularies = [str(tmp_path / "first.txt"), str(tmp_path / "second.txt")]
    assert distractors(["dog, puppy", "cat"], vocabularies) == ["car", "bus", "tram"]
