"""Recipes: a file, overridden on the command line, and no unknown or impossible setting."""

from pathlib import Path

import pytest

from sed_hf.training.recipe import Recipe, load_recipe

CONFIGS = Path(__file__).parents[2] / "configs"


def recipe_of(folder: Path, text: str, *arguments: str) -> Recipe:
    """The recipe of a file with this text, and of the command line."""
    path = folder / "recipe.yaml"
    path.write_text(text)
    return load_recipe(["--config", str(path), *arguments])


def test_a_file_states_settings_and_the_command_line_overrides_them(tmp_path: Path) -> None:
    text = "{output_dir: out, model: start, dataset: scenes, steps: 10, shortest_edge: null, mixed_precision: no}"
    recipe = recipe_of(tmp_path, text, "--steps", "20", "--no_color_jitter")
    assert (recipe.steps, recipe.shortest_edge, recipe.mixed_precision) == (20, None, "no")
    assert (recipe.color_jitter, recipe.horizontal_flip) == (False, True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": None}, "model, open_clip_variant"),
        ({"dataset": "ade20k_150"}, "data_dir: expected the folder of ade20k_150"),
        ({"steps": 0}, "steps=0: expected a number of at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate=nan: expected a number of at least 0"),
        ({"min_classes_per_step": 5, "classes_per_step": 4}, "expected at most classes_per_step, which is 4"),
        ({"evaluate_every": 5}, "evaluate_every, evaluate_on"),
        ({"evaluate_every": 5, "evaluate_on": "scenes", "objective": "alignment"}, "evaluate_on: expected none"),
    ],
)
def test_impossible_values_are_refused_by_name(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**{"output_dir": "out", "model": "start", "dataset": "scenes", **values})


@pytest.mark.parametrize(
    ("text", "message"),
    [("steps: !!python/object/apply:os.mkdir [executed]", "is not YAML"), ("", "holds NoneType, expected settings")],
)
def test_a_file_of_other_content_is_refused_and_runs_no_code(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe_of(tmp_path, text)
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("learning_rat: 1", "unrecognized arguments: --learning_rat=1"),
        ("steps: null", "invalid int value: 'None'"),
        ("finetuning: 5", "invalid choice: '5'"),
    ],
)
def test_unknown_settings_and_values_of_other_types_are_refused_by_name(
    tmp_path: Path, setting: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        recipe_of(tmp_path, f"output_dir: out\n{setting}\n")
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_project_loads(path: Path) -> None:
    recipe = load_recipe(["--config", str(path)])
    if path.stem.startswith("sed_convnext"):  # has the values of the paper
        assert (recipe.learning_rate, recipe.weight_decay, recipe.image_encoder_lr_factor) == (2e-4, 1e-4, 0.01)
        assert (recipe.steps, recipe.images_per_step, recipe.warmup_steps, recipe.max_grad_norm) == (80_000, 4, 0, 0.01)
        assert (recipe.shortest_edge, recipe.longest_edge, recipe.crop_size) == (768, 2666, 768)
        assert (recipe.color_jitter, recipe.horizontal_flip, recipe.finetuning) == (True, True, "full")
