"""Data sets of images with label maps or masks: index PNGs, published benchmarks, COCO's formats, SA-1B."""

from seg4diff_tools.datasets.benchmarks import BENCHMARKS, Benchmark, published
from seg4diff_tools.datasets.coco import CocoInstances, CocoPanoptic, coco_panoptic
from seg4diff_tools.datasets.folders import Folder, folder
from seg4diff_tools.datasets.samples import IGNORE, LabeledImage, Renamed, Sample, background_of, renamed
from seg4diff_tools.datasets.segment_anything import Sa1b, sa1b
from seg4diff_tools.datasets.synonyms import SYNONYMS

__all__ = [
    "BENCHMARKS",
    "IGNORE",
    "SYNONYMS",
    "Benchmark",
    "CocoInstances",
    "CocoPanoptic",
    "Folder",
    "LabeledImage",
    "Renamed",
    "Sa1b",
    "Sample",
    "background_of",
    "coco_panoptic",
    "folder",
    "published",
    "renamed",
    "sa1b",
]
