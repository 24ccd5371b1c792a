"""Samples by position, sampled vocabularies."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from raw_copies import write_own_data
from torch.utils.data import DataLoader, Subset

from sed_hf.data.prepare import prepare_benchmark
from sed_hf.data.transforms import TrainingTransform
from sed_hf.training.data import TrainingSamples, load_training_data, sample_vocabulary
from sed_hf.training.recipe import Recipe


@pytest.fixture
def samples() -> TrainingSamples:
    """More than three passes over ten images, each of the colour of its number."""
    label = np.zeros((64, 64), np.uint8)
    images = [{"image": Image.new("RGB", (64, 64), (i, i, i)), "label": label, "file_name": str(i)} for i in range(10)]
    return TrainingSamples(images, length=35, seed=3, transform=TrainingTransform(None, 400, 32, True, True, 255))


def test_each_pass_shows_every_image_once_in_an_order_of_its_own(samples: TrainingSamples) -> None:
    passes = [[samples[position]["file_name"] for position in range(start, start + 10)] for start in (0, 10, 20)]
    assert all(sorted(names) == [str(index) for index in range(10)] for names in passes)
    assert passes[0] != passes[1] != passes[2]


def test_a_sample_only_depends_on_its_position_and_leaves_the_random_state(samples: TrainingSamples) -> None:
    expected = samples[17]["pixel_values"]
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(samples[17]["pixel_values"], expected)
    assert torch.equal(torch.get_rng_state(), state)
    (batch,) = DataLoader(Subset(samples, range(17, 18)), num_workers=1)
    assert torch.equal(batch["pixel_values"][0], expected)


def test_the_same_image_is_augmented_anew_in_each_pass(samples: TrainingSamples) -> None:
    name = samples[0]["file_name"]
    again = next(position for position in range(10, 20) if samples[position]["file_name"] == name)
    assert not torch.equal(samples[0]["pixel_values"], samples[again]["pixel_values"])


def test_a_label_of_another_size_is_refused_by_file(samples: TrainingSamples) -> None:
    samples.dataset = [{"image": Image.new("RGB", (8, 6)), "label": np.zeros((3, 4), np.uint8), "file_name": "a.jpg"}]
    with pytest.raises(ValueError, match=r"a\.jpg: the image is \(6, 8\), the label \(3, 4\)"):
        samples[0]


@pytest.mark.parametrize("is_prepared", [False, True])
def test_own_data_is_trained_on_its_split_for_training(is_prepared: bool, tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_own_data(tmp_path, {f"of_{split}": np.zeros((1, 1))}, ["cat"], split)
        if is_prepared:
            prepare_benchmark("custom", tmp_path, tmp_path / "prepared", split)
    data_dir = tmp_path / "prepared" if is_prepared else tmp_path
    recipe = Recipe(output_dir="out", model="start", dataset="custom", data_dir=str(data_dir))
    assert load_training_data(recipe)[0].dataset["file_name"] == ["of_train.jpg"]


class TestSampledVocabulary:
    def sample(self, sizes: tuple[int, int], seed: int = 0, num_classes: int = 20) -> list[int]:
        labels = torch.tensor([[[3, 3, 255], [7, 1, 255]]])
        return sample_vocabulary(labels, num_classes, sizes, ignore_index=255, seed=[0, seed]).tolist()

    def test_it_holds_the_classes_that_occur_and_random_others(self) -> None:
        vocabulary = self.sample((6, 6))
        assert len(set(vocabulary)) == 6
        assert {1, 3, 7} <= set(vocabulary)
        assert vocabulary == sorted(vocabulary) == self.sample((6, 6)) != self.sample((6, 6), seed=1)
        assert self.sample((1, 1)) == [1, 3, 7]

    def test_its_size_is_drawn_between_two_bounds_with_small_ones_as_common_as_large_ones(self) -> None:
        sizes = [len(self.sample((4, 256), seed, num_classes=300)) for seed in range(400)]
        assert min(sizes) < 8
        assert max(sizes) > 128
        assert 0.4 < sum(size < 32 for size in sizes) / len(sizes) < 0.6
