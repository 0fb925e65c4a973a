"""Scores on data sets: metrics with intervals, counts of each image, methods side by side, sweeps."""

from seg4diff_tools.evaluation.evaluate import Evaluation, evaluate, read_evaluation
from seg4diff_tools.evaluation.grouping_scores import grouping_scores
from seg4diff_tools.evaluation.metrics import (
    bootstrap,
    bootstrap_miou,
    class_accuracy,
    class_iou,
    confusion,
    interval,
    match,
    match_rows,
    mean_accuracy,
    miou,
    pixel_accuracy,
    table,
)
from seg4diff_tools.evaluation.sweeps import layer_step_sweep, per_image_counts, per_image_scores, read_sweep

__all__ = [
    "Evaluation",
    "bootstrap",
    "bootstrap_miou",
    "class_accuracy",
    "class_iou",
    "confusion",
    "evaluate",
    "grouping_scores",
    "interval",
    "layer_step_sweep",
    "match",
    "match_rows",
    "mean_accuracy",
    "miou",
    "per_image_counts",
    "per_image_scores",
    "pixel_accuracy",
    "read_evaluation",
    "read_sweep",
    "table",
]
