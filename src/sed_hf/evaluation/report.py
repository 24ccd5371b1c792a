"""The results of an evaluation: JSON to keep and to continue from, Markdown to read."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..utils import atomic_path, short_error
from .progress import require_same_settings
from .sets import set_title

JSON_NAME = "results.json"
MARKDOWN_NAME = "results.md"
TABLE_FIGURES = ("mIoU", "fwIoU", "mACC", "pACC")
GROUP_PREFIX = "mIoU-"
CLASS_PREFIX = "IoU-"


@dataclass
class EvaluationReport:
    """What one model with one set of options reaches on each benchmark.

    Attributes:
        folder: Where `results.json` and `results.md` are.
        settings: Model and options.
        benchmarks: For each finished benchmark `num_images`; `figures`, in percent, as `evaluate_benchmark` returns
            them; and `environment`, the versions and hardware it ran on.
    """

    folder: Path
    settings: dict[str, Any]
    benchmarks: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, settings: dict[str, Any]) -> "EvaluationReport":
        """The report in a folder, or an empty one if it has none.

        Raises:
            ValueError: The folder's file is not a report, or is of other settings; the message names them.
        """
        path = folder / JSON_NAME
        if not path.is_file():
            return cls(folder, settings)
        try:
            saved = json.loads(path.read_bytes())
            saved_settings, benchmarks = dict(saved["settings"]), dict(saved["benchmarks"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is not a report of an evaluation ({short_error(error)}): choose another output folder"
            ) from error
        require_same_settings(saved_settings, settings, path)
        return cls(folder, settings, benchmarks)

    def is_finished(self, name: str, num_images: int) -> bool:
        """Whether the report has the figures of a benchmark.

        Raises:
            ValueError: It has them for another number of images.
        """
        if name not in self.benchmarks:
            return False
        saved = {f"number of images of {name}": self.benchmarks[name]["num_images"]}
        require_same_settings(saved, {f"number of images of {name}": num_images}, self.folder / JSON_NAME)
        return True

    def save(self, *, per_class: bool = False) -> None:
        """Write both files; an interruption leaves the previous ones.

        Benchmarks that another process has finished meanwhile are taken in.
        """
        self.benchmarks = {**EvaluationReport.open(self.folder, self.settings).benchmarks, **self.benchmarks}
        content = {"settings": self.settings, "benchmarks": self.benchmarks}
        with atomic_path(self.folder / JSON_NAME) as temporary:
            temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        with atomic_path(self.folder / MARKDOWN_NAME) as temporary:
            temporary.write_text(self.to_markdown(per_class=per_class), encoding="utf-8")

    def to_markdown(self, *, per_class: bool = False) -> str:
        """A table of the benchmarks, with a line for each group of classes; on request also the IoU of each class."""
        rows = [["benchmark", "images", *TABLE_FIGURES]]
        for name, result in self.benchmarks.items():
            figures = result["figures"]
            rows.append([set_title(name), str(result["num_images"]), *map(_percent, map(figures.get, TABLE_FIGURES))])
            rows += [
                [f"{set_title(name)}: {figure.removeprefix(GROUP_PREFIX)}", "", _percent(value), "", "", ""]
                for figure, value in figures.items()
                if figure.startswith(GROUP_PREFIX)
            ]
        settings = "\n".join(f"* {name}: {value}" for name, value in self.settings.items() if value is not None)
        parts = [markdown_table(rows), settings]
        if per_class:
            parts += [_class_table(name, result["figures"]) for name, result in self.benchmarks.items()]
        return "\n\n".join(parts) + "\n"


def _class_table(name: str, figures: dict[str, float | None]) -> str:
    rows = [
        [figure.removeprefix(CLASS_PREFIX), _percent(value)]
        for figure, value in figures.items()
        if figure.startswith(CLASS_PREFIX)
    ]
    return f"## {set_title(name)}\n\n{markdown_table([['class', 'IoU'], *rows])}"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of columns as wide as their longest cell, with names to the left and numbers to the right.

    Args:
        rows: The cells, of the header first. Bars in them are escaped.
    """
    rows = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |" for row in rows]
    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
