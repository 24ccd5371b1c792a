"""Evaluation of a model on several data sets, into a folder that a later run continues from."""

from collections.abc import Mapping
from pathlib import Path

from accelerate import PartialState

from ..inference.class_embeddings import ClassEmbeddingCache, encode_classes, weights_sha256
from ..modeling_sed import SEDForSemanticSegmentation
from ..processing_sed import SEDProcessor
from .augmentation import MultiScaleFlip
from .environment import describe_environment
from .evaluate import evaluate_benchmark
from .label_space import label_space
from .progress import ProgressFile
from .report import EvaluationReport
from .sets import EvaluationSet, set_title


def evaluate_suite(
    model: SEDForSemanticSegmentation,
    processor: SEDProcessor,
    sets: Mapping[str, EvaluationSet],
    output: Path,
    *,
    model_name: str,
    early_rejection_topk: int | None = None,
    augmentation: MultiScaleFlip | None = None,
    vocabulary_size: int | None = None,
    batch_size: int = 1,
    num_workers: int | None = None,
    save_predictions: bool = False,
    per_class: bool = False,
) -> EvaluationReport:
    """Evaluate a model on several data sets, one after the other.

    The folder gets `results.json` and `results.md` after each set, `predictions/<set>/` on request, and
    `<set>.progress.safetensors` meanwhile. Sets that its `results.json` has are not evaluated again, and an interrupted
    one continues where it stopped, on any number of processes and with any batch size.

    Args:
        model, processor, early_rejection_topk, augmentation, vocabulary_size, batch_size, num_workers: As for
            [`evaluate_benchmark`].
        sets: By name, as `load_evaluation_sets` gives them.
        output: The folder, which is made if there is none.
        model_name: What the report calls the model.
        save_predictions: Write predictions as PNG.
        per_class: Give the IoU of each class in `results.md`, too.

    Returns:
        The report; also of sets that the folder had before.

    Raises:
        ValueError: As `evaluate_benchmark`; or the folder is of another model or of other options, which are named.
    """
    topk = model.config.early_rejection_topk if early_rejection_topk is None else early_rejection_topk
    image_processor = processor.image_processor
    settings = {
        "model": model_name,
        "weights_sha256": weights_sha256(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "size": dict(image_processor.size) if image_processor.do_resize else None,
        "input_size": dict(image_processor.input_size),
        "early_rejection_topk": topk or None,
        "scales": list(augmentation.scales) if augmentation else None,
        "flip": augmentation.flip if augmentation else None,
        "vocabulary_size": vocabulary_size,
        "save_predictions": save_predictions,
    }
    output.mkdir(parents=True, exist_ok=True)
    report = EvaluationReport.open(output, settings)
    is_main_process = PartialState().is_main_process
    for name, dataset in sets.items():
        num_images = {f"number of images of {name}": len(dataset)}
        progress_file = ProgressFile(output / f"{name}.progress.safetensors", {**settings, **num_images})
        if not report.is_finished(name, len(dataset)):
            vocabulary = label_space(dataset, vocabulary_size).vocabulary
            figures = evaluate_benchmark(
                model,
                processor,
                dataset,
                class_embeddings=encode_classes(model, processor, vocabulary, ClassEmbeddingCache(), is_main_process),
                early_rejection_topk=early_rejection_topk,
                augmentation=augmentation,
                vocabulary_size=vocabulary_size,
                batch_size=batch_size,
                num_workers=num_workers,
                predictions_dir=output / "predictions" / name if save_predictions else None,
                progress_file=progress_file,
                progress_bar=set_title(name),
            )
            environment = describe_environment(model.device)
            report.benchmarks[name] = {"num_images": len(dataset), "figures": figures, "environment": environment}
            if is_main_process:
                report.save(per_class=per_class)
        if is_main_process and progress_file.load() is not None:
            progress_file.path.unlink()
    if is_main_process:
        report.save(per_class=per_class)  # with the classes' IoU, where an earlier run left them out
    return report
