"""Measure a model's mean IoU on the benchmarks; see docs/reproduce.md.

    accelerate launch scripts/evaluate.py --model sed-b --benchmarks all --data-dir /data --topk 8

After an interruption, the same command continues where it stopped.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from sed_hf.evaluation import MultiScaleFlip, evaluate_suite, load_evaluation_set
from sed_hf.evaluation.environment import start_processes
from sed_hf.evaluation.sets import EVALUATION_SETS, ZERO_SHOT_BENCHMARKS, vocabulary_and_metric
from sed_hf.hub.load import check_model_source, load
from sed_hf.terminal import positive_integer, run_command, whole_number


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, metavar="M", help="sed-b, sed-l, a folder, or OWNER/NAME on the Hub")
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
    parser.add_argument("--limit", type=positive_integer, metavar="N", help="only evaluate on the first N images")

    model = parser.add_argument_group("model")
    model.add_argument("--topk", type=whole_number, metavar="K", help="early rejection; 0 keeps every class")
    model.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    model.add_argument("--flip", action="store_true", help="average with the probabilities of the mirror image")
    model.add_argument("--scales", type=float, nargs="+", metavar="S", help="average over factors of the input size")
    help = "ask for T names: those of the benchmark, then others that no image shows"
    model.add_argument("--vocabulary-size", type=positive_integer, metavar="T", help=help)

    speed = parser.add_argument_group("speed")
    speed.add_argument("--batch-size", type=positive_integer, default=1, metavar="N", help="on each process")
    speed.add_argument("--num-workers", type=whole_number, metavar="N", help="reading images; by default up to 4")

    results = parser.add_argument_group("results")
    results.add_argument("--save-predictions", action="store_true", help="write a PNG of class indices for each image")
    return parser.parse_args(argv)


def evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate, and print the table."""
    augmentation = None
    if arguments.flip or arguments.scales is not None:
        augmentation = MultiScaleFlip(tuple(arguments.scales or (1.0,)), arguments.flip)
    check_model_source(arguments.model)
    accelerator = start_processes()
    names = [name for given in arguments.benchmarks for name in (ZERO_SHOT_BENCHMARKS if given == "all" else [given])]
    with accelerator.main_process_first():  # which writes the caches that the others read
        sets = {name: load_evaluation_set(name, arguments.data_dir, arguments.limit) for name in names}
        for dataset in sets.values():
            vocabulary_and_metric(dataset, arguments.vocabulary_size)  # refuses sizes that cannot be had
        model, processor = load(arguments.model, accelerator.device, arguments.dtype)
    topk = model.config.early_rejection_topk if arguments.topk is None else arguments.topk
    torch.backends.cudnn.benchmark = not topk  # sizes are fixed, unless classes are rejected
    evaluate_suite(
        model,
        processor,
        sets,
        arguments.output,
        model_name=arguments.model,
        early_rejection_topk=arguments.topk,
        augmentation=augmentation,
        vocabulary_size=arguments.vocabulary_size,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        save_predictions=arguments.save_predictions,
    )
    if accelerator.is_main_process:
        print((arguments.output / "results.md").read_text(encoding="utf-8"))
    accelerator.end_training()
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = parse_arguments(argv)
    return run_command("evaluate.py", lambda: evaluate(arguments))


if __name__ == "__main__":
    sys.exit(main())
