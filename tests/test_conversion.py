"""Official checkpoints and open_clip weights: what fits is used whole, what does not is listed, nothing is executed."""

import os
import pickle
import zipfile
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

from sed_hf import SEDForSemanticSegmentation, SEDProcessor
from sed_hf.conversion import convert_official_checkpoint, from_open_clip

HEAD = "sem_seg_head.predictor.transformer.head.bias"


def converted_head(checkpoint: Any) -> Tensor:
    return convert_official_checkpoint(checkpoint, make_tiny_config()).decoder.head.bias.detach()


@pytest.fixture
def weights(tiny_weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy to change at will."""
    return dict(tiny_weights)


class TestOfficialCheckpoints:
    def test_dicts_of_tensors_or_arrays_with_or_without_model_key(self, weights: dict[str, Tensor]) -> None:
        arrays = {name: tensor.numpy() for name, tensor in weights.items()}
        for checkpoint in (weights, arrays, {"model": weights, "iteration": 80_000}, {"model": arrays}):
            assert torch.equal(converted_head(checkpoint), weights[HEAD])

    @pytest.mark.parametrize("as_arrays", [False, True], ids=["tensors", "numpy"])
    def test_pth_files(self, weights: dict[str, Tensor], tmp_path: Path, as_arrays: bool) -> None:
        model = {name: tensor.numpy() for name, tensor in weights.items()} if as_arrays else weights
        torch.save({"model": model, "iteration": 79_999, "scheduler": {"last_epoch": 80_000}}, tmp_path / "model.pth")
        assert torch.equal(converted_head(tmp_path / "model.pth"), weights[HEAD])
        assert torch.equal(converted_head(str(tmp_path / "model.pth")), weights[HEAD])

    def test_safetensors_files(self, weights: dict[str, Tensor], tmp_path: Path) -> None:
        save_file(weights, tmp_path / "model.safetensors")
        assert torch.equal(converted_head(tmp_path / "model.safetensors"), weights[HEAD])

    def test_bare_names_without_detectron2_prefix(self, weights: dict[str, Tensor]) -> None:
        bare = {name.removeprefix("sem_seg_head.predictor."): tensor for name, tensor in weights.items()}
        assert torch.equal(converted_head(bare), weights[HEAD])

    def test_half_precision_weights_become_float32(self, weights: dict[str, Tensor]) -> None:
        head = converted_head({name: tensor.half() for name, tensor in weights.items()})
        assert head.dtype == torch.float32

    def test_the_model_is_in_evaluation_mode(self, tiny_model: SEDForSemanticSegmentation) -> None:
        assert not tiny_model.training

    def test_everything_that_does_not_fit_is_listed(self, weights: dict[str, Tensor]) -> None:
        prefix = "sem_seg_head.predictor."
        del weights[f"{prefix}clip_model.transformer.resblocks.1.attn.in_proj_weight"]
        weights[f"{prefix}transformer.head3.weight"] = torch.zeros(1)
        weights[f"{prefix}transformer.conv1.weight"] = torch.zeros(128, 80, 5, 5)
        with pytest.raises(ValueError, match="checkpoint: does not fit the configuration") as error:
            convert_official_checkpoint(weights, make_tiny_config())
        missing, left_over, misshaped = str(error.value).splitlines()[1:]
        assert missing == "missing (1): clip_model.transformer.resblocks.1.attn.in_proj_weight"
        assert left_over == "left over (1): transformer.head3.weight"
        assert misshaped == (
            "misshaped (1): transformer.conv1.weight: expected (128, 80, 7, 7) for decoder.cost_embedding.weight,"
            " got (128, 80, 5, 5)"
        )

    def test_another_models_checkpoint_is_named_as_such(self) -> None:
        with pytest.raises(ValueError, match=r"not of SED; it has no clip_model\.visual\.trunk"):
            convert_official_checkpoint({"fc.weight": torch.zeros(1)})

    def test_an_unknown_variant_needs_a_configuration(self, weights: dict[str, Tensor]) -> None:
        with pytest.raises(ValueError, match=r"neither SED-B nor SED-L .*\(16, 3, 4, 4\).*pass the config"):
            convert_official_checkpoint(weights)

    @pytest.mark.parametrize(
        ("checkpoint", "message"),
        [
            ({}, "expected a state dict, got dict"),
            ({"model": 3}, "expected a state dict, got int"),
            ({"model": {"weight": "text"}}, "expected tensors or arrays, got str for 'weight'"),
        ],
    )
    def test_what_is_no_state_dict_is_refused(self, checkpoint: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            convert_official_checkpoint(checkpoint)

    @pytest.mark.parametrize("content", [[], torch.zeros(3), "text"])
    def test_a_file_that_holds_no_dict_is_refused(self, tmp_path: Path, content: Any) -> None:
        torch.save(content, tmp_path / "model.pth")
        with pytest.raises(ValueError, match="checkpoint: expected a state dict"):
            convert_official_checkpoint(tmp_path / "model.pth")

    def test_numbers_that_are_not_finite_are_refused(self, weights: dict[str, Tensor]) -> None:
        weights[HEAD] = torch.full_like(weights[HEAD], torch.nan)
        with pytest.raises(ValueError, match=r"checkpoint: numbers that are not finite, for decoder\.head\.bias"):
            converted_head(weights)

    def test_numbers_of_another_kind_are_refused(self, weights: dict[str, Tensor]) -> None:
        weights[HEAD] = weights[HEAD].long()
        with pytest.raises(ValueError, match=r"expected floating-point numbers for '.*head\.bias', got torch\.int64"):
            converted_head(weights)

    def test_a_tensor_that_claims_to_be_huge_takes_no_memory(self, weights: dict[str, Tensor]) -> None:
        weights[HEAD] = torch.zeros(1).half().expand(10**6, 10**6)
        with pytest.raises(ValueError, match=r"misshaped \(1\).*got \(1000000, 1000000\)"):
            converted_head(weights)

    def test_many_names_are_listed_in_short(self, weights: dict[str, Tensor]) -> None:
        strangers = {f"stranger.{index:03d}": torch.zeros(1) for index in range(500)}
        with pytest.raises(ValueError, match=r"left over \(500\): stranger\.000, .* and 495 more$"):
            converted_head({**weights, **strangers})

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no such file: .*absent\.pth"):
            convert_official_checkpoint(tmp_path / "absent.pth")

    @pytest.mark.parametrize(
        "content", [b"", b"not a checkpoint", b"plain text, exported by mistake", b"PK\x03\x04 cut"]
    )
    def test_a_damaged_file_is_named(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "damaged.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"checkpoint: .*damaged\.pth"):
            convert_official_checkpoint(tmp_path / "damaged.pth")

    def test_a_damaged_safetensors_file_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "damaged.safetensors").write_bytes(b"\xff" * 20)
        with pytest.raises(ValueError, match=r"checkpoint: .*damaged\.safetensors"):
            convert_official_checkpoint(tmp_path / "damaged.safetensors")

    def test_a_file_that_unpacks_to_more_than_its_size_is_refused(self, tmp_path: Path) -> None:
        torch.save({"weight": torch.zeros(10**6)}, tmp_path / "plain.pth")
        with (
            zipfile.ZipFile(tmp_path / "plain.pth") as plain,
            zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed,
        ):
            for name in plain.namelist():
                packed.writestr(name, plain.read(name))
        with pytest.raises(ValueError, match=r"packed\.pth .*it unpacks to 4,.* bytes, more than its own size"):
            convert_official_checkpoint(tmp_path / "packed.pth")


class MaliciousWeights:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


class TestMaliciousFiles:
    @pytest.mark.parametrize("with_torch", [True, False], ids=["zip", "bare pickle"])
    def test_code_in_a_pickle_is_refused_and_not_executed(self, tmp_path: Path, with_torch: bool) -> None:
        trace = tmp_path / "executed"
        payload = {"model": {"weight": MaliciousWeights(trace)}}
        if with_torch:
            torch.save(payload, tmp_path / "model.pth")
        else:
            (tmp_path / "model.pth").write_bytes(pickle.dumps(payload, protocol=2))
        with pytest.raises(ValueError, match=r"model\.pth was refused"):
            convert_official_checkpoint(tmp_path / "model.pth")
        assert not trace.exists()

    def test_code_in_an_array_is_refused_and_not_executed(self, tmp_path: Path) -> None:
        trace = tmp_path / "executed"
        torch.save({"model": {"weight": np.array([MaliciousWeights(trace)], dtype=object)}}, tmp_path / "model.pth")
        with pytest.raises(ValueError, match=r"model\.pth was refused"):
            convert_official_checkpoint(tmp_path / "model.pth")
        assert not trace.exists()


class TestOpenClip:
    @pytest.fixture(scope="class")
    @classmethod
    def towers(cls) -> tuple[SEDForSemanticSegmentation, open_clip.CLIP]:
        """SED-B on open_clip's random weights, and open_clip's own model with the same weights."""
        created: list[open_clip.CLIP] = []
        original = open_clip.create_model

        def create_and_keep(*args: Any, **kwargs: Any) -> open_clip.CLIP:
            created.append(original(*args, **kwargs))
            return created[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(open_clip, "create_model", create_and_keep)
            model = from_open_clip("convnext_base_w_320", pretrained=None)
        return model.eval(), created[0].eval()

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

    def test_unknown_weights_are_refused_with_those_there_are(self) -> None:
        with pytest.raises(ValueError, match="pretrained='nope': expected a file or one of laion_aesthetic_s13b_b82k"):
            from_open_clip("convnext_base_w_320", pretrained="nope")

    @pytest.mark.parametrize("variant", ["ViT-B-32", "convnext_unknown", "RN50"])
    def test_other_architectures_are_refused(self, variant: str) -> None:
        with pytest.raises(ValueError, match=f"variant='{variant}': expected a"):
            from_open_clip(variant)
