"""The loop: equal to the reference, in any number of processes, after any interruption."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from conftest import REFERENCE, official_gradient_norms
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from sed_hf import SEDConfig, SEDForSemanticSegmentation, SEDImageProcessor, SEDProcessor
from sed_hf.conversion import build_clip_tokenizer
from sed_hf.hub.save import save_hub_folder
from sed_hf.training.checkpoints import find_checkpoints
from sed_hf.training.classes import TrainingClasses
from sed_hf.training.loop import NonFiniteLossError, compute_loss, train
from sed_hf.training.recipe import Recipe

TRAIN_SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"
TEMPLATES = ["{}", "a {}."]
# Parts of a batch must be trained with the same classes.
EXACT = {"classes_per_step": None}


@pytest.fixture(autouse=True)
def _fresh_accelerate_state() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that trains in milliseconds, with dropout and drop path, whose random numbers must survive a restart."""
    torch.manual_seed(0)
    config = SEDConfig(
        projection_dim=16,
        prompt_templates=TEMPLATES,
        vision_config={
            "model_args": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "ls_init_value": 0.5},
            "drop_path_rate": 0.2,
            "projection": "mlp",
            "projection_dropout": 0.2,
        },
        text_config={
            "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1,
        },
        decoder_hidden_sizes=[16, 16, 16, 16],
        skip_guidance_sizes=[8, 8, 8],
        cost_guidance_sizes=[8, 8, 8],
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("start") / "model"
    processor = SEDProcessor(
        SEDImageProcessor(do_resize=False, input_size={"height": 64, "width": 64}), build_clip_tokenizer(), TEMPLATES
    )
    save_hub_folder(SEDForSemanticSegmentation(config), processor, folder)
    return folder


@pytest.fixture
def make_recipe(start: Path, tmp_path: Path) -> Callable[..., Recipe]:
    def make(name: str = "run", **values: object) -> Recipe:
        return Recipe(
            **{
                "output_dir": str(tmp_path / name), "model": str(start), "dataset": "scenes", "num_workers": 0,
                "shortest_edge": None, "crop_size": 64, "color_jitter": True, "steps": 5, "images_per_step": 2,
                "learning_rate": 3e-3, "image_encoder_lr_factor": 0.1, "max_grad_norm": 1.0, "log_every": 1,
                "checkpoint_every": 2, "classes_per_step": 10, **values,
            }
        )  # fmt: skip

    return make


def launch(recipe: Recipe, num_processes: int = 1, wait: bool = True) -> subprocess.Popen:
    """Run scripts/train.py as a user does."""
    arguments = [f"--{name}={value}" for name, value in vars(recipe).items() if value is not None]
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes=1", "--num_machines=1"]
    launcher += ["--mixed_precision=no", "--dynamo_backend=no"]
    if num_processes > 1:  # with --cpu, accelerate launches one process whatever it is told
        launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={num_processes}", "--master_port=29571"]
    command = [sys.executable, *launcher, str(TRAIN_SCRIPT)]
    # No value on the command line means none, so null needs a file.
    config = Path(recipe.output_dir).with_suffix(".yaml")
    config.write_text("shortest_edge: null\n")
    process = subprocess.Popen(
        [*command, "--config", str(config), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    if wait:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    return process


def trained_weights(recipe: Recipe) -> dict[str, Tensor]:
    return load_file(Path(recipe.output_dir) / "model" / "model.safetensors")


def assert_weights_equal(actual: Recipe, expected: Recipe, tolerance: float = 0) -> None:
    actual_weights, expected_weights = trained_weights(actual), trained_weights(expected)
    assert set(actual_weights) == set(expected_weights)
    for name, weight in expected_weights.items():
        torch.testing.assert_close(
            actual_weights[name], weight, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def log_of(recipe: Recipe) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(recipe.output_dir) / "log.jsonl").read_text().splitlines()]


def test_losses_and_gradients_equal_the_reference_through_the_training_step(
    make_tiny_model: Callable, tiny_processor: SEDProcessor, make_recipe: Callable[..., Recipe]
) -> None:
    with safe_open(REFERENCE / "tiny.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = json.loads(file.metadata()["meta"])
    model = make_tiny_model().train()
    classes = TrainingClasses(facts["classes"], tiny_processor, model)
    batch = tiny_processor(
        images=tensors["train_image"].numpy(),
        segmentation_maps=tensors["labels"].numpy(),
        do_resize=False,
        do_input_resize=False,
        return_tensors="pt",
    )
    loss = compute_loss(model, batch, classes, make_recipe(), ignore_index=255, seed=[0])
    expected = sum(tensors[f"train.loss_sem_seg_{index}"] for index in range(4))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    loss.backward()
    norms = official_gradient_norms(model)
    actual = torch.stack([norms[name] for name in facts["grad_names"]])
    torch.testing.assert_close(actual, tensors["train.grad_norm"], rtol=1e-3, atol=0)


def test_a_run_leaves_a_log_checkpoints_and_a_hub_folder(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(keep_checkpoints=2)
    folder = train(recipe)
    log = log_of(recipe)
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5]
    assert set(log[0]) == {"step", "loss", "learning_rate", "grad_norm", "images_per_second"}
    assert [path.name for path in find_checkpoints(Path(recipe.output_dir))] == ["step-00000004", "step-00000005"]
    assert "| steps | 5 |" in (folder / "README.md").read_text()
    SEDForSemanticSegmentation.from_pretrained(folder)
    SEDProcessor.from_pretrained(folder)


def test_evaluation_goes_to_the_log_and_changes_nothing(make_recipe: Callable[..., Recipe]) -> None:
    plain = make_recipe("plain", steps=3)
    evaluated = make_recipe("evaluated", steps=3, evaluate_on="scenes", evaluate_every=2, evaluate_images=2)
    for recipe in (plain, evaluated):
        train(recipe)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    lines = [line for line in log_of(evaluated) if "mIoU" in line]
    assert [line["step"] for line in lines] == [2, 3]
    assert not any(name.startswith("IoU-") for name in lines[0])
    assert_weights_equal(evaluated, plain)


def test_training_lowers_the_loss(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(steps=16, checkpoint_every=100)
    train(recipe)
    losses = [line["loss"] for line in log_of(recipe)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.parametrize(
    "values",
    [
        {"objective": "alignment"},
        {"classes_per_step": None},
        {"finetuning": "text"},
        {"min_classes_per_step": 2, "distractor_vocabulary": "pascal_voc_20"},
    ],
)
def test_other_objectives_and_modes_run(make_recipe: Callable[..., Recipe], values: dict[str, object]) -> None:
    SEDForSemanticSegmentation.from_pretrained(train(make_recipe(steps=1, **values)))


def test_accumulation_equals_a_batch_of_twice_the_size(make_recipe: Callable[..., Recipe]) -> None:
    whole, parts = make_recipe("whole", **EXACT), make_recipe("parts", **EXACT, gradient_accumulation_steps=2)
    for recipe in (whole, parts):
        without_dropout(recipe)
        train(recipe)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    assert_weights_equal(parts, whole, tolerance=1e-9)


def test_two_processes_equal_one_with_twice_the_batch(make_recipe: Callable[..., Recipe]) -> None:
    one, two = make_recipe("one", **EXACT), make_recipe("two", **EXACT)
    for recipe in (one, two):
        without_dropout(recipe)
    train(one)
    launch(two, num_processes=2)
    assert "| processes | 2 |" in (Path(two.output_dir) / "model" / "README.md").read_text()
    assert_weights_equal(two, one, tolerance=1e-9)
    assert [line["loss"] for line in log_of(two)] == pytest.approx([line["loss"] for line in log_of(one)], rel=1e-5)


def without_dropout(recipe: Recipe) -> None:
    """Give a recipe a starting model whose processes draw no random numbers.

    In double precision: Adam turns the rounding of a gradient that is nearly zero into a part of the learning rate.
    """
    model = SEDForSemanticSegmentation.from_pretrained(
        recipe.model, vision_config={"drop_path_rate": 0.0, "projection_dropout": 0.0}
    ).double()
    folder = Path(recipe.output_dir).with_name(Path(recipe.output_dir).name + "-start")
    save_hub_folder(model, SEDProcessor.from_pretrained(recipe.model), folder)
    recipe.model = str(folder)


def test_kill_and_resume_gives_bit_equal_weights(make_recipe: Callable[..., Recipe]) -> None:
    expected = make_recipe("expected", steps=12)
    launch(expected)

    killed = make_recipe("killed", steps=12, resume=True)
    process = launch(killed, wait=False)
    deadline = time.monotonic() + 120
    while not find_checkpoints(Path(killed.output_dir)) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert find_checkpoints(Path(killed.output_dir)), "no checkpoint was written in time"
    assert not (Path(killed.output_dir) / "model").exists(), "the run ended before it was killed"
    launch(killed)
    assert_weights_equal(killed, expected)
    assert [line["loss"] for line in log_of(killed)] == [line["loss"] for line in log_of(expected)]


def test_an_interrupted_checkpoint_is_ignored(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make_recipe("expected")
    train(expected)
    AcceleratorState._reset_state(reset_partial_state=True)

    class KilledError(BaseException):
        pass

    recipe = make_recipe("interrupted")
    original, calls = Accelerator.save_state, []

    def die_in_the_second(self: Accelerator, folder: str) -> None:
        calls.append(folder)
        if len(calls) == 2:
            (Path(folder) / "model.safetensors").write_bytes(b"half")
            raise KilledError
        original(self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "save_state", die_in_the_second)
        with pytest.raises(KilledError):
            train(recipe)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    assert [path.name for path in find_checkpoints(Path(recipe.output_dir))] == ["step-00000002"]
    recipe.resume = True
    train(recipe)
    assert_weights_equal(recipe, expected)


def test_a_resumed_run_has_the_log_and_the_card_of_an_undisturbed_one(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    def log_without_speed(recipe: Recipe) -> list[dict[str, float]]:
        return [{name: value for name, value in line.items() if name != "images_per_second"} for line in log_of(recipe)]

    def card_without_speed(recipe: Recipe) -> list[str]:
        lines = (Path(recipe.output_dir) / "model" / "README.md").read_text().splitlines()
        return [line for line in lines if "images_per_second" not in line and "output_dir" not in line]

    # Lines are means over three steps, and a checkpoint comes in the middle of them.
    expected = make_recipe("expected", log_every=3)
    train(expected)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()

    recipe = make_recipe("interrupted", log_every=3)
    calls = []

    def interrupt_the_fifth(*args: object, **kwargs: object) -> Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return compute_loss(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("sed_hf.training.loop.compute_loss", interrupt_the_fifth)
        with pytest.raises(KeyboardInterrupt):
            train(recipe)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    log = Path(recipe.output_dir) / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 5, "lo')  # as a full disk leaves a line
    recipe.resume = True
    train(recipe)
    assert log_without_speed(recipe) == log_without_speed(expected)
    assert card_without_speed(recipe) == card_without_speed(expected)


def test_what_a_killed_run_left_of_checkpoints_is_removed(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(steps=2)
    checkpoints = Path(recipe.output_dir) / "checkpoints"
    for name in (".step-00000001.1.part", "step-00000001"):  # half written, half removed
        (checkpoints / name).mkdir(parents=True)
        (checkpoints / name / "model.safetensors").write_bytes(b"half")
    train(recipe)
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000002"]


def test_a_full_disk_says_what_is_still_there(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = Accelerator.save_state, []

    def fill_in_the_second(self: Accelerator, folder: str) -> None:
        calls.append(folder)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        original(self, folder)

    monkeypatch.setattr(Accelerator, "save_state", fill_in_the_second)
    recipe = make_recipe()
    with pytest.raises(OSError, match=r"step-00000004 could not be written .*No space left.*step-00000002 is still"):
        train(recipe)
    names = sorted(path.name for path in (Path(recipe.output_dir) / "checkpoints").iterdir())
    assert names == ["step-00000002"]


def test_a_loss_that_is_not_finite_stops_after_saving(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def break_the_third(*args: object, **kwargs: object) -> Tensor:
        calls.append(1)
        return compute_loss(*args, **kwargs) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr("sed_hf.training.loop.compute_loss", break_the_third)
    recipe = make_recipe(checkpoint_every=100)
    with pytest.raises(NonFiniteLossError, match=r"step 3 is not finite.*scene-train.*step-00000002"):
        train(recipe)
    assert [path.name for path in find_checkpoints(Path(recipe.output_dir))] == ["step-00000002"]


@pytest.fixture
def own_data(tmp_path: Path) -> Path:
    """Two pictures of two classes."""
    for folder in ("images", "masks"):
        (tmp_path / "own" / folder).mkdir(parents=True)
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (80, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "own" / "images" / f"{index}.jpg")
        Image.fromarray((pixels[..., 0] > 127).astype(np.uint8)).save(tmp_path / "own" / "masks" / f"{index}.png")
    (tmp_path / "own" / "classes.txt").write_text("sky\ngrass\n")
    return tmp_path / "own"


def test_own_data_train(make_recipe: Callable[..., Recipe], own_data: Path) -> None:
    train(make_recipe(dataset="custom", data_dir=str(own_data), steps=2, shortest_edge=64))


def test_a_corrupt_picture_is_named(make_recipe: Callable[..., Recipe], own_data: Path) -> None:
    (own_data / "images" / "1.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"cannot read the image .*1\.jpg"):
        train(make_recipe(dataset="custom", data_dir=str(own_data)))


def test_a_label_out_of_range_is_named_with_its_value(make_recipe: Callable[..., Recipe], own_data: Path) -> None:
    Image.fromarray(np.full((80, 90), 7, dtype=np.uint8)).save(own_data / "masks" / "0.png")
    with pytest.raises(ValueError, match=r"cannot read the label .*0\.png: .*7"):
        train(make_recipe(dataset="custom", data_dir=str(own_data)))


@pytest.mark.parametrize(
    ("dataset", "message"), [("ade20k_150", "ADEChallengeData2016"), ("ade20k_15", "unknown benchmark 'ade20k_15'")]
)
def test_an_empty_folder_or_a_wrong_name_is_refused_before_a_model_is_loaded(
    make_recipe: Callable[..., Recipe], tmp_path: Path, dataset: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        train(make_recipe(dataset=dataset, data_dir=str(tmp_path / "empty"), split="val", model="absent"))


def test_a_folder_with_a_run_is_not_overwritten(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(steps=1)
    train(recipe)
    with pytest.raises(ValueError, match="holds a run already; continue it with --resume"):
        train(recipe)


def test_images_that_cannot_be_split_are_refused(make_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(ValueError, match="images_per_step=2: expected a multiple of 3"):
        train(make_recipe(gradient_accumulation_steps=3))


def test_pushing_uploads_a_folder_that_loads(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    uploaded = tmp_path / "uploaded"
    calls = []
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, repo_id, **_: calls.append(repo_id))
    monkeypatch.setattr(
        "huggingface_hub.HfApi.upload_folder",
        lambda self, repo_id, folder_path, commit_message: shutil.copytree(folder_path, uploaded),
    )
    train(make_recipe(steps=1, push_to_hub="someone/sed-scenes"))
    assert calls == ["someone/sed-scenes"]
    assert {"config.json", "model.safetensors", "modeling_sed.py", "README.md"} <= {p.name for p in uploaded.iterdir()}
    SEDForSemanticSegmentation.from_pretrained(uploaded)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "nowhere"}, "--model nowhere: expected a model folder or OWNER/NAME on the Hub"),
        ({"dataset": "custom", "data_dir": "nowhere"}, "data_dir nowhere: expected a folder"),
    ],
)
def test_what_is_not_there_is_named_before_anything_is_loaded(
    make_recipe: Callable[..., Recipe], values: dict[str, object], message: str
) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        train(make_recipe(**values))
