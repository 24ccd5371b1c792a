"""Any image to RGB, RGB to `pixel_values`, and logits to a label for every pixel."""

import base64
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from math import inf
from numbers import Real
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import get_session
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import get_size_dict
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import logging

logger = logging.get_logger(__name__)

MAX_PIXELS_VARIABLE = "SED_HF_MAX_IMAGE_PIXELS"
OVERSHOOT = 0.1  # of the scale, by which rounding and resampling may leave it
ELEMENTS_PER_CHUNK = 2**22  # 16 MB, which the allocator reuses; larger chunks take page faults
NOT_SETTINGS = {"auto_map", "feature_extractor_type", "image_processor_type", "processor_class"}  # of saved files


class SEDImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """Arguments that [`SEDImageProcessor`] adds to those of every image processor."""

    do_input_resize: bool | None
    input_size: int | list[int] | tuple[int, ...] | dict[str, int] | None  # multiples of 32
    ignore_index: int  # label of pixels that have no class


class NonFiniteLogitsError(ValueError):
    """Logits are NaN or infinite; `index` is that of the image in its batch."""

    def __init__(self, index: int, name: str | None = None) -> None:
        super().__init__(f"{name or f'image {index}'}: the logits are not finite; use float32 or bfloat16")
        self.index = index


class SEDImageProcessor(TorchvisionBackend):
    """The preprocessing that SED's benchmark numbers were measured with, in three steps; for images see [`to_rgb`].

    1. `do_resize`, `size`: shortest edge to 640 pixels, the longest capped at 2560; bilinear with antialiasing.
    2. `do_rescale`, `do_normalize`: to [0, 1], then by the mean and standard deviation of OpenAI CLIP.
    3. `do_input_resize`, `input_size`: to 768×768, bilinear without antialiasing; the aspect ratio is not kept.
    """

    valid_kwargs = SEDImageProcessorKwargs
    resample = PILImageResampling.BILINEAR
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    do_resize = True
    size = {"shortest_edge": 640, "longest_edge": 2560}
    default_to_square = False
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    do_convert_rgb = True
    do_input_resize = True
    input_size = {"height": 768, "width": 768}
    ignore_index = 255

    def __init__(self, **kwargs: Unpack[SEDImageProcessorKwargs]) -> None:
        settings = {name: value for name, value in kwargs.items() if name not in NOT_SETTINGS}
        try:
            validate_typed_dict(self.valid_kwargs, settings)
        except (StrictDataclassError, TypeError) as error:
            raise ValueError(f"SEDImageProcessor: {' '.join(str(error).split())}") from error
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """An image processor of saved settings; unknown switches (`do_...`) are refused, other attributes are kept."""
        saved = {**image_processor_dict, **{name: kwargs[name] for name in kwargs if name.startswith("do_")}}
        unknown = set(saved) - NOT_SETTINGS - set(cls.valid_kwargs.__annotations__)
        others = {name: saved.pop(name) for name in unknown if not name.startswith("do_")}
        loaded = super().from_dict(saved, **kwargs)
        for name, value in others.items():
            setattr(loaded[0] if isinstance(loaded, tuple) else loaded, name, value)
        return loaded

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[SEDImageProcessorKwargs],
    ) -> BatchFeature:
        """Prepare images of mixed sizes, and a label map (H, W) of integers for each if given, of its size.

        Args:
            images: One image or several.
            segmentation_maps: PIL images, paths, arrays or tensors.
            **kwargs: Settings for this call. `rescale_factor` states the scale of images that are not of 8 bits (below
                1/510 of these only), `do_rescale=False` that floats are in [0, 1]; otherwise it is inferred.

        Returns:
            `pixel_values` (B, 3, 768, 768) and, with label maps, `labels` (B, 768, 768), of the nearest pixels.
        """
        stated = None if self.rescale_factor == type(self).rescale_factor else self.rescale_factor
        scale = kwargs.get("rescale_factor", stated)
        return super().preprocess(images, segmentation_maps, scale, **kwargs)

    def _standardize_kwargs(self, input_size: Any = None, **kwargs: Any) -> dict[str, Any]:
        if input_size is not None and not isinstance(input_size, SizeDict):
            input_size = SizeDict(**get_size_dict(input_size, default_to_square=True, param_name="input_size"))
        if kwargs.get("do_center_crop") or kwargs.get("do_pad"):
            raise ValueError("do_center_crop, do_pad: SED's preprocessing neither crops nor pads")
        return {**super()._standardize_kwargs(**kwargs), "input_size": input_size}

    def _preprocess_image_like_inputs(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None,
        scale: float | None,
        input_data_format: str | ChannelDimension | None,
        device: str | torch.device | None = None,
        return_tensors: str | None = None,
        **settings: Any,
    ) -> BatchFeature:
        images = flattened(images, 3)
        label_maps = None if segmentation_maps is None else flattened(segmentation_maps, 2)
        if not images or (label_maps is not None and len(label_maps) != len(images)):
            found = f"{len(images)} and {len(label_maps or ())} segmentation_maps"
            raise ValueError(f"images: expected at least one, and one label map for each if any; got {found}")
        data: dict[str, list[Tensor]] = {"pixel_values": []}
        scale = scale if settings["do_rescale"] else 1.0
        for index, source in enumerate(images):
            with opened(as_file(source)) as image:
                rgb = to_rgb(image, input_data_format, scale)
                # What has no levels is scaled to levels by then, from any scale.
                scaling = {} if has_levels(image, scale) else {"do_rescale": True, "rescale_factor": 1 / 255}
            data["pixel_values"].append(self._preprocess_rgb(rgb.to(device or "cpu"), settings | scaling))
            if label_maps is not None:
                labels = to_labels(label_maps[index])
                if labels.shape != rgb.shape[1:] or labels.dtype.kind not in "iub":
                    expected = f"expected integers of its image's size {tuple(rgb.shape[1:])}"
                    raise ValueError(f"segmentation_maps[{index}]: {expected}, got {labels.dtype} of {labels.shape}")
                # float64 holds every label exactly, but not on MPS; interpolation has no integer kernel for all types.
                exact = torch.from_numpy(labels.astype(np.float64))[None, None]
                resized = F.interpolate(exact, size=data["pixel_values"][-1].shape[1:], mode="nearest-exact")
                data.setdefault("labels", []).append(resized[0, 0].long().to(device or "cpu"))
        if return_tensors is not None and len({values.shape for values in data["pixel_values"]}) > 1:
            raise ValueError("images: of different sizes without do_input_resize; pass them one by one")
        return BatchFeature(data, tensor_type=return_tensors)

    def _preprocess_rgb(self, rgb: Tensor, settings: dict[str, Any]) -> Tensor:
        """The three steps for one uint8 image (3, H, W)."""
        if settings["do_resize"]:
            rgb = self.resize(rgb, settings["size"], settings["resample"])
        scaling = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        values = self.rescale_and_normalize(rgb, *(settings[name] for name in scaling))
        if settings["do_input_resize"]:
            values = super().resize(values.float(), settings["input_size"], settings["resample"], antialias=False)
        return values

    def resize(
        self, image: Tensor, size: SizeDict, resample: Any = None, antialias: bool = True, **kwargs: Any
    ) -> Tensor:
        """Resize (..., H, W); a shortest and a longest edge are rounded as Detectron2's ResizeShortestEdge does.

        8-bit images (3, H, W) on the CPU are resized by PIL, as the official implementation does. torchvision differs
        by one level at a few pixels, or at many where the processor lacks its 8-bit kernel, and so do GPUs.
        """
        resample = self.resample if resample is None else resample
        if edge := size.shortest_edge or size.longest_edge:
            height, width = shortest_edge_size(image.shape[-2:], edge, size.longest_edge or inf)
            size = SizeDict(height=height, width=width)
        is_for_pil = size.height and size.width and isinstance(resample, int) and antialias
        if is_for_pil and image.dtype == torch.uint8 and image.device.type == "cpu" and image.ndim == 3:
            pil_image = Image.fromarray(image.permute(1, 2, 0).numpy())
            resized = pil_image.resize((size.width, size.height), resample)
            return torch.from_numpy(np.array(resized)).permute(2, 0, 1)
        return super().resize(image, size, resample, antialias=antialias, **kwargs)

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        threshold: float | None = None,
        ignore_index: int | None = None,
        return_probabilities: bool = False,
        return_segmentation_scores: bool = False,
    ) -> list[Tensor] | list[dict[str, Tensor]] | list[BatchFeature]:
        """The most probable class of every pixel, in the official order: sigmoid, resize, argmax.

        Args:
            outputs: Of [`SEDForSemanticSegmentation`].
            target_sizes: (height, width) of each image, e.g. `image.size[::-1]`. Defaults to the logits' size.
            threshold: Pixels whose best probability is lower get `ignore_index`, by default the image processor's.
            ignore_index: Label of pixels without a class.
            return_probabilities: Return a dict of `segmentation` and `probability`, float32 (H, W), for each image.
            return_segmentation_scores: Add `segmentation_scores`, float32 (T, H, W).

        Returns:
            For each image the classes, int64 (H, W).
        """
        logits, classes = outputs.logits, getattr(outputs, "logit_classes", None)
        num_classes = logits.shape[1] if classes is None else outputs.kept_classes.shape[-1]
        ignore_index = self.ignore_index if ignore_index is None else ignore_index
        sizes = [logits.shape[-2:]] * len(logits) if target_sizes is None else target_sizes
        if len(sizes) != len(logits):
            raise ValueError(f"target_sizes: expected {len(logits)}, one for each image; got {len(sizes)}")
        check_threshold(threshold, ignore_index, num_classes)
        check_finite(logits)
        results = []
        for image_logits, size in zip(logits, sizes, strict=True):
            size = tuple(map(int, size))
            probability, segmentation = most_probable_class([image_logits], size, to_probability=torch.sigmoid)
            if classes is not None:
                segmentation = classes[segmentation]
            if threshold is not None:
                segmentation = segmentation.masked_fill(probability < threshold, ignore_index)
            result = {"segmentation": segmentation, "probability": probability}
            if return_segmentation_scores:
                scores = F.interpolate(image_logits[None].float().sigmoid(), size, mode="bilinear")[0]
                if classes is not None:
                    scores = scores.new_zeros(num_classes, *size).index_copy_(0, classes, scores)
                result["segmentation_scores"] = scores
            results.append(result)
        if return_segmentation_scores:
            return [BatchFeature(result) for result in results]
        return results if return_probabilities else [result["segmentation"] for result in results]


# Reading images ------------------------------------------------------------------------------------------------------


def to_rgb(
    image: Any, input_data_format: str | ChannelDimension | None = None, rescale_factor: float | None = None
) -> Tensor:
    """An image in any form as uint8 RGB (3, H, W): transparency on white, 16 bits scaled to 8.

    Args:
        image: Path, URL or base64 data, whose image is turned upright as its EXIF data says; PIL image of any mode,
            numpy array or tensor, which count as their pixels. One channel, RGB or RGBA.
        input_data_format: `"channels_first"` or `"channels_last"` for arrays. By default it is inferred.
        rescale_factor: What brings an image's values to [0, 1], unless it is of 8 bits. Inferred by default: floats are
            in [0, 1] or [0, 255], integers in [0, 255] or [0, 65535]; what is ambiguous is refused.
    """
    with opened(as_file(image)) as pixels:
        if isinstance(pixels, Image.Image):
            if pixels.mode.startswith("I;16") and has_levels(pixels, rescale_factor):
                rescale_factor = 1 / 65535
            pixels = pil_to_array(decode(pixels))
        else:
            pixels = channels_first(pixels, input_data_format)
        if not pixels.size:
            raise ValueError(f"images: expected at least one pixel, got {pixels.shape}")
        levels = torch.from_numpy(np.require(to_levels(pixels, rescale_factor), requirements=["C", "W"]))
    if len(levels) == 4:
        alpha = levels[3:].float() / 255
        levels = (levels[:3].float() * alpha + 255 * (1 - alpha)).round().to(torch.uint8)
    return levels.expand(3, -1, -1).contiguous()


def read_rgb(
    file: str | os.PathLike[str] | BinaryIO, formats: Sequence[str] | None = None, max_pixels: int | None = None
) -> Image.Image:
    """An image file as an upright RGB image; errors name the file.

    Args:
        file: Path or opened file.
        formats: Pillow's names of the formats that are taken. By default all that need no other program.
        max_pixels: The most pixels, by the file's header, unless the environment variable says how many; by default
            Pillow's limit.

    Raises:
        OSError: The file cannot be opened, or has no known format.
        ValueError: It is damaged, or has too many pixels.
    """
    with opened(file, formats, max_pixels) as image:
        return Image.fromarray(to_rgb(image).permute(1, 2, 0).numpy())


@contextmanager
def opened(source: Any, formats: Sequence[str] | None = None, max_pixels: int | None = None) -> Iterator[Any]:
    """The upright PIL image of a path or an opened file, which errors name; other images as they are."""
    if not isinstance(source, str | os.PathLike) and not hasattr(source, "read"):
        yield source
        return
    name = source if isinstance(source, str | os.PathLike) else getattr(source, "name", "image")
    try:
        with open_image(source, formats, max_pixels) as image:
            image = decode(image)
            with suppress(Exception):  # of any type, where EXIF data is damaged; the pixels are whole
                image = ImageOps.exif_transpose(image)
            yield image
    except UnidentifiedImageError as error:
        raise UnidentifiedImageError(f"{name}: not an image file of a format that is read here") from error
    except Exception as error:  # Pillow's decoders raise errors of any type on damaged files
        if isinstance(error, OSError) and error.errno is not None:
            raise  # names the file
        raise ValueError(f"{name}: cannot be read as an image: {' '.join(str(error).split())}") from error


def check_pixels(width: int, height: int, max_pixels: int | None = None) -> None:
    """Check that an image has at most as many pixels as the environment says, or so many, or Pillow's limit."""
    stated = os.environ.get(MAX_PIXELS_VARIABLE)
    if stated is not None and not (stated.isdecimal() and int(stated)):
        raise ValueError(f"{MAX_PIXELS_VARIABLE}={stated!r}: expected a whole number of pixels, of at least 1")
    pillow_limit = Image.MAX_IMAGE_PIXELS and 2 * Image.MAX_IMAGE_PIXELS
    limit = int(stated) if stated else max_pixels or pillow_limit
    if limit is not None and width * height > limit:
        message = f"{width} × {height} pixels are more than the {limit:,} that are read"
        raise ValueError(f"{message}; set {MAX_PIXELS_VARIABLE} to read more")


def open_image(
    file: str | os.PathLike[str] | BinaryIO, formats: Sequence[str] | None = None, max_pixels: int | None = None
) -> Image.Image:
    """An opened image file, whose pixels [`decode`] reads; for the arguments see [`read_rgb`]."""
    Image.init()  # makes all formats known
    # Pillow has EPS drawn by Ghostscript: a program, which runs the file's own.
    formats = [name for name in formats or Image.OPEN if name in Image.OPEN and name != "EPS"]
    if MAX_PIXELS_VARIABLE in os.environ:
        Image.MAX_IMAGE_PIXELS = None  # takes the place of Pillow's limit
    try:
        image = Image.open(file, formats=formats)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{error} Set {MAX_PIXELS_VARIABLE} to read more.") from error
    check_pixels(*image.size, max_pixels)
    return image


def decode(image: Image.Image) -> Image.Image:
    """An opened image with its pixels; of a JPEG that lacks its end, with a warning, if no pixel depends on that."""
    try:
        image.load()
        return image
    except OSError:
        file = getattr(image, "fp", None)
        if image.format not in ("JPEG", "MPO") or file is None:
            raise
        file.seek(0)
        content = file.read().rstrip(b"\xff")
        one, other = (Image.open(BytesIO(content + fill + b"\xff\xd9")) for fill in (b"", b"\xc3" * 64))
        if not np.array_equal(np.asarray(one), np.asarray(other)):
            raise
        logger.warning(f"{getattr(image, 'filename', '') or 'image'}: the JPEG file lacks its last bytes, but no pixel")
        return one


def as_file(source: Any) -> Any:
    """The content of a URL or of base64 data as a file; a path, and all else, as it is."""
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        response = get_session().get(source, follow_redirects=True)
        response.raise_for_status()
        return BytesIO(response.content)
    if isinstance(source, str) and (source.startswith("data:") or len(source) > 1024):
        return BytesIO(base64.b64decode(source.rpartition(",")[2]))
    return source


def flattened(images: Any, ndim: int) -> list[Any]:
    """The images of lists, lists of lists and arrays of `ndim` + 1 axes, in their order."""
    if isinstance(images, list | tuple):
        return [image for part in images for image in flattened(part, ndim)]
    return list(images) if getattr(images, "ndim", 0) == ndim + 1 else [images]


def pil_to_array(image: Image.Image) -> NDArray[Any]:
    """A decoded PIL image of any mode as (1, 3 or 4; H, W): 8-bit levels, or numbers of 16 or 32 bits."""
    if image.mode.startswith(("I", "F")):
        return np.asarray(image)[None]
    return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB")).transpose(2, 0, 1)


def native_array(array: Any) -> NDArray[Any]:
    """A numpy array of an array or tensor, in the byte order of the machine."""
    if isinstance(array, Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    array = np.asarray(array)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def channels_first(image: Any, input_data_format: str | ChannelDimension | None) -> NDArray[Any]:
    """An array or tensor as (1, 3 or 4; H, W). Tensors are taken as channels first where both would do."""
    pixels = native_array(image)
    if pixels.ndim == 2:
        return pixels[None]
    axes = [0, -1] if isinstance(image, Tensor) else [-1, 0]
    if input_data_format is not None:
        axes = [0] if input_data_format == ChannelDimension.FIRST else [-1]
    for axis in axes:
        if pixels.ndim == 3 and pixels.shape[axis] in (1, 3, 4):
            return np.moveaxis(pixels, axis, 0)
    raise ValueError(f"images: expected (height, width) or 1, 3 or 4 channels, got an array of {pixels.shape}")


def has_levels(image: Any, rescale_factor: float | None) -> bool:
    """Whether an image's scale is that of its type, 8 bits or those of a file format, and not stated for more bits."""
    if rescale_factor is not None and 0 < rescale_factor < 1 / 510:  # of nine bits or more
        return False
    if isinstance(image, Image.Image):
        return image.mode not in ("I", "F")
    return str(getattr(image, "dtype", "uint8")).removeprefix("torch.") in ("uint8", "bool")


def to_levels(pixels: NDArray[Any], rescale_factor: float | None = None) -> NDArray[np.uint8]:
    """Numbers of any type and scale as levels from 0 to 255; for `rescale_factor` see [`to_rgb`].

    Floats up to 1, but for overshoot, are in [0, 1]. Others need to be whole or large, to be told from an overexposed
    image in [0, 1]. Of more than 8 bits an array may be of 10, 12 or 16, unless it exceeds what 14 hold.
    """
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype.kind not in "iuf":
        raise ValueError(f"images: expected numbers, got an array of {pixels.dtype}")
    values = pixels.astype(np.float64)
    low, high = values.min(), values.max()
    is_float = pixels.dtype.kind == "f"
    advice = "; state the scale by rescale_factor, e.g. 1 / 255, 1 / 4095 or 1 / 65535, or pass 8 bits"
    if rescale_factor is not None:
        fits = {1 / rescale_factor: True}
    elif is_float:
        fits = {1.0: high <= 1 + OVERSHOOT, 255.0: not high < 32 or np.array_equal(values, values.round())}
    else:
        fits = {255.0: high <= 255 and pixels.dtype != np.uint16, 65535.0: high >= 2**14 or high == 0}
    white = next((scale for scale in fits if fits[scale]), None)
    if white is None:
        raise ValueError(f"images: the scale of {pixels.dtype} from {low:g} to {high:g} is ambiguous{advice}")
    slack = OVERSHOOT * white if is_float else 0
    if not (low >= -slack and high <= white + slack):  # also catches NaN
        message = f"images: expected values from 0 to {white:g} for {pixels.dtype}, got {low:g} to {high:g}"
        raise ValueError(message + advice)
    return np.rint((values * (255 / white)).clip(0, 255)).astype(np.uint8)


def to_labels(label_map: Any) -> NDArray[Any]:
    """The numbers (H, W) that a label map stores; it may be a path, PIL image, array or tensor.

    Of an image with a palette these are its indices, of one of 1, 2 or 4 bits the ids, not the grey levels shown. (Of a
    PIL image of 2 or 4 bits that has been decoded before, only the grey levels are known.)
    """
    if isinstance(label_map, str | os.PathLike):
        label_map = open_image(label_map)
    if not isinstance(label_map, Image.Image):
        return native_array(label_map)
    arguments = str([tile.args for tile in getattr(label_map, "tile", [])[:1]])  # e.g. "['L;4I']": 4 bits, inverted
    storage = arguments.partition(";")[2].partition("'")[0]
    labels = native_array(decode(label_map))
    if label_map.mode not in ("1", "L"):
        return labels
    largest = 1 if label_map.mode == "1" else 2 ** int(storage[0]) - 1 if storage[:1].isdigit() else 255
    labels = labels.astype(np.uint8) if label_map.mode == "1" else labels // (255 // largest)
    return largest - labels if "I" in storage else labels


def shortest_edge_size(size: Sequence[int], shortest_edge: int, longest_edge: float) -> tuple[int, int]:
    """Height and width with the shortest edge as asked, unless the longest would exceed its cap; halves round up."""
    scale = shortest_edge / min(size)
    scaled = [shortest_edge if edge == min(size) else edge * scale for edge in size]
    if max(scaled) > longest_edge:
        cap = longest_edge / max(scaled)
        scaled = [edge * cap for edge in scaled]
    height, width = (max(1, int(edge + 0.5)) for edge in scaled)
    return height, width


# Labels from logits --------------------------------------------------------------------------------------------------


def check_finite(logits: Tensor) -> None:
    """Check that the logits (B, T, h, w) are finite numbers, or raise [`NonFiniteLogitsError`]."""
    lowest, highest = logits.flatten(1).aminmax(dim=1)  # of NaN, NaN; makes no tensor of the logits' size
    if len(bad := (~(lowest.isfinite() & highest.isfinite())).nonzero()):
        raise NonFiniteLogitsError(int(bad[0]))


def check_threshold(threshold: float | None, ignore_index: int = -1, num_classes: int = 0) -> None:
    """Check that a threshold is a probability, and that what it ignores is not one of the classes."""
    if threshold is not None and not (isinstance(threshold, Real) and 0 <= float(threshold) <= 1):
        raise ValueError(f"threshold={threshold!r}: expected a probability from 0 to 1")
    if threshold is not None and 0 <= ignore_index < num_classes:
        raise ValueError(f"ignore_index={ignore_index} is also one of the {num_classes} classes; pass e.g. 65535")


def most_probable_class(
    views: Sequence[Tensor], size: Sequence[int], to_probability: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The highest probability at every pixel, summed over views, and its class: both (H, W).

    Args:
        views: (T, h, w) probabilities, each at a resolution of its own; without test-time augmentation there is one.
        size: (H, W) in pixels, to which each is resized, a few classes at a time.
        to_probability: What turns the views into probabilities, if they are not.
    """

    def chunks() -> Iterator[tuple[Tensor, Tensor]]:
        step = max(1, ELEMENTS_PER_CHUNK // (size[0] * size[1]))
        for first in range(0, len(views[0]), step):
            total: Any = 0
            for view in views:
                chunk = view[None, first : first + step].float()
                chunk = chunk if to_probability is None else to_probability(chunk)
                chunk = F.interpolate(chunk, size=tuple(size), mode="bilinear", align_corners=False)[0]
                total = chunk if len(views) == 1 else total + chunk
            yield torch.arange(first, first + len(total), device=total.device), total

    return highest_of_chunks(chunks())


def highest_of_chunks(chunks: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The highest score at every pixel and its first class, both (H, W), of some classes (t,) and scores at a time."""
    best: Any = None
    for classes, scores in chunks:
        value, index = scores.max(dim=0)
        if best is None:
            best, best_class = value, classes[index]
        else:
            is_better = value > best
            best = torch.where(is_better, value, best)
            best_class = torch.where(is_better, classes[index], best_class)
    return best, best_class


__all__ = ["SEDImageProcessor"]
