"""Lists of class names: the vocabularies of the benchmarks, and files of the user's own.

A class is one string; synonyms within it are separated by ", " (e.g. `"dog, puppy"`), as SED's prompts expect.
"""

import json
from importlib.resources import files
from importlib.resources.abc import Traversable
from os import PathLike, fspath
from pathlib import Path

from ..utils import short_error


def vocabulary_names() -> list[str]:
    """The names of the built-in vocabularies, in alphabetical order."""
    return sorted(
        entry.name.removesuffix(".json") for entry in _built_in_folder().iterdir() if entry.name.endswith(".json")
    )


def load_vocabulary(name_or_path: str | PathLike[str]) -> list[str]:
    """Read a vocabulary: T class names, stripped of surrounding white space, in the order of their class indices.

    Args:
        name_or_path: A built-in name (see [`vocabulary_names`]), or the path of a UTF-8 file: JSON (a list of strings)
            if its name ends in `.json`, otherwise text with one class on each line. Blank lines do not count.
            A built-in name wins over a file of the same name.

    Raises:
        FileNotFoundError: There is neither a built-in vocabulary nor a file of that name.
        ValueError: The file is not UTF-8, is not a JSON list of strings, or holds no class.
    """
    name = fspath(name_or_path)
    if name in vocabulary_names():
        return _parse_json(_read_utf8(_built_in_folder() / f"{name}.json", name), name)
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"unknown vocabulary {name!r}: expected the path of a text or JSON file,"
            f" or one of {', '.join(vocabulary_names())}"
        )
    parse = _parse_json if path.suffix.lower() == ".json" else _parse_text
    return parse(_read_utf8(path, name), name)


def _built_in_folder() -> Traversable:
    return files("sed_hf.data") / "vocabularies"


def _read_utf8(file: Traversable, name: str) -> str:
    try:
        # "utf-8-sig" because editors on Windows begin UTF-8 files with a byte order mark.
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"vocabulary {name}: expected UTF-8 text, but byte {error.start} is not UTF-8") from error


def _parse_json(text: str, name: str) -> list[str]:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"vocabulary {name}: expected a JSON list of class names, but it is no JSON: {short_error(error)}"
        ) from error
    if not isinstance(entries, list):
        raise ValueError(f"vocabulary {name}: expected a JSON list of class names, got a JSON {_json_type(entries)}")
    if not entries:
        raise ValueError(f"vocabulary {name}: expected at least one class name, got an empty list")
    for index, entry in enumerate(entries):
        if not isinstance(entry, str):
            raise ValueError(f"vocabulary {name}: expected strings, but entry {index} is a JSON {_json_type(entry)}")
        try:
            entry.encode()
        except UnicodeEncodeError as error:  # JSON may spell half a surrogate pair
            raise ValueError(f"vocabulary {name}: expected text, but entry {index} is none: {error.reason}") from error
    return [entry.strip() for entry in entries]


def _parse_text(text: str, name: str) -> list[str]:
    class_names = [line.strip() for line in text.splitlines() if line.strip()]
    if not class_names:
        raise ValueError(f"vocabulary {name}: expected one class name on each line, got an empty file")
    return class_names


def _json_type(value: object) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
