"""What a command shows on standard error, and how it ends."""

import signal
import sys
from collections.abc import Callable
from typing import Any

OUT_OF_MEMORY = "Out of memory: try early rejection (--topk 8), a smaller batch or bfloat16"
LOGGED_PROGRESS_SECONDS = 30  # between two updates of a progress bar that goes to a file


def say(text: str) -> None:
    """Print a message of the command, above progress bars if there are some."""
    from tqdm import tqdm

    tqdm.write(f"sed-hf: {printable(text)}", file=sys.stderr)


def progress_bar(iterable: Any = None, desc: str = "", **kwargs: Any) -> Any:
    """A tqdm bar with these arguments; where standard error is not a terminal, it is updated only now and then."""
    from tqdm import tqdm

    if not sys.stderr.isatty():
        kwargs |= {"mininterval": LOGGED_PROGRESS_SECONDS, "maxinterval": 2 * LOGGED_PROGRESS_SECONDS}
    return tqdm(iterable, desc=printable(desc), **kwargs)


def printable(text: object) -> str:
    """A text in one line without control characters, which a terminal would obey: they are escaped."""
    line = " ".join(str(text).split())
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line)


def run_command(program: str, command: Callable[[], int]) -> int:
    """Run a command and return its exit status: 2 after an error in one line, 130 after Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
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
