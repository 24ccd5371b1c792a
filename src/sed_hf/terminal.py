"""What a command takes as numbers, shows on standard error, and ends with."""

import argparse
import io
import math
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

OUT_OF_MEMORY = "Out of memory: try early rejection (--topk 8), a smaller batch or bfloat16"


def number(kind: type, least: float, most: float = math.inf) -> Callable[[str], Any]:
    """The type of a command-line argument: an `int` or a `float` within limits."""
    limits = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
    expected = f"expected a {'whole number' if kind is int else 'number'} {limits}"

    def parse(text: str) -> Any:
        with suppress(ValueError):
            if least <= kind(text) <= most:
                return kind(text)
        raise argparse.ArgumentTypeError(f"{expected}, got {text!r}")

    return parse


whole_number = number(int, 0)
positive_integer = number(int, 1)


def say(text: str) -> None:
    """Print a message of the command, above progress bars if there are some."""
    from tqdm import tqdm

    tqdm.write(f"sed-hf: {printable(text)}", file=sys.stderr)


def progress_bar(iterable: Any = None, desc: str = "", **kwargs: Any) -> Any:
    """A tqdm bar with these arguments; where standard error is not a terminal, it is updated only now and then."""
    from tqdm import tqdm

    if not sys.stderr.isatty():
        kwargs |= {"mininterval": 30, "maxinterval": 60}  # seconds
    return tqdm(iterable, desc=printable(desc), **kwargs)


def printable(text: object) -> str:
    """A text in one line without control characters, which a terminal would obey: they are escaped."""
    line = " ".join(str(text).split())
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line)


def run_command(program: str, command: Callable[[], int]) -> int:
    """Run a command and return its exit status: 2 after an error in one line, 130 after Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of class names, a pipe on Windows has not all signs
    try:
        return command()
    except KeyboardInterrupt:
        message, status = "interrupted", 130
    except (OSError, ValueError) as error:
        text = str(error)
        if "Original Traceback" in text:  # of a data loader's worker; what it says stands in the last line
            text = text.strip().splitlines()[-1]
        message, status = f"error: {text}", 2
    except (MemoryError, RuntimeError) as error:
        from .chunking_sed import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        message, status = f"error: {error if 'topk' in str(error) else OUT_OF_MEMORY}", 2
    print(f"{program}: {printable(message)}", file=sys.stderr)
    return status
