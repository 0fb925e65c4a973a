"""Segmentation with attention: open-vocabulary and unsupervised, its options, attribution methods and masks."""

from seg4diff_tools.segmentation.masks import label_map, merge_maps, minmax, upsample
from seg4diff_tools.segmentation.options import OpenVocabulary, Unsupervised
from seg4diff_tools.segmentation.segment import Segmentation, segment
from seg4diff_tools.segmentation.unsupervised import Grouping, group

__all__ = [
    "Grouping",
    "OpenVocabulary",
    "Segmentation",
    "Unsupervised",
    "group",
    "label_map",
    "merge_maps",
    "minmax",
    "segment",
    "upsample",
]
