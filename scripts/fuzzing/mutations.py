"""Valid files to hostile ones: bytes without a thought, and each format by its own structure.

Everything is drawn from a `random.Random`, so that a case is known by its seed.
"""

import io
import json
import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import yaml

UNSTRUCTURED = (
    ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError, EOFError, NotImplementedError,
    struct.error, zlib.error, zipfile.BadZipFile, yaml.YAMLError,
)  # fmt: skip
"""What taking apart a file raises that an earlier change has damaged."""

Files = dict[str, bytes]
"""Contents by path, relative to the folder of a case."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAT_SIGNATURE = b"MATLAB 5.0"
BOMB_BYTES = 64 * 2**20
EXTREME_NUMBERS = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    2**63,
    2**64 - 1,
)
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 7, 2**31, 2**63, 10**30, 0.5, -0.0, 1e-300, 1e300, math.nan, math.inf, -math.inf,
    "", " ", "1", "nan", "../../etc/passwd", "/etc/passwd", "a\x00b", "\ud800", "é😀", "{}", "x" * 10_000, [], {}, [[]],
    [None], [-1], [10**12, 10**12], {"": None}, {"a": {"b": []}}, [1, "2", 3.0],
)  # fmt: skip


@dataclass
class Case:
    """What one case lays on disk.

    Attributes:
        files: Contents by relative path.
        special: Relative path to `"folder"`, `"fifo"` or `"link TARGET"`.
    """

    files: Files
    special: dict[str, str] = field(default_factory=dict)


class Executes:
    """A pickle of this makes a file in the working directory when it is loaded without care."""

    def __init__(self, function: str) -> None:
        self.function = function

    def __reduce__(self) -> tuple[Any, ...]:
        if self.function == "system":
            import os

            return os.system, ("touch EXECUTED",)
        if self.function == "open":
            return open, ("EXECUTED", "w")
        return exec, ("open('EXECUTED', 'w').close()",)


def mutate_case(samples: Sequence[Files], targets: Callable[[str], bool], rng: Random) -> Case:
    """A sample with one of its files, or the tree of them, changed; now and then as it is.

    Args:
        samples: Valid inputs; the others lend parts.
        targets: Which files, by relative path, may be changed.
        rng: Where everything is drawn from.
    """
    sample = rng.choice(samples)
    case = Case(dict(sample))
    names = sorted(filter(targets, case.files))
    choice = rng.random()
    if choice < 0.01:
        return case
    if choice < 0.06:
        mutate_tree(case, rng.choice(names), rng)
        return case
    for _ in range(1 if rng.random() < 0.8 else 2):
        name = rng.choice(names)
        donors = [data for other in samples for path, data in other.items() if targets(path)]
        case.files[name] = mutate_file(name, case.files[name], rng.choice(donors), rng)
    return case


def mutate_tree(case: Case, name: str, rng: Random) -> None:
    """Remove, repeat or replace a file by something that is none."""
    data = case.files.pop(name)
    kind = rng.choice(["missing", "empty", "twice", "other suffix", "folder", "fifo", "link"])
    if kind == "empty":
        case.files[name] = b""
    elif kind == "twice":
        folder, _, base = name.rpartition("/")
        case.files[name] = data
        case.files[f"{folder}/copy-of-{base}".removeprefix("/")] = data
    elif kind == "other suffix":
        case.files[name.rpartition(".")[0] + rng.choice([".png", ".bin", ".JPG", ".json", ".pth"])] = data
    elif kind == "link":
        target = rng.choice([name.rpartition("/")[2], "nowhere", "/dev/zero", "/dev/null", "/etc/passwd", "/", "."])
        case.special[name] = f"link {target}"
    elif kind != "missing":
        case.special[name] = kind


def mutate_file(name: str, data: bytes, other: bytes, rng: Random) -> bytes:
    """Change one file, by its structure or as bytes."""
    for is_format, mutate in STRUCTURED:
        if is_format(name, data) and rng.random() < 0.6:
            try:
                return mutate(data, rng)
            except UNSTRUCTURED:
                break  # an earlier round has damaged the structure
    return mutate_bytes(data, other, rng)


# Bytes ---------------------------------------------------------------------------------------------------------------


def mutate_bytes(data: bytes, other: bytes, rng: Random) -> bytes:
    """Change bytes, whatever they mean."""
    kind = rng.choice(
        ["truncate", "flip", "flip", "insert", "delete", "duplicate", "splice", "field", "field", "noise"]
    )
    start = rng.randrange(len(data) + 1) if rng.random() < 0.6 else rng.randrange(min(len(data), 128) + 1)
    size = rng.randrange(1, 1 + rng.choice([1, 8, 256]))
    if kind == "truncate":
        return data[:start]
    if kind == "flip":
        changed = bytearray(data)
        for _ in range(min(len(data), rng.choice([1, 1, 4, 32]))):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if kind == "insert":
        return data[:start] + rng.randbytes(size) + data[start:]
    if kind == "delete":
        return data[:start] + data[start + size :]
    if kind == "duplicate":
        return data[: start + size] + data[start : start + size] * rng.choice([1, 2, 50]) + data[start + size :]
    if kind == "splice":
        return data[:start] + other[rng.randrange(len(other) + 1) :]
    if kind == "field":
        width = rng.choice([1, 2, 4, 8])
        number = rng.choice(EXTREME_NUMBERS) % 256**width
        return data[:start] + number.to_bytes(width, rng.choice(["little", "big"])) + data[start + width :]
    return rng.choice([b"", b"\x00" * size, rng.randbytes(size), rng.randbytes(len(data)), b"\xff\xfe" + data, other])


# JSON, YAML ----------------------------------------------------------------------------------------------------------


def mutate_json(data: bytes, rng: Random) -> bytes:
    """Change values, keys and depth of JSON."""
    choice = rng.random()
    if choice < 0.03:
        depth = rng.choice([500, 100_000])
        return b"[" * depth + b"]" * depth
    if choice < 0.05:
        return b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    if choice < 0.07:
        return b"[" + b"9" * 5_000 + b"]"
    return json.dumps(mutate_value(json.loads(data), rng)).encode()


def mutate_yaml(data: bytes, rng: Random) -> bytes:
    """Change values and keys of YAML; tags that would make objects, and aliases that grow without end."""
    choice = rng.random()
    if choice < 0.05:
        return data + rng.choice(
            [
                b'\nsteps: !!python/object/apply:os.system ["touch EXECUTED"]\n',
                b"\nseed: !!python/name:os.system\n",
                b"\na: &a [*a]\n",
                b"\n\tsteps: 1\n",
                b"\nsteps: 2024-01-01\n",
                b"\n? [1, 2]\n: 3\n",
                b"\n? {a: 1}\n: 3\n",
                b"\n1: 2\n",
                b"\n<<: 5\n",
                b"\n--- \nsteps: 1\n",
            ]
        )
    if choice < 0.08:
        levels = ["b0: &b0 [x, x, x, x, x, x, x, x, x, x]"]
        levels += [f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 10)}]" for i in range(1, 12)]
        return ("\n".join(levels) + f"\n{rng.choice(['steps', 'model', 'tracker'])}: *b11\n").encode() + data
    if choice < 0.1:
        return b"steps: " + b"[" * 2_000
    if b"&" in data:
        raise ValueError("aliases, which would be written out")
    return yaml.safe_dump(mutate_value(yaml.safe_load(data), rng)).encode(errors="surrogatepass")


def mutate_value(value: Any, rng: Random) -> Any:
    """A copy in which one value has another type, size or place, or is gone."""
    root = {"": json.loads(json.dumps(value))}
    places: list[tuple[Any, Any]] = []
    _collect(root, places)
    container, key = rng.choice(places)
    kind = rng.choice(["replace", "replace", "replace", "delete", "repeat", "nest", "scale", "swap"])
    if kind == "delete" and container is not root:
        del container[key]
    elif kind == "repeat" and isinstance(container, list):
        container.extend([container[key]] * rng.choice([1, 3, 1_000]))
    elif kind == "repeat" and container is not root:
        container[rng.choice(["x", "", "../x", f"{key}.x", "__class__"])] = container[key]
    elif kind == "nest":
        container[key] = rng.choice([[container[key]], {"x": container[key]}])
    elif kind == "scale" and isinstance(container[key], int | float):
        container[key] = container[key] * rng.choice([-1, 2, 1_000, 10**9, 0.5])
    elif kind == "swap":
        other, other_key = rng.choice(places)
        container[key] = json.loads(json.dumps(other[other_key]))
    else:
        container[key] = rng.choice(ODD_VALUES)
    return root[""]


def _collect(value: Any, places: list[tuple[Any, Any]]) -> None:
    for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        places.append((value, key))
        if isinstance(item, dict | list):
            _collect(item, places)


# PNG, .mat -----------------------------------------------------------------------------------------------------------


def mutate_png(data: bytes, rng: Random) -> bytes:
    """Change the contents of a chunk, with a checksum that fits; or add one that unpacks to much more."""
    chunks = list(_png_chunks(data))
    index = rng.randrange(len(chunks))
    kind, content = chunks[index]
    choice = rng.random()
    if choice < 0.15:
        bomb = b"x\x00\x00" + zlib.compress(bytes(BOMB_BYTES), 9)
        chunks.insert(1, (rng.choice([b"iCCP", b"zTXt"]), bomb))
    elif choice < 0.35:
        size = struct.pack(">II", rng.choice([0, 1, 1500, 60_000, 2**31 - 1, 2**32 - 1]), rng.choice([1, 1500, 60_000]))
        chunks[0] = (b"IHDR", size + chunks[0][1][8:])
    elif choice < 0.45:
        chunks[index : index + 1] = rng.choice([[], [chunks[index]] * 2, [(rng.randbytes(4), content)]])
    else:
        chunks[index] = (kind, mutate_bytes(content, content, rng))
    return PNG_SIGNATURE + b"".join(_png_chunk(*chunk) for chunk in chunks)


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, position = [], len(PNG_SIGNATURE)
    while position < len(data):
        (size,) = struct.unpack_from(">I", data, position)
        chunks.append((data[position + 4 : position + 8], data[position + 8 : position + 8 + size]))
        position += 12 + size
    return chunks


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def mutate_mat(data: bytes, rng: Random) -> bytes:
    """Change what is inside a compressed variable of a MATLAB file; or let it unpack to much more."""
    kind, size = struct.unpack_from("<II", data, 128)
    if kind != 15:
        return mutate_bytes(data, data, rng)
    content = zlib.decompress(data[136 : 136 + size])
    if rng.random() < 0.1:
        content += bytes(BOMB_BYTES)
        content = content[:4] + struct.pack("<I", len(content) - 8) + content[8:]
    elif rng.random() < 0.4:
        # The dimensions lie behind the tags of variable, flags and sizes.
        sizes = struct.pack("<ii", rng.choice([-1, 0, 1, 60_000, 2**31 - 1]), rng.choice([-5, 2, 60_000]))
        content = content[:32] + sizes + content[40:]
    else:
        content = mutate_bytes(content, content, rng)
    packed = zlib.compress(content, 9)
    return data[:128] + struct.pack("<II", 15, len(packed)) + packed


# safetensors ---------------------------------------------------------------------------------------------------------


def mutate_safetensors(data: bytes, rng: Random) -> bytes:
    """Change the header as JSON, its length, or the numbers."""
    (size,) = struct.unpack_from("<Q", data)
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    kind = rng.choice(["json", "json", "metadata", "dtype", "shape", "rename", "drop", "length", "nan", "noise"])
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    if kind == "json":
        header = mutate_value(header, rng)
    elif kind == "metadata" and "__metadata__" in header:
        key = rng.choice(sorted(header["__metadata__"]))
        text = header["__metadata__"][key]
        try:
            header["__metadata__"][key] = mutate_json(text.encode(), rng).decode()
        except ValueError:
            header["__metadata__"][key] = text[:-1]
    elif kind == "dtype":
        header[name]["dtype"] = rng.choice(["F16", "BF16", "F64", "I32", "U8", "BOOL", "F8_E4M3", "C64", "I64", "X"])
    elif kind == "shape":
        shape = header[name]["shape"]
        header[name]["shape"] = rng.choice([shape[::-1], [*shape, 1], [math.prod(shape)], [], [0], [2**62, 4]])
    elif kind == "rename":
        header[rng.choice(["../x", "", "x.y", name.upper()])] = header.pop(name)
    elif kind == "drop":
        del header[name]
    elif kind == "nan":
        pattern = rng.choice([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\xff\xff"])
        start = rng.randrange(max(1, len(body) // 4)) * 4
        body = body[:start] + pattern + body[start + 4 :]
    elif kind == "noise":
        body = mutate_bytes(body, body, rng)
    text = json.dumps(header).encode()
    length = rng.choice(EXTREME_NUMBERS) % 2**64 if kind == "length" else len(text)
    return struct.pack("<Q", length) + text + body


# Pickles and zip files ----------------------------------------------------------------------------------------------


def hostile_pickle(rng: Random) -> bytes:
    """A pickle that runs code, or holds what no checkpoint does."""
    payload = Executes(rng.choice(["system", "open", "exec"]))
    value: Any = rng.choice(
        [payload, {"model": payload}, [payload], {"model": {"x": 1}}, {"model": []}, [], 5, None, "text", {1: 2}, set()]
    )
    return pickle.dumps(value, protocol=rng.choice([0, 2, 4]))


def mutate_pickle(data: bytes, rng: Random) -> bytes:
    """Put a hostile pickle in place of another or before it, or change bytes."""
    choice = rng.random()
    if choice < 0.25:
        return hostile_pickle(rng)
    if choice < 0.35:
        return hostile_pickle(rng)[:-1] + data
    if choice < 0.45:
        return pickle.dumps({"model": _nested(3_000)}, protocol=2)
    return mutate_bytes(data, data, rng)


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth // 10):  # the pickler itself recurses
        value = [value]
    return value


def mutate_zip(data: bytes, rng: Random) -> bytes:
    """Change entries of a PyTorch file: its pickle, its tensors, names, or how they are packed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    root = next(iter(entries)).partition("/")[0]
    name = rng.choice(list(entries))
    kind = rng.choice(["pickle", "pickle", "pickle", "entry", "drop", "bomb", "deflate", "rename", "nan"])
    compression = zipfile.ZIP_STORED
    if kind == "pickle" and f"{root}/data.pkl" in entries:
        entries[f"{root}/data.pkl"] = mutate_pickle(entries[f"{root}/data.pkl"], rng)
    elif kind == "entry":
        entries[name] = mutate_bytes(entries[name], entries[name], rng)
    elif kind == "drop":
        del entries[name]
    elif kind == "bomb":
        entries[name if name.endswith("0") else f"{root}/data/0"] = bytes(BOMB_BYTES)
        compression = zipfile.ZIP_DEFLATED
    elif kind == "deflate":
        compression = rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
    elif kind == "nan":
        entries[name] = entries[name][:-4] + b"\x00\x00\xc0\x7f"
    else:
        entries[rng.choice(["../../EXECUTED", f"{root}/../EXECUTED", "/EXECUTED", f"{root}/x"])] = entries.pop(name)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
    return packed.getvalue()


def _has_suffix(suffix: str) -> Callable[[str, bytes], bool]:
    return lambda name, data: name.endswith(suffix)


STRUCTURED: tuple[tuple[Callable[[str, bytes], bool], Callable[[bytes, Random], bytes]], ...] = (
    (lambda name, data: data.startswith(PNG_SIGNATURE), mutate_png),
    (lambda name, data: data.startswith(MAT_SIGNATURE), mutate_mat),
    (lambda name, data: data.startswith(b"PK\x03\x04"), mutate_zip),
    (_has_suffix(".safetensors"), mutate_safetensors),
    (_has_suffix(".json"), mutate_json),
    (_has_suffix(".jsonl"), mutate_json),
    (_has_suffix(".yaml"), mutate_yaml),
    (_has_suffix(".pth"), mutate_pickle),
)
