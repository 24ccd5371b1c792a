"""Generated scenes: textured backgrounds with coloured objects, labelled, some of whose classes training never sees."""

from .rendering import SceneDataset, render_scene
from .vocabulary import scene_vocabulary, seen_classes, unseen_classes

__all__ = ["SceneDataset", "render_scene", "scene_vocabulary", "seen_classes", "unseen_classes"]
