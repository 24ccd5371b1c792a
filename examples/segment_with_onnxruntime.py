"""Segment an image with only onnxruntime and numpy: no PyTorch, no transformers, no Pillow.

    sed-hf export scene-onnx --classes sky water gravel "red triangle" "orange cross" "orange heart" ...
    python segment_with_onnxruntime.py scene-onnx scene-3.png result.png

The folder is one of `sed-hf export` with class names. Images are PNG files of 8 bits, not interlaced. The result shows
the image, and beside it the image under one colour for each class.
"""

import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import onnxruntime


def segment(folder: Path, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The class of every pixel (H, W) of an image (H, W, 3), uint8, and its probability (H, W)."""
    settings = json.loads((folder / "settings.json").read_text())["image"]
    classes = np.load(folder / "classes.npz")
    session = onnxruntime.InferenceSession(folder / "segmentation.onnx", providers=["CPUExecutionProvider"])
    inputs = {"pixel_values": prepare(image, settings), "class_embeddings": classes["embeddings"]}
    (logits,) = session.run(["logits"], inputs)
    best, segmentation = np.full(image.shape[:2], -1.0, np.float32), np.zeros(image.shape[:2], int)
    for index, class_logits in enumerate(logits[0]):  # one by one, so that T large maps are never held
        probability = resize(1 / (1 + np.exp(-class_logits)), image.shape[:2])
        segmentation[probability > best] = index
        best = np.maximum(best, probability)
    return segmentation, best


def prepare(image: np.ndarray, settings: dict) -> np.ndarray:
    """`pixel_values` (1, 3, H, W) of an image (H, W, 3), as the image processor makes them."""
    if settings["resample"] != "bilinear":
        raise ValueError(f"resample: expected bilinear, got {settings['resample']}")
    if settings["size"]:
        image = resize_antialiased(image, target_size(image.shape[:2], settings["size"]))
    pixels = (image * np.float32(settings["rescale_factor"]) - np.float32(settings["mean"])) / np.float32(
        settings["std"]
    )
    pixels = pixels.transpose(2, 0, 1)
    if settings["input_size"]:
        pixels = resize(pixels, (settings["input_size"]["height"], settings["input_size"]["width"]))
    return pixels[None]


def target_size(size: tuple[int, ...], edges: dict[str, int]) -> tuple[int, int]:
    """Height and width after the first resize: fixed, or by the shortest edge with the longest capped."""
    if "height" in edges:
        return edges["height"], edges["width"]
    scale = min(edges["shortest_edge"] / min(size), edges["longest_edge"] / max(size))
    height, width = (max(1, int(edge * scale + 0.5)) for edge in size)
    return height, width


def resize(values: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Bilinear (..., h, w) to (..., *size), without antialiasing, by the centres of pixels."""
    rows, columns = (weights(old, new, 1.0) for old, new in zip(values.shape[-2:], size, strict=True))
    return rows @ values @ columns.T


def resize_antialiased(image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Bilinear (h, w, 3), uint8, to (*size, 3), as Pillow: each pixel is a mean of all those that it covers."""
    rows, columns = (weights(old, new, max(1.0, old / new)) for old, new in zip(image.shape[:2], size, strict=True))
    channels = np.round(image.transpose(2, 0, 1) @ columns.T)  # Pillow rounds between both directions too
    return np.round(rows @ channels).transpose(1, 2, 0).astype(np.uint8)


def weights(old: int, new: int, support: float) -> np.ndarray:
    """The share (new, old) that each old pixel has in each new one: a triangle of so many old pixels to either side."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    if support == 1:
        centres = centres.clip(0, old - 1)
    triangles = (1 - np.abs(np.arange(old) - centres[:, None]) / support).clip(0)
    return (triangles / triangles.sum(1, keepdims=True)).astype(np.float32)


def read_png(path: Path) -> np.ndarray:
    """An image (H, W, 3) of a PNG file."""
    content, position, compressed = path.read_bytes(), 8, b""
    if not content.startswith(b"\x89PNG"):
        raise ValueError("it is not a PNG file")
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", content[16:29])
    channels = {0: 1, 2: 3, 6: 4}.get(color)
    if channels is None or depth != 8 or interlaced:
        raise ValueError(f"it has {depth} bits, colours of type {color} or is interlaced")
    while position < len(content):
        (length,), name = struct.unpack(">I", content[position : position + 4]), content[position + 4 : position + 8]
        compressed += content[position + 8 : position + 8 + length] if name == b"IDAT" else b""
        position += 12 + length
    lines = np.frombuffer(zlib.decompress(compressed), np.uint8).reshape(height, 1 + width * channels)
    image = np.zeros((height + 1, width + 1, channels), int)  # with zeros above and to the left
    for y, line in enumerate(lines, start=1):
        method, row = line[0], line[1:].reshape(width, channels)
        for x in range(1, width + 1):
            left, above, corner = image[y, x - 1], image[y - 1, x], image[y - 1, x - 1]
            image[y, x] = (row[x - 1] + predicted(method, left, above, corner)) % 256
    return image[1:, 1:, :3].repeat(3 if channels == 1 else 1, axis=2).astype(np.uint8)


def predicted(method: int, left: np.ndarray, above: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """What a PNG filter expects of a pixel, from its neighbours (C,)."""
    if method == 4:  # Paeth: the neighbour that is nearest to left + above - corner
        distances = np.abs([above - corner, left - corner, left + above - 2 * corner])
        return np.choose(distances.argmin(0), [left, above, corner])
    return [np.zeros_like(left), left, above, (left + above) // 2][method]


def write_png(path: Path, image: np.ndarray) -> None:
    """A PNG file of an image (H, W, 3), uint8."""
    height, width, _ = image.shape
    lines = b"".join(b"\0" + line.tobytes() for line in image)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def main(folder: Path, image_file: Path, result: Path) -> None:
    """Segment an image, print the shares of its classes, and draw them."""
    for name in ("segmentation.onnx", "settings.json", "classes.npz"):
        if not (folder / name).is_file():
            raise SystemExit(f"{folder}: expected a folder of sed-hf export with --classes; it has no {name}")
    if not result.parent.is_dir():
        raise SystemExit(f"{result}: expected a file in a folder that exists")
    try:
        image = read_png(image_file)
    except (OSError, ValueError, struct.error, zlib.error) as error:
        raise SystemExit(f"{image_file}: expected a PNG of 8 bits, gray or RGB, not interlaced: {error}") from error
    segmentation, probability = segment(folder, image)
    names = np.load(folder / "classes.npz")["names"]
    for index, count in zip(*np.unique(segmentation, return_counts=True), strict=True):
        mean = probability[segmentation == index].mean()
        print(f"{count / segmentation.size:6.1%} {names[index]} (probability {mean:.2f})")
    colors = np.random.default_rng(3).integers(0, 256, (len(names), 3))
    write_png(result, np.concatenate([image, (image // 3 + colors[segmentation] * 2 // 3).astype(np.uint8)], axis=1))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(*map(Path, sys.argv[1:]))
