"""Official checkpoints and open_clip weights: what fits is used whole, what does not is listed, no code is run."""

import argparse
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from conftest import make_tiny_config
from planted import RunsCode
from safetensors.torch import save_file
from torch import Tensor

from sed_hf import SEDForSemanticSegmentation, SEDProcessor
from sed_hf.conversion import convert_official_checkpoint, from_open_clip

PREFIX = "sem_seg_head.predictor."
HEAD = f"{PREFIX}transformer.head.bias"
BUFFERS = ("pixel_mean", "pixel_std", "clip_pixel_mean", f"{PREFIX}clip_model.attn_mask")
SCALARS = {"base_lrs": [np.float64(2e-4)], "last_epoch": np.int64(80_000), "warm": np.bool_(False)}

Weights = dict[str, Tensor]


@pytest.fixture
def weights(tiny_weights: Weights) -> Weights:
    """A copy to change at will."""
    return dict(tiny_weights)


def as_form(form: str, weights: Weights) -> Any:
    """What a checkpoint of this form holds."""
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    forms = {
        "bare state dict": weights,
        "arrays": {"model": arrays, "__author__": "SED", "matching_heuristics": True, "iou": np.float64(0.3)},
        "big-endian arrays": {"model": {name: array.astype(">f4") for name, array in arrays.items()}},
        "training state": {"model": weights, "optimizer": {"state": {0: torch.ones(3)}}, "scheduler": SCALARS},
        "module. prefix": {"model": {f"module.{name}": tensor for name, tensor in weights.items()}},
        "no prefix": {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()},
        "left-over buffers": {"model": weights | dict.fromkeys(BUFFERS, torch.zeros(3, 1, 1))},
    }
    return forms[form]


def save(content: Any, path: Path) -> Path:
    """Save a checkpoint as its suffix says; `.old.pth` is what torch wrote before 1.6."""
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content, protocol=2 if path.stem.endswith("protocol2") else None))
    elif path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=not path.stem.endswith("old"))
    return path


def convert(checkpoint: Any, **options: Any) -> SEDForSemanticSegmentation:
    return convert_official_checkpoint(checkpoint, make_tiny_config(), **options)


def refusal(checkpoint: Any) -> str:
    with pytest.raises(ValueError, match=r"checkpoint|refused") as error:
        convert(checkpoint)
    assert "\n" not in str(error.value)
    return str(error.value)


class TestOfficialCheckpoints:
    @pytest.mark.parametrize(
        ("form", "name"),
        [
            *(("arrays", name) for name in (None, "model.pth", "model.pkl", "model.protocol2.pkl")),
            *(("bare state dict", name) for name in ("model.pth", "model.old.pth", "model.safetensors")),
            *((form, "model.pth") for form in ("big-endian arrays", "training state", "module. prefix", "no prefix")),
            ("left-over buffers", "model.pth"),
        ],
    )
    def test_every_form_gives_the_same_weights(
        self, weights: Weights, tiny_model: SEDForSemanticSegmentation, tmp_path: Path, form: str, name: str | None
    ) -> None:
        content = as_form(form, weights)
        model = convert(save(content, tmp_path / name) if name else content)
        assert not model.training
        torch.testing.assert_close(model.state_dict(), tiny_model.state_dict(), rtol=0, atol=0)

    def test_half_precision_weights_become_float32(self, weights: Weights) -> None:
        half = {name: tensor.half() for name, tensor in weights.items()}
        model = convert(half)
        assert model.dtype == torch.float32
        assert torch.equal(model.decoder.head.bias, half[HEAD].float())

    def test_left_over_buffers_are_listed(self, weights: Weights, sed_hf_log: pytest.LogCaptureFixture) -> None:
        convert(as_form("left-over buffers", weights))
        listed = "clip_model.attn_mask, clip_pixel_mean, pixel_mean, pixel_std"
        assert f"Dropped from the checkpoint, since the model has no place for them: {listed}" in sed_hf_log.text

    def test_other_extra_tensors_are_refused_unless_they_are_to_be_ignored(self, weights: Weights) -> None:
        weights |= {f"stranger.{index:03d}": torch.zeros(1, dtype=torch.long) for index in range(500)}
        assert "left over (500): stranger.000, " in (message := refusal(weights))
        assert message.endswith(" and 495 more; --ignore-extra drops what is left over")
        assert torch.equal(convert(weights, ignore_extra=True).decoder.head.bias, weights[HEAD])

    def test_everything_that_does_not_fit_is_listed(self, weights: Weights) -> None:
        del weights[f"{PREFIX}clip_model.transformer.resblocks.1.attn.in_proj_weight"]
        weights[f"{PREFIX}transformer.conv1.weight"] = torch.zeros(128, 80, 5, 5)
        weights[f"{PREFIX}transformer.conv1.bias"] = torch.full((128,), torch.nan)
        weights[HEAD] = weights[HEAD].long()
        assert refusal(weights) == (
            "checkpoint: does not fit the configuration;"
            " missing (1): clip_model.transformer.resblocks.1.attn.in_proj_weight;"
            " of another shape or type (2):"
            " transformer.conv1.weight: expected (128, 80, 7, 7), got (128, 80, 5, 5) of torch.float32,"
            " transformer.head.bias: expected (1,), got (1,) of torch.int64;"
            " not finite (1): transformer.conv1.bias"
        )

    def test_another_variant_needs_a_configuration(self) -> None:
        with pytest.raises(ValueError, match="expected weights of SED-B or SED-L; another variant of SED needs its"):
            convert_official_checkpoint({"clip_model.visual.trunk.stem.0.weight": torch.zeros(16, 3, 4, 4)})

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({}, "expected a state dict, got dict"),
            ({"model": 3}, "expected a state dict, got int"),
            ({"model": {"weight": np.array(["text"])}}, "expected tensors or arrays, got ndarray for 'weight'"),
        ],
    )
    def test_what_is_not_a_state_dict_is_refused(self, content: dict[str, Any], message: str) -> None:
        assert refusal(content) == f"checkpoint: {message}"


class TestFiles:
    @pytest.mark.parametrize("name", ["model.pth", "model.old.pth", "model.pkl"])
    @pytest.mark.parametrize("hide", [lambda code: code, lambda code: np.array([code])], ids=["bare", "in an array"])
    def test_code_in_a_pickle_is_refused_and_not_run(self, tmp_path: Path, name: str, hide: Any) -> None:
        path = save({"model": {"weight": hide(RunsCode(tmp_path / "trace"))}}, tmp_path / name)
        assert str(path) in refusal(path)
        assert not (tmp_path / "trace").exists()

    @pytest.mark.parametrize("name", ["model.pth", "model.pkl"])
    def test_what_is_refused_is_named_with_the_way_on(self, tmp_path: Path, name: str) -> None:
        path = save({"model": {}, "args": argparse.Namespace(lr=2e-4)}, tmp_path / name)
        message = refusal(path)
        assert f"{path} was refused, since reading it would run argparse.Namespace" in message
        assert message.endswith("save it again with its weights only: torch.save({'model': weights}, ...)")

    @pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
    @pytest.mark.parametrize("content", [b"", b"<html>Sign in to download", b"half"], ids=["", "HTML", "half"])
    def test_another_kind_of_file_is_refused_by_name(self, tmp_path: Path, content: bytes, suffix: str) -> None:
        path = save({"weight": torch.zeros(999)}, tmp_path / f"model{suffix}")
        path.write_bytes(path.read_bytes()[:500] if content == b"half" else content)
        assert refusal(path) == f"{path}: expected a checkpoint; this is another kind of file, or damaged"


class TestOpenClip:
    @pytest.mark.slow
    @torch.no_grad()
    def test_both_towers_equal_open_clip_on_the_same_weights(self, tiny_processor: SEDProcessor) -> None:
        torch.manual_seed(0)
        model = from_open_clip("convnext_base_w_320").eval()
        torch.manual_seed(0)
        clip = open_clip.create_model("convnext_base_w_320").eval()

        tokens = tiny_processor(text=["cat", "a wooden table"], padding="max_length", return_tensors="pt")
        expected = clip.encode_text(tokens["input_ids"][:, ::16].flatten(0, 1), normalize=True).view(2, 5, 640)
        torch.testing.assert_close(model.get_class_embeddings(**tokens)[:, ::16], expected, rtol=0, atol=1e-5)

        pixel_values = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
        features = clip.visual.trunk.forward_features(pixel_values)  # (1, 1024, 2, 3)
        locations = features.permute(0, 2, 3, 1).reshape(6, 1024, 1, 1)  # each an image of its own
        expected = clip.visual.head(clip.visual.trunk.forward_head(locations).flatten(1))
        dense = model.get_image_features(pixel_values).pooler_output
        torch.testing.assert_close(dense[0].flatten(1).T, expected, rtol=0, atol=1e-5)

    def test_unknown_weights_are_refused_with_those_there_are(self) -> None:
        with pytest.raises(ValueError, match="pretrained='nope': expected a file or one of laion_aesthetic_s13b_b82k"):
            from_open_clip("convnext_base_w_320", pretrained="nope")

    @pytest.mark.parametrize("variant", ["convnext_unknown", "RN50"])
    def test_other_architectures_are_refused(self, variant: str) -> None:
        with pytest.raises(ValueError, match=f"variant='{variant}': expected a timm ConvNeXt"):
            from_open_clip(variant)
