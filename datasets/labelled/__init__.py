"""Labelled scenes of two modalities for pixel classification: files to images, images to patches, pixels to splits.

The passive image is an HSI or MSI, the active one LiDAR or SAR. In files, classes are numbered from 1 and 0 is
unlabelled; a `PatchSet` counts the classes that occur from 0.
"""

from datasets.labelled.layouts import Benchmark, Layout, benchmark_names, find_benchmark
from datasets.labelled.patches import Footprint, Inputs, PatchSet, SceneGrid, scene_patches
from datasets.labelled.protocol import SplitConfig, make_split, split_report, write_split
from datasets.labelled.scenes import LabelledScene, read_scenes
from datasets.labelled.stored_patches import open_patches, stored_patches

__all__ = [
    "Benchmark",
    "Footprint",
    "Inputs",
    "LabelledScene",
    "Layout",
    "PatchSet",
    "SceneGrid",
    "SplitConfig",
    "benchmark_names",
    "find_benchmark",
    "make_split",
    "open_patches",
    "read_scenes",
    "scene_patches",
    "split_report",
    "stored_patches",
    "write_split",
]
