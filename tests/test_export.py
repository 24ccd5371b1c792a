"""Exported programs equal the model, at sizes and vocabularies other than those that they were traced with."""

import ast
import json
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
from conftest import EXPORTED_NAMES
from PIL import Image
from torch import Tensor

from sed_hf import SEDForSemanticSegmentation as Model
from sed_hf import SEDProcessor, load
from sed_hf.cli import main
from sed_hf.hub.export import export_model

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "segment_with_onnxruntime.py"
LOGITS = 1e-4
EMBEDDINGS = 1e-5

Run = Callable[..., Tensor]


@pytest.fixture(scope="module")
def model() -> Model:
    return load()[0]


def program(folder: Path, name: str) -> Run:
    """An exported program of either format."""
    if (folder / f"{name}.pt2").exists():
        return torch.export.load(folder / f"{name}.pt2").module()
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        (output,) = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
        return torch.from_numpy(output)

    return run


@torch.no_grad()
def assert_equals_eager(run: Run, model: Model, num_classes: int, size: tuple[int, int], batch_size: int = 1) -> None:
    generator = torch.Generator().manual_seed(num_classes)
    pixel_values = torch.randn(batch_size, 3, *size, generator=generator)
    shape = (num_classes, len(model.config.prompt_templates), model.config.projection_dim)
    classes = F.normalize(torch.randn(shape, generator=generator), dim=-1)
    expected = model(pixel_values, class_embeddings=classes, early_rejection_topk=0).logits
    torch.testing.assert_close(run(pixel_values, classes), expected, rtol=0, atol=LOGITS)


@pytest.mark.slow
class TestPrograms:
    @pytest.fixture(scope="class", params=["onnx", "torch"])
    @classmethod
    def folder(cls, request: pytest.FixtureRequest) -> Path:
        """The bundled toy model in both formats."""
        return request.getfixturevalue(f"{request.param}_folder")

    def test_any_size_vocabulary_and_batch_equal_the_model(self, folder: Path, model: Model) -> None:
        run = program(folder, "segmentation")
        for num_classes, size in ((2, (64, 64)), (7, (96, 160)), (60, (224, 128))):
            assert_equals_eager(run, model, num_classes, size)
        assert_equals_eager(run, model, 5, (96, 64), batch_size=3)

    def test_onnx_takes_a_single_class_and_a_single_location(self, onnx_folder: Path, model: Model) -> None:
        run = program(onnx_folder, "segmentation")
        assert_equals_eager(run, model, 1, (64, 96))
        assert_equals_eager(run, model, 4, (32, 32))

    @pytest.mark.parametrize("program_format", ["onnx", "torch"])
    def test_another_configuration_equals_the_model(
        self, make_tiny_model: Callable, tiny_processor: SEDProcessor, program_format: Any, tmp_path: Path
    ) -> None:
        """Pooled and full class attention; the projection, the skip widths and the 80 templates of SED-L."""
        model = make_tiny_model(inference_pooling_size=2, class_attention_type="full")
        export_model(model, tiny_processor, tmp_path / "out", program_format)
        run = program(tmp_path / "out", "segmentation")
        for num_classes, size in ((2, (128, 160)), (7, (192, 128)), (60, (224, 256))):
            assert_equals_eager(run, model, num_classes, size)

    @pytest.mark.parametrize("padding", ["longest", "max_length"])
    @torch.no_grad()
    def test_the_text_encoder_equals_the_model(self, folder: Path, model: Model, padding: Any) -> None:
        input_ids = load()[1](text=["sky", "red triangle", "a"], padding=padding)["input_ids"]
        expected = model.get_class_embeddings(input_ids).flatten(0, 1)
        actual = program(folder, "text_encoder")(input_ids.flatten(0, 1))
        torch.testing.assert_close(actual, expected, rtol=0, atol=EMBEDDINGS)

    @torch.no_grad()
    def test_saved_classes_and_settings_are_those_of_the_model(self, onnx_folder: Path) -> None:
        model, processor = load()
        classes = np.load(onnx_folder / "classes.npz")
        assert classes["names"].tolist() == EXPORTED_NAMES
        expected = model.get_class_embeddings(**processor(text=EXPORTED_NAMES))
        torch.testing.assert_close(torch.from_numpy(classes["embeddings"]), expected, rtol=0, atol=EMBEDDINGS)
        settings = json.loads((onnx_folder / "settings.json").read_text())
        assert settings["image"]["size"] is None  # the toy model does not resize by edges
        assert settings["image"]["input_size"] == {"height": 192, "width": 192}
        assert settings["text"]["prompt_templates"] == processor.prompt_templates


class TestTheExample:
    @pytest.fixture(autouse=True)
    def _path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(str(EXAMPLE.parent))

    def test_it_needs_only_numpy_and_onnxruntime(self) -> None:
        tree = ast.walk(ast.parse(EXAMPLE.read_text()))
        modules = {alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names}
        assert modules - sys.stdlib_module_names == {"numpy", "onnxruntime"}

    @pytest.mark.slow
    def test_it_labels_an_image_as_the_command_does(self, onnx_folder: Path, tmp_path: Path) -> None:
        image = ROOT / "examples" / "scene-3.png"
        assert main(["segment", str(image), "--classes", *EXPORTED_NAMES, "--output", str(tmp_path)]) == 0
        from segment_with_onnxruntime import read_png, segment

        segmentation, _ = segment(onnx_folder, read_png(image))
        assert (segmentation == np.array(Image.open(tmp_path / "scene-3_labels.png"))).mean() > 0.9999
        command = [sys.executable, EXAMPLE, onnx_folder, image, tmp_path / "result.png"]
        assert "%" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert Image.open(tmp_path / "result.png").size == (384, 192)

    @pytest.mark.parametrize("size", [(64, 88), (40, 300), (200, 274)])
    def test_it_resizes_as_pillow_to_a_level(self, size: tuple[int, int]) -> None:
        from segment_with_onnxruntime import resize_antialiased

        image = np.random.default_rng(0).integers(0, 256, (97, 133, 3)).astype(np.uint8)
        expected = np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
        difference = np.abs(resize_antialiased(image, size) - expected)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01


def test_duplicate_class_names_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "out"), "--classes", "sky", "sea", "Sky"]) == 2
    assert "--classes[2]: 'Sky' is the same class name as --classes[0]='sky'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_onnx_that_is_not_installed_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sed_hf.cli.export.find_spec", lambda name: None)
    assert main(["export", str(tmp_path / "out")]) == 2
    assert "ONNX needs onnx, onnxscript, onnxruntime: pip install" in capsys.readouterr().err
