"""What other libraries do to the model: adapters of peft, offloaded and quantised weights, checkpointing with them."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import disk_offload
from peft import LoraConfig, PeftModel, get_peft_model
from small_models import make_small_model, small_model, small_processor
from torch import Tensor, nn
from transformers import pipeline

from sed_hf import SEDForSemanticSegmentation
from sed_hf.inference.class_embeddings import text_encoder_sha256

NAMES = ["sky", "grass", "red fox, fox"]
# Layers of image encoder, decoder and heads that LoRA can wrap, two of which are else computed in one.
TARGETS = {
    "image encoder": r".*image_encoder.*(fc1|fc2|downsample\.1|projection)",
    "decoder": r"decoder\..*(fc1|fc2|query|key|value|fuse\.[03]|skip_guidance\.0|cost_embedding)",
    "heads": r"decoder\.(head|auxiliary_heads\.\d)",
}
# Those of the decoder that peft can train whole, which lists of modules are not; one stage is as the others.
DECODER_MODULES = [
    f"decoder{name and '.' + name}"
    for name, module in small_model().decoder.named_modules()
    if any(True for _ in module.parameters())
    and not isinstance(module, nn.ModuleList)
    and not name.startswith(("stages.0", "stages.2"))
]


def inputs(dtype: torch.dtype = torch.float64, **options: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, 64, 64), generator=generator)
    pixel_values = torch.randn(2, 3, 64, 64, generator=generator).to(dtype)
    return {"pixel_values": pixel_values, "labels": labels, **small_processor()(text=NAMES), **options}


def with_adapters(kind: str, **options: Any) -> PeftModel:
    """A model with LoRA that is not without effect."""
    torch.manual_seed(0)
    config = LoraConfig(target_modules=TARGETS[kind], r=4, **options)
    model = get_peft_model(make_small_model().double(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def test_the_hash_of_a_text_encoder_tells_whether_adapters_are_applied() -> None:
    adapted = get_peft_model(make_small_model(), LoraConfig(target_modules=r"sed\.text_encoder\..*fc1"))
    applied = text_encoder_sha256(adapted, small_processor())
    with adapted.disable_adapter():
        assert text_encoder_sha256(adapted, small_processor()) != applied


def gradients(model: nn.Module, checkpointing: dict | None) -> dict[str, Tensor]:
    model = copy.deepcopy(model).train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable(checkpointing or None)
    model(**inputs()).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


class TestAdapters:
    @pytest.mark.parametrize("kind", TARGETS)
    @torch.no_grad()
    def test_merged_adapters_give_the_same_logits(self, kind: str) -> None:
        model = with_adapters(kind).eval()
        logits = model(**inputs()).logits
        assert not torch.allclose(logits, make_small_model().double()(**inputs()).logits, atol=1e-3)
        torch.testing.assert_close(model.merge_and_unload()(**inputs()).logits, logits, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("kind", TARGETS)
    def test_checkpointing_gives_equal_gradients(self, kind: str) -> None:
        model = with_adapters(kind)
        expected = gradients(model, None)
        assert set(expected) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        for checkpointing in ({}, {"use_reentrant": True}, {"use_reentrant": False}):
            actual = gradients(model, checkpointing)
            assert set(actual) == set(expected)
            for name, gradient in expected.items():
                assert (actual[name] - gradient).norm() <= 1e-6 * gradient.norm(), name

    @pytest.mark.slow
    @pytest.mark.parametrize("path", DECODER_MODULES)
    def test_any_decoder_module_can_be_trained_whole(self, path: str) -> None:
        model = get_peft_model(
            make_small_model().double(), LoraConfig(target_modules=r".*fc1", r=2, modules_to_save=[path])
        )
        expected = make_small_model().double()
        trained = [parameter for name, parameter in model.named_parameters() if ".modules_to_save." in name]
        with torch.no_grad():
            for parameter in (*trained, *expected.get_submodule(path).parameters()):
                parameter.mul_(1.25)
        loss = model(**inputs()).loss
        loss.backward()
        torch.testing.assert_close(loss, expected(**inputs()).loss)
        assert trained
        assert all(parameter.grad is not None for parameter in trained)

    def test_those_of_a_frozen_text_encoder_or_beside_held_classes_bring_a_warning(
        self, sed_hf_log: pytest.LogCaptureFixture
    ) -> None:
        model = get_peft_model(make_small_model(), LoraConfig(target_modules=r".*text_encoder.*q_proj"))
        model.set_classes(**small_processor()(text=NAMES))
        assert "freeze_text_encoder=True, but adapters" in sed_hf_log.text
        values = inputs(torch.float32)
        model(pixel_values=values["pixel_values"], labels=values["labels"])
        assert "no gradients from held classes" in sed_hf_log.text


OFFLOADED = {"sed.image_encoder": "cpu", "sed.text_encoder": "disk", "sed.logit_scale": "disk", "decoder": "disk"}


class TestOffload:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        small_model().save_pretrained(tmp_path / "model")
        small_processor().save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    @pytest.mark.parametrize("device_map", [None, OFFLOADED, {"sed": "disk", "decoder": "cpu"}], ids=str)
    @torch.no_grad()
    def test_weights_on_disk_give_the_same(self, device_map: dict | None, folder: Path, tmp_path: Path) -> None:
        model = SEDForSemanticSegmentation.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path)
        if device_map is None:
            disk_offload(model, tmp_path)
        assert text_encoder_sha256(model, small_processor()) == text_encoder_sha256(small_model(), small_processor())
        pixel_values, classes = inputs(torch.float32)["pixel_values"], small_processor()(text=NAMES)
        model.set_classes(**classes)
        expected = small_model()(pixel_values, **classes).logits
        torch.testing.assert_close(model(pixel_values).logits, expected, rtol=0, atol=1e-5)

    def test_the_pipeline_works_with_weights_on_disk(self, folder: Path, tmp_path: Path) -> None:
        device_map = {**OFFLOADED, "sed.image_encoder": "disk"}
        offload = {"device_map": device_map, "model_kwargs": {"offload_folder": str(tmp_path)}}
        image = (inputs(torch.float32)["pixel_values"][0] * 60 + 128).clamp(0, 255).byte()
        actual, expected = (
            pipeline("open-vocabulary-segmentation", model=str(folder), **options)(image, candidate_labels=NAMES)
            for options in (offload, {})
        )
        assert abs(actual.probability - expected.probability).max() < 1e-5


@pytest.mark.parametrize("library", ["torch.ao", "torchao"])
@torch.no_grad()
def test_quantised_linear_layers_are_close(library: str) -> None:
    model = make_small_model()
    if library == "torch.ao":
        model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    else:
        torchao = pytest.importorskip("torchao.quantization")
        torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    pixel_values, classes = inputs(torch.float32)["pixel_values"], small_processor()(text=NAMES)
    expected = small_model()(pixel_values, **classes).logits
    logits = model(pixel_values, **classes).logits
    assert (logits - expected).abs().max() < 0.1 * (expected.max() - expected.min())
