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
OTHER_SUFFIXES = {".csv", ".tsv", ".yaml", ".yml"}
NUMBERED_LINE = re.compile(r"\d+\s*[,;:\t]")

_BUILT_IN = files("sed_hf.data") / "vocabularies"


def vocabulary_names() -> list[str]:
    """The names of the built-in vocabularies, in alphabetical order."""
    return sorted(entry.name.removesuffix(".json") for entry in _BUILT_IN.iterdir() if entry.name.endswith(".json"))


def load_vocabulary(name_or_path: str | PathLike[str]) -> list[str]:
    """Class names, stripped of surrounding white space, in the order of their class indices.

    Args:
        name_or_path: A built-in name (see [`vocabulary_names`]), or the path of a UTF-8 file. If its name
            ends in `.json`, it holds a list of strings, an object `{"0": "sky", ...}` as `id2label` of a configuration,
            or a list of COCO's categories `{"id": 1, "name": "person"}`, also under the key `categories`. Any other is
            text with one class on each line, where empty lines do not count. A built-in name wins over a file.

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
        raise FileNotFoundError(
            f"unknown vocabulary {name!r}: expected the path of a text or JSON file,"
            f" or one of {', '.join(vocabulary_names())}"
        )
    suffix = Path(path.name).suffix.lower()
    try:
        # "utf-8-sig" because editors on Windows begin UTF-8 files with a byte order mark.
        text = path.read_bytes().decode("utf-8-sig")
        classes = _parse_json(json.loads(text)) if suffix == ".json" else _parse_text(text, suffix)
    except ValueError as error:
        raise ValueError(f"vocabulary {name}: {EXPECTED}; {short_error(error)}") from error
    if not classes or not all(class_name for _, class_name in classes):
        raise ValueError(f"vocabulary {name}: {EXPECTED}; {'a name' if classes else 'the file'} is empty")
    return classes


def _parse_json(content: Any) -> list[tuple[int, str]]:
    if isinstance(content, dict):
        content = content.get("categories") or content.get("id2label") or content
    try:
        if isinstance(content, dict):
            classes = sorted((int(key), value) for key, value in content.items())
        elif not isinstance(content, list):
            raise TypeError(type(content).__name__)
        elif content and isinstance(content[0], dict):
            classes = sorted((category["id"], category["name"]) for category in content)
        else:
            classes = list(enumerate(content))
        return [(index, class_name.strip()) for index, class_name in classes]
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"got JSON of another form ({short_error(error)})") from error


def _parse_text(text: str, suffix: str) -> list[tuple[int, str]]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if suffix in OTHER_SUFFIXES or (len(lines) > 1 and all(NUMBERED_LINE.match(line) for line in lines[1:])):
        raise ValueError(f"got a table or numbered lines: {lines[-1]!r:.40}" if lines else "the file is empty")
    return list(enumerate(lines))
