"""Exported programs equal the model, at sizes and vocabularies other than those that they were traced with."""

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from conftest import EXPORTED_NAMES, make_tiny_config
from PIL import Image
from torch import Tensor

from sed_hf import SEDForSemanticSegmentation, SEDProcessor
from sed_hf.cli import main
from sed_hf.conversion import convert_official_checkpoint
from sed_hf.data.scenes import SceneDataset, scene_vocabulary
from sed_hf.hub.export import DenseSegmentation, export_model, export_program, quantize_weights, save_onnx
from sed_hf.hub.load import load
from sed_hf.metrics import MeanIoU

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "segment_with_onnxruntime.py"
LOGITS = 1e-4
EMBEDDINGS = 1e-5
SIZES = [(64, 64), (96, 160), (224, 128)]
VOCABULARIES = [2, 7, 60]

Run = Callable[..., Tensor]


@pytest.fixture(scope="module")
def model() -> SEDForSemanticSegmentation:
    return load()[0]


@pytest.fixture(scope="module")
def processor() -> SEDProcessor:
    return load()[1]


@pytest.fixture(scope="module")
def int8_folder(onnx_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `--int8` makes of the same files."""
    folder = tmp_path_factory.mktemp("export") / "int8"
    shutil.copytree(onnx_folder, folder)
    for path in folder.glob("*.onnx"):
        quantize_weights(path)
    return folder


def run_onnx(path: Path) -> Run:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        (output,) = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
        return torch.from_numpy(output)

    return run


def run_torch(path: Path) -> Run:
    return torch.export.load(path).module()


def image_and_classes(
    model: SEDForSemanticSegmentation, size: tuple[int, int], num_classes: int, batch_size: int = 1
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_classes)
    config = model.config
    classes = torch.randn(num_classes, len(config.prompt_templates), config.projection_dim, generator=generator)
    return torch.randn(batch_size, 3, *size, generator=generator), F.normalize(classes, dim=-1)


@torch.no_grad()
def assert_equals_eager(run: Run, model: SEDForSemanticSegmentation, inputs: tuple[Tensor, Tensor]) -> None:
    pixel_values, class_embeddings = inputs
    expected = model(pixel_values, class_embeddings=class_embeddings, early_rejection_topk=0).logits
    torch.testing.assert_close(run(pixel_values, class_embeddings), expected, rtol=0, atol=LOGITS)


@pytest.mark.slow
class TestPrograms:
    @pytest.fixture(scope="class", params=["onnx", "torch"])
    @classmethod
    def segmentation(cls, request: pytest.FixtureRequest) -> Run:
        """The program that segments, of both formats."""
        folder = request.getfixturevalue(f"{request.param}_folder")
        onnx = request.param == "onnx"
        return run_onnx(folder / "segmentation.onnx") if onnx else run_torch(folder / "segmentation.pt2")

    @pytest.mark.parametrize("num_classes", VOCABULARIES)
    @pytest.mark.parametrize("size", SIZES)
    def test_any_size_and_vocabulary_equal_the_model(
        self, segmentation: Run, model: SEDForSemanticSegmentation, size: tuple[int, int], num_classes: int
    ) -> None:
        assert_equals_eager(segmentation, model, image_and_classes(model, size, num_classes))

    def test_a_batch_equals_the_model(self, segmentation: Run, model: SEDForSemanticSegmentation) -> None:
        assert_equals_eager(segmentation, model, image_and_classes(model, (96, 64), 5, batch_size=3))

    def test_onnx_takes_a_single_class_and_a_single_location(
        self, onnx_folder: Path, model: SEDForSemanticSegmentation
    ) -> None:
        run = run_onnx(onnx_folder / "segmentation.onnx")
        assert_equals_eager(run, model, image_and_classes(model, (64, 96), 1))
        assert_equals_eager(run, model, image_and_classes(model, (32, 32), 4))

    def test_another_configuration_equals_the_model(self, tiny_weights: dict[str, Tensor], tmp_path: Path) -> None:
        """Pooled and full class attention; the projection, the skip widths and the 80 templates of SED-L."""
        config = make_tiny_config(inference_pooling_size=2, class_attention_type="full")
        model = convert_official_checkpoint(tiny_weights, config)
        save_onnx(DenseSegmentation(model), tmp_path / "segmentation.onnx")
        for run in (run_onnx(tmp_path / "segmentation.onnx"), export_program(DenseSegmentation(model)).module()):
            for size, num_classes in zip([(128, 160), (192, 128), (224, 256)], VOCABULARIES, strict=True):
                assert_equals_eager(run, model, image_and_classes(model, size, num_classes))

    @pytest.mark.parametrize("padding", ["longest", "max_length"])
    @torch.no_grad()
    def test_the_text_encoder_equals_the_model(
        self,
        onnx_folder: Path,
        torch_folder: Path,
        model: SEDForSemanticSegmentation,
        processor: SEDProcessor,
        padding: Any,
    ) -> None:
        input_ids = processor(text=["sky", "red triangle", "a"], padding=padding)["input_ids"]
        expected = model.get_class_embeddings(input_ids).flatten(0, 1)
        for run in (run_onnx(onnx_folder / "text_encoder.onnx"), run_torch(torch_folder / "text_encoder.pt2")):
            torch.testing.assert_close(run(input_ids.flatten(0, 1)), expected, rtol=0, atol=EMBEDDINGS)

    @torch.no_grad()
    def test_saved_classes_are_those_of_the_model(
        self, onnx_folder: Path, model: SEDForSemanticSegmentation, processor: SEDProcessor
    ) -> None:
        classes = np.load(onnx_folder / "classes.npz")
        assert classes["names"].tolist() == EXPORTED_NAMES
        expected = model.get_class_embeddings(**processor(text=EXPORTED_NAMES))
        torch.testing.assert_close(torch.from_numpy(classes["embeddings"]), expected, rtol=0, atol=EMBEDDINGS)

    def test_settings_are_those_of_the_processor(self, onnx_folder: Path, processor: SEDProcessor) -> None:
        settings = json.loads((onnx_folder / "settings.json").read_text())
        assert settings["image"]["size"] is None  # the toy model does not resize by edges
        assert settings["image"]["input_size"] == {"height": 192, "width": 192}
        assert settings["image"]["mean"] == pytest.approx(processor.image_processor.image_mean)
        assert settings["text"]["prompt_templates"] == processor.prompt_templates

    def test_files_of_8_bits_are_less_than_half_as_large(self, int8_folder: Path, onnx_folder: Path) -> None:
        for name in ("segmentation.onnx", "text_encoder.onnx"):
            assert (int8_folder / name).stat().st_size < 0.5 * (onnx_folder / name).stat().st_size

    @torch.no_grad()
    def test_scenes_have_the_mean_iou_of_the_model(
        self, onnx_folder: Path, int8_folder: Path, model: SEDForSemanticSegmentation, processor: SEDProcessor
    ) -> None:
        """5 scenes with the names of all 104 classes."""
        classes = model.get_class_embeddings(**processor(text=scene_vocabulary()))
        runs: dict[str, Run] = {
            "model": lambda pixel_values, classes: model(pixel_values, class_embeddings=classes).logits,
            "onnx": run_onnx(onnx_folder / "segmentation.onnx"),
            "int8": run_onnx(int8_folder / "segmentation.onnx"),
        }
        metrics = {name: MeanIoU(class_names=scene_vocabulary()) for name in runs}
        for scene in SceneDataset("test", 5):
            pixel_values = processor(images=scene["image"])["pixel_values"]
            for name, run in runs.items():
                logits = F.interpolate(run(pixel_values, classes), scene["label"].shape, mode="bilinear")
                metrics[name].add_batch(predictions=[logits[0].argmax(0)], references=[scene["label"]])
        mean_iou = {name: metric.compute()["mIoU"] for name, metric in metrics.items()}
        assert mean_iou["onnx"] == pytest.approx(mean_iou["model"], abs=0.01)
        assert mean_iou["int8"] == pytest.approx(mean_iou["model"], abs=1)


class TestTheExample:
    def test_it_needs_only_numpy_and_onnxruntime(self) -> None:
        tree = ast.walk(ast.parse(EXAMPLE.read_text()))
        modules = {alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names}
        assert {name for name in modules if name not in sys.stdlib_module_names} == {"numpy", "onnxruntime"}

    @pytest.mark.slow
    def test_it_labels_an_image_as_the_command_does(
        self, onnx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(str(EXAMPLE.parent))
        from segment_with_onnxruntime import read_png, segment

        image = ROOT / "examples" / "scene-3.png"
        assert main(["segment", str(image), "--classes", *EXPORTED_NAMES, "--output", str(tmp_path)]) == 0
        segmentation, _ = segment(onnx_folder, read_png(image))
        assert (segmentation == np.array(Image.open(tmp_path / "scene-3_labels.png"))).mean() > 0.9999
        command = [sys.executable, EXAMPLE, onnx_folder, image, tmp_path / "result.png"]
        assert "%" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert Image.open(tmp_path / "result.png").size == (384, 192)

    @pytest.mark.parametrize("size", [(64, 88), (40, 300), (200, 274)])
    def test_it_resizes_as_pillow_to_a_level(self, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
        monkeypatch.syspath_prepend(str(EXAMPLE.parent))
        from segment_with_onnxruntime import resize_antialiased

        image = np.random.default_rng(0).integers(0, 256, (97, 133, 3)).astype(np.uint8)
        expected = np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
        difference = np.abs(resize_antialiased(image, size) - expected)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01

    @pytest.mark.parametrize("content", [b"", b"not a PNG", b"half"], ids=["empty", "text", "half"])
    def test_it_refuses_what_is_not_a_png_in_one_line(self, tmp_path: Path, content: bytes) -> None:
        whole = (ROOT / "examples" / "scene-1.png").read_bytes()
        (tmp_path / "x.png").write_bytes(whole[: len(whole) // 2] if content == b"half" else content)
        for name in ("segmentation.onnx", "settings.json", "classes.npz"):
            (tmp_path / name).touch()
        command = [sys.executable, EXAMPLE, tmp_path, tmp_path / "x.png", tmp_path / "result.png"]
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.returncode == 1
        assert ended.stderr.startswith(f"{tmp_path / 'x.png'}: expected a PNG of 8 bits")
        assert "Traceback" not in ended.stderr


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--classes", "sky", "sea", "Sky"], "--classes[2]: 'Sky' is the same class name as --classes[0]='sky'"),
            (["--format", "torch", "--int8"], "--int8: expected with --format onnx, got torch"),
            (["--model", "nowhere"], "nowhere: no such folder; expected a model folder"),
        ],
    )
    def test_the_command_refuses(
        self, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["export", str(tmp_path / "out"), *options]) == 2
        assert message in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_onnx_that_is_not_installed(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sed_hf.cli.export.find_spec", lambda name: None)
        assert main(["export", str(tmp_path / "out")]) == 2
        assert "ONNX needs onnx, onnxscript, onnxruntime: pip install" in capsys.readouterr().err

    def test_python_refuses(self, model: SEDForSemanticSegmentation, processor: SEDProcessor, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(FileExistsError, match="expected a new or empty folder"):
            export_model(model, processor, tmp_path)
        with pytest.raises(ValueError, match="int8: expected with the format onnx, got 'torch'"):
            export_model(model, processor, tmp_path / "out", "torch", int8=True)


def test_an_export_that_fails_leaves_nothing(
    model: SEDForSemanticSegmentation, processor: SEDProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.onnx, "export", fail)
    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(OSError, match="No space left"):
        export_model(model, processor, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
