"""Score a method by a measure of your own: python examples/own_metric.py --model NAME

A measure is a function of the label map and the truth. This one asks how well outlines are met: of the pixels beside an
outline of the truth, the share that has the right class.
"""

import argparse

import numpy as np

from seg4diff_tools import OpenVocabulary, evaluate, load_backbone, scenes

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="mini")
parser.add_argument("--limit", type=int, default=8)
options = parser.parse_args()


def outline_accuracy(label_map, truth):
    beside = np.zeros(truth.shape, bool)
    for axis in (0, 1):
        changes = np.diff(truth, axis=axis) != 0
        for end in ((1, 0), (0, 1)):
            beside |= np.pad(changes, [end if each == axis else (0, 0) for each in (0, 1)])
    beside &= truth != 255
    return float((label_map == truth)[beside].mean()) if beside.any() else float("nan")


methods = {"bilinear": OpenVocabulary(), "guided": OpenVocabulary(upsampling="guided")}
samples = scenes.Scenes("test", options.limit)
result = evaluate(
    load_backbone(options.model), samples, methods, metrics={"outlines": outline_accuracy}, progress=False
)
print(result.table()[["method", "mIoU", "outlines"]].round(3).to_string(index=False))
