"""Where a model comes from: a folder, or a name on the Hub."""

import re
from pathlib import Path


def check_model_source(source: str) -> None:
    """Refuse what is neither a model folder nor can be a name on the Hub, without loading anything.

    Raises:
        FileNotFoundError: It is neither.
    """
    path = Path(source)
    if (path / "config.json").is_file():
        return
    if path.exists():
        raise FileNotFoundError(
            f"--model {source}: expected a model folder, but there is no config.json in it;"
            " sed-hf convert makes one of an official checkpoint"
        )
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source):
        raise FileNotFoundError(f"--model {source}: expected a model folder or OWNER/NAME on the Hub; no such folder")
