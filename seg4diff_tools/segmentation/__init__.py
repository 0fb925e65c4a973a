"""Segmentation with attention: open-vocabulary and unsupervised, its options, attribution methods and masks."""

from seg4diff_tools.segmentation.attribution import METHODS
from seg4diff_tools.segmentation.masks import label_map, merge_maps, minmax, upsample
from seg4diff_tools.segmentation.options import OpenVocabulary, Unsupervised
from seg4diff_tools.segmentation.results import Segmentation, open_segmentation
from seg4diff_tools.segmentation.segment import segment
from seg4diff_tools.segmentation.unsupervised import Grouping, group

__all__ = [
    "METHODS",
    "Grouping",
    "OpenVocabulary",
    "Segmentation",
    "Unsupervised",
    "group",
    "label_map",
    "merge_maps",
    "minmax",
    "open_segmentation",
    "segment",
    "upsample",
]
