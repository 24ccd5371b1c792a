"""Names that no image of a data set is labelled with."""

from pathlib import Path

from sed_hf.data.distractors import distractors


def test_a_class_that_shares_a_synonym_is_left_out(tmp_path: Path) -> None:
    vocabulary = tmp_path / "names.txt"
    vocabulary.write_text("puppy, young dog\nCat\ncar\n")
    assert distractors(["dog, puppy", "cat"], [str(vocabulary)]) == ["car"]


def test_each_is_given_once_over_all_vocabularies(tmp_path: Path) -> None:
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("car\nbus\n")
    second.write_text("automobile, car\ntram\n")
    assert distractors(["dog"], [str(first), str(second)]) == ["car", "bus", "tram"]
