"""Lists of class names: the vocabularies of the benchmarks, and files of the user's own.

A class is one string; synonyms within it are separated by ", " (e.g. `"dog, puppy"`), as SED's prompts expect.
"""

import json
import re
from importlib.resources import files
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from ..utils import short_error

EXPECTED = "expected one class name on each line, or JSON: a list of names, id2label, or COCO's categories"

_BUILT_IN = files(__package__) / "vocabularies"


def vocabulary_names() -> list[str]:
    """The names of the built-in vocabularies, in alphabetical order."""
    return sorted(entry.name.removesuffix(".json") for entry in _BUILT_IN.iterdir())


def load_vocabulary(name_or_path: str | PathLike[str]) -> list[str]:
    """Class names, stripped of surrounding white space, in the order of their class indices.

    Args:
        name_or_path: A built-in name (see [`vocabulary_names`]), which wins over a file, or the path of a UTF-8 file.
            If its name ends in `.json`, it holds a list of strings, an object `{"0": "sky", ...}` as `id2label` of a
            configuration, or a list of COCO's categories `{"id": 1, "name": "person"}`, also under the key
            `categories`. Any other is text with one class on each line, where empty lines do not count.

    Raises:
        FileNotFoundError: There is neither a built-in vocabulary nor a file of that name.
        ValueError: The file has another form, or holds no class.
    """
    return [name for _, name in load_numbered_classes(name_or_path)]


def load_numbered_classes(name_or_path: str | PathLike[str]) -> list[tuple[int, str]]:
    """The classes that [`load_vocabulary`] reads, each with its id: that of the file, or counted from 0."""
    name = fspath(name_or_path)
    path = _BUILT_IN / f"{name}.json" if name in vocabulary_names() else Path(name)
    if not path.is_file():
        known = ", ".join(vocabulary_names())
        raise FileNotFoundError(f"unknown vocabulary {name!r}: expected the path of a text or JSON file, or {known}")
    suffix = Path(path.name).suffix.lower()
    try:
        text = path.read_bytes().decode("utf-8-sig")  # editors on Windows begin UTF-8 files with a byte order mark
        classes = _parse_json(json.loads(text)) if suffix == ".json" else _parse_text(text, suffix)
        classes = [(index, class_name.strip()) for index, class_name in classes]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"vocabulary {name}: {EXPECTED}; got another form ({short_error(error)})") from error
    if not classes or not all(class_name for _, class_name in classes):
        raise ValueError(f"vocabulary {name}: {EXPECTED}; {'a name' if classes else 'the file'} is empty")
    return classes


def _parse_json(content: Any) -> list[tuple[int, str]]:
    if isinstance(content, dict):
        content = content.get("categories") or content.get("id2label") or content
    if isinstance(content, dict):
        return sorted((int(key), value) for key, value in content.items())
    if isinstance(content, list) and content and isinstance(content[0], dict):
        return sorted((category["id"], category["name"]) for category in content)
    if not isinstance(content, list):
        raise TypeError(type(content).__name__)
    return list(enumerate(content))


def _parse_text(text: str, suffix: str) -> list[tuple[int, str]]:
    lines = [line for line in text.splitlines() if line.strip()]
    is_table = len(lines) > 1 and all(re.match(r"\s*\d+\s*[,;:\t]", line) for line in lines[1:])
    # A name may begin with a number ("1 dollar"), but hardly each with the next one.
    numbers = [int(match[1]) for line in lines if (match := re.match(r"\s*(\d+)[.) ](?!\d)", line))]
    counts = len(lines) > 2 and any(numbers == list(range(first, first + len(lines))) for first in (0, 1))
    if suffix in (".csv", ".tsv", ".yaml", ".yml") or is_table or counts:
        raise ValueError(f"a table or numbered lines: {lines[-1].strip()!r:.40}" if lines else "an empty file")
    if marked := [line.strip() for line in lines if re.match(r"\s*(#[# ]|[-*] )", line)]:
        raise ValueError(f"a comment or a list with marks: {marked[0]!r:.40}")
    return list(enumerate(lines))
