"""Any image to RGB, RGB to `pixel_values`, and logits to a label for every pixel."""

import base64
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO
from numbers import Real
from typing import Any, BinaryIO, cast

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import get_session
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as tvF
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
CHANNEL_COUNTS = (1, 3, 4)
OVERSHOOT = 0.1  # of the scale, by which rounding and resampling may leave it
ELEMENTS_PER_CHUNK = 2**22  # 16 MB, which the allocator reuses; larger chunks take page faults
NOT_SETTINGS = {"auto_map", "feature_extractor_type", "image_processor_type", "processor_class"}  # of saved files
WITHOUT_EFFECT = ("do_center_crop", "crop_size", "do_pad", "pad_size")  # of transformers' settings


class SEDImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """Arguments that [`SEDImageProcessor`] adds to those of every image processor.

    do_input_resize: Whether to resize to the network's input size (step 3).
    input_size: Size of the network's input, `{"height": 768, "width": 768}`; multiples of 32.
    ignore_index: Label of pixels that have no class.
    """

    do_input_resize: bool | None
    input_size: int | list[int] | tuple[int, ...] | dict[str, int] | None
    ignore_index: int


class NonFiniteLogitsError(ValueError):
    """Logits are NaN or infinite, so that they say nothing about classes.

    Attributes:
        index: Of the image in its batch.
    """

    def __init__(self, index: int, name: str | None = None) -> None:
        super().__init__(f"{name or f'image {index}'}: the logits are not finite; use float32 or bfloat16")
        self.index = index


class SEDImageProcessor(TorchvisionBackend):
    """The preprocessing that SED's benchmark numbers were measured with.

    It has three steps:

    1. `do_resize`, `size`: shortest edge to 640 pixels, the longest capped at 2560; bilinear with antialiasing.
    2. `do_rescale`, `do_normalize`: to [0, 1], then by the mean and standard deviation of OpenAI CLIP.
    3. `do_input_resize`, `input_size`: to 768×768, bilinear without antialiasing; the aspect ratio is not kept.

    Images may be PIL images of any mode, paths, URLs, numpy arrays or tensors, of mixed sizes; see [`to_rgb`].
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
        """Make an image processor.

        Args:
            **kwargs: Any of the class's attributes.

        Raises:
            ValueError: A setting is unknown, without effect here, or of another type.
        """
        settings = {name: value for name, value in kwargs.items() if name not in NOT_SETTINGS}
        if unknown := sorted(set(settings) - set(self.valid_kwargs.__annotations__)):
            raise ValueError(f"{', '.join(unknown)}: not a setting of SEDImageProcessor")
        try:
            validate_typed_dict(self.valid_kwargs, settings)
        except StrictDataclassError as error:
            raise ValueError(" ".join(str(error).split())) from error
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """An image processor of saved settings; of unknown ones, switches (`do_...`) are refused, the rest is kept."""
        saved = {**image_processor_dict, **{name: kwargs[name] for name in kwargs if name.startswith("do_")}}
        known = {*cls.valid_kwargs.__annotations__, *NOT_SETTINGS}
        others = {name: saved.pop(name) for name in set(saved) - known if not name.startswith("do_")}
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
        """Prepare images, and their label maps if given.

        Args:
            images: One image or several, of mixed sizes.
            segmentation_maps: One label map (H, W) of integers for each image, of its size; PIL image, path or array.
            **kwargs: Any attribute of the image processor, for this call; `return_tensors`; `device`.
                `rescale_factor` states the scale of arrays that are not of 8 bits, `do_rescale=False` that floats are
                in [0, 1]; otherwise it is inferred.

        Returns:
            `pixel_values` (B, 3, 768, 768) and, with label maps, `labels` (B, 768, 768): resized to the nearest pixel,
            values as they were.

        Raises:
            ValueError: An image or label map has another shape or range of values; the message says which.
        """
        stated = None if self.rescale_factor == type(self).rescale_factor else self.rescale_factor
        scale = kwargs.get("rescale_factor", stated)
        return super().preprocess(images, segmentation_maps, scale, **kwargs)

    def _standardize_kwargs(self, input_size: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Bring settings to one form and refuse those that would be silently wrong."""
        if input_size is not None and not isinstance(input_size, SizeDict):
            input_size = SizeDict(**get_size_dict(input_size, default_to_square=True, param_name="input_size"))
        settings = {**super()._standardize_kwargs(**kwargs), "input_size": input_size}
        if ignored := [name for name in WITHOUT_EFFECT if settings.get(name)]:
            raise ValueError(f"{', '.join(ignored)}: SED's preprocessing neither crops nor pads")
        return settings

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
        if not images:
            raise ValueError("images: expected at least one image, got none")
        pixel_values, sizes = [], []
        for image in images:
            own = dict(settings)
            if not has_levels(image):  # then scaling is done here, once
                scale = scale if settings["do_rescale"] else 1.0
                own.update(do_rescale=True, rescale_factor=1 / 255)
            rgb = to_rgb(image, input_data_format, scale).to(device or "cpu")
            sizes.append(tuple(rgb.shape[-2:]))
            pixel_values.append(self._preprocess_rgb(rgb, **own))
        data = {"pixel_values": pixel_values}
        if segmentation_maps is not None:
            data["labels"] = self._preprocess_segmentation_maps(flattened(segmentation_maps, 2), sizes, pixel_values)
        if return_tensors is not None and len({tuple(values.shape) for values in pixel_values}) > 1:
            shapes = ", ".join("×".join(map(str, values.shape[-2:])) for values in pixel_values)
            raise ValueError(f"images: of different sizes without do_input_resize ({shapes}); pass them one by one")
        return BatchFeature(data, tensor_type=return_tensors)

    def _preprocess_rgb(
        self,
        rgb: Tensor,
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling | int | None,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: tuple[float, ...],
        image_std: tuple[float, ...],
        do_input_resize: bool,
        input_size: SizeDict,
        **settings: Any,
    ) -> Tensor:
        """The three steps for one uint8 image (3, H, W)."""
        if do_resize:
            rgb = self.resize(rgb, size, resample)
        rgb = self.rescale_and_normalize(rgb, do_rescale, rescale_factor, do_normalize, image_mean, image_std)
        if do_input_resize:
            rgb = super().resize(rgb.float(), input_size, resample, antialias=False)
        return rgb

    def resize(
        self,
        image: Tensor,
        size: SizeDict,
        resample: PILImageResampling | tvF.InterpolationMode | int | None = None,
        antialias: bool = True,
        **kwargs: Any,
    ) -> Tensor:
        """Resize (..., H, W); a shortest and a longest edge are rounded as Detectron2's ResizeShortestEdge does.

        8-bit images (3, H, W) on the CPU are resized by PIL, as the official implementation does. torchvision differs
        by one level at a few pixels, or at many where the processor lacks its 8-bit kernel, and so do GPUs.
        """
        if size.shortest_edge and size.longest_edge:
            height, width = shortest_edge_size(image.shape[-2:], size.shortest_edge, size.longest_edge)
            size = SizeDict(height=height, width=width)
        if image.dtype == torch.uint8 and image.device.type == "cpu" and image.ndim == 3 and antialias:
            pil_image = Image.fromarray(image.permute(1, 2, 0).numpy())
            resized = pil_image.resize((size.width, size.height), self.resample if resample is None else resample)
            return torch.from_numpy(np.array(resized)).permute(2, 0, 1)
        return super().resize(image, size, resample, antialias=antialias, **kwargs)

    def _preprocess_segmentation_maps(
        self, segmentation_maps: list[Any], sizes: list[tuple[int, ...]], pixel_values: list[Tensor]
    ) -> list[Tensor]:
        """Resize each label map once, straight to the size of its `pixel_values`."""
        if len(segmentation_maps) != len(sizes):
            raise ValueError(
                f"segmentation_maps: expected {len(sizes)}, one for each image; got {len(segmentation_maps)}"
            )
        labels = []
        for index, (segmentation_map, size, values) in enumerate(
            zip(segmentation_maps, sizes, pixel_values, strict=True)
        ):
            label = to_labels(segmentation_map)
            if label.shape != size or label.dtype.kind not in "iub":
                raise ValueError(
                    f"segmentation_maps[{index}]: expected integers of its image's size {size},"
                    f" got {label.dtype} of {label.shape}"
                )
            # float64 holds every label exactly; interpolation has no integer kernel for all types.
            exact = torch.from_numpy(label.astype(np.float64))[None, None].to(values.device)
            labels.append(F.interpolate(exact, size=values.shape[-2:], mode="nearest-exact")[0, 0].long())
        return labels

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

        Classes are taken in chunks with a running maximum, so that no (T, H, W) tensor is made.

        Args:
            outputs: Output of [`SEDForSemanticSegmentation`].
            target_sizes: (height, width) of each image, as EXIF orientation shows it. Defaults to the logits' size.
            threshold: Pixels whose best probability is lower get `ignore_index`.
            ignore_index: Defaults to that of the image processor.
            return_probabilities: Return the probability of the winning class too.
            return_segmentation_scores: Return the probabilities of all classes too, as transformers' models do. This
                takes a (T, H, W) tensor.

        Returns:
            For each image the classes, int64 (H, W); with `return_probabilities` a dict of `segmentation` and
            `probability`, float32 (H, W); with `return_segmentation_scores` a `BatchFeature` of these and of
            `segmentation_scores`, float32 (T, H, W).

        Raises:
            NonFiniteLogitsError: Logits are NaN or infinite.
            ValueError: An argument has another length or range, or `ignore_index` is also the number of a class.
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
    image: Any,
    input_data_format: str | ChannelDimension | None = None,
    rescale_factor: float | None = None,
) -> Tensor:
    """An image in any form as uint8 RGB (3, H, W).

    EXIF orientation is applied, transparency is composited on white, 16 bits are scaled to 8.

    Args:
        image: PIL image of any mode, path, URL, base64 data, numpy array or tensor; one channel, RGB or RGBA.
        input_data_format: `"channels_first"` or `"channels_last"` for arrays. By default it is inferred.
        rescale_factor: What brings an array's values to [0, 1], unless it is of 8 bits. Inferred by default: floats are
            in [0, 1] or [0, 255], integers in [0, 255] or [0, 65535]; what is ambiguous is refused.

    Raises:
        OSError: The file cannot be opened, or has no known format.
        ValueError: The image is damaged, or its mode, shape or range of values is not that of an image.
    """
    if isinstance(image, str | os.PathLike):
        image = read_rgb(as_file(image))
    orientation = 1
    if isinstance(image, Image.Image):
        image = decode(image)
        pixels, orientation = pil_to_array(image), exif_orientation(image)
    else:
        pixels = channels_first(image, input_data_format)
    if not pixels.size:
        raise ValueError(f"images: expected at least one pixel, got {pixels.shape}")
    levels = torch.from_numpy(np.require(to_levels(pixels, rescale_factor), requirements=["C", "W"]))
    if len(levels) == 4:
        alpha = levels[3:].float() / 255
        levels = (levels[:3].float() * alpha + 255 * (1 - alpha)).round().to(torch.uint8)
    if orientation in (5, 6, 7, 8):
        levels = levels.mT
    flipped = {2: [-1], 3: [-2, -1], 4: [-2], 6: [-1], 7: [-2, -1], 8: [-2]}.get(orientation, [])
    return levels.flip(flipped).expand(3, -1, -1).contiguous()


def read_rgb(
    file: str | os.PathLike[str] | BinaryIO, formats: Sequence[str] | None = None, max_pixels: int | None = None
) -> Image.Image:
    """An image file as a PIL image in RGB, the right way up.

    Args:
        file: Path or opened file.
        formats: Pillow's names of the formats that are taken. By default all that need no other program.
        max_pixels: The most pixels; by default Pillow's limit.

    Raises:
        OSError: The file cannot be opened, or has no known format; the message names it, as in what follows.
        TooManyPixelsError: It has more pixels, by its header.
        ValueError: It is damaged.
    """
    name = file if isinstance(file, str | os.PathLike) else getattr(file, "name", None)
    try:
        with open_image(file, formats, max_pixels) as image:
            return Image.fromarray(to_rgb(image).permute(1, 2, 0).numpy())
    except TooManyPixelsError as error:
        error.args = (f"{name}: {error}",) if name else error.args
        raise
    except UnidentifiedImageError as error:
        raise UnidentifiedImageError(f"{name or 'image'}: not an image file of a format that is read here") from error
    except Exception as error:  # Pillow's decoders raise errors of any type on damaged files
        if isinstance(error, OSError) and error.errno is not None:
            raise  # names the file
        text = " ".join(str(error).split())
        raise ValueError(f"{name}: cannot be read as an image: {text}" if name else text) from error


class TooManyPixelsError(ValueError):
    """An image has more pixels than are read; the message says how to read more."""


def max_image_pixels() -> int | None:
    """The most pixels that are read: Pillow's limit, or that of the environment variable; `None` is any number."""
    stated = os.environ.get(MAX_PIXELS_VARIABLE)
    if stated is None:
        return None if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS
    if not stated.isdecimal() or int(stated) < 1:
        raise ValueError(f"{MAX_PIXELS_VARIABLE}={stated!r}: expected a whole number of pixels, of at least 1")
    return int(stated)


def check_pixels(width: int, height: int, max_pixels: int | None = None) -> None:
    """Check that an image has no more pixels than the limit, by default that of [`max_image_pixels`]."""
    limit = max_image_pixels() if max_pixels is None else max_pixels
    if limit is not None and width * height > limit:
        message = f"{width} × {height} pixels are more than the {limit:,} that are read"
        raise TooManyPixelsError(f"{message}; set {MAX_PIXELS_VARIABLE} to read more")


def open_image(
    file: str | os.PathLike[str] | BinaryIO, formats: Sequence[str] | None = None, max_pixels: int | None = None
) -> Image.Image:
    """An opened image file, whose pixels [`decode`] reads; for the arguments see [`read_rgb`]."""
    Image.init()  # makes all formats known
    # Pillow has EPS drawn by Ghostscript: a program, which runs the file's own.
    formats = [name for name in formats or Image.OPEN if name in Image.OPEN and name != "EPS"]
    if MAX_PIXELS_VARIABLE in os.environ:
        Image.MAX_IMAGE_PIXELS = cast(int, cast(int, max_image_pixels()) / 2)  # Pillow refuses twice as many
    try:
        image = Image.open(file, formats=formats)
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError(f"{error} Set {MAX_PIXELS_VARIABLE} to read more.") from error
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


def as_file(source: str | os.PathLike[str]) -> str | os.PathLike[str] | BytesIO:
    """The content of a URL or of base64 data; a path as it is."""
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


def exif_orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where it cannot be read."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # whatever a damaged block leads Pillow to raise: the pixels are whole
        return 1


def pil_to_array(image: Image.Image) -> NDArray[Any]:
    """A PIL image of any mode as (1, 3 or 4; H, W): 8-bit levels, or numbers of 32 bits."""
    if image.mode in ("I", "F"):
        return np.asarray(image)[None]
    if image.mode.startswith("I;16"):
        return np.rint(np.asarray(image)[None] / 257).astype(np.uint8)
    has_alpha = image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info
    try:
        image = image.convert("RGBA" if has_alpha else "RGB")
    except ValueError as error:
        raise ValueError(f"images: a PIL image of mode {image.mode!r} cannot be converted to RGB") from error
    return np.asarray(image).transpose(2, 0, 1)


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
    if pixels.ndim == 3 and input_data_format is None:
        axes = (0, -1) if isinstance(image, Tensor) else (-1, 0)
        axis = next((axis for axis in axes if pixels.shape[axis] in CHANNEL_COUNTS), None)
    else:
        axis = 0 if input_data_format == ChannelDimension.FIRST else -1
    if pixels.ndim != 3 or axis is None or pixels.shape[axis] not in CHANNEL_COUNTS:
        raise ValueError(f"images: expected (height, width) or 1, 3 or 4 channels, got an array of {pixels.shape}")
    return np.moveaxis(pixels, axis, 0)


def has_levels(image: Any) -> bool:
    """Whether an image's scale is known by its type: 8 bits, or those of a file format."""
    if isinstance(image, Image.Image):
        return image.mode not in ("I", "F")
    return str(getattr(image, "dtype", "uint8")).removeprefix("torch.") in ("uint8", "bool")


def to_levels(pixels: NDArray[Any], rescale_factor: float | None = None) -> NDArray[np.uint8]:
    """Numbers of any type and scale as levels from 0 to 255; for `rescale_factor` see [`to_rgb`]."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype.kind not in "iuf":
        raise ValueError(f"images: expected numbers, got an array of {pixels.dtype}")
    values = pixels.astype(np.float64)
    low, high = values.min(), values.max()
    white = guess_white(values, pixels.dtype) if rescale_factor is None else 1 / rescale_factor
    advice = "; state the scale by rescale_factor, e.g. 1 / 255, 1 / 4095 or 1 / 65535, or pass 8 bits"
    if white is None:
        raise ValueError(f"images: the scale of {pixels.dtype} from {low:g} to {high:g} is ambiguous{advice}")
    slack = OVERSHOOT * white if pixels.dtype.kind == "f" else 0
    if not (low >= -slack and high <= white + slack):  # also catches NaN
        message = f"images: expected values from 0 to {white:g} for {pixels.dtype}, got {low:g} to {high:g}"
        raise ValueError(message + advice)
    return np.rint((values * (255 / white)).clip(0, 255)).astype(np.uint8)


def guess_white(values: NDArray[np.float64], dtype: np.dtype[Any]) -> float | None:
    """The value that stands for white: 1, 255 or 65535; `None` if several are possible.

    Floats up to 1, but for overshoot, are in [0, 1]. Others need to be whole or large, to be told from an overexposed
    image in [0, 1]. Of more than 8 bits an array may be of 10, 12 or 16, unless it exceeds what 14 hold.
    """
    high = values.max()
    if dtype.kind == "f":
        if high <= 1 + OVERSHOOT:
            return 1
        is_whole = bool((values == np.rint(values)).all())
        return 255 if is_whole or not high < 32 else None
    if high <= 255 and dtype != np.uint16:
        return 255
    return 65535 if high >= 2**14 or high == 0 else None


def to_labels(label_map: Any) -> NDArray[Any]:
    """The numbers (H, W) that a label map stores; it may be a path, PIL image, array or tensor.

    Of an image with a palette these are its indices, of one of 1, 2 or 4 bits the ids, not the grey levels shown. (Of a
    PIL image of 2 or 4 bits that has been decoded before, only the grey levels are known.)
    """
    if isinstance(label_map, str | os.PathLike):
        label_map = open_image(label_map)
    if not isinstance(label_map, Image.Image):
        return native_array(label_map)
    tile = getattr(label_map, "tile", None)
    raw_mode = tile[0].args if tile else ""  # e.g. "L;4I": 4 bits, inverted
    storage = (raw_mode if isinstance(raw_mode, str) else raw_mode[0]).partition(";")[2]
    labels = native_array(decode(label_map))
    if label_map.mode not in ("1", "L"):
        return labels
    largest = 1 if label_map.mode == "1" else 2 ** int(storage[0]) - 1 if storage[:1].isdigit() else 255
    labels = labels.astype(np.uint8) if label_map.mode == "1" else labels // (255 // largest)
    return largest - labels if "I" in storage else labels


def shortest_edge_size(size: Sequence[int], shortest_edge: int, longest_edge: int) -> tuple[int, int]:
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
    if threshold is None:
        return
    if not (isinstance(threshold, Real) and 0 <= float(threshold) <= 1):
        raise ValueError(f"threshold={threshold!r}: expected a probability from 0 to 1")
    if 0 <= ignore_index < num_classes:
        raise ValueError(f"ignore_index={ignore_index} is also one of the {num_classes} classes; pass e.g. 65535")


def most_probable_class(
    views: Sequence[Tensor], size: Sequence[int], to_probability: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The highest probability at every pixel, summed over views, and its class: both (H, W).

    Args:
        views: (T, h, w) probabilities, each at a resolution of its own; without test-time augmentation there is one.
        size: (H, W) in pixels, to which each is resized.
        to_probability: What turns the views into probabilities, if they are not.
    """
    height, width = size

    def chunks() -> Iterator[tuple[Tensor, Tensor]]:
        numbers = torch.arange(len(views[0]), device=views[0].device)
        for classes in numbers.split(max(1, ELEMENTS_PER_CHUNK // (height * width))):
            total = None
            for view in views:
                chunk = view[None, classes[0] : classes[-1] + 1].float()
                chunk = chunk if to_probability is None else to_probability(chunk)
                if chunk.shape[-2:] != (height, width):
                    chunk = F.interpolate(chunk, size=(height, width), mode="bilinear", align_corners=False)
                total = chunk if total is None else total + chunk
            yield classes, cast(Tensor, total)[0]

    return highest_of_chunks(chunks())


def highest_of_chunks(chunks: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The highest score at every pixel and its class, both (H, W); at a tie the first.

    Args:
        chunks: Some classes (t,) and their scores (t, H, W) at a time.
    """
    best: Tensor | None = None
    for classes, scores in chunks:
        value, index = scores.max(dim=0)
        if best is None:
            best, best_class = value, classes[index]
            continue
        is_better = value > best
        best = torch.where(is_better, value, best)
        best_class = torch.where(is_better, classes[index], best_class)
    if best is None:
        raise ValueError("expected scores of at least one class")
    return best, best_class


__all__ = ["SEDImageProcessor"]
