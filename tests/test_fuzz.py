"""Fuzzed bytes, a few of each kind: a result or one clear error. `scripts/fuzz.py` runs the same with many more."""

import json
import os
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from scripts.fuzzing.mutations import Case, Executes, mutate_json  # noqa: E402
from scripts.fuzzing.readers import READERS, Reader  # noqa: E402
from scripts.fuzzing.workers import Verdict, make_case, run_cases, run_in_own_process  # noqa: E402

SEED = 20_261_123
CASES = {"model folder": 4, "checkpoint, sed-hf convert": 6, "config.json": 4, "training, resumed": 6}
CASES_OF_OTHERS = 20


@pytest.fixture(scope="module")
def verdicts() -> dict[str, list[tuple[int, Verdict]]]:
    """Of some cases of every reader, by reader."""
    for reader in READERS.values():
        reader.samples()
    cases = [(name, index) for name in READERS for index in range(CASES.get(name, CASES_OF_OTHERS))]
    found: dict[str, list[tuple[int, Verdict]]] = {name: [] for name in READERS}
    for name, index, verdict in run_cases(iter(cases), SEED, num_workers=2):
        found[name].append((index, verdict))
    return found


@pytest.mark.parametrize("name", READERS)
def test_every_case_ends_in_a_result_or_one_clear_error(
    name: str, verdicts: dict[str, list[tuple[int, Verdict]]]
) -> None:
    assert len(verdicts[name]) == CASES.get(name, CASES_OF_OTHERS)
    bugs = [f"case {index}: {verdict.kind}: {verdict.detail}" for index, verdict in verdicts[name] if verdict.is_bug]
    assert not bugs, "\n".join(bugs)


@pytest.mark.parametrize("name", READERS)
def test_valid_samples_are_read(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    verdict = run_in_own_process(reader, Case(dict(reader.samples()[0])), tmp_path)
    assert verdict.kind == "result", verdict.detail


class TestBugsAreFound:
    """A reader with a bug does not pass."""

    @pytest.fixture
    def judge(self, tmp_path: Path) -> Callable[[Callable[[Path], None]], Verdict]:
        def run(read: Callable[[Path], None], deadline: float = 60) -> Verdict:
            files = {"input.json": b"{}", "input.pkl": pickle.dumps(Executes("open"))}
            return run_in_own_process(Reader("made up", list, read, 1), Case(files), tmp_path, deadline)

        return run

    def test_another_exception(self, judge: Callable) -> None:
        assert judge(lambda folder: {}["missing"]).kind == "BUG: KeyError"

    def test_a_message_that_names_nothing(self, judge: Callable) -> None:
        def read(folder: Path) -> None:
            raise ValueError("that went wrong")

        assert judge(read).kind == "BUG: message names no input"

    def test_a_message_that_names_the_file_is_none(self, judge: Callable) -> None:
        def read(folder: Path) -> None:
            raise ValueError("input.json: that went wrong")

        assert not judge(read).is_bug

    def test_data_that_are_executed(self, judge: Callable) -> None:
        def read(folder: Path) -> None:
            pickle.loads((folder / "input.pkl").read_bytes())

        assert judge(read).kind == "BUG: executed data"

    def test_a_file_left_behind(self, judge: Callable) -> None:
        assert judge(lambda folder: (folder / "input.json.part").touch()).kind == "BUG: left a file"

    def test_a_hang(self, judge: Callable) -> None:
        assert judge(lambda folder: time.sleep(60), deadline=1).kind == "BUG: hang"

    def test_a_crash(self, judge: Callable) -> None:
        assert judge(lambda folder: os.abort()).kind == "BUG: crash"

    def test_memory(self, judge: Callable) -> None:
        assert judge(lambda folder: len(b"x" * 2**30)).kind == "BUG: memory"


def test_a_case_is_known_by_its_seed() -> None:
    data = json.dumps({"a": [1, 2, {"b": "c"}]}).encode()
    assert mutate_json(data, Random(7)) == mutate_json(data, Random(7))
    assert len({mutate_json(data, Random(seed)) for seed in range(20)}) > 10


def test_the_script_reports_by_reader_and_saves_nothing_where_there_is_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])  # of which the script replaces the first
    from scripts.fuzz import fuzz

    fuzz(["vocabulary"], cases=30, seed=0, workers=1, output=tmp_path)
    assert "| vocabulary | 30 |" in (tmp_path / "report.md").read_text()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["readers"]["vocabulary"]["cases"] == 30
    assert not (tmp_path / "bugs").exists()


def test_a_saved_bug_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    from scripts.fuzz import load_bug, save_bug

    save_bug(tmp_path, "vocabulary", seed=0, index=5, verdict=Verdict("BUG: made up"))
    assert load_bug(next(tmp_path.iterdir())) == ("vocabulary", make_case(READERS["vocabulary"], 0, 5))
