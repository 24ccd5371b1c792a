"""Generated scenes: textured backgrounds with coloured objects, labelled, some of whose classes training never sees."""

from sed_hf.data.scenes.dataset import SceneDataset
from sed_hf.data.scenes.rendering import render_scene
from sed_hf.data.scenes.vocabulary import scene_vocabulary, seen_classes, unseen_classes

__all__ = ["SceneDataset", "render_scene", "scene_vocabulary", "seen_classes", "unseen_classes"]
