"""Models that the tests share, small, with the seeded weights of the reference numbers; and settings of hypothesis."""

import json
import logging
import os
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir
from PIL import Image
from safetensors import safe_open
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


class Reference:
    """The tensors and facts of one file of reference numbers."""

    def __init__(self, name: str) -> None:
        with safe_open(REFERENCE / f"{name}.safetensors", "pt") as file:
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            self.facts = json.loads(file.metadata()["meta"])

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]


TINY = Reference("tiny")


def seeded_array(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The float32 array that the official parameter `name` holds, drawn from a generator of its own.

    Scales keep activations near unit variance through the whole network, so that no stage saturates and a
    mistake in any stage shows at the output.
    """
    rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    noise = rng.standard_normal(shape, dtype=np.float32) if shape else np.float32(0)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "logit_scale":
        array = np.log(100.0)
    elif leaf == "gamma":  # layer scale
        array = (1.0 if ".cnext." in name else 0.3) * (1 + 0.1 * noise)
    elif leaf == "positional_embedding" or "token_embedding" in name:
        array = 0.02 * noise
    elif len(shape) == 1:
        array = 1 + 0.1 * noise if leaf == "weight" else 0.05 * noise
    elif leaf == "text_projection" or ".up." in name or "decoder_corr_guidance_projection" in name:
        array = noise / np.sqrt(shape[0])  # (in, out, ...): a transposed convolution or a right-hand projection
    else:
        array = noise / np.sqrt(np.prod(shape[1:]))
    return np.asarray(array, dtype=np.float32)


def official_weights(variant: str, seed: int) -> dict[str, Tensor]:
    """The random weights under their official names that the reference numbers of a variant were computed with."""
    shapes = json.loads((REFERENCE / "state_dict_shapes.json").read_text())[variant]
    return {name: torch.from_numpy(seeded_array(name, tuple(shape), seed)) for name, shape in shapes.items()}


def make_tiny_config(**kwargs: object) -> SEDConfig:
    """The configuration of `tiny` in tests/reference."""
    return SEDConfig(
        projection_dim=64,
        vision_config={
            "architecture": "convnext_large",
            "model_args": {"depths": [1, 1, 2, 1], "dims": [16, 32, 64, 128]},
            "projection": "mlp",
        },
        text_config={"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 2, "num_hidden_layers": 2},
        **kwargs,
    )


def reference_batch(processor: SEDProcessor) -> dict[str, Tensor]:
    """The image and the labels of the reference's training step."""
    images, labels = TINY["train_image"].numpy(), TINY["labels"].numpy()
    return processor(images, segmentation_maps=labels, do_resize=False, do_input_resize=False, return_tensors="pt")


def assert_gradients_equal_the_reference(model: SEDForSemanticSegmentation) -> None:
    """Compare the norm of each gradient that there is, by official name."""
    norms = {
        f"sem_seg_head.predictor.{official_name(name)}": parameter.grad.norm()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    assert set(norms) == set(TINY.facts["grad_names"])
    actual = torch.stack([norms[name] for name in TINY.facts["grad_names"]])
    torch.testing.assert_close(actual, TINY["train.grad_norm"], rtol=1e-3, atol=0)


def run_on_two_processes(program: str, *arguments: str, is_killed: bool = False) -> str:
    """Run Python code, which may import what the tests can, as `torchrun` does on CPUs, and return what it prints."""
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    environment = {**os.environ, **settings, "PYTHONPATH": os.pathsep.join(sys.path)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
    command = [*launcher, sys.executable, "-c", program, *arguments]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert (process.returncode != 0) == is_killed, process.stderr
    return process.stdout + process.stderr


@pytest.fixture(autouse=True)
def _settings_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)  # small models would wait for other threads, and tests run side by side
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # which the environment variable moves


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
    logging.Logger.warning_once.cache_clear()  # of what other tests have brought a warning about
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
def make_tiny_model(tiny_weights: dict[str, Tensor]) -> Callable[..., SEDForSemanticSegmentation]:
    """`tiny` with a configuration of one's own, to change at will."""
    return lambda **kwargs: convert_official_checkpoint(tiny_weights, make_tiny_config(**kwargs))


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
