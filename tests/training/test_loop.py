"""The loop in one process: equal to the reference, after any interruption, and what it refuses."""

import math
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import TINY, assert_gradients_equal_the_reference, reference_batch
from planted import PLANTS
from small_runs import assert_weights_equal, log_of, reset_accelerate, small_recipe, write_start_model

from sed_hf import SEDForSemanticSegmentation, SEDProcessor
from sed_hf.hub.load import load
from sed_hf.hub.save import save_hub_folder
from sed_hf.training.checkpoints import find_checkpoints, save_checkpoint
from sed_hf.training.data import TrainingClasses
from sed_hf.training.loop import TrainingRun, compute_loss, train
from sed_hf.training.recipe import Recipe

Make = Callable[..., Recipe]
COSINE = [(1 + math.cos(math.pi * step / 5)) / 2 for step in (1, 2, 3, 4, 5)]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With dropout and drop path, whose random numbers must survive a restart."""
    return write_start_model(tmp_path_factory.mktemp("start") / "model")


@pytest.fixture(scope="module")
def exact_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_start_model(tmp_path_factory.mktemp("exact_start") / "model", drops=False)


@pytest.fixture
def make_recipe(start: Path, tmp_path: Path) -> Make:
    return lambda name="run", **values: small_recipe(tmp_path / name, **{"model": start, **values})


def run(recipe: Recipe) -> Path:
    """Train, and leave nothing for the next run in this process."""
    try:
        return train(recipe)
    finally:
        reset_accelerate()


def test_losses_and_gradients_equal_the_reference_through_the_training_step(
    make_tiny_model: Callable, tiny_processor: SEDProcessor, make_recipe: Make
) -> None:
    model = make_tiny_model().train()
    classes = TrainingClasses(TINY.facts["classes"], tiny_processor, model)
    loss = compute_loss(model, reference_batch(tiny_processor), classes, make_recipe(), seed=[0])
    expected = sum(TINY[f"train.loss_sem_seg_{index}"] for index in range(4))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    loss.backward()
    assert_gradients_equal_the_reference(model)


def test_a_run_leaves_a_log_checkpoints_and_a_hub_folder(make_recipe: Make) -> None:
    recipe = make_recipe(keep_checkpoints=2)
    folder = run(recipe)
    log = log_of(recipe)
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5]
    assert set(log[0]) == {"step", "loss", "learning_rate", "grad_norm", "images_per_second"}
    assert [line["learning_rate"] for line in log] == pytest.approx([3e-3 * x for x in COSINE], abs=1e-12)
    assert [path.name for path in find_checkpoints(Path(recipe.output_dir))] == ["step-00000004", "step-00000005"]
    assert "steps: 5\n" in (folder / "README.md").read_text()
    SEDForSemanticSegmentation.from_pretrained(folder)
    SEDProcessor.from_pretrained(folder)


def interrupt(recipe: Recipe, method: str, at: int) -> None:
    """Run until a method of the run is called with this step, and let the run go on from there later."""

    def interrupted(training: TrainingRun, step: int) -> object:
        if step == at:
            raise KeyboardInterrupt
        return original(training, step)

    original = getattr(TrainingRun, method)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingRun, method, interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(recipe)
    recipe.resume = True


def test_an_evaluation_that_fails_costs_no_step_and_is_done_again(make_recipe: Make) -> None:
    values = {"evaluate_on": "scenes", "evaluate_every": 3, "evaluate_images": 1}
    expected, recipe = make_recipe("expected", **values), make_recipe(**values, checkpoint_every=3)
    run(expected)
    interrupt(recipe, "evaluate", at=3)
    assert [path.name for path in find_checkpoints(Path(recipe.output_dir))] == ["step-00000003"]
    run(recipe)
    assert [(line["step"], line.get("mIoU")) for line in log_of(recipe)] == [
        (line["step"], line.get("mIoU")) for line in log_of(expected)
    ]


def test_evaluation_goes_to_the_log_and_changes_nothing(make_recipe: Make) -> None:
    recipe = make_recipe("evaluated", steps=3, evaluate_on="scenes", evaluate_every=2, evaluate_images=2)
    assert_weights_equal(run(recipe), run(make_recipe("plain", steps=3)))
    lines = [line for line in log_of(recipe) if "mIoU" in line]
    assert [line["step"] for line in lines] == [2, 3]
    assert not any(name.startswith("IoU-") for name in lines[0])


@pytest.mark.parametrize(
    "values", [{"objective": "alignment"}, {"min_classes_per_step": 2, "distractor_vocabulary": "pascal_voc_20"}]
)
def test_other_objectives_and_modes_run(make_recipe: Make, values: dict[str, object]) -> None:
    load(run(make_recipe(steps=1, **values)))


def test_a_launcher_that_compiles_leaves_a_model_that_loads(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    load(run(make_recipe(steps=1)))


def test_half_precision_weights_are_trained_in_float32_without_the_classes_they_came_with(
    make_recipe: Make, start: Path, tmp_path: Path
) -> None:
    model, processor = load(start, dtype="bfloat16")
    model.set_classes(**processor(text=["cat"], return_tensors="pt"), save=True)
    save_hub_folder(model, processor, tmp_path / "half")
    trained, _ = load(run(make_recipe(model=tmp_path / "half", finetuning="text", steps=1)))
    assert (trained.dtype, trained.config.num_saved_classes) == (torch.float32, None)


def test_a_gradient_norm_of_0_does_not_clip(make_recipe: Make) -> None:
    weights = [run(make_recipe(f"run{norm}", max_grad_norm=norm, steps=2)) for norm in (0, 1e9)]
    assert_weights_equal(*weights)


@pytest.mark.parametrize("finetuning", ["last_stage", "text"])
@pytest.mark.parametrize("options", [None, {"use_reentrant": True}, {"use_reentrant": False}], ids=str)
def test_gradient_checkpointing_of_either_kind_trains_alike(
    make_recipe: Make, exact_start: Path, finetuning: str, options: dict | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"model": exact_start, "finetuning": finetuning, "steps": 2}
    expected = run(make_recipe("plain", **values))
    enable = SEDForSemanticSegmentation.activation_checkpointing_enable
    monkeypatch.setattr(
        SEDForSemanticSegmentation, "activation_checkpointing_enable", lambda model: enable(model, options)
    )
    assert_weights_equal(run(make_recipe(gradient_checkpointing=True, **values)), expected, tolerance=1e-9)


def test_accumulation_equals_a_batch_of_twice_the_size_for_any_launcher_setting(
    make_recipe: Make, exact_start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"model": exact_start, "classes_per_step": None, "steps": 2}
    expected = run(make_recipe("whole", **values))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    assert_weights_equal(run(make_recipe(gradient_accumulation_steps=2, **values)), expected, tolerance=1e-9)


def test_a_resumed_run_has_the_weights_log_and_card_of_an_undisturbed_one(make_recipe: Make) -> None:
    def log_and_card(recipe: Recipe) -> tuple[list[dict[str, float]], list[str]]:
        log = [{name: value for name, value in line.items() if name != "images_per_second"} for line in log_of(recipe)]
        card = (Path(recipe.output_dir) / "model" / "README.md").read_text().splitlines()
        return log, [line for line in card if not line.startswith("Last line")]

    expected, recipe = make_recipe("expected", log_every=3), make_recipe("disturbed", log_every=3)
    expected_folder = run(expected)
    interrupt(recipe, "train_step", at=3)
    log = Path(recipe.output_dir) / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 4, "lo')  # as a full disk leaves a line
    assert_weights_equal(run(recipe), expected_folder)
    assert log_and_card(recipe) == log_and_card(expected)


def test_a_resumed_run_follows_the_learning_rate_and_the_accumulation_of_its_recipe(
    make_recipe: Make, exact_start: Path
) -> None:
    values = {"model": exact_start, "classes_per_step": None, "checkpoint_every": 3}
    recipe = make_recipe(**values)
    interrupt(recipe, "train_step", at=3)
    shutil.copytree(recipe.output_dir, slower := Path(recipe.output_dir).with_name("slower"))
    recipe.gradient_accumulation_steps = 2
    assert_weights_equal(run(recipe), run(make_recipe("expected", **values)), tolerance=1e-9)
    recipe = make_recipe(slower.name, **values, learning_rate=3e-4, resume=True)
    run(recipe)
    rates = [line["learning_rate"] for line in log_of(recipe)]
    assert rates == pytest.approx([3e-3 * x for x in COSINE[:3]] + [3e-4 * x for x in COSINE[3:]], abs=1e-12)


def test_a_finished_run_is_not_overwritten_and_when_resumed_writes_its_model_again(make_recipe: Make) -> None:
    recipe = make_recipe(steps=1)
    folder = run(recipe)
    weights = (folder / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="holds a run already; continue it with --resume"):
        run(recipe)
    shutil.rmtree(folder)
    (Path(recipe.output_dir) / "log.jsonl").unlink()
    recipe.resume = True
    assert (run(recipe) / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("log_every", [1, 4])
def test_a_loss_that_is_not_finite_stops_after_saving_the_state_before_it(make_recipe: Make, log_every: int) -> None:
    """Also where it is only noticed at the next line of the log."""
    values = {"learning_rate": 1e30, "checkpoint_every": 100, "log_every": log_every}
    recipe = make_recipe(**values)
    for recipe.resume in (False, True):
        with pytest.raises(ValueError, match=r"step 2 is not finite.*scene-train.*step-00000001"):
            run(recipe)
        (saved,) = find_checkpoints(Path(recipe.output_dir))
        assert saved.name == "step-00000001"
    undisturbed = TrainingRun(make_recipe("undisturbed", **values))
    undisturbed.train_step(0)
    expected = save_checkpoint(undisturbed.accelerator, undisturbed.output_dir, 1, keep=1)
    reset_accelerate()
    assert_weights_equal(saved, expected)
    state, expected_state = (torch.load(folder / "optimizer.bin") for folder in (saved, expected))
    torch.testing.assert_close(state, expected_state, rtol=0, atol=0)  # learning rates included


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset": "ade20k_150", "data_dir": ".", "split": "val"}, "ADEChallengeData2016"),
        ({"evaluate_on": "ade20k_150", "evaluate_every": 1}, "ade20k_150: expected the folder of its data"),
        ({"gradient_accumulation_steps": 3}, "images_per_step=2: expected a multiple of 3"),
        ({"mixed_precision": "fp16"}, "mixed_precision=fp16: expected bf16 or no on a CPU"),
    ],
)
def test_what_cannot_be_had_is_named(make_recipe: Make, values: dict[str, object], message: str) -> None:
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        run(make_recipe(**values))


def test_processes_unknown_to_accelerate_are_refused(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE=2, but accelerate found 1 process"):
        run(make_recipe())


@pytest.mark.parametrize("name", ["log.jsonl", "checkpoints", "checkpoints/step-00000001", "model", "train"])
@pytest.mark.parametrize("kind", ["link to a file", "link to a folder", "FIFO", "folder"])
def test_what_lies_at_a_name_of_the_run_is_neither_followed_nor_emptied(
    name: str, kind: str, make_recipe: Make, tmp_path: Path, precious: Path
) -> None:
    planted = tmp_path / "run" / name
    planted.parent.mkdir(parents=True)
    PLANTS[kind](planted, precious)
    with suppress(OSError, ValueError):
        run(make_recipe(steps=2, checkpoint_every=1, keep_checkpoints=1, images_per_step=1))
    assert (precious / "thesis.txt").read_text() == "mine"
    assert kind != "folder" or (planted / "thesis.txt").read_text() == "mine"
