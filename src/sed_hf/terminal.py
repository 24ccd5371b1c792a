"""What is shown on standard error: messages, and progress bars."""

import sys
from typing import Any

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
