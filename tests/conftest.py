"""Models that the tests share, small, with the seeded weights of the reference numbers; and settings of hypothesis."""

import json
import logging
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir
from PIL import Image
from torch import Tensor

from sed_hf import SEDConfig, SEDForSemanticSegmentation, SEDProcessor
from sed_hf.cli import main
from sed_hf.conversion import build_processor, convert_official_checkpoint, official_name
from sed_hf.hub.save import save_hub_folder

EXPORTED_NAMES = [  # of docs/export.md
    "sky", "water", "gravel", "red triangle", "orange cross", "orange heart", "yellow circle", "yellow cross",
    "yellow ring", "green circle", "white cross", "orange star", "yellow heart", "white bar",
]  # fmt: skip
REFERENCE = Path(__file__).parent / "reference"
sys.path.insert(0, str(REFERENCE))

from seeded_weights import seeded_state_dict  # noqa: E402

# The same examples in every run, and nothing that depends on the machine's speed or is left in the working tree.
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "sed_hf_hypothesis")
settings.register_profile(
    "quick",
    max_examples=15,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
# Other examples in every run: `pytest tests/properties --hypothesis-profile=thorough`.
settings.register_profile("thorough", parent=settings.get_profile("quick"), max_examples=300, derandomize=False)
settings.load_profile("quick")


def official_weights(variant: str, seed: int) -> dict[str, Tensor]:
    """The seeded state dict of an official checkpoint."""
    shapes = json.loads((REFERENCE / "state_dict_shapes.json").read_text())[variant]
    return {name: torch.from_numpy(array) for name, array in seeded_state_dict(shapes, seed).items()}


def make_tiny_config(**kwargs: object) -> SEDConfig:
    """The configuration of `tiny` in tests/reference."""
    return SEDConfig(
        projection_dim=64,
        vision_config={
            "architecture": "convnext_large",
            "model_args": {"depths": [1, 1, 2, 1], "dims": [16, 32, 64, 128]},
            "projection": "mlp",
        },
        text_config={
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
        },
        **kwargs,
    )


def official_gradient_norms(model: SEDForSemanticSegmentation) -> dict[str, Tensor]:
    """The norm of each gradient that there is, by official name."""
    return {
        f"sem_seg_head.predictor.{official_name(name)}": parameter.grad.norm()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small models would spend their time waiting for other threads, and tests run side by side."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _limit_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's limit as it was: a process keeps what the environment variable has set."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache directory of Hugging Face, but for models and data sets: no test reads or writes the user's."""
    folder = tmp_path_factory.mktemp("hf_home")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(folder))
    monkeypatch.setenv("HF_HOME", str(folder))  # of processes that a test starts
    return folder


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A folder of the user's, to which links may lead."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("mine")
    return tmp_path / "precious"


@pytest.fixture
def sed_hf_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """The warnings that sed_hf logs, which its logger does not hand on to pytest by itself."""
    monkeypatch.setattr(logging.getLogger("sed_hf"), "propagate", True)
    caplog.set_level("WARNING")
    return caplog


@pytest.fixture(scope="session")
def tiny_weights() -> dict[str, Tensor]:
    return official_weights("tiny", seed=0)


@pytest.fixture(scope="session")
def tiny_model(tiny_weights: dict[str, Tensor]) -> SEDForSemanticSegmentation:
    """`tiny` in evaluation mode. Tests must leave it as it is."""
    return convert_official_checkpoint(tiny_weights, make_tiny_config())


@pytest.fixture
def make_tiny_model(tiny_weights: dict[str, Tensor]):
    """`tiny` with a configuration of one's own, to change at will."""

    def make(**kwargs: object) -> SEDForSemanticSegmentation:
        return convert_official_checkpoint(tiny_weights, make_tiny_config(**kwargs))

    return make


@pytest.fixture(scope="session")
def tiny_processor() -> SEDProcessor:
    processor = build_processor(make_tiny_config())
    processor.image_processor.input_size = {"height": 256, "width": 256}
    return processor


@pytest.fixture(scope="session")
def tiny_hub_folder(
    tiny_model: SEDForSemanticSegmentation, tiny_processor: SEDProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    save_hub_folder(tiny_model, tiny_processor, folder)
    return folder


@pytest.fixture(scope="session")
def onnx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled toy model as `sed-hf export` writes it, with classes."""
    folder = tmp_path_factory.mktemp("export") / "onnx"
    assert main(["export", str(folder), "--classes", *EXPORTED_NAMES]) == 0
    return folder


@pytest.fixture(scope="session")
def torch_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled toy model as `sed-hf export --format torch` writes it."""
    folder = tmp_path_factory.mktemp("export") / "torch"
    assert main(["export", str(folder), "--format", "torch"]) == 0
    return folder
