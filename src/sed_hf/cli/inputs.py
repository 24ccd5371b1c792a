"""The images and videos that `sed-hf segment` is given, and the names of their results."""

import glob
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..terminal import say
from ..utils import IMAGE_SUFFIX

VIDEO_SUFFIX = re.compile(r"\.(avi|flv|m2ts|m4v|mkv|mov|mp4|mpeg|mpg|mts|ogv|webm|wmv)", re.IGNORECASE)


class Job(NamedTuple):
    """An image or a video, and the files to write: label map (not of a video), overlay and summary."""

    source: Path
    is_video: bool
    results: tuple[Path, ...]


def is_image_or_video(path: Path) -> bool:
    """Whether a file is one, by its name."""
    return any(kind.fullmatch(path.suffix) for kind in (IMAGE_SUFFIX, VIDEO_SUFFIX))


def find_files(inputs: Sequence[str]) -> list[Path]:
    """The files that the INPUT arguments name, each once: any that is named, and the images and videos of folders."""
    files: dict[Path, Path] = {}
    for given in inputs:
        path = Path(given).expanduser()
        if path.is_dir():
            found = files_in(path)
        elif path.is_file():
            found = [path]
        else:
            found = [match for match in map(Path, glob.glob(str(path), recursive=True)) if match.is_file()]
        if not found:
            reason = "a folder without them" if path.is_dir() else "no such file, and nothing matches it as a glob"
            raise FileNotFoundError(f"{given}: expected an image, a video, a folder of them or a glob; it is {reason}")
        for file in sorted(found):
            files.setdefault(file.resolve(), file)
    return list(files.values())


def files_in(folder: Path) -> list[Path]:
    """The images and videos of a folder; how many other files there are is said."""
    # macOS leaves "._photo.jpg" beside "photo.jpg" on foreign disks.
    files = [entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    found = [file for file in files if is_image_or_video(file)]
    if left_out := Counter(file.suffix.lower() for file in set(files).difference(found)):
        endings = ", ".join(f"{count} {suffix or 'without ending'}" for suffix, count in sorted(left_out.items()))
        say(f"{folder}: {left_out.total()} files are left out, by their names ({endings})")
    return found


def plan_jobs(files: Sequence[Path], output: Path) -> list[Job]:
    """Name the results of each file after it; of several files of one name, the later ones get a number."""
    jobs = []
    inputs = {file.resolve() for file in files}
    taken: set[str] = set()
    for file in files:
        stem, number = file.stem, 2
        while stem.lower() in taken:  # not all file systems tell upper from lower case
            stem, number = f"{file.stem}_{number}", number + 1
        taken.add(stem.lower())
        is_video = bool(VIDEO_SUFFIX.fullmatch(file.suffix))
        endings = ("_overlay.mp4", ".json") if is_video else ("_labels.png", "_overlay.jpg", ".json")
        results = tuple(output / f"{stem}{ending}" for ending in endings)
        for result in results:
            if result.resolve() in inputs:
                raise FileExistsError(f"--output {output}: {result} is one of the inputs and would be overwritten")
        jobs.append(Job(file, is_video, results))
    return jobs
