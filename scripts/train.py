"""Train SED: `accelerate launch scripts/train.py --config configs/sed_convnext_base.yaml --data_dir DATA`."""

import sys
from pathlib import Path

# Python searches a script's own folder first, where evaluate.py would hide the library `evaluate` from the metric.
sys.path.remove(str(Path(__file__).resolve().parent))


def main() -> None:
    # The imports take seconds, in which Ctrl-C is answered too.
    from sed_hf.training.loop import NonFiniteLossError, train
    from sed_hf.training.recipe import load_recipe

    try:
        train(load_recipe(sys.argv[1:]))
    except (OSError, ValueError, NonFiniteLossError) as error:
        # An error in a process that reads data comes with that process's traceback; the last line says what it is.
        is_of_worker = "Original Traceback" in str(error)
        message = str(error).strip().splitlines()[-1] if is_of_worker else str(error)
        sys.exit(f"train.py: error: {message}")


if __name__ == "__main__":
    main()
