"""The processor: class names to CLIP's tokens, and errors that a user can act on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from small_models import TEMPLATES, small_processor

import sed_hf
from sed_hf import SEDProcessor
from sed_hf.processing_sed import validate_class_names

FOLDER = Path(sed_hf.__file__).parent / "data" / "vocabularies"
VOCABULARIES = {path.name: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
UNUSUAL_NAMES = [
    "naïve café", "Ünïcödé STRAẞE", "½ pint, 3²", "🐱 cat face 👩‍👩‍👧", "“quoted” ‘name’", "fish &amp; chips",
    "数字 日本語 한국어", "ﬁre hydrant", "ｄｏｇ", "\ufeffcat", "cafÃ©",
]  # fmt: skip


@pytest.mark.parametrize("names", [*VOCABULARIES.values(), UNUSUAL_NAMES], ids=[*VOCABULARIES, "unusual names"])
def test_tokens_equal_open_clip(names: list[str]) -> None:
    tokens = small_processor()(text=names, padding="max_length", return_tensors="pt")
    synonyms = [synonym for name in names for synonym in name.split(", ")]
    prompts = [template.replace("{}", synonym) for synonym in synonyms for template in TEMPLATES]
    assert torch.equal(tokens["input_ids"].flatten(0, 1), open_clip.tokenize(prompts))


def test_special_tokens_in_a_name_are_text() -> None:
    input_ids = small_processor()(text=["<|startoftext|> cat <|endoftext|>"])["input_ids"]
    assert [(input_ids == token).sum(-1).unique().tolist() for token in (49406, 49407)] == [[1], [1]]


@pytest.mark.parametrize("max_length", [None, 20])
def test_long_names_are_truncated_with_one_warning_that_names_them(
    sed_hf_log: pytest.LogCaptureFixture, max_length: int | None
) -> None:
    long = "very " * 80 + "long name"
    input_ids = small_processor()(text=["cat", long], max_length=max_length)["input_ids"]
    assert input_ids.shape[2] == (max_length or 77)
    assert (input_ids[1, :, -1] == 49407).all()
    assert [long[:20] in record.message and "'cat'" not in record.message for record in sed_hf_log.records] == [True]


class TestClassNames:
    @pytest.mark.parametrize(
        ("text", "error", "message"),
        [
            ("cat", TypeError, r"text: expected a list of class names, got str 'cat'; write \['cat'\]"),
            ([], ValueError, "text: expected at least one class name"),
            (["cat", 7], TypeError, r"text\[1\]: expected a string, got int 7"),
            (["cat, , dog"], ValueError, r"text\[0\]: expected a class name"),
            (["cat", "&nbsp;"], ValueError, r"text\[1\]: expected a class name"),
            (["cat", "\ud800"], ValueError, r"text\[1\]: expected Unicode text"),
            (["dog", "ｄｏｇ"], ValueError, r"text\[1\]: 'ｄｏｇ' is the same class name as text\[0\]='dog'"),
            (["sky", "water", "Sky, "], ValueError, r"text\[2\]: 'Sky, ' is the same class name as text\[0\]"),
        ],
    )
    def test_that_are_wrong_are_refused(self, text: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            small_processor()(text=text)

    def test_with_a_comma_without_a_space_are_pointed_out(self, sed_hf_log: pytest.LogCaptureFixture) -> None:
        small_processor()(text=["cat,dog"])
        assert "'cat,dog' is one name" in sed_hf_log.text

    @pytest.mark.parametrize(("given", "meant"), [("sky, heaven,", "sky, heaven"), (" sky ,", "sky")])
    def test_lose_a_trailing_comma(self, given: str, meant: str) -> None:
        one, other = (small_processor()(text=["cat", name]) for name in (given, meant))
        torch.testing.assert_close(dict(one), dict(other))
        assert validate_class_names([given]) == [meant]


@pytest.mark.parametrize(
    ("templates", "error", "message"),
    [
        ("a {}", TypeError, "prompt_templates: expected a list of strings, got 'a {}'"),
        (["a {}", 5], ValueError, r"prompt_templates\[1\]: expected text with exactly one \{\}, got 5"),
        (["a photo"], ValueError, r"prompt_templates\[0\]: expected text with exactly one \{\}"),
    ],
)
def test_wrong_prompt_templates_are_refused(templates: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SEDProcessor(small_processor().image_processor, small_processor().tokenizer, prompt_templates=templates)


class TestArguments:
    image = np.zeros((8, 8, 3), np.uint8)

    def test_may_be_nested(self) -> None:
        size = {"height": 64, "width": 32}
        flat = small_processor()(self.image, ["cat"], padding="max_length", input_size=size, return_tensors="np")
        kwargs = {"text_kwargs": {"padding": "max_length"}, "images_kwargs": {"input_size": size}}
        nested = small_processor()(self.image, ["cat"], **kwargs, common_kwargs={"return_tensors": "np"})
        assert flat["pixel_values"].shape == (1, 3, 64, 32)
        assert all(isinstance(nested[name], np.ndarray) and (nested[name] == flat[name]).all() for name in flat)

    def test_may_be_text_only_or_images_only(self) -> None:
        both, text, images = (
            small_processor()(*each) for each in ((self.image, ["cat"]), (None, ["cat"]), (self.image,))
        )
        torch.testing.assert_close({**images, **text}, dict(both))

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"do_reduce_labels": True}, TypeError, "unexpected arguments: do_reduce_labels"),
            ({"images_kwargs": {"do_reduce_labels": True}}, TypeError, "do_reduce_labels"),
            ({"text_kwargs": {"add_special_tokens": False}}, TypeError, "add_special_tokens"),
            ({"padding": False}, ValueError, "padding=False: expected 'longest' or 'max_length'"),
            ({"images": None, "text": None}, ValueError, "expected images, text or both"),
            ({"images": None, "segmentation_maps": [image]}, ValueError, "expected images for segmentation_maps"),
        ],
    )
    def test_that_are_unknown_or_missing_are_refused(
        self, arguments: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            small_processor()(**{"images": self.image, "text": ["cat"], **arguments})


def test_settings_survive_saving(tmp_path: Path) -> None:
    small_processor().save_pretrained(tmp_path)
    loaded = SEDProcessor.from_pretrained(tmp_path)
    assert loaded.prompt_templates == TEMPLATES
    assert loaded.image_processor.to_dict() == small_processor().image_processor.to_dict()
    expected, actual = (processor(text=UNUSUAL_NAMES) for processor in (small_processor(), loaded))
    assert torch.equal(actual["input_ids"], expected["input_ids"])
