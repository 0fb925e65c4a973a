"""Scores on data sets: evaluations and sweeps, comparisons, metrics with intervals."""

from seg4diff_tools.evaluation.comparison import compare
from seg4diff_tools.evaluation.evaluate import evaluate
from seg4diff_tools.evaluation.grouping_scores import grouping_scores
from seg4diff_tools.evaluation.metrics import (
    class_accuracy,
    class_iou,
    confusion,
    interval,
    leave_one_out,
    margins,
    match,
    match_rows,
    mean_accuracy,
    miou,
    pixel_accuracy,
    score,
    table,
    verdict,
)
from seg4diff_tools.evaluation.results import SCORES, Evaluation
from seg4diff_tools.evaluation.runs import read_evaluation
from seg4diff_tools.evaluation.sweeps import layer_step_sweep

__all__ = [
    "SCORES",
    "Evaluation",
    "class_accuracy",
    "class_iou",
    "compare",
    "confusion",
    "evaluate",
    "grouping_scores",
    "interval",
    "layer_step_sweep",
    "leave_one_out",
    "margins",
    "match",
    "match_rows",
    "mean_accuracy",
    "miou",
    "pixel_accuracy",
    "read_evaluation",
    "score",
    "table",
    "verdict",
]
