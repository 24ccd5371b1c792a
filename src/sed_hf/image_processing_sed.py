"""Pictures to `pixel_values`, and logits back to a label for every pixel of the picture."""

import math
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
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

from .image_files import read_image
from .utils import short_error

CHANNEL_COUNTS = (1, 3, 4)
MAX_EDGE = 2**16  # pixels to which pictures may be resized
POST_PROCESS_ELEMENTS_PER_CHUNK = 2**22  # 16 MB, which the allocator reuses; larger chunks take page faults


class SEDImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """Arguments that [`SEDImageProcessor`] adds to those of every image processor.

    do_input_resize: Whether to resize to the network's input size (step 3).
    input_size: Size of the network's input, `{"height": 768, "width": 768}`; multiples of 32.
    ignore_index: Label of pixels that have no class.
    """

    do_input_resize: bool
    input_size: int | list[int] | tuple[int, ...] | dict[str, int] | None
    ignore_index: int


class SEDImageProcessor(TorchvisionBackend):
    """The preprocessing that SED's benchmark numbers were measured with, in three steps:

    1. `do_resize`, `size`: shortest edge to 640 pixels, the longest capped at 2560; bilinear with antialiasing.
    2. `do_rescale`, `do_normalize`: to [0, 1], then by the mean and standard deviation of OpenAI CLIP.
    3. `do_input_resize`, `input_size`: to 768×768, bilinear without antialiasing; the aspect ratio is not kept.

    Pictures may be PIL images of any mode, paths, URLs, numpy arrays or tensors, of mixed sizes. EXIF orientation is
    applied, transparency is composited on white, 16-bit values are scaled. Floating-point arrays hold values in [0, 1]
    or [0, 255].
    """

    valid_kwargs = SEDImageProcessorKwargs
    resample = PILImageResampling.BILINEAR
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    do_resize = True
    size = {"shortest_edge": 640, "longest_edge": 2560}
    default_to_square = False
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_input_resize = True
    input_size = {"height": 768, "width": 768}
    ignore_index = 255

    def __init__(self, **kwargs: Unpack[SEDImageProcessorKwargs]) -> None:
        super().__init__(**kwargs)
        self._validate()

    def _validate(self) -> None:
        """Refuse settings that no picture can be prepared with, as a damaged file may hold them.

        Raises:
            ValueError: There is one; the message names it.
        """
        for name in ("size", "input_size"):
            edges = {key: edge for key, edge in dict(getattr(self, name) or {}).items() if edge is not None}
            is_size = set(edges) in ({"height", "width"}, {"shortest_edge", "longest_edge"}, {"shortest_edge"})
            if not is_size or not all(type(edge) is int and 1 <= edge <= MAX_EDGE for edge in edges.values()):
                raise ValueError(f"{name}={edges!r:.80}: expected edges from 1 to {MAX_EDGE} pixels")
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or len(values) != 3 or not all(map(is_finite_number, values)):
                raise ValueError(f"{name}={values!r:.80}: expected a list of three numbers")
        if min(self.image_std) <= 0 or not is_finite_number(self.rescale_factor):
            raise ValueError(
                f"image_std={self.image_std}, rescale_factor={self.rescale_factor!r:.80}: expected positive numbers"
            )
        for name in ("do_resize", "do_rescale", "do_normalize", "do_input_resize"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name}={getattr(self, name)!r:.80}: expected true or false")
        if self.resample not in list(PILImageResampling):
            raise ValueError(f"resample={self.resample!r:.80}: expected a number of PIL.Image.Resampling")
        if type(self.ignore_index) is not int:
            raise ValueError(f"ignore_index={self.ignore_index!r:.80}: expected a whole number")

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[SEDImageProcessorKwargs],
    ) -> BatchFeature:
        """Prepare pictures, and their label maps if given.

        Args:
            images: One picture or several, of mixed sizes.
            segmentation_maps: One label map (H, W) of integers for each picture, of its size.
            **kwargs: Any attribute of the image processor, for this call; `return_tensors`; `device`.

        Returns:
            `pixel_values` (B, 3, 768, 768) and, with label maps, `labels` (B, 768, 768): resized to the nearest pixel,
            values as they were.

        Raises:
            ValueError: A picture or label map has another shape or range of values; the message says which.
        """
        return super().preprocess(images, segmentation_maps, **kwargs)

    def _standardize_kwargs(self, input_size: Any = None, **kwargs: Any) -> dict[str, Any]:
        if input_size is not None and not isinstance(input_size, SizeDict):
            input_size = SizeDict(**get_size_dict(input_size, default_to_square=True, param_name="input_size"))
        return {**super()._standardize_kwargs(**kwargs), "input_size": input_size}

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Read local files as they are stored, with mode and EXIF orientation; leave the rest to transformers."""
        if isinstance(image_url_or_urls, list | tuple):
            return [self.fetch_images(image) for image in image_url_or_urls]
        if isinstance(image_url_or_urls, Path) or is_path(image_url_or_urls):
            return read_image(image_url_or_urls)
        try:
            return super().fetch_images(image_url_or_urls)
        except Image.DecompressionBombError as error:
            raise ValueError(f"images: {short_error(error)}") from error

    def _prepare_images_structure(self, images: ImageInput, expected_ndims: int = 3) -> list[Any]:
        """A list of pictures; the library's own refuses grayscale arrays."""
        pictures = flattened(self.fetch_images(images), expected_ndims)
        if not pictures:
            raise ValueError("images: expected at least one picture, got none")
        return pictures

    def _preprocess_image_like_inputs(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None,
        input_data_format: str | ChannelDimension | None,
        device: str | torch.device | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        pictures = [
            self.to_rgb(image, input_data_format).to(device or "cpu")
            for image in self._prepare_images_structure(images)
        ]
        pixel_values = [self._preprocess_picture(picture, **kwargs) for picture in pictures]
        data = {"pixel_values": pixel_values}
        if segmentation_maps is not None:
            maps = self._prepare_images_structure(segmentation_maps, expected_ndims=2)
            data["labels"] = self._preprocess_segmentation_maps(maps, pictures, pixel_values)
        if return_tensors is not None and len({tuple(values.shape) for values in pixel_values}) > 1:
            sizes = ", ".join("×".join(map(str, values.shape[-2:])) for values in pixel_values)
            raise ValueError(f"images: of different sizes without do_input_resize ({sizes}); pass them one by one")
        return BatchFeature(data, tensor_type=return_tensors)

    def to_rgb(self, image: Any, input_data_format: str | ChannelDimension | None = None) -> Tensor:
        """Turn any picture into a uint8 tensor (3, H, W).

        Args:
            image: PIL image, numpy array or tensor.
            input_data_format: `"channels_first"` or `"channels_last"` for arrays. By default it is inferred.

        Raises:
            ValueError: The picture is empty, or its mode, shape or range of values is not that of a picture.
        """
        if isinstance(image, Image.Image):
            pixels = pil_to_tensor(ImageOps.exif_transpose(image))
        else:
            pixels = array_to_tensor(image, input_data_format)
        if not pixels.numel():
            raise ValueError(f"images: expected at least one pixel, got {tuple(pixels.shape)}")
        pixels = to_uint8(pixels)
        if len(pixels) == 4:
            pixels = composite_on_white(pixels)
        return pixels.expand(3, -1, -1).contiguous()

    def _preprocess_picture(
        self,
        picture: Tensor,
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
        **kwargs: Any,
    ) -> Tensor:
        """The three steps for one uint8 picture (3, H, W)."""
        if do_resize:
            picture = self.resize(picture, size, resample)
        picture = self.rescale_and_normalize(picture, do_rescale, rescale_factor, do_normalize, image_mean, image_std)
        if do_input_resize:
            picture = super().resize(picture.float(), input_size, resample, antialias=False)
        return picture

    def resize(
        self,
        image: Tensor,
        size: SizeDict,
        resample: PILImageResampling | tvF.InterpolationMode | int | None = None,
        antialias: bool = True,
        **kwargs: Any,
    ) -> Tensor:
        """Resize (..., H, W); a shortest and a longest edge are rounded as Detectron2's ResizeShortestEdge does.

        8-bit pictures (3, H, W) on the CPU are resized by PIL, as the official implementation does. torchvision differs
        by one level at a few pixels, or at many where the processor lacks its 8-bit kernel, and so do GPUs.
        """
        if size.shortest_edge and size.longest_edge:
            height, width = shortest_edge_size(image.shape[-2:], size.shortest_edge, size.longest_edge)
            size = SizeDict(height=height, width=width)
        if image.dtype == torch.uint8 and image.device.type == "cpu" and image.ndim == 3 and antialias:
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            resized = picture.resize((size.width, size.height), self.resample if resample is None else resample)
            return torch.from_numpy(np.array(resized)).permute(2, 0, 1)
        return super().resize(image, size, resample, antialias=antialias, **kwargs)

    def _preprocess_segmentation_maps(
        self, segmentation_maps: list[Any], pictures: list[Tensor], pixel_values: list[Tensor]
    ) -> list[Tensor]:
        """Resize each label map once, straight to the size of its `pixel_values`."""
        if len(segmentation_maps) != len(pictures):
            raise ValueError(
                f"segmentation_maps: expected {len(pictures)}, one for each image; got {len(segmentation_maps)}"
            )
        labels = []
        for index, (segmentation_map, picture, values) in enumerate(
            zip(segmentation_maps, pictures, pixel_values, strict=True)
        ):
            label = torch.as_tensor(np.array(segmentation_map)).to(picture.device)
            if label.shape != picture.shape[-2:] or label.is_floating_point():
                raise ValueError(
                    f"segmentation_maps[{index}]: expected integers of its image's size {tuple(picture.shape[-2:])},"
                    f" got {label.dtype} of {tuple(label.shape)}"
                )
            # float64 holds every label exactly; interpolation has no integer kernel for all types.
            resized = F.interpolate(label[None, None].double(), size=values.shape[-2:], mode="nearest-exact")
            labels.append(resized[0, 0].long())
        return labels

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        threshold: float | None = None,
        ignore_index: int | None = None,
        return_probabilities: bool = False,
    ) -> list[Tensor] | list[dict[str, Tensor]]:
        """The most probable class of every pixel, in the official order: sigmoid, resize, argmax.

        Classes are taken in chunks with a running maximum, so that no (T, H, W) tensor is made.

        Args:
            outputs: Output of [`SEDForSemanticSegmentation`].
            target_sizes: (height, width) of each picture, as EXIF orientation shows it. Defaults to the logits' size.
            threshold: Pixels whose best probability is lower get `ignore_index`.
            ignore_index: Defaults to that of the image processor.
            return_probabilities: Return the probability of the winning class too.

        Returns:
            For each picture the classes, int64 (H, W); with `return_probabilities` a dict of `segmentation` and
            `probability`, float32 (H, W).

        Raises:
            ValueError: An argument has another length or range, or `ignore_index` is also the number of a class.
        """
        logits, classes = outputs.logits, getattr(outputs, "logit_classes", None)
        num_classes = logits.shape[1] if classes is None else outputs.kept_classes.shape[-1]
        ignore_index = self.ignore_index if ignore_index is None else ignore_index
        if target_sizes is not None and len(target_sizes) != len(logits):
            raise ValueError(f"target_sizes: expected {len(logits)}, one for each image; got {len(target_sizes)}")
        sizes = [tuple(logits.shape[-2:])] * len(logits)
        if target_sizes is not None:
            sizes = [tuple(int(edge) for edge in size) for size in target_sizes]
        for index, size in enumerate(sizes):
            if len(size) != 2 or min(size) < 1:
                raise ValueError(f"target_sizes[{index}]: expected a height and a width of at least 1, got {size}")
        if threshold is not None and not (isinstance(threshold, Real) and 0 <= float(threshold) <= 1):
            raise ValueError(f"threshold={threshold!r}: expected a probability from 0 to 1")
        if threshold is not None and 0 <= ignore_index < num_classes:
            raise ValueError(f"ignore_index={ignore_index} is also one of the {num_classes} classes; pass e.g. 65535")
        results = []
        for image_logits, size in zip(logits, sizes, strict=True):
            probability, segmentation = most_probable_class([image_logits], size, to_probability=torch.sigmoid)
            if classes is not None:
                segmentation = classes[segmentation]
            if threshold is not None:
                segmentation = segmentation.masked_fill(probability < threshold, ignore_index)
            results.append({"segmentation": segmentation, "probability": probability})
        return results if return_probabilities else [result["segmentation"] for result in results]


def is_finite_number(value: Any) -> bool:
    """Whether a value is a number, neither NaN nor infinite."""
    return type(value) in (int, float) and math.isfinite(value)


def is_path(text: Any) -> bool:
    """Whether an argument names a file, rather than being a URL or base64 data."""
    return isinstance(text, str) and not text.startswith(("http://", "https://", "data:")) and len(text) < 1024


def flattened(images: Any, ndim: int) -> list[Any]:
    """The pictures of lists, lists of lists and arrays of `ndim` + 1 axes, in their order."""
    if isinstance(images, list | tuple):
        return [picture for part in images for picture in flattened(part, ndim)]
    return list(images) if getattr(images, "ndim", 0) == ndim + 1 else [images]


def pil_to_tensor(image: Image.Image) -> Tensor:
    """A PIL image of any mode as (1, 3 or 4; H, W), in the range of values of its mode."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return torch.from_numpy(np.array(image))[None]
    has_alpha = image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info
    try:
        image = image.convert("RGBA" if has_alpha else "RGB")
    except ValueError as error:
        raise ValueError(f"images: a PIL image of mode {image.mode!r} cannot be converted to RGB") from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def array_to_tensor(image: Any, input_data_format: str | ChannelDimension | None) -> Tensor:
    """A numpy array or tensor as (1, 3 or 4; H, W). Tensors are taken as channels first where both would do."""
    # A copy of an array that cannot be written to, about which torch would warn.
    pixels = image if isinstance(image, Tensor) else torch.from_numpy(np.require(image, requirements="W"))
    if pixels.ndim == 2:
        return pixels[None]
    if pixels.ndim == 3 and input_data_format is None:
        axes = (0, -1) if isinstance(image, Tensor) else (-1, 0)
        axis = next((axis for axis in axes if pixels.shape[axis] in CHANNEL_COUNTS), None)
    else:
        axis = 0 if input_data_format == ChannelDimension.FIRST else -1
    if pixels.ndim != 3 or axis is None or pixels.shape[axis] not in CHANNEL_COUNTS:
        raise ValueError(
            f"images: expected (height, width) or 1, 3 or 4 channels, got an array of {tuple(pixels.shape)}"
        )
    return pixels.movedim(axis, 0)


def to_uint8(pixels: Tensor) -> Tensor:
    """Scale values to 0..255: from bool, 16 bits, [0, 1] or [0, 255]."""
    if pixels.dtype == torch.uint8:
        return pixels
    if pixels.dtype == torch.bool:
        return pixels.to(torch.uint8) * 255
    values = pixels.double()
    low, high = values.min().item(), values.max().item()
    is_float = pixels.is_floating_point()
    limit = 255 if is_float else 65535
    if not (low >= 0 and high <= limit):  # also catches NaN
        raise ValueError(f"images: expected values from 0 to {limit} for {pixels.dtype}, got {low} to {high}")
    if is_float:
        scale = 255.0 if high <= 1 else 1.0
    else:
        scale = 1.0 if high <= 255 and pixels.dtype != torch.uint16 else 1 / 257
    return (values * scale).round().to(torch.uint8)


def composite_on_white(pixels: Tensor) -> Tensor:
    """RGBA (4, H, W) to RGB, as a page would show it."""
    color, alpha = pixels[:3].float(), pixels[3:].float() / 255
    return (color * alpha + 255 * (1 - alpha)).round().to(torch.uint8)


def shortest_edge_size(size: Sequence[int], shortest_edge: int, longest_edge: int) -> tuple[int, int]:
    """Height and width with the shortest edge as asked, unless the longest would exceed its cap; halves round up."""
    scale = shortest_edge / min(size)
    scaled = [shortest_edge if edge == min(size) else edge * scale for edge in size]
    if max(scaled) > longest_edge:
        cap = longest_edge / max(scaled)
        scaled = [edge * cap for edge in scaled]
    height, width = (max(1, int(edge + 0.5)) for edge in scaled)
    return height, width


def most_probable_class(
    views: Sequence[Tensor], size: Sequence[int], to_probability: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The highest probability at every pixel, summed over views, and its class: both (H, W).

    Args:
        views: (T, h, w) probabilities, each at a resolution of its own; without test-time augmentation there is one.
        size: (H, W) in pixels, to which each is resized.
        to_probability: What turns the views into probabilities, if they are none.
    """
    height, width = size
    chunk_size = max(1, POST_PROCESS_ELEMENTS_PER_CHUNK // (height * width))
    best = views[0].new_full((height, width), -1.0, dtype=torch.float32)
    best_class = torch.zeros((height, width), dtype=torch.long, device=best.device)
    for first_class in range(0, len(views[0]), chunk_size):
        total: Tensor | None = None
        for view in views:
            chunk = view[None, first_class : first_class + chunk_size].float()
            chunk = chunk if to_probability is None else to_probability(chunk)
            if chunk.shape[-2:] != (height, width):
                chunk = F.interpolate(chunk, size=(height, width), mode="bilinear", align_corners=False)
            total = chunk if total is None else total + chunk
        assert total is not None
        value, index = total[0].max(dim=0)
        is_better = value > best
        best = torch.where(is_better, value, best)
        best_class = torch.where(is_better, index + first_class, best_class)
    return best, best_class


__all__ = ["SEDImageProcessor"]
