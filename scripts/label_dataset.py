"""Label every pixel of every image of a data set, and write a data set of images and labels; see docs/label.md.

    accelerate launch scripts/label_dataset.py --data photos --vocabulary my-classes.txt --output labelled

After an interruption, the same command goes on. Exit status: 0 all labelled, 1 some images skipped, 2 failed.
"""

import argparse
import sys

from sed_hf.evaluation.environment import start_processes
from sed_hf.inference.label import FORMATS, label_dataset
from sed_hf.terminal import number, positive_integer, run_command, whole_number


def parse_arguments() -> argparse.Namespace:
    """The arguments of the command line, named as those of `label_dataset`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", required=True, help="folder of images, Parquet or tar files, or OWNER/NAME on the Hub")
    add("--vocabulary", required=True, metavar="V", help="built-in vocabulary, or text or JSON file")
    add("--output", required=True, metavar="DIR", help="folder to write to")
    add("--model", default="sed-b", metavar="M", help="sed-b, sed-l, a folder, or OWNER/NAME on the Hub")
    add("--topk", type=whole_number, metavar="K", help="early rejection; 0 keeps every class")
    add("--threshold", type=number(float, 0, 1), metavar="P", help="no class where the best probability is lower")
    add("--everything-else", nargs="?", const="coco_stuff_171", metavar="V", help="one class more, for all else")
    add("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="float32")
    add("--format", choices=FORMATS, default="parquet")
    add("--split", default="train", metavar="NAME", help="what to read of a data set on the Hub, and to write")
    add("--image-column", metavar="NAME", help="if there are several")
    add("--batch-size", type=positive_integer, default=1, metavar="N", help="on each process")
    add("--num-workers", type=whole_number, metavar="N", help="reading images, for each process; by default up to 4")
    add("--shard-size", type=positive_integer, default=250, metavar="N", help="images that are finished at once")
    add("--preview", type=positive_integer, metavar="N", help="only label N images, on a sheet: preview.jpg")
    add("--push-to-hub", metavar="REPO", help="upload to this data set repository, private if new")
    return parser.parse_args()


def label(arguments: argparse.Namespace) -> int:
    """Label, and say how many images."""
    accelerator = start_processes()
    counts = label_dataset(**vars(arguments))
    if accelerator.is_main_process:
        reasons = " (skipped.jsonl says why)" if counts.skipped and not arguments.preview else ""
        result = f"{arguments.output}/preview.jpg" if arguments.preview else arguments.output
        print(f"{counts.labelled} images labelled, {counts.skipped} skipped{reasons}: {result}")
    accelerator.end_training()
    return 1 if counts.skipped else 0


if __name__ == "__main__":
    sys.exit(run_command("label_dataset.py", lambda: label(parse_arguments())))
