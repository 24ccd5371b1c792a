"""Official checkpoints and open_clip weights: what fits is used whole, what does not is listed, no code is run."""

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from conftest import make_tiny_config
from safetensors.torch import save_file
from torch import Tensor
from transformers.testing_utils import CaptureLogger
from transformers.utils.logging import get_logger

from sed_hf import SEDForSemanticSegmentation, SEDProcessor
from sed_hf.conversion import convert_official_checkpoint, from_open_clip

PREFIX = "sem_seg_head.predictor."
HEAD = f"{PREFIX}transformer.head.bias"
BUFFERS = ("pixel_mean", "pixel_std", "clip_pixel_mean", f"{PREFIX}clip_model.attn_mask")

Weights = dict[str, Tensor]


@pytest.fixture
def weights(tiny_weights: Weights) -> Weights:
    """A copy to change at will."""
    return dict(tiny_weights)


def arrays(weights: Weights) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in weights.items()}


def with_training_state(weights: Weights) -> dict[str, Any]:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    scheduler = {"base_lrs": [np.float64(2e-4)], "last_epoch": np.int64(80_000), "warm": np.bool_(False)}
    return {
        "model": weights,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler,
        "iteration": np.int64(79_999),
    }


FORMS: dict[str, Callable[[Weights], Any]] = {
    "bare state dict": lambda weights: weights,
    "arrays": lambda weights: {"model": arrays(weights)},
    "big-endian arrays": lambda weights: {
        "model": {name: array.astype(">f4") for name, array in arrays(weights).items()}
    },
    "optimizer, scheduler and numpy scalars": with_training_state,
    "module. prefix": lambda weights: {"model": {f"module.{name}": tensor for name, tensor in weights.items()}},
    "no prefix": lambda weights: {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()},
    "left-over buffers": lambda weights: {"model": weights | dict.fromkeys(BUFFERS, torch.zeros(3, 1, 1))},
}


def save_pth(content: Any, path: Path) -> Path:
    torch.save(content, path.with_suffix(".pth"))
    return path.with_suffix(".pth")


def save_old_pth(content: Any, path: Path) -> Path:
    torch.save(content, path.with_suffix(".pth"), _use_new_zipfile_serialization=False)
    return path.with_suffix(".pth")


def save_pkl(content: Any, path: Path) -> Path:
    path.with_suffix(".pkl").write_bytes(pickle.dumps(content))
    return path.with_suffix(".pkl")


def refusal(checkpoint: Any) -> str:
    with pytest.raises(ValueError, match=r"checkpoint|refused") as error:
        convert_official_checkpoint(checkpoint, make_tiny_config())
    assert "\n" not in str(error.value)
    return str(error.value)


@torch.no_grad()
def logits(model: SEDForSemanticSegmentation) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    class_embeddings = F.normalize(torch.randn(3, 80, 64, generator=generator), dim=-1)
    return model(torch.randn(1, 3, 64, 64, generator=generator), class_embeddings=class_embeddings).logits


class TestOfficialCheckpoints:
    @pytest.mark.parametrize(
        ("form", "save"), [*((form, save_pth) for form in FORMS), ("arrays", None), ("bare state dict", save_old_pth)]
    )
    def test_every_form_gives_the_same_logits(
        self, weights: Weights, tiny_model: SEDForSemanticSegmentation, tmp_path: Path, form: str, save: Any
    ) -> None:
        content = FORMS[form](weights)
        model = convert_official_checkpoint(save(content, tmp_path / "model") if save else content, make_tiny_config())
        assert not model.training
        assert torch.equal(logits(model), logits(tiny_model))

    @pytest.mark.parametrize("protocol", [2, 5])
    def test_a_pickle_of_detectron2_gives_the_same_logits(
        self, weights: Weights, tiny_model: SEDForSemanticSegmentation, tmp_path: Path, protocol: int
    ) -> None:
        content = {"model": arrays(weights), "__author__": "SED", "matching_heuristics": True, "iou": np.float64(0.3)}
        (tmp_path / "model.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
        model = convert_official_checkpoint(tmp_path / "model.pkl", make_tiny_config())
        assert torch.equal(logits(model), logits(tiny_model))

    def test_safetensors_give_the_same_logits(
        self, weights: Weights, tiny_model: SEDForSemanticSegmentation, tmp_path: Path
    ) -> None:
        save_file(weights, tmp_path / "model.safetensors")
        model = convert_official_checkpoint(str(tmp_path / "model.safetensors"), make_tiny_config())
        assert torch.equal(logits(model), logits(tiny_model))

    def test_half_precision_weights_become_float32(self, weights: Weights, tmp_path: Path) -> None:
        half = {name: tensor.half() for name, tensor in weights.items()}
        model = convert_official_checkpoint(save_pth({"model": half}, tmp_path / "model"), make_tiny_config())
        rounded = {name: tensor.float() for name, tensor in half.items()}
        assert model.dtype == torch.float32
        assert torch.equal(logits(model), logits(convert_official_checkpoint(rounded, make_tiny_config())))

    def test_left_over_buffers_are_listed(self, weights: Weights) -> None:
        with CaptureLogger(get_logger("sed_hf.conversion")) as log:
            convert_official_checkpoint(FORMS["left-over buffers"](weights), make_tiny_config())
        listed = "clip_model.attn_mask, clip_pixel_mean, pixel_mean, pixel_std"
        assert f"Dropped from the checkpoint, since the model has no place for them: {listed}" in log.out

    def test_other_extra_tensors_are_refused_unless_they_are_to_be_ignored(
        self, weights: Weights, tiny_model: SEDForSemanticSegmentation
    ) -> None:
        weights |= {f"stranger.{index:03d}": torch.zeros(1, dtype=torch.long) for index in range(500)}
        assert "left over (500): stranger.000, " in (message := refusal(weights))
        assert message.endswith(" and 495 more; --ignore-extra drops what is left over")
        model = convert_official_checkpoint(weights, make_tiny_config(), ignore_extra=True)
        assert torch.equal(logits(model), logits(tiny_model))

    def test_everything_that_does_not_fit_is_listed(self, weights: Weights) -> None:
        del weights[f"{PREFIX}clip_model.transformer.resblocks.1.attn.in_proj_weight"]
        weights[f"{PREFIX}transformer.conv1.weight"] = torch.zeros(128, 80, 5, 5)
        weights[HEAD] = weights[HEAD].long()
        assert refusal(weights) == (
            "checkpoint: does not fit the configuration;"
            " missing (1): clip_model.transformer.resblocks.1.attn.in_proj_weight;"
            " of another shape or type (2): transformer.conv1.weight: expected (128, 80, 7, 7) for"
            " decoder.cost_embedding.weight, got (128, 80, 5, 5) of torch.float32,"
            " transformer.head.bias: expected (1,) for decoder.head.bias, got (1,) of torch.int64"
        )

    def test_numbers_that_are_not_finite_are_refused(self, weights: Weights) -> None:
        weights[HEAD] = torch.full_like(weights[HEAD], torch.nan)
        assert refusal(weights) == "checkpoint: numbers that are not finite, for decoder.head.bias"

    def test_another_models_checkpoint_is_named_as_such(self) -> None:
        with pytest.raises(ValueError, match=r"not of SED; it has no clip_model\.visual\.trunk"):
            convert_official_checkpoint({"fc.weight": torch.zeros(1)})

    def test_an_unknown_variant_needs_a_configuration(self, weights: Weights) -> None:
        with pytest.raises(ValueError, match=r"neither SED-B nor SED-L .*\(16, 3, 4, 4\).*pass the config"):
            convert_official_checkpoint(weights)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({}, "expected a state dict, got dict"),
            ([], "expected a state dict, got list"),
            ({"model": 3}, "expected a state dict, got int"),
            ({"model": {"weight": "text"}}, "expected tensors or arrays, got str for 'weight'"),
            ({"model": {"weight": np.array(["text"])}}, "expected tensors or arrays, got ndarray for 'weight'"),
        ],
    )
    def test_what_is_not_a_state_dict_is_refused(self, content: dict[str, Any], message: str, tmp_path: Path) -> None:
        assert refusal(save_pkl(content, tmp_path / "model")) == f"checkpoint: {message}"


class RunsCode:
    """Unpickling it creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


class TestFiles:
    @pytest.mark.parametrize("save", [save_pth, save_old_pth, save_pkl], ids=[".pth", ".pth of old", ".pkl"])
    @pytest.mark.parametrize("hide", [lambda code: code, lambda code: np.array([code])], ids=["bare", "in an array"])
    def test_code_in_a_pickle_is_refused_and_not_run(self, tmp_path: Path, save: Any, hide: Any) -> None:
        path = save({"model": {"weight": hide(RunsCode(tmp_path / "trace"))}}, tmp_path / "model")
        assert str(path) in refusal(path)
        assert not (tmp_path / "trace").exists()

    @pytest.mark.parametrize("save", [save_pth, save_pkl], ids=[".pth", ".pkl"])
    def test_what_is_refused_is_named_with_the_way_on(self, weights: Weights, tmp_path: Path, save: Any) -> None:
        path = save({"model": arrays(weights), "args": argparse.Namespace(lr=2e-4)}, tmp_path / "model")
        message = refusal(path)
        assert f"{path} was refused, since reading it would run argparse.Namespace" in message
        assert message.endswith("save it again with its weights only: torch.save({'model': weights}, ...)")

    @pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
    @pytest.mark.parametrize("content", [b"", b"<html>Sign in to download", b"\xff" * 20], ids=["", "HTML", "0xff"])
    def test_another_kind_of_file_is_refused_by_name(self, tmp_path: Path, content: bytes, suffix: str) -> None:
        path = tmp_path / f"model{suffix}"
        path.write_bytes(content)
        assert refusal(path) == f"{path}: expected a checkpoint; this is another kind of file, or damaged"

    def test_half_a_file_is_refused_by_name(self, weights: Weights, tmp_path: Path) -> None:
        path = save_pth(weights, tmp_path / "model")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert refusal(path) == f"{path}: expected a checkpoint; this is another kind of file, or damaged"

    @pytest.mark.parametrize("name", ["absent.pth", "absent.pkl", "absent.safetensors"])
    def test_a_missing_file_is_named(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(FileNotFoundError, match=name):
            convert_official_checkpoint(tmp_path / name)


@pytest.mark.slow
class TestTowersOfOpenClip:
    @pytest.fixture(scope="class")
    @classmethod
    def towers(cls) -> tuple[SEDForSemanticSegmentation, open_clip.CLIP]:
        """SED-B on open_clip's random weights, and open_clip's own model with the same weights."""
        torch.manual_seed(0)
        model = from_open_clip("convnext_base_w_320")
        torch.manual_seed(0)
        return model.eval(), open_clip.create_model("convnext_base_w_320").eval()

    @torch.no_grad()
    def test_text_embeddings_equal_open_clip(
        self, towers: tuple[SEDForSemanticSegmentation, open_clip.CLIP], tiny_processor: SEDProcessor
    ) -> None:
        model, clip = towers
        tokens = tiny_processor(text=["cat", "a wooden table"], padding="max_length", return_tensors="pt")
        embeddings = model.get_class_embeddings(**tokens)
        expected = clip.encode_text(tokens["input_ids"][:, ::16].flatten(0, 1), normalize=True).view(2, 5, 640)
        torch.testing.assert_close(embeddings[:, ::16], expected, rtol=0, atol=1e-5)

    @torch.no_grad()
    def test_dense_embeddings_equal_open_clip(self, towers: tuple[SEDForSemanticSegmentation, open_clip.CLIP]) -> None:
        model, clip = towers
        pixel_values = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
        dense = model.get_image_features(pixel_values).dense_embeddings
        features = clip.visual.trunk.forward_features(pixel_values)  # (1, 1024, 3, 4)
        for row in range(3):
            for column in range(4):
                location = clip.visual.trunk.forward_head(features[:, :, row : row + 1, column : column + 1])
                expected = clip.visual.head(location.flatten(1))
                torch.testing.assert_close(dense[:, :, row, column], expected, rtol=0, atol=1e-5)
        assert F.cosine_similarity(dense[:, :, 0, 0], dense[:, :, 2, 3]) < 1

    def test_drop_path_and_dropout_are_those_of_official_sed(
        self, towers: tuple[SEDForSemanticSegmentation, open_clip.CLIP]
    ) -> None:
        model, clip = towers
        assert model.config.vision_config.drop_path_rate == 0
        assert any(type(module).__name__ == "DropPath" for module in clip.modules())
        assert not any(type(module).__name__ == "DropPath" for module in model.modules())


class TestWhatOpenClipDoesNotHave:
    def test_unknown_weights_are_refused_with_those_there_are(self) -> None:
        with pytest.raises(ValueError, match="pretrained='nope': expected a file or one of laion_aesthetic_s13b_b82k"):
            from_open_clip("convnext_base_w_320", pretrained="nope")

    @pytest.mark.parametrize("variant", ["ViT-B-32", "convnext_unknown", "RN50"])
    def test_other_architectures_are_refused(self, variant: str) -> None:
        with pytest.raises(ValueError, match=f"variant='{variant}': expected a"):
            from_open_clip(variant)
