"""Samples by position, sampled vocabularies."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset

from sed_hf.data.transforms import TrainingTransform
from sed_hf.training.classes import present_classes, relabel, sample_vocabulary
from sed_hf.training.data import TrainingSamples


class Numbered:
    """Ten images, each of the colour of its number."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = np.full((64, 64, 3), index, dtype=np.uint8)
        return {"image": Image.fromarray(pixels), "label": np.full((64, 64), index), "file_name": str(index)}


@pytest.fixture
def samples() -> TrainingSamples:
    transform = TrainingTransform(None, 400, 32, True, True, 255)
    return TrainingSamples(Numbered(), length=35, seed=3, transform=transform)


class TestSamples:
    def test_each_pass_shows_every_image_once_in_an_order_of_its_own(self, samples: TrainingSamples) -> None:
        passes = [[samples[position]["file_name"] for position in range(start, start + 10)] for start in (0, 10, 20)]
        assert all(sorted(names) == [str(index) for index in range(10)] for names in passes)
        assert passes[0] != passes[1] != passes[2]

    def test_a_sample_only_depends_on_its_position(self, samples: TrainingSamples) -> None:
        expected = samples[17]["pixel_values"]
        torch.manual_seed(99)
        assert torch.equal(samples[17]["pixel_values"], expected)
        (batch,) = DataLoader(Subset(samples, range(17, 18)), num_workers=1)
        assert torch.equal(batch["pixel_values"][0], expected)

    def test_the_same_image_is_augmented_anew_in_each_pass(self, samples: TrainingSamples) -> None:
        name = samples[0]["file_name"]
        again = next(position for position in range(10, 20) if samples[position]["file_name"] == name)
        assert not torch.equal(samples[0]["pixel_values"], samples[again]["pixel_values"])

    def test_drawing_a_sample_leaves_the_random_state_as_it_was(self, samples: TrainingSamples) -> None:
        state = torch.get_rng_state()
        samples[0]
        assert torch.equal(torch.get_rng_state(), state)


class TestSampledVocabulary:
    labels = torch.tensor([[[3, 3, 255], [7, 1, 255]]])
    present = torch.tensor([1, 3, 7])

    def test_ignored_pixels_are_not_a_class(self) -> None:
        assert torch.equal(present_classes(self.labels, 20, 255), self.present)

    def test_it_holds_the_classes_that_occur_and_random_others(self) -> None:
        vocabulary = sample_vocabulary(self.present, 20, (6, 6), seed=[0, 1])
        assert len(vocabulary) == 6
        assert {1, 3, 7} <= set(vocabulary.tolist())
        assert vocabulary.tolist() == sorted(vocabulary.tolist())
        assert not torch.equal(vocabulary, sample_vocabulary(self.present, 20, (6, 6), seed=[0, 2]))

    def test_its_size_is_drawn_between_two_bounds_with_small_ones_as_common_as_large_ones(self) -> None:
        sizes = [len(sample_vocabulary(self.present, 300, (4, 256), seed=[0, step])) for step in range(400)]
        assert min(sizes) < 8
        assert max(sizes) > 128
        assert 0.4 < sum(size < 32 for size in sizes) / len(sizes) < 0.6

    def test_no_class_that_occurs_is_left_out(self) -> None:
        assert sample_vocabulary(self.present, 20, (1, 1), seed=[0]).tolist() == [1, 3, 7]

    def test_labels_become_positions_and_ignored_pixels_stay(self) -> None:
        relabelled = relabel(self.labels, torch.tensor([1, 3, 5, 7]), 20, 255)
        assert relabelled.tolist() == [[[1, 1, 255], [3, 0, 255]]]


def test_a_label_of_another_size_is_refused_by_file() -> None:
    image = {"image": Image.new("RGB", (16, 12)), "label": np.zeros((6, 8), np.uint8), "file_name": "kitchen.jpg"}
    samples = TrainingSamples([image], 1, 0, lambda image, label, rng: (np.asarray(image), label))
    with pytest.raises(ValueError, match="expected a label of the image's size, 16×12 pixels, got 8×6"):
        samples[0]
