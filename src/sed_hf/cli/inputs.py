"""The images and videos that `sed-hf segment` is given, and the names of their results."""

import glob
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..terminal import say

JPEG_SUFFIXES = {".jfif", ".jpe", ".jpeg", ".jpg", ".mpo"}
IMAGE_SUFFIXES = {".avif", ".bmp", ".gif", ".jp2", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp", *JPEG_SUFFIXES}
VIDEO_SUFFIXES = frozenset(
    {".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".webm", ".wmv"}
)
IMAGE_RESULTS = ("_labels.png", "_overlay.jpg", ".json")
VIDEO_RESULTS = ("_overlay.mp4", ".json")


@dataclass(frozen=True)
class Job:
    """One image or video to segment.

    Attributes:
        source: The file.
        stem: Path of its results without their endings.
    """

    source: Path
    stem: Path

    @property
    def is_video(self) -> bool:
        """Whether the file is taken for a video, by its name."""
        return self.source.suffix.lower() in VIDEO_SUFFIXES

    @property
    def results(self) -> tuple[Path, ...]:
        """The files to write: label map, overlay and summary of an image, overlay and summary of a video."""
        endings = VIDEO_RESULTS if self.is_video else IMAGE_RESULTS
        return tuple(self.stem.with_name(self.stem.name + ending) for ending in endings)


def find_files(inputs: Sequence[str]) -> list[Path]:
    """The images and videos that the INPUT arguments name, each once, in the order given.

    Of a folder these are the files directly in it whose name ends as an image's or a video's does; how many others
    there are is said. A file that is named, or that a glob matches, is taken by any name.

    Raises:
        FileNotFoundError: There is no such file, nothing matches, or a folder holds no image and no video.
    """
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
    found = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES]
    if left_out := Counter(file.suffix.lower() for file in set(files).difference(found)):
        endings = ", ".join(f"{count} {suffix or 'without ending'}" for suffix, count in sorted(left_out.items()))
        say(f"{folder}: {len(files) - len(found)} files are left out, by their names ({endings})")
    return found


def plan_jobs(files: Sequence[Path], output: Path) -> list[Job]:
    """Name the results of each image and video after it; of several files of one name, the later ones get a number.

    Raises:
        FileExistsError: An input would be overwritten by a result.
    """
    jobs = []
    taken: set[str] = set()
    for file in files:
        stem, number = file.stem, 2
        while stem.lower() in taken:  # not all file systems tell upper from lower case
            stem, number = f"{file.stem}_{number}", number + 1
        taken.add(stem.lower())
        jobs.append(Job(file, output / stem))
    inputs = {file.resolve() for file in files}
    for job in jobs:
        for result in job.results:
            if result.resolve() in inputs:
                raise FileExistsError(f"--output {output}: {result} is one of the inputs and would be overwritten")
    return jobs
