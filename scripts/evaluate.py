"""Measure a model's mean IoU on the benchmarks; see docs/reproduce.md.

    accelerate launch scripts/evaluate.py --model sed-base --benchmarks all --data-dir /data --topk 8

After an interruption, the same command goes on where it stopped.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# Python searches a script's own folder first, where this file would hide the library `evaluate` from the metric.
sys.path.remove(str(Path(__file__).resolve().parent))

from accelerate import Accelerator

from sed_hf.argument_types import positive_integer, whole_number
from sed_hf.evaluation import MultiScaleFlip, evaluate_suite
from sed_hf.evaluation.label_space import label_space
from sed_hf.evaluation.report import EvaluationReport
from sed_hf.evaluation.sets import EVALUATION_SETS, ZERO_SHOT_BENCHMARKS, load_evaluation_sets
from sed_hf.hub.load import check_model_source, load


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, metavar="M", help="model folder, or OWNER/NAME on the Hub")
    parser.add_argument(
        "--benchmarks",
        nargs="+",
        required=True,
        choices=["all", *EVALUATION_SETS],
        metavar="NAME",
        help=f"all (the {len(ZERO_SHOT_BENCHMARKS)} of the official table), or some of: {', '.join(EVALUATION_SETS)}",
    )
    parser.add_argument("--data-dir", type=Path, metavar="D", help="the folder of the data; scenes need none")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/evaluation"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--limit", type=positive_integer, metavar="N", help="evaluate on the first N images alone")

    model = parser.add_argument_group("model")
    model.add_argument("--topk", type=whole_number, metavar="K", help="early rejection; 0 keeps every class")
    model.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    model.add_argument("--flip", action="store_true", help="average with the probabilities of the mirror image")
    model.add_argument(
        "--scales", type=float, nargs="+", metavar="S", help="average over these factors of the input size"
    )
    model.add_argument(
        "--vocabulary-size",
        type=positive_integer,
        metavar="T",
        help="ask for T names: those of the benchmark, then others that no picture shows",
    )

    speed = parser.add_argument_group("speed")
    speed.add_argument("--batch-size", type=positive_integer, default=1, metavar="N", help="on each process")
    speed.add_argument(
        "--num-workers", type=whole_number, default=0, metavar="N", help="reading pictures, for each process"
    )

    results = parser.add_argument_group("results")
    results.add_argument("--save-predictions", action="store_true", help="write a PNG of class indices for each image")
    results.add_argument("--per-class", action="store_true", help="show the IoU of each class")

    arguments = parser.parse_args(argv)
    try:
        arguments.augmentation = augmentation(arguments)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def augmentation(arguments: argparse.Namespace) -> MultiScaleFlip | None:
    if not arguments.flip and arguments.scales is None:
        return None
    return MultiScaleFlip(tuple(arguments.scales or (1.0,)), arguments.flip)


def evaluate(arguments: argparse.Namespace) -> EvaluationReport:
    check_model_source(arguments.model)
    arguments.output.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator()
    names = [name for given in arguments.benchmarks for name in (ZERO_SHOT_BENCHMARKS if given == "all" else [given])]
    with accelerator.main_process_first():  # which writes the caches that the others read
        sets = load_evaluation_sets(names, arguments.data_dir, arguments.limit)
        for dataset in sets.values():
            label_space(dataset, arguments.vocabulary_size)  # refuses sizes that cannot be had
        model, processor = load(arguments.model, dtype=arguments.dtype)
    report = evaluate_suite(
        model.to(accelerator.device),
        processor,
        sets,
        arguments.output,
        model_name=arguments.model,
        early_rejection_topk=arguments.topk,
        augmentation=arguments.augmentation,
        vocabulary_size=arguments.vocabulary_size,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        save_predictions=arguments.save_predictions,
        per_class=arguments.per_class,
    )
    accelerator.print(report.to_markdown(per_class=arguments.per_class))
    accelerator.end_training()
    return report


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    try:
        evaluate(arguments)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
