"""Evaluation of a model on several data sets, into a folder of results that a later run continues."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..data.benchmarks import OWN_DATA
from ..inference.class_embeddings import ClassEmbeddingCache
from ..inference.writers import model_settings, read_saved, require_same_settings
from ..modeling_sed import SEDForSemanticSegmentation
from ..processing_sed import SEDProcessor
from ..utils import write_file
from .environment import describe_environment
from .evaluate import ProgressFile, evaluate_benchmark
from .sets import EvaluationSet, describe_data, set_title, warn_of_absent_classes

TABLE_FIGURES = ("mIoU", "fwIoU", "mACC", "pACC")


def evaluate_suite(
    model: SEDForSemanticSegmentation,
    processor: SEDProcessor,
    sets: Mapping[str, EvaluationSet],
    output: Path,
    *,
    model_name: str,
    save_predictions: bool = False,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Evaluate a model on several data sets, one after the other, with options of [`evaluate_benchmark`].

    The folder `output` gets `results.json` and `results.md` after each set, on request `predictions/<set>/`, and
    meanwhile `<set>.progress.json`. Sets that it has results of are not evaluated again, and an interrupted one
    continues where it stopped. A folder of another model, called `model_name`, of other options, or of other data is
    refused.

    Returns:
        For each set in the folder what [`describe_data`] says, `figures` in percent, and `environment`.
    """
    augmentation = options.get("augmentation")
    settings = {
        **model_settings(model, processor, model_name, options.get("early_rejection_topk")),
        **(asdict(augmentation) if augmentation else {}),
        "vocabulary_size": options.get("vocabulary_size"),
        "save_predictions": save_predictions,
    }
    output.mkdir(parents=True, exist_ok=True)
    report = output / "results.json"
    results = read_saved(report, settings).get("benchmarks", {})
    for name, dataset in sets.items():
        progress, data = output / f"{name}.progress.json", describe_data(dataset)
        current = {f"{key} of {name}": value for key, value in data.items()}
        if name in results:
            saved = {f"{key} of {name}": results[name].get(key) for key in data}
            require_same_settings(saved, current, report)
        else:
            figures = evaluate_benchmark(
                model,
                processor,
                dataset,
                cache=ClassEmbeddingCache(),
                predictions_dir=output / "predictions" / name if save_predictions else None,
                progress_file=ProgressFile(progress, settings | current),
                progress_bar=set_title(name),
                **options,
            )
            environment = describe_environment(model.device)
            results[name] = {**data, "figures": figures, "environment": environment}
            if name == OWN_DATA and PartialState().is_main_process:
                warn_of_absent_classes(name, dataset, figures)
        if PartialState().is_main_process:
            # Another run may have written to the folder.
            results = read_saved(report, settings).get("benchmarks", {}) | results
            content = {"settings": settings, "benchmarks": results}
            write_file(report, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
            write_file(output / "results.md", to_markdown(settings, results))
            if read_saved(progress, settings | current):
                progress.unlink()
    return results


def to_markdown(settings: dict[str, Any], results: dict[str, dict[str, Any]]) -> str:
    """A table of the sets, with a line for each group of classes, and the settings."""
    rows = [["benchmark", "images", *TABLE_FIGURES]]
    for name, result in results.items():
        title, figures = set_title(name), result["figures"]
        rows.append([title, str(result["num_images"]), *(_percent(figures[figure]) for figure in TABLE_FIGURES)])
        for figure, value in figures.items():
            if figure.startswith("mIoU-"):
                rows.append([f"{title}: {figure.removeprefix('mIoU-')}", "", _percent(value), "", "", ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |" for row in rows]
    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    options = [f"* {name}: {value}" for name, value in settings.items() if value is not None]
    return "\n".join([lines[0], rule, *lines[1:], "", *options]) + "\n"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
