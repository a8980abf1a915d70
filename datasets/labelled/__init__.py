"""Labelled images: described by one small YAML file, found, read, augmented, surveyed, and split.

`Tiles` are many images with a label map each; a `PatchSet` holds the labelled pixels of a few scenes. In scenes, classes
are numbered from 1 and 0 is unlabelled; a `PatchSet` counts the classes that occur from 0.
"""

from datasets.labelled.description import LabelledSet, Layout
from datasets.labelled.parse import find_set, set_names, write_set
from datasets.labelled.patches import Footprint, Inputs, PatchSet, SceneGrid, scene_patches
from datasets.labelled.protocol import SplitConfig, make_split, split_report, write_split
from datasets.labelled.scenes import LabelledScene, read_scenes
from datasets.labelled.stored_patches import open_patches, stored_patches
from datasets.labelled.tiles import Sample, Tiles

__all__ = [
    "Footprint",
    "Inputs",
    "LabelledScene",
    "LabelledSet",
    "Layout",
    "PatchSet",
    "Sample",
    "SceneGrid",
    "SplitConfig",
    "Tiles",
    "find_set",
    "make_split",
    "open_patches",
    "read_scenes",
    "scene_patches",
    "set_names",
    "split_report",
    "stored_patches",
    "write_set",
    "write_split",
]
