"""Valid inputs of every kind that sed-hf reads, small, and made from seeds."""

import io
import json
import tempfile
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.io
import torch
import yaml
from accelerate import Accelerator
from PIL import Image as PILImage
from PIL import ImageCms, features
from PIL.Image import Image as Picture
from safetensors.torch import save
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from transformers import CLIPTokenizer

from sed_hf import SEDConfig, SEDForSemanticSegmentation, SEDImageProcessor, SEDProcessor
from sed_hf.class_embeddings import ClassEmbeddingCache, save_class_embeddings
from sed_hf.conversion import OFFICIAL_PREFIX, official_name
from sed_hf.data.parquet import FEATURES, METADATA_KEY
from sed_hf.data.prepare import prepare_benchmark
from sed_hf.evaluation.progress import ProgressFile
from sed_hf.evaluation.report import EvaluationReport
from sed_hf.hub import save_hub_folder
from sed_hf.metrics.mean_iou import MeanIoU
from sed_hf.training.checkpoints import save_checkpoint

from .mutations import Files

SIZE = (24, 16)
CLASS_NAMES = ["sky", "grass, meadow", "dog"]
ENCODER = "0" * 64
SETTINGS = {"model": "tiny", "topk": None, "scales": [1.0, 0.5]}
NUM_SAMPLES = 5
EXIF_ORIENTATION = 0x0112
IMAGE_ID = "2008_000001"


# Pictures ------------------------------------------------------------------------------------------------------------


def pixels(seed: int = 0) -> Picture:
    """A smooth random RGB picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return PILImage.fromarray(coarse).resize(SIZE)


def encoded(picture: Picture, kind: str, **options: Any) -> bytes:
    """The bytes of a picture's file."""
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


@cache
def pictures() -> list[Files]:
    """A picture in each format and mode."""
    rgb = pixels()
    grey16 = PILImage.fromarray((np.arange(24 * 16).reshape(16, 24) * 100).astype(np.uint16))
    frames = {"save_all": True, "append_images": [pixels(1), pixels(2)]}
    exif = rgb.getexif()
    exif[EXIF_ORIENTATION] = 6
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    files = {
        "rgb.png": encoded(rgb, "PNG", icc_profile=icc),
        "grey.png": encoded(rgb.convert("L"), "PNG"),
        "grey16.png": encoded(grey16, "PNG"),
        "alpha.png": encoded(rgb.convert("RGBA"), "PNG"),
        "bilevel.png": encoded(rgb.convert("1"), "PNG"),
        "palette.png": encoded(rgb.convert("P"), "PNG", transparency=3),
        "animated.png": encoded(rgb, "PNG", **frames),
        "upright.jpg": encoded(rgb, "JPEG", exif=exif, icc_profile=icc),
        "progressive.jpg": encoded(rgb, "JPEG", progressive=True),
        "cmyk.jpg": encoded(rgb.convert("CMYK"), "JPEG"),
        "lossy.webp": encoded(rgb, "WEBP", exif=exif),
        "lossless.webp": encoded(rgb.convert("RGBA"), "WEBP", lossless=True),
        "animated.webp": encoded(rgb, "WEBP", **frames),
        "animated.gif": encoded(rgb.convert("P"), "GIF", **frames),
        "plain.tiff": encoded(rgb, "TIFF", exif=exif),
        "lzw.tiff": encoded(rgb, "TIFF", compression="tiff_lzw"),
        "deflate.tiff": encoded(grey16, "TIFF", compression="tiff_deflate"),
        "float.tiff": encoded(PILImage.fromarray(np.linspace(0, 1, 24 * 16, dtype=np.float32).reshape(16, 24)), "TIFF"),
        "pages.tiff": encoded(rgb, "TIFF", **frames),
        "plain.bmp": encoded(rgb, "BMP"),
        "palette.bmp": encoded(rgb.convert("P"), "BMP"),
        "plain.ppm": encoded(rgb, "PPM"),
        "plain.jp2": encoded(rgb, "JPEG2000"),
        "plain.ico": encoded(rgb, "ICO"),
        "plain.tga": encoded(rgb, "TGA", compression="tga_rle"),
        "plain.eps": encoded(rgb, "EPS"),
    }
    if features.check("avif"):
        files["plain.avif"] = encoded(rgb, "AVIF")
    return [{name: data} for name, data in files.items()]


@cache
def videos() -> list[Files]:
    """Clips of four frames, with and without sound."""
    import av

    clips = []
    with tempfile.TemporaryDirectory() as folder:
        for name, codec, width in (("clip.mp4", "libx264", 1), ("wide.mp4", "mpeg4", 2), ("clip.webm", "libvpx", 1)):
            path = Path(folder, name)
            with av.open(str(path), "w") as container:
                stream: Any = container.add_stream(codec, rate=10)
                stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
                stream.codec_context.sample_aspect_ratio = Fraction(width)
                for seed in range(4):
                    frame = av.VideoFrame.from_image(pixels(seed).resize((32, 32)))
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
            clips.append({name: path.read_bytes()})
    return clips


# Label maps and data sets --------------------------------------------------------------------------------------------


def index_image(largest: int, dtype: type = np.uint8, kind: str = "PNG", palette: bool = False) -> bytes:
    """A label map of ids up to `largest`."""
    image = PILImage.fromarray((np.arange(24 * 16).reshape(16, 24) % (largest + 1)).astype(dtype))
    if palette:
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    return encoded(image, kind)


@cache
def label_maps() -> list[Files]:
    """Label maps as pictures: of own data, of the benchmarks with 8 bits, with a palette, with two channels."""
    object_ids = np.zeros((16, 24, 3), np.uint8)
    object_ids[:, 12:] = (100, 37, 1)
    return [
        {"own/mask.png": index_image(2)},
        {"own/mask16.png": index_image(2, np.uint16)},
        {"own/mask.tif": index_image(2, kind="TIFF")},
        {"own/mask32.tif": index_image(2, np.int32, kind="TIFF")},
        {"ade20k_150/mask.png": index_image(150)},
        {"coco_stuff_171/mask.png": index_image(181)},
        {"pascal_voc_20/mask.png": index_image(20, palette=True)},
        {"pascal_voc_20b/mask.png": index_image(20, palette=True)},
        {"ade20k_847/mask.png": encoded(PILImage.fromarray(object_ids), "PNG")},
    ]


@cache
def mat_label_maps() -> list[Files]:
    """MATLAB files of PASCAL-Context: packed, plain, of floating-point numbers, with other variables."""
    ids = np.arange(24 * 16).reshape(16, 24).astype(np.uint16)
    files = []
    for content, options in (
        ({"LabelMap": ids}, {"do_compression": True}),
        ({"LabelMap": ids}, {}),
        ({"LabelMap": ids.astype(np.float32)}, {}),
        ({"LabelMap": ids.astype(float), "names": np.array(["a", "b"], dtype=object)}, {"do_compression": True}),
        ({"other": {"x": ids, "y": [1, 2]}, "LabelMap": ids}, {}),
    ):
        buffer = io.BytesIO()
        scipy.io.savemat(buffer, content, **options)
        files.append({"pascal_context_459/labels.mat": buffer.getvalue()})
    return files


def run_lengths(segment: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths of a mask, down the columns, beginning with zeros."""
    flat = np.concatenate([[False], segment.ravel(order="F")])
    ends = np.flatnonzero(np.diff(flat.astype(np.int8), append=[2]))
    return np.diff(ends, prepend=0).tolist()


def packed_run_lengths(counts: list[int]) -> str:
    """COCO's text of run lengths: differences to the one before the last, five bits a character."""
    text = ""
    for index, count in enumerate(counts):
        value = count - (counts[index - 2] if index > 2 else 0)
        while True:
            bits, value = value & 0x1F, value >> 5
            more = value != (-1 if bits & 0x10 else 0)
            text += chr(48 + (bits | 0x20 if more else bits))
            if not more:
                break
    return text


def segments(packed: bool) -> list[dict[str, Any]]:
    """Two segments of one picture with COCO's run lengths."""
    ids = np.zeros((16, 24), int)
    ids[2:9, 3:20], ids[6:14, 10:22] = 9, 23
    counts = {raw_id: run_lengths(ids == raw_id) for raw_id in (9, 23)}
    return [
        {
            "category_id": raw_id,
            "segmentation": {"size": [16, 24], "counts": packed_run_lengths(runs) if packed else runs},
        }
        for raw_id, runs in counts.items()
    ]


@cache
def rle_label_maps() -> list[Files]:
    """Run-length encoded labels of one picture, with packed and with plain counts."""
    return [
        {"pascal_context_59/labels.json": json.dumps({"size": [16, 24], "segments": segments(packed)}).encode()}
        for packed in (True, False)
    ]


@cache
def dataset_folders() -> list[Files]:
    """A small copy of each raw download, and own data, in a folder of the benchmark's name."""
    jpg = encoded(pixels(), "JPEG")
    voc = {
        "JPEGImages/2007_000033.jpg": jpg,
        "SegmentationClassAug/2007_000033.png": index_image(20, palette=True),
        "ImageSets/Segmentation/val.txt": b"2007_000033\n",
    }
    merged = {
        "images": [{"file_name": f"{IMAGE_ID}.jpg", "image_id": 7, "height": 16, "width": 24, "phase": "val"}],
        "annos_segmentation": [{"image_id": 7, **segment} for segment in segments(packed=True)],
    }
    ade = "images/ADE/validation/home/ADE_val_00000001"
    layouts = {
        "custom": {
            "images/a.jpg": jpg,
            "images/b.png": encoded(pixels(1), "PNG"),
            "masks/a.png": index_image(2),
            "masks/b.png": index_image(2),
            "classes.txt": "\n".join(CLASS_NAMES).encode(),
        },
        "coco_stuff_171": {"images/val2017/a.jpg": jpg, "stuffthingmaps/val2017/a.png": index_image(181)},
        "ade20k_150": {"images/validation/a.jpg": jpg, "annotations/validation/a.png": index_image(150)},
        "ade20k_847": {f"{ade}.jpg": jpg, f"{ade}_seg.png": label_maps()[-1]["ade20k_847/mask.png"]},
        "pascal_voc_20": voc,
        "pascal_voc_20b": voc,
        "pascal_context_59": {
            f"JPEGImages/{IMAGE_ID}.jpg": jpg,
            "trainval_merged.json": json.dumps(merged).encode(),
        },
        "pascal_context_459": {
            "JPEGImages/2008_000002.jpg": jpg,
            "trainval/2008_000002.mat": mat_label_maps()[0]["pascal_context_459/labels.mat"],
        },
    }
    return [{f"{name}/{path}": data for path, data in files.items()} for name, files in layouts.items()]


def own_data_folders() -> list[Files]:
    """Own data alone."""
    return dataset_folders()[:1]


@cache
def prepared_folders() -> list[Files]:
    """Own data as Parquet; and what a stranger may write: paths in place of pictures, columns of other types."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_files(own_data_folders()[0], folder)
        prepare_benchmark("custom", folder / "custom", folder / "prepared", progress=False)
        sample = read_files(folder / "prepared")
        shard = next(path for path in sample if path.endswith(".parquet"))
        image, label = encoded(pixels(), "PNG"), index_image(2)
        foreign = (
            ({"path": "/etc/passwd", "bytes": None}, {"path": "/etc/passwd", "bytes": None}),
            ({"path": "../../x.png", "bytes": image}, {"path": "", "bytes": label}),
            ({"path": None, "bytes": None}, None),
        )
        variants = [sample]
        for picture, label_map in foreign:
            row = {"image": picture, "label": label_map, "file_name": "../a.jpg"}
            table = pa.Table.from_pylist([row], schema=FEATURES.arrow_schema)
            variants.append({**sample, shard: _parquet(table, sample[shard])})
        variants.append({**sample, shard: _parquet(pa.table({"image": [1], "label": ["x"]}), sample[shard])})
        variants.append({**sample, shard: _parquet(pa.table({"other": [1]}), sample[shard])})
    return variants


def _parquet(table: pa.Table, original: bytes) -> bytes:
    """A table as Parquet, with the metadata of sed-hf."""
    metadata = pq.read_schema(io.BytesIO(original)).metadata
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: metadata[METADATA_KEY]}), buffer)
    return buffer.getvalue()


# Class names ---------------------------------------------------------------------------------------------------------


@cache
def vocabularies() -> list[Files]:
    """Class names as text, with a byte order mark, and as JSON."""
    return [
        {"classes.txt": "\n".join(CLASS_NAMES).encode()},
        {"windows.txt": "\ufeffciel\r\nprairie, pré\r\n\r\n".encode()},
        {"classes.json": json.dumps(CLASS_NAMES).encode()},
        {"classes.json": json.dumps([f"class {index}" for index in range(40)]).encode()},
    ]


@cache
def typed_names() -> list[Files]:
    """Class names and prompt templates as a caller in Python gives them, as JSON."""
    return [
        {"arguments.json": json.dumps({"text": CLASS_NAMES, "prompt_templates": ["a {}.", "{}"]}).encode()},
        {"arguments.json": json.dumps({"text": ["a & b", "“x”", "日本", "é"], "prompt_templates": ["{}"]}).encode()},
    ]


@cache
def encoded_vocabularies() -> list[Files]:
    """A vocabulary of `sed-hf encode`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "classes.safetensors")
        embeddings = nn.functional.normalize(torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
        save_class_embeddings(path, CLASS_NAMES, embeddings, ENCODER)
        return [{path.name: path.read_bytes()}]


@cache
def cached_embeddings() -> list[Files]:
    """A cache with one class."""
    with tempfile.TemporaryDirectory() as folder:
        ClassEmbeddingCache(folder).save(ENCODER, "sky", torch.ones(2, 8))
        return [read_files(Path(folder))]


# Models --------------------------------------------------------------------------------------------------------------


@cache
def tiny_model() -> tuple[SEDForSemanticSegmentation, SEDProcessor]:
    """The smallest SED, seeded, with a tokenizer of single letters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=24)
    config = SEDConfig(
        projection_dim=8,
        prompt_templates=["a {}.", "{}"],
        vision_config={
            "architecture": "convnext_atto",
            "model_args": {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]},
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "max_position_embeddings": 24,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        decoder_hidden_sizes=[8, 8, 8, 8],
        skip_guidance_sizes=[4, 4, 4],
        cost_guidance_sizes=[4, 4, 4],
        decoder_kernel_size=3,
        cost_embedding_kernel_size=3,
        group_norm_group_size=4,
        num_attention_heads=2,
    )
    torch.manual_seed(0)
    model = SEDForSemanticSegmentation(config).eval()
    image_processor = SEDImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 256}, input_size={"height": 64, "width": 64}
    )
    return model, SEDProcessor(image_processor, tokenizer, prompt_templates=config.prompt_templates)


@cache
def model_folders() -> list[Files]:
    """A Hub folder in one file and in shards, beside code that must never run."""
    model, processor = tiny_model()
    folders = []
    with tempfile.TemporaryDirectory() as temporary:
        for shard_size in ("5GB", "20KB"):
            folder = Path(temporary, shard_size, "model")
            save_hub_folder(model, processor, folder, max_shard_size=shard_size)
            files = read_files(folder)
            code = {path: b"open('EXECUTED', 'w').close()\n" for path in files if path.endswith(".py")}
            folders.append({**files, **code, "evil.py": b"open('EXECUTED', 'w').close()\n"})
    return folders


@cache
def config_files() -> list[Files]:
    """The config.json of a model folder."""
    return [{"config.json": model_folders()[0]["config.json"]}]


@cache
def checkpoints() -> list[Files]:
    """The tiny model as an official checkpoint: zip file, legacy pickle, numpy arrays, safetensors."""
    weights = official_weights()
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    return [
        {"model.pth": _torch_saved({"model": weights, "iteration": 5})},
        {"bare.pth": _torch_saved(weights)},
        {"legacy.pth": _torch_saved({"model": weights}, _use_new_zipfile_serialization=False)},
        {"arrays.pth": _torch_saved({"model": arrays})},
        {"model.safetensors": save({name: tensor.contiguous() for name, tensor in weights.items()})},
    ]


def official_weights() -> dict[str, Tensor]:
    """The weights of the tiny model under their official names."""
    model, _ = tiny_model()
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        source = official_name(name)
        if "_proj." in name and ".self_attn." in name and "out_proj" not in name:
            parts = [name.replace(name.split(".self_attn.")[1][0] + "_proj", f"{part}_proj") for part in "qkv"]
            tensor = torch.cat([model.state_dict()[part] for part in parts])
        elif name == "text_encoder.text_projection.weight":
            tensor = tensor.T
        elif name == "logit_scale":
            tensor = tensor.reshape(())
        weights[OFFICIAL_PREFIX + source] = tensor.clone()
    return weights


def _torch_saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


# Training and evaluation ---------------------------------------------------------------------------------------------


@cache
def recipes() -> list[Files]:
    """Recipes of training."""
    values = {
        "output_dir": "outputs",
        "model": "sed-base",
        "data_dir": "data",
        "dataset": "custom",
        "steps": 100,
        "learning_rate": 2.0e-4,
        "color_jitter": False,
        "classes_per_step": 20,
        "min_classes_per_step": 5,
        "mixed_precision": "no",
        "evaluate_every": 50,
        "evaluate_on": "scenes",
        "shortest_edge": None,
        "finetuning": "full",
    }
    own = Path(__file__).parents[2] / "configs" / "scenes_segmentation.yaml"
    return [{"recipe.yaml": yaml.safe_dump(values).encode()}, {"recipe.yaml": own.read_bytes()}]


def tiny_training() -> tuple[Accelerator, nn.Module]:
    """What a checkpoint restores: a network, an optimizer and a schedule, prepared by accelerate."""
    accelerator = Accelerator(cpu=True)
    network = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    network, optimizer = accelerator.prepare(network, optimizer)
    accelerator.register_for_checkpointing(schedule)
    for weight in network.parameters():
        weight.grad = torch.ones_like(weight)  # backward may refuse to run in a forked process
    optimizer.step()
    schedule.step()
    return accelerator, network


@cache
def training_folders() -> list[Files]:
    """The output folder of an interrupted training: a checkpoint and the log."""
    torch.manual_seed(0)
    accelerator, _ = tiny_training()
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(accelerator, Path(folder), step=3, keep=2)
        files = read_files(Path(folder))
    log = "".join(json.dumps({"step": step, "loss": 0.5 / step, "grad_norm": 1.0}) + "\n" for step in (1, 2, 3, 4))
    return [{**files, "log.jsonl": log.encode()}]


@cache
def evaluation_folders() -> list[Files]:
    """The output folder of an interrupted evaluation: a finished benchmark and the state of another."""
    metric = MeanIoU(CLASS_NAMES, num_samples=NUM_SAMPLES)
    labels = np.arange(6).reshape(2, 3) % 3
    metric.add_batch(predictions=[labels], references=[labels], sample_ids=[0])
    figures = {"mIoU": 50.0, "mIoU-seen": None, "IoU-sky": 25.0, "fwIoU": 1.0, "mACC": 2.0, "pACC": 3.0}
    with tempfile.TemporaryDirectory() as folder:
        report = EvaluationReport(Path(folder), dict(SETTINGS))
        report.benchmarks["ade20k_150"] = {"num_images": 7, "figures": figures, "environment": {"torch": "2"}}
        report.save()
        ProgressFile(Path(folder, "scenes.progress.safetensors"), SETTINGS).save(metric.state_dict())
        return [read_files(Path(folder))]


# Folders -------------------------------------------------------------------------------------------------------------


def read_files(folder: Path) -> Files:
    """The files below a folder, by relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def write_files(files: Files, folder: Path) -> None:
    """Write files below a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
