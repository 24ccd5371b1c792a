"""The results of an evaluation: JSON to keep and to go on from, Markdown to read."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..utils import atomic_path, require_file, short_error
from .progress import require_same_settings
from .sets import set_title

JSON_NAME = "results.json"
MARKDOWN_NAME = "results.md"
TABLE_FIGURES = ("mIoU", "fwIoU", "mACC", "pACC")
GROUP_PREFIX = "mIoU-"
CLASS_PREFIX = "IoU-"
FIGURE_TYPES = {float, int, type(None)}


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
            ValueError: The folder's report is no report, or is of other settings; the message names them.
        """
        path = folder / JSON_NAME
        if not path.exists():
            return cls(folder, settings)
        try:
            saved = json.loads(require_file(path).read_bytes())
            saved_settings, benchmarks = saved["settings"], saved["benchmarks"]
            _check_benchmarks(benchmarks)
            if not isinstance(saved_settings, dict):
                raise ValueError("its settings have no names")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{path} is no report of an evaluation ({short_error(error)}): choose another output folder"
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
        self.folder.mkdir(parents=True, exist_ok=True)
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
        parts = [_table(rows), settings]
        if per_class:
            parts += [_class_table(name, result["figures"]) for name, result in self.benchmarks.items()]
        return "\n\n".join(parts) + "\n"


def _check_benchmarks(benchmarks: Any) -> None:
    """Refuse what is not the `benchmarks` of a report.

    Raises:
        ValueError, KeyError, TypeError: It is not.
    """
    if not isinstance(benchmarks, dict):
        raise ValueError("its benchmarks have no names")
    for name, result in benchmarks.items():
        figures, num_images = result["figures"], result["num_images"]
        are_numbers = isinstance(figures, dict) and {type(figure) for figure in figures.values()} <= FIGURE_TYPES
        if type(num_images) is not int or not are_numbers:
            raise ValueError(f"the figures of {name:.80} are no numbers")


def _class_table(name: str, figures: dict[str, float | None]) -> str:
    rows = [
        [figure.removeprefix(CLASS_PREFIX), _percent(value)]
        for figure, value in figures.items()
        if figure.startswith(CLASS_PREFIX)
    ]
    return f"## {set_title(name)}\n\n{_table([['class', 'IoU'], *rows])}"


def _table(rows: list[list[str]]) -> str:
    """A Markdown table, of columns as wide as their longest cell; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        # Names to the left, numbers to the right.
        "| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |"
        for row in rows
    ]
    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
