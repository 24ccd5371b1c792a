"""Augmentation, samples by position, sampled vocabularies."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision import tv_tensors

from sed_hf.data.transforms import BrightnessShift, training_transform
from sed_hf.training.data import TrainingSamples, relabel, sample_vocabulary


def transform_pair(height: int, width: int, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Augment a picture whose red channel equals its label."""
    values = {"shortest_edge": None, "longest_edge": 400, "crop_size": 64, "color_jitter": False}
    values |= {"horizontal_flip": False, "ignore_index": 255, **settings}
    label = torch.arange(height * width).reshape(height, width) % 100
    image = torch.stack([label, label, label]).to(torch.uint8)
    return training_transform(**values)(tv_tensors.Image(image), tv_tensors.Mask(label))


class TestAugmentation:
    @pytest.mark.parametrize("flip", [False, True])
    def test_picture_and_label_are_cropped_and_flipped_together(self, flip: bool) -> None:
        torch.manual_seed(0)
        for _ in range(4):
            image, label = transform_pair(80, 100, horizontal_flip=flip)
            assert image.shape == (3, 64, 64)
            assert torch.equal(image[0].long(), label.long())

    def test_small_pictures_are_padded_right_and_below(self) -> None:
        image, label = transform_pair(40, 50)
        assert (image[:, 40:] == 128).all()
        assert (image[:, :, 50:] == 128).all()
        assert (label[40:] == 255).all()
        assert (label[:, 50:] == 255).all()
        assert torch.equal(image[0, :40, :50].long(), label[:40, :50].long())

    @pytest.mark.parametrize(("size", "expected"), [((50, 75), (64, 96)), ((10, 100), (40, 400))])
    def test_shortest_side_is_resized_up_to_the_cap(self, size: tuple[int, int], expected: tuple[int, int]) -> None:
        _, label = transform_pair(*size, shortest_edge=64, crop_size=416)
        occupied = label != 255
        assert (int(occupied.any(1).sum()), int(occupied.any(0).sum())) == expected
        assert set(label.unique().tolist()) <= {*range(100), 255}

    def test_brightness_moves_all_values_by_one_number_of_at_most_32(self) -> None:
        torch.manual_seed(0)
        image = tv_tensors.Image(torch.full((3, 8, 8), 100, dtype=torch.uint8))
        shifts = {int(BrightnessShift(32)(image).int().unique().item()) - 100 for _ in range(200)}
        assert min(shifts) >= -32
        assert max(shifts) <= 32
        assert max(shifts) - min(shifts) > 50

    def test_color_jitter_changes_colours_half_of_the_time_each_and_no_label(self) -> None:
        torch.manual_seed(0)
        label = tv_tensors.Mask(torch.arange(64 * 64).reshape(64, 64) % 7)
        image = tv_tensors.Image(torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8))
        transform = training_transform(None, 400, 64, True, False, 255)
        results = [transform(image, label) for _ in range(60)]
        unchanged = sum(torch.equal(jittered, image) for jittered, _ in results)
        assert 0 < unchanged < 15  # 1 in 16
        assert all(torch.equal(labels, label) for _, labels in results)


class Numbered:
    """Ten pictures, each of the colour of its number."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = np.full((64, 64, 3), index, dtype=np.uint8)
        return {"image": Image.fromarray(pixels), "label": np.full((64, 64), index), "file_name": str(index)}


@pytest.fixture
def samples() -> TrainingSamples:
    transform = training_transform(None, 400, 32, True, True, 255)
    return TrainingSamples(Numbered(), length=35, seed=3, transform=transform)


class TestSamples:
    def test_each_pass_shows_every_picture_once_in_an_order_of_its_own(self, samples: TrainingSamples) -> None:
        passes = [[samples[position]["file_name"] for position in range(start, start + 10)] for start in (0, 10, 20)]
        assert all(sorted(names) == [str(index) for index in range(10)] for names in passes)
        assert passes[0] != passes[1] != passes[2]

    def test_a_sample_depends_on_its_position_alone(self, samples: TrainingSamples) -> None:
        expected = samples[17]["pixel_values"]
        torch.manual_seed(99)
        assert torch.equal(samples[17]["pixel_values"], expected)
        (batch,) = DataLoader(Subset(samples, range(17, 18)), num_workers=1)
        assert torch.equal(batch["pixel_values"][0], expected)

    def test_the_same_picture_is_augmented_anew_in_each_pass(self, samples: TrainingSamples) -> None:
        name = samples[0]["file_name"]
        again = next(position for position in range(10, 20) if samples[position]["file_name"] == name)
        assert not torch.equal(samples[0]["pixel_values"], samples[again]["pixel_values"])

    def test_drawing_a_sample_leaves_the_random_state_alone(self, samples: TrainingSamples) -> None:
        state = torch.get_rng_state()
        samples[0]
        assert torch.equal(torch.get_rng_state(), state)


class TestSampledVocabulary:
    labels = torch.tensor([[[3, 3, 255], [7, 1, 255]]])

    def test_it_holds_the_classes_that_occur_and_random_others(self) -> None:
        vocabulary = sample_vocabulary(self.labels, 20, (6, 6), 255, seed=[0, 1])
        assert len(vocabulary) == 6
        assert {1, 3, 7} <= set(vocabulary.tolist())
        assert vocabulary.tolist() == sorted(vocabulary.tolist())
        assert not torch.equal(vocabulary, sample_vocabulary(self.labels, 20, (6, 6), 255, seed=[0, 2]))

    def test_its_size_is_drawn_between_two_bounds_with_small_ones_as_common_as_large_ones(self) -> None:
        sizes = [len(sample_vocabulary(self.labels, 300, (4, 256), 255, seed=[0, step])) for step in range(400)]
        assert min(sizes) < 8
        assert max(sizes) > 128
        assert 0.4 < sum(size < 32 for size in sizes) / len(sizes) < 0.6

    def test_no_class_that_occurs_is_left_out(self) -> None:
        assert sample_vocabulary(self.labels, 20, (1, 1), 255, seed=[0]).tolist() == [1, 3, 7]

    def test_labels_become_positions_and_ignored_pixels_stay(self) -> None:
        relabelled = relabel(self.labels, torch.tensor([1, 3, 5, 7]), 20, 255)
        assert relabelled.tolist() == [[[1, 1, 255], [3, 0, 255]]]


def test_a_label_of_another_size_is_refused_by_file() -> None:
    picture = {"image": Image.new("RGB", (16, 12)), "label": np.zeros((6, 8), np.uint8), "file_name": "kitchen.jpg"}
    samples = TrainingSamples([picture], 1, 0, lambda image, label: (image, label))
    with pytest.raises(ValueError, match="expected a label of the picture's size, 16×12 pixels, got 8×6"):
        samples[0]
