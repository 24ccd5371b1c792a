"""The bundled toy model: what the commands take when no model is given."""

import torch

from sed_hf.data.scenes import SceneDataset, scene_vocabulary, unseen_classes
from sed_hf.data.scenes.model import build_scene_model
from sed_hf.hub.load import TOY_MODEL, load


def test_it_fits_into_12_megabytes() -> None:
    assert sum(path.stat().st_size for path in TOY_MODEL.iterdir()) <= 12e6


def test_it_is_trained_from_what_sed_hf_init_scenes_writes() -> None:
    (model, processor), (start, start_processor) = load(), build_scene_model()
    start.load_state_dict(model.state_dict())
    assert len(start_processor.tokenizer) == len(processor.tokenizer)
    assert start_processor.prompt_templates == processor.prompt_templates
    assert start_processor.image_processor.input_size == processor.image_processor.input_size


@torch.no_grad()
def test_it_finds_compositions_it_was_never_shown() -> None:
    """Of the pixels of unseen compositions in 10 scenes, among the names of all 104 classes."""
    model, processor = load()
    class_embeddings = model.get_class_embeddings(**processor(text=scene_vocabulary()))
    right, pixels = 0, 0
    for scene in SceneDataset("test", 10):
        outputs = model(**processor(images=scene["image"]), class_embeddings=class_embeddings)
        segmentation = processor.post_process_semantic_segmentation(outputs, target_sizes=[scene["label"].shape])[0]
        unseen = scene["label"] >= len(scene_vocabulary()) - len(unseen_classes())
        right += int((segmentation.numpy()[unseen] == scene["label"][unseen]).sum())
        pixels += int(unseen.sum())
    assert right / pixels > 0.5
