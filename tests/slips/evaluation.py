"""Slips with evaluation: `evaluate`, sweeps, results, comparisons and metrics."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from seg4diff_tools import evaluation as typed
from seg4diff_tools.datasets import LabeledImage
from seg4diff_tools.segmentation import OpenVocabulary, Unsupervised

# untyped, as slips are wrong types
evaluation: Any = typed
IMAGE, TRUTH = np.zeros((56, 56, 3), np.uint8), np.repeat([0, 1], 28)[None].repeat(56, 0)
SAMPLE = LabeledImage(IMAGE, ("cat", "grass"), TRUTH, background=("grass",))
OPEN = OpenVocabulary(layers=1)
LABELS, COUNTS = torch.from_numpy(TRUTH), torch.tensor([[3, 1], [0, 2]])


def _evaluate(**changes: Any) -> Callable[[Any], Any]:
    asked = {"samples": [SAMPLE], "methods": OPEN, "progress": False} | changes
    return lambda backbone: evaluation.evaluate(**{"model": backbone} | asked)


def _sweep(**changes: Any) -> Callable[[Any], Any]:
    asked = {"samples": [SAMPLE], "layers": 1, "progress": False} | changes
    return lambda backbone: evaluation.layer_step_sweep(**{"model": backbone} | asked)


def _failing(labels: Any, truth: Any) -> float:
    raise KeyError("x")


@cache
def _evaluated(backbone: Any) -> Any:
    return evaluation.evaluate(backbone, [SAMPLE] * 2, OPEN, progress=False)


def _result(call: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A call of a method of an `Evaluation`."""
    return lambda backbone: call(_evaluated(backbone))


SLIPS: list[tuple[str, Callable[[Any], Any], str]] = [
    (
        "model",
        _evaluate(model=3),
        r"a model \(a backbone, a diffusers pipeline.*, got int.*: pass load_backbone\('mini'\),",
    ),
    (
        "samples-text",
        _evaluate(samples="scenes"),
        r"samples, a list or data set of images with.*, got a str.*: pass Scenes\('test',",
    ),
    (
        "samples-none",
        _evaluate(samples=None),
        r"samples, a list or data set of images with.*, got a NoneType.*: pass Scenes\('test',",
    ),
    ("samples-empty", _evaluate(samples=[]), "at least one sample, got 0 samples: pass images"),
    (
        "samples-gen",
        _evaluate(samples=(s for s in [SAMPLE])),
        r"samples, a list or data set of images with.*, got a generator.*: pass Scenes\('test',",
    ),
    (
        "samples-set",
        _evaluate(samples={1, 2}),
        r"samples, a list or data set of images with.*, got a set.*: pass Scenes\('test',",
    ),
    (
        "samples-images",
        _evaluate(samples=[IMAGE]),
        "samples with image, label_map and.*, got a ndarray.*: pass LabeledImage",
    ),
    (
        "samples-single",
        _evaluate(samples=SAMPLE),
        r"samples, a list or data set of images with.*, got a LabeledImage.*: pass Scenes\('test',",
    ),
    (
        "samples-array",
        _evaluate(samples=IMAGE),
        "samples with image, label_map and.*, got a ndarray.*: pass LabeledImage",
    ),
    (
        "samples-tensor",
        _evaluate(samples=torch.zeros(2, 3)),
        r"samples that can be read, got none among 2: \{0:.*: make a",
    ),
    ("methods-text", _evaluate(methods="layer"), "methods, at least one, as options by name, got 'layer': pass"),
    (
        "methods-list",
        _evaluate(methods=[OPEN]),
        r"methods, at least one, as options by name, got \[OpenVocabulary\(meth",
    ),
    ("methods-empty", _evaluate(methods={}), r"methods, at least one, as options by name, got \{\}: pass \{'name':"),
    (
        "methods-dict",
        _evaluate(methods={"a": {"layers": 1}}),
        r"methods, at least one, as options by name, got \{'a': \{'layers':",
    ),
    ("methods-key", _evaluate(methods={1: OPEN}), r"methods, at least one, as options by name, got \{1:"),
    (
        "methods-expert",
        _evaluate(methods=OpenVocabulary()),
        "a model whose expert layer is known, got .*: pass layers=0",
    ),
    ("methods-layer9", _evaluate(methods=OpenVocabulary(layers=9)), "layers from 0 to 4, got 9: choose one"),
    (
        "protocol",
        _evaluate(protocol="all"),
        "protocol from present, full, each one once, got 'all': pass protocol='present'",
    ),
    (
        "protocol-none",
        _evaluate(protocol=None),
        "protocol from present, full, each one once, got None: pass protocol='present'",
    ),
    (
        "protocol-empty",
        _evaluate(protocol=[]),
        r"protocol from present, full, each one once, got \[\]: pass protocol='present'",
    ),
    (
        "protocol-num",
        _evaluate(protocol=3),
        "protocol from present, full, each one once, got 3: pass protocol='present'",
    ),
    (
        "protocol-twice",
        _evaluate(protocol=["present", "present"]),
        r"protocol from present, full, each one once, got \['present', 'present'\]: pass protocol='present'",
    ),
    (
        "protocol-unhash",
        _evaluate(protocol=[["present"]]),
        r"protocol from present, full, each one once, got \[\['present'\]\]: pass protocol='present'",
    ),
    (
        "vocab-text",
        _evaluate(protocol="full", vocabulary="cat grass"),
        r"vocabulary as a list of names, got 'cat grass': pass vocabulary=\['cat',",
    ),
    (
        "vocab-missing",
        _evaluate(protocol="full"),
        r"the vocabulary of protocol 'full', got samples without.*: pass vocabulary=\[\.\.\.\]",
    ),
    (
        "vocab-other",
        _evaluate(protocol="full", vocabulary=["cat"]),
        r"every class in the vocabulary, got \['grass'\] outside it: add them",
    ),
    ("vocab-num", _evaluate(vocabulary=3), r"vocabulary as a list of names, got 3: pass vocabulary=\['cat',"),
    (
        "vocab-twice",
        _evaluate(vocabulary=["cat", "cat"]),
        r"vocabulary, each one once, got \['cat'\] given twice: name each",
    ),
    ("vocab-empty", _evaluate(vocabulary=[]), r"vocabulary, at least one name, got none: pass vocabulary=\['cat',"),
    ("metrics-list", _evaluate(metrics=[len]), r"metrics as a dict of functions, got \[<built-in function"),
    ("metrics-nonfn", _evaluate(metrics={"a": 3}), r"metrics as a dict of functions, got \{'a': 3\}: pass"),
    ("metrics-name", _evaluate(metrics={3: len}), "keys of metrics as a list of names, got 3 in it: pass keys"),
    ("metrics-blank", _evaluate(metrics={"": len}), "keys of metrics as a list of names, got '' in it: pass keys"),
    (
        "metrics-score",
        _evaluate(metrics={"mIoU": lambda a, b: 1.0}),
        r"keys of metrics that are no score, got \{'mIoU'\}: choose another",
    ),
    (
        "metrics-raises",
        _evaluate(metrics={"a": _failing}),
        r"a number from metrics\['a'\] for sample 0, got KeyError: 'x':",
    ),
    (
        "metrics-args",
        _evaluate(metrics={"a": lambda x: 1.0}),
        r"a number from metrics\['a'\] for sample 0, got TypeError:",
    ),
    (
        "metrics-text",
        _evaluate(metrics={"a": lambda x, y: "b"}),
        r"a number from metrics\['a'\] for sample 0, got ValueError: could",
    ),
    (
        "metrics-none",
        _evaluate(metrics={"a": lambda x, y: None}),
        r"a number from metrics\['a'\] for sample 0, got TypeError: float\(\)",
    ),
    (
        "metrics-array",
        _evaluate(metrics={"a": lambda x, y: np.ones(3)}),
        r"a number from metrics\['a'\] for sample 0, got TypeError: only",
    ),
    (
        "metrics-complex",
        _evaluate(metrics={"a": lambda x, y: 1j}),
        r"a number from metrics\['a'\] for sample 0, got TypeError: float\(\)",
    ),
    (
        "metrics-tensor",
        _evaluate(metrics={"a": lambda x, y: torch.ones(2)}),
        r"a number from metrics\['a'\] for sample 0, got ValueError: only",
    ),
    ("metrics-fnonly", _evaluate(metrics=len), "metrics as a dict of functions, got <built-in function"),
    ("out-num", _evaluate(out=3), "out as text or a Path, got 3: pass out='folder/file'"),
    ("out-file", _evaluate(out=__file__), "a folder for an evaluation, got the file .*: choose another"),
    ("out-other", _evaluate(out="tests"), "an empty folder or that of an evaluation, got tests: choose another"),
    ("out-empty", _evaluate(out=""), "out as text or a Path, got '': pass out='folder/file'"),
    ("limit-0", _evaluate(limit=0), "limit 1 or more, got 0: choose one"),
    ("limit-text", _evaluate(limit="2"), "limit, a whole number 1 or more, got '2': pass limit=1"),
    ("limit-float", _evaluate(limit=2.0), r"limit, a whole number 1 or more, got 2\.0: pass limit=1"),
    ("shuffle", _evaluate(shuffle_seed=-1), "shuffle_seed 0 or more, got -1: choose one"),
    (
        "shuffle-text",
        _evaluate(shuffle_seed="a"),
        "shuffle_seed, a whole number 0 or more, got 'a': pass shuffle_seed=0",
    ),
    ("batch", _evaluate(batch=0), "batch 1 or more, got 0: choose one"),
    ("memory", _evaluate(memory_budget="2GB"), "memory_budget, a whole number"),
    (
        "memory-small",
        _evaluate(memory_budget=9),
        "memory_budget=9 .9 bytes., got encoding an image, about",
    ),
    ("batch-none", _evaluate(batch=None), "batch, a whole number 1 or more, got None: pass batch=1"),
    ("about", _evaluate(about=3), "about as a dict for JSON, got 3: pass"),
    ("about-list", _evaluate(about=["x"]), r"about as a dict for JSON, got \['x'\]: pass"),
    ("about-unjson", _evaluate(about={"a": object()}), r"about as a dict for JSON, got \{'a': <object"),
    (
        "about-unjson-out",
        _evaluate(about={"a": object()}, out="nowhere"),
        r"about as a dict for JSON, got \{'a': <object",
    ),
    (
        "sw-model",
        _sweep(model=None),
        r"a model \(a backbone, a diffusers pipeline.*, got NoneType.*: pass load_backbone\('mini'\),",
    ),
    ("sw-samples", _sweep(samples=[]), "at least one sample, got 0 samples: pass images"),
    ("sw-options", _sweep(options=4), r"options, an OpenVocabulary, got 4: pass options=OpenVocabulary\("),
    (
        "sw-unsup",
        _sweep(options=Unsupervised()),
        r"options, an OpenVocabulary, got Unsupervised: pass options=OpenVocabulary\(",
    ),
    (
        "sw-optother",
        _sweep(options=OpenVocabulary(tiles=2)),
        r"options of a sweep \(steps, seeds,.*, got tiles too.*: pass layers,",
    ),
    ("sw-layers", _sweep(layers=9), "layers from 0 to 4, got 9: choose one"),
    ("sw-layers-text", _sweep(layers="x"), "layers, one of 'expert', got 'x': pass 'expert',"),
    ("sw-layers-f", _sweep(layers=1.5), r"layers, a whole number 0 or more, got 1\.5: pass layers=0"),
    ("sw-steps", _sweep(steps_from_end=0), "steps_from_end from 1 to 28, got 0: choose one"),
    ("sw-steps99", _sweep(steps_from_end=99), "steps_from_end from 1 to 28, got 99: choose one"),
    ("sw-steps-text", _sweep(steps_from_end="8"), "steps_from_end as numbers, got '8': pass steps_from_end=1"),
    (
        "sw-steps-empty",
        _sweep(steps_from_end=[]),
        r"steps_from_end, at least one and each one.*, got \[\].*: name each",
    ),
    (
        "sw-steps-none",
        _sweep(steps_from_end=None),
        "steps_from_end, a whole number from 1 to 28, got None: pass steps_from_end=1",
    ),
    ("sw-heads", _sweep(heads="first"), "heads as numbers, got 'first': pass heads=0"),
    ("sw-heads9", _sweep(heads=9), "heads from 0 to 2, got 9: choose one"),
    ("sw-heads-mm", _sweep(heads=["mean", "mean"]), r"heads, each one once, got \['mean', 'mean'\]: name 'mean'"),
    ("sw-heads-none", _sweep(heads=None), "heads, a whole number from 0 to 2, got None: pass heads=0"),
    ("sw-heads-mix", _sweep(heads=["mean", "x"]), "heads, a whole number from 0 to 2, got 'x': pass heads=0"),
    ("sw-dir", _sweep(directions="i2i"), "directions from i2t, t2i, each one once, got 'i2i': pass directions='i2t'"),
    ("sw-dir-n", _sweep(directions=None), "directions from i2t, t2i, each one once, got None: pass directions='i2t'"),
    ("sw-dir-e", _sweep(directions=[]), r"directions from i2t, t2i, each one once, got \[\]: pass directions='i2t'"),
    (
        "sw-dir-unhash",
        _sweep(directions=[["i2t"]]),
        r"directions from i2t, t2i, each one once, got \[\['i2t'\]\]: pass directions='i2t'",
    ),
    (
        "sw-norm",
        _sweep(normalize="sigmoid"),
        r"normalize from softmax, softmax\+minmax,.*, got 'sigmoid'.*: pass normalize='softmax'",
    ),
    (
        "sw-norm-d",
        _sweep(normalize=["softmax", "softmax"]),
        r"normalize from softmax, softmax\+minmax,.*, got \['softmax', 'softmax'\].*: pass normalize='softmax'",
    ),
    ("sw-vocab", _sweep(vocabulary="cat"), r"vocabulary as a list of names, got 'cat': pass vocabulary=\['cat',"),
    (
        "sw-vocab-miss",
        _sweep(vocabulary=["cat"]),
        r"every class in the vocabulary, got \['grass'\] outside it: add them",
    ),
    ("sw-out", _sweep(out=3), "out as text or a Path, got 3: pass out='folder/file'"),
    ("sw-memory", _sweep(memory_budget="2GB"), "memory_budget, a whole number"),
    (
        "sw-memory-small",
        _sweep(memory_budget=9),
        "memory_budget=9 .9 bytes., got the maps of an image and",
    ),
    ("sw-batch", _sweep(batch="8"), "batch, a whole number 1 or more, got '8': pass batch=1"),
    (
        "read-none",
        lambda b: evaluation.read_evaluation(None),
        "out as text or a Path, got None: pass out='folder/file'",
    ),
    (
        "read-missing",
        lambda b: evaluation.read_evaluation("nowhere"),
        "the folder of an evaluation, got nowhere, without.*: check the",
    ),
    ("read-file", lambda b: evaluation.read_evaluation(__file__), "the folder of an evaluation, got .*: check the"),
    (
        "read-folder",
        lambda b: evaluation.read_evaluation("tests"),
        "the folder of an evaluation, got tests, without.*: check the",
    ),
    (
        "t-score",
        _result(lambda r: r.table("miou")),
        "score, one of 'pACC', 'mACC', 'mIoU',.*, got 'miou'.*: pass score='mIoU'",
    ),
    ("t-score-n", _result(lambda r: r.table(3)), "score, one of 'pACC', 'mACC', 'mIoU',.*, got 3.*: pass score='mIoU'"),
    (
        "t-score-l",
        _result(lambda r: r.table(["mIoU"])),
        r"score, one of 'pACC', 'mACC', 'mIoU',.*, got \['mIoU'\].*: pass score='mIoU'",
    ),
    ("t-level", _result(lambda r: r.table(level=95)), r"level, a share between 0 and 1, got 95: pass level=0\.95"),
    (
        "t-level-t",
        _result(lambda r: r.table(level="0.9")),
        r"level, a share between 0 and 1, got '0\.9': pass level=0\.95",
    ),
    ("t-ref", _result(lambda r: r.table(reference="x")), "one row, got 0 for 'x': choose one"),
    ("t-ref-n", _result(lambda r: r.table(reference=7)), "a row by method, protocol, got 7: pass a dict such"),
    ("t-ref-neg", _result(lambda r: r.table(reference=-1)), "a row by method, protocol, got -1: pass a dict"),
    ("t-ref-f", _result(lambda r: r.table(reference=1.5)), r"a row by method, protocol, got 1\.5: pass a dict"),
    (
        "t-ref-d",
        _result(lambda r: r.table(reference={"layer": 4})),
        r"a row by method, protocol, got \{'layer': 4\}: pass",
    ),
    (
        "t-ref-long",
        _result(lambda r: r.table(reference=("Seg4Diff", "present", "x"))),
        r"a row by method, protocol, got \('Seg4Diff',",
    ),
    (
        "t-sim",
        _result(lambda r: r.table(simultaneous="no")),
        "simultaneous, one of False, True, got 'no': pass simultaneous=False",
    ),
    ("v-row", _result(lambda r: r.verdict("a", "b")), "one row, got 0 for 'a': choose one"),
    (
        "v-score",
        _result(lambda r: r.verdict(0, 0, "x")),
        "score, one of 'pACC', 'mACC', 'mIoU',.*, got 'x'.*: pass score='mIoU'",
    ),
    ("v-comp", _result(lambda r: r.verdict(0, 0, comparisons=0)), "comparisons 1 or more, got 0: choose one"),
    (
        "v-unhash",
        _result(lambda r: r.verdict({"method": ["a"]}, 0)),
        r"one row, got 0 for \{'method': \['a'\]\}: choose one",
    ),
    ("left-score", _result(lambda r: r.leave_one_out("miou")), "score, one of 'pACC'"),
    ("left-image", _result(lambda r: r.leave_one_out(images=[99])), "images .*99"),
    ("sel-column", _result(lambda r: r.sel(depth=3)), "a column, one of 'method', 'protocol', got 'depth': pass sel"),
    ("sel-value", _result(lambda r: r.sel(method="x")), "method from .*, got 'x': pass method="),
    ("sel-none", _result(lambda r: r.sel(method=[])), "rows with .*, got none: ask for values"),
    ("c-row", _result(lambda r: r.confusion("x")), "one row, got 0 for 'x': choose one"),
    (
        "c-row-arr",
        _result(lambda r: r.confusion(np.arange(2))),
        r"a row by method, protocol, got array\(\[0, 1\]\): pass",
    ),
    ("c-ts", _result(lambda r: r.confusion({"method": np.arange(2)})), r"one row, got 0 for \{'method':.*: choose one"),
    ("cmp-type", _result(lambda r: evaluation.compare(r, 3)), "b, an Evaluation, got 3: pass what"),
    ("cmp-table", _result(lambda r: evaluation.compare(r.table(), r)), "a, an Evaluation, got DataFrame: pass what"),
    (
        "cmp-score",
        _result(lambda r: evaluation.compare(r, r, "miou")),
        "score, one of 'pACC', 'mACC', 'mIoU',.*, got 'miou'.*: pass score='mIoU'",
    ),
    (
        "cmp-level",
        _result(lambda r: evaluation.compare(r, r, level=0)),
        r"level, a share between 0 and 1, got 0: pass level=0\.95",
    ),
    (
        "cmp-names-text",
        _result(lambda r: evaluation.compare(r, r, names="ab")),
        r"names as a list of names, got 'ab': pass names=\('mine',",
    ),
    (
        "cmp-names-one",
        _result(lambda r: evaluation.compare(r, r, names=["a"])),
        r"names, one for a and one for b, got \['a'\]: pass names=\('mine',",
    ),
    (
        "cmp-names-three",
        _result(lambda r: evaluation.compare(r, r, names=["a", "b", "c"])),
        r"names, one for a and one for b, got \['a', 'b', 'c'\]: pass names=\('mine',",
    ),
    (
        "cmp-names-num",
        _result(lambda r: evaluation.compare(r, r, names=(1, 2))),
        r"names as a list of names, got 1 in it: pass names=\('mine',",
    ),
    (
        "cmp-names-same",
        _result(lambda r: evaluation.compare(r, r, names=("a", "a"))),
        r"names, each one once, got \['a'\] given twice: name each",
    ),
    (
        "cmp-names-n",
        _result(lambda r: evaluation.compare(r, r, names=3)),
        r"names as a list of names, got 3: pass names=\('mine',",
    ),
    (
        "cmp-names-e",
        _result(lambda r: evaluation.compare(r, r, names=())),
        r"names, at least one name, got none: pass names=\('mine',",
    ),
    (
        "cmp-sim",
        _result(lambda r: evaluation.compare(r, r, simultaneous="a")),
        "simultaneous, one of False, True, got 'a': pass simultaneous=False",
    ),
    (
        "conf-type",
        lambda b: evaluation.confusion(TRUTH, LABELS, 2),
        r"prediction, an Integer\[Tensor, '\*_ _ _'\], got ndarray of int64.*: pass class",
    ),
    (
        "conf-list",
        lambda b: evaluation.confusion([[0]], [[0]], 2),
        r"prediction, an Integer\[Tensor, '\*_ _ _'\], got \[\[0\]\]: pass class",
    ),
    (
        "conf-target",
        lambda b: evaluation.confusion(LABELS, TRUTH, 2),
        r"target, an Integer\[Tensor, '_ _'\], got ndarray of int64.*: pass class",
    ),
    (
        "conf-size",
        lambda b: evaluation.confusion(LABELS, LABELS[1:], 2),
        r"a prediction of the label map's size \(55,.*, got \(56, 56\).*: segment the",
    ),
    (
        "conf-float",
        lambda b: evaluation.confusion(LABELS.float(), LABELS, 2),
        r"prediction, an Integer\[Tensor, '\*_ _ _'\], got Tensor of.*: pass class",
    ),
    (
        "conf-floatt",
        lambda b: evaluation.confusion(LABELS, LABELS.float(), 2),
        r"target, an Integer\[Tensor, '_ _'\], got Tensor of.*: pass class",
    ),
    (
        "conf-classes",
        lambda b: evaluation.confusion(LABELS, LABELS, 1),
        "labels from 0 to 0, or 255 for pixels to.*, got 0 to 1.*: give one",
    ),
    ("conf-classes0", lambda b: evaluation.confusion(LABELS, LABELS, 0), "classes 1 or more, got 0: choose one"),
    (
        "conf-classes-f",
        lambda b: evaluation.confusion(LABELS, LABELS, 2.0),
        r"classes, a whole number 1 or more, got 2\.0: pass classes=1",
    ),
    (
        "conf-classes-n",
        lambda b: evaluation.confusion(LABELS, LABELS, ["cat", "dog"]),
        r"classes, a whole number 1 or more, got \['cat', 'dog'\]: pass classes=1",
    ),
    (
        "conf-pred",
        lambda b: evaluation.confusion(LABELS + 5, LABELS, 2),
        "predicted classes from 0 to 1, got 5 to 6: predict with",
    ),
    (
        "conf-ignore",
        lambda b: evaluation.confusion(LABELS, LABELS, 2, ignore=None),
        "ignore, a whole number from -2147483648 to.*, got None.*: pass ignore=-2147483648",
    ),
    (
        "conf-dim",
        lambda b: evaluation.confusion(LABELS[0], LABELS, 2),
        r"prediction, an Integer\[Tensor, '\*_ _ _'\], got Tensor of.*: pass class",
    ),
    (
        "conf-target3",
        lambda b: evaluation.confusion(LABELS[None], LABELS[None], 2),
        r"target, an Integer\[Tensor, '_ _'\], got Tensor of.*: pass class",
    ),
    (
        "match-type",
        lambda b: evaluation.match(TRUTH, LABELS, 2),
        r"groups, an Integer\[Tensor, '_ _'\], got ndarray of int64.*: pass numbers",
    ),
    (
        "match-size",
        lambda b: evaluation.match(LABELS, LABELS[1:], 2),
        "groups and target of one size, not empty, got Tensor of.*: pass label",
    ),
    (
        "match-neg",
        lambda b: evaluation.match(LABELS - 1, LABELS, 2),
        "predicted classes from 0 to 1, got -1 to 0: predict with",
    ),
    (
        "match-float",
        lambda b: evaluation.match(LABELS.float(), LABELS, 2),
        r"groups, an Integer\[Tensor, '_ _'\], got Tensor of.*: pass numbers",
    ),
    (
        "match-classes",
        lambda b: evaluation.match(LABELS, LABELS, "2"),
        "classes, a whole number 1 or more, got '2': pass classes=1",
    ),
    (
        "match-empty",
        lambda b: evaluation.match(LABELS[:0], LABELS[:0], 2),
        "groups and target of one size, not empty, got Tensor of.*: pass label",
    ),
    (
        "match-ignore",
        lambda b: evaluation.match(LABELS, LABELS, 2, "x"),
        "ignore, a whole number from -2147483648 to.*, got 'x'.*: pass ignore=-2147483648",
    ),
    (
        "mr-type",
        lambda b: evaluation.match_rows(TRUTH, LABELS, 2),
        r"groups, an Integer\[Tensor, '_ _'\], got ndarray of int64.*: pass numbers",
    ),
    (
        "mr-size",
        lambda b: evaluation.match_rows(LABELS, LABELS[1:], 2),
        "groups and target of one size, not empty, got Tensor of.*: pass label",
    ),
    ("mr-classes", lambda b: evaluation.match_rows(LABELS, LABELS, 0), "classes 1 or more, got 0: choose one"),
    (
        "mr-float",
        lambda b: evaluation.match_rows(LABELS.float(), LABELS, 2),
        r"groups, an Integer\[Tensor, '_ _'\], got Tensor of.*: pass numbers",
    ),
    (
        "mr-width",
        lambda b: evaluation.match_rows(LABELS, LABELS[:, 1:], 2),
        "groups and target of one size, not empty, got Tensor of.*: pass label",
    ),
    (
        "mr-empty",
        lambda b: evaluation.match_rows(LABELS[:0], LABELS[:0], 2),
        "groups and target of one size, not empty, got Tensor of.*: pass label",
    ),
    (
        "iou-np",
        lambda b: evaluation.class_iou(COUNTS.numpy()),
        r"confusion, a Num\[Tensor, '\*_ classes.*, got ndarray of int64.*: pass pixel",
    ),
    (
        "iou-sq",
        lambda b: evaluation.class_iou(COUNTS[:1]),
        r"confusion, a Num\[Tensor, '\*_ classes.*, got Tensor of.*: pass pixel",
    ),
    (
        "iou-1d",
        lambda b: evaluation.class_iou(COUNTS[0]),
        r"confusion, a Num\[Tensor, '\*_ classes.*, got Tensor of.*: pass pixel",
    ),
    (
        "iou-list",
        lambda b: evaluation.class_iou([[1, 2], [3, 4]]),
        r"confusion, a Num\[Tensor, '\*_ classes.*, got \[\[1, 2\], \[3, 4\]\].*: pass pixel",
    ),
    (
        "iou-df",
        _result(lambda r: evaluation.class_iou(r.confusion())),
        r"confusion, a Num\[Tensor, '\*_ classes.*, got DataFrame.*: pass pixel",
    ),
    (
        "acc-np",
        lambda b: evaluation.class_accuracy(COUNTS.numpy()),
        r"confusion, a Num\[Tensor, '\*_ classes.*, got ndarray of int64.*: pass pixel",
    ),
    (
        "pacc",
        lambda b: evaluation.pixel_accuracy(COUNTS.numpy()),
        r"confusion, a Num\[Tensor, '\*_ classes.*, got ndarray of int64.*: pass pixel",
    ),
    ("macc-classes", lambda b: evaluation.mean_accuracy(COUNTS, [5]), "classes from 0 to 1, got 5: choose one"),
    (
        "macc-text",
        lambda b: evaluation.mean_accuracy(COUNTS, ["cat"]),
        "classes, a whole number from 0 to 1, got 'cat': pass classes=0",
    ),
    ("miou-classes", lambda b: evaluation.miou(COUNTS, [2]), "classes from 0 to 1, got 2: choose one"),
    ("miou-neg", lambda b: evaluation.miou(COUNTS, [-1]), "classes from 0 to 1, got -1: choose one"),
    (
        "miou-absent",
        lambda b: evaluation.miou(COUNTS, absent="no"),
        "absent, one of 'skip', 'zero', got 'no': pass absent='skip'",
    ),
    ("miou-type", lambda b: evaluation.miou("x"), r"confusion, a Num\[Tensor, '\*_ classes.*, got 'x'.*: pass pixel"),
    (
        "miou-dup",
        lambda b: evaluation.miou(COUNTS, [1, 1]),
        r"classes, at least one and each one once, got \[1, 1\]: name each",
    ),
    (
        "margins",
        lambda b: evaluation.margins(COUNTS.numpy()),
        r"confusion, a Num\[Tensor, '\*_ classes.*, got ndarray of int64.*: pass pixel",
    ),
    (
        "margins-sq",
        lambda b: evaluation.margins(torch.ones(2, 3)),
        r"confusion, a Num\[Tensor, '\*_ classes.*, got Tensor of.*: pass pixel",
    ),
    (
        "score-name",
        lambda b: evaluation.score(evaluation.margins(COUNTS), "miou"),
        "name, one of 'mIoU', 'mACC', 'pACC', got 'miou': pass name='mIoU'",
    ),
    (
        "score-type",
        lambda b: evaluation.score(COUNTS.numpy()),
        r"counts, a Num\[Tensor, '\*_ _ 3'\], got ndarray of int64.*: pass what",
    ),
    (
        "score-shape",
        lambda b: evaluation.score(COUNTS),
        r"counts, a Num\[Tensor, '\*_ _ 3'\], got Tensor of.*: pass what",
    ),
    (
        "score-abs",
        lambda b: evaluation.score(evaluation.margins(COUNTS), absent=None),
        "absent, one of 'skip', 'zero', got None: pass absent='skip'",
    ),
    (
        "score-list",
        lambda b: evaluation.score(evaluation.margins(COUNTS), ["mIoU"]),
        r"name, one of 'mIoU', 'mACC', 'pACC', got \['mIoU'\]: pass name='mIoU'",
    ),
    (
        "loo",
        lambda b: evaluation.leave_one_out(COUNTS),
        r"counts, a Num\[Tensor, '_ \*_ _ 3'\], got Tensor of.*: pass what",
    ),
    (
        "loo-np",
        lambda b: evaluation.leave_one_out(COUNTS.numpy()),
        r"counts, a Num\[Tensor, '_ \*_ _ 3'\], got ndarray of int64.*: pass what",
    ),
    (
        "loo-name",
        lambda b: evaluation.leave_one_out(evaluation.margins(COUNTS)[None], "x"),
        "name, one of 'mIoU', 'mACC', 'pACC', got 'x': pass name='mIoU'",
    ),
    (
        "int-level",
        lambda b: evaluation.interval(0.5, np.ones(3), 95),
        r"level, a share between 0 and 1, got 95: pass level=0\.95",
    ),
    (
        "int-comp",
        lambda b: evaluation.interval(0.5, np.ones(3), comparisons=0),
        "comparisons 1 or more, got 0: choose one",
    ),
    (
        "int-text",
        lambda b: evaluation.interval("a", np.ones(3)),
        "left_out as numbers with the axes of score.*, got ndarray of float64.*: pass what",
    ),
    (
        "int-text2",
        lambda b: evaluation.interval(0.5, "abc"),
        r"left_out as numbers with the axes of score.*, got 'abc' for a score of 0\.5.*: pass what",
    ),
    (
        "int-scalar",
        lambda b: evaluation.interval(0.5, 0.5),
        r"left_out as numbers with the axes of score.*, got 0\.5 for a score of 0\.5.*: pass what",
    ),
    (
        "int-shape",
        lambda b: evaluation.interval(np.ones(2), np.ones((3, 4))),
        "left_out as numbers with the axes of score.*, got ndarray of float64.*: pass what",
    ),
    (
        "verdict-nums",
        lambda b: evaluation.verdict("a", "b", "x", 0, 1),
        "gain, low and high as numbers, got 'x', 0 and 1: pass those",
    ),
    (
        "verdict-none",
        lambda b: evaluation.verdict("a", "b", None, 0, 1),
        "gain, low and high as numbers, got None, 0 and 1: pass those",
    ),
    ("table-names", lambda b: evaluation.table(COUNTS, ["a"]), "2 class_names, got 1: name the"),
    (
        "table-text",
        lambda b: evaluation.table(COUNTS, "ab"),
        r"class_names as a list of names, got 'ab': pass class_names=\['cat',",
    ),
    (
        "table-np",
        lambda b: evaluation.table(COUNTS.numpy(), ["a", "b"]),
        r"confusion, a Num\[Tensor, 'classes classes'\], got ndarray of int64.*: pass one",
    ),
    (
        "table-sq",
        lambda b: evaluation.table(COUNTS[:1], ["a"]),
        r"confusion, a Num\[Tensor, 'classes classes'\], got Tensor of.*: pass one",
    ),
    (
        "table-num",
        lambda b: evaluation.table(COUNTS, 2),
        r"class_names as a list of names, got 2: pass class_names=\['cat',",
    ),
    (
        "table-batch",
        lambda b: evaluation.table(COUNTS[None], ["a"]),
        r"confusion, a Num\[Tensor, 'classes classes'\], got Tensor of.*: pass one",
    ),
]
