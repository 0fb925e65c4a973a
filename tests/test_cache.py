"""Results are kept under a key of all that determines them, and of nothing else."""

import functools

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from seg4diff_tools import caching, datasets
from seg4diff_tools.attention.edits import blur, drop, swap
from seg4diff_tools.backbones.loading import load_backbone
from seg4diff_tools.caching import remember
from seg4diff_tools.errors import InputError
from seg4diff_tools.scenes.scenes import SceneConfig, Scenes

CALLS = []


def noted(*args, **kwargs):
    """ImageCounts how often it really runs."""
    CALLS.append((args, kwargs))
    return pd.DataFrame({"number": [len(CALLS)]})


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("SEG4DIFF_CACHE", str(tmp_path / "kept"))
    CALLS.clear()
    return tmp_path / "kept"


SAME = {
    "numbers": lambda: (1, 2.5, "three", None, True),
    "tensor": lambda: torch.arange(6.0).view(2, 3),
    "half tensor": lambda: torch.ones(3, dtype=torch.bfloat16),
    "array": lambda: np.arange(5, dtype=np.uint8),
    "picture": lambda: Image.new("RGB", (3, 2), (1, 2, 3)),
    "table": lambda: pd.DataFrame({"a": [1, 2]}),
    "scenes": lambda: Scenes("test", 3, SceneConfig(size=56)),
    "edit": lambda: swap([1], [2, 3]),
    "nested": lambda: {"a": [np.ones(2), {"b": range(3)}]},
    "partial": lambda: functools.partial(noted, 3),
}


@pytest.mark.parametrize("make", SAME.values(), ids=SAME)
def test_the_same_is_computed_once(make):
    first, second = remember(noted, make()), remember(noted, make(), progress=False)
    assert len(CALLS) == 1
    pd.testing.assert_frame_equal(first, second)


OTHER = {
    "number": (1, 2),
    "kind of number": (1, 1.0),
    "truth": (True, 1),
    "word": ("1", 1),
    "tensor": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "value": (torch.zeros(2), torch.tensor([0.0, 1e-6])),
    "type": (torch.ones(2), torch.ones(2).bfloat16()),
    "picture": (Image.new("RGB", (3, 2)), Image.new("RGB", (3, 2), (0, 0, 1))),
    "split": (Scenes("test", 3), Scenes("test-style", 3)),
    "configuration": (Scenes("test", 3), Scenes("test", 3, SceneConfig(size=56))),
    "edit": (blur(9.0), blur(8.0)),
    "tokens": (drop([1]), drop([2])),
    "nesting": ([[1], 2], [[1, 2]]),
    "order": ((1, 2), (2, 1)),
}


@pytest.mark.parametrize("pair", OTHER.values(), ids=OTHER)
def test_another_is_computed_again(pair):
    for value in pair:
        remember(noted, value)
    assert len(CALLS) == 2


def test_models_are_told_by_their_weights(tiny_folder, build_backbone):
    one, same, other = load_backbone(tiny_folder), load_backbone(tiny_folder), build_backbone(seed=2)
    for backbone in (one, same, other):
        remember(noted, backbone)
    assert len(CALLS) == 2
    with torch.no_grad():
        one.transformer.transformer_blocks[3].attn.to_q.weight.add_(1.0)
    remember(noted, one)
    assert len(CALLS) == 3


def test_arguments_go_by_name_and_place():
    remember(noted, 1, layer=2)
    remember(noted, 1, layer=3)
    remember(noted, 1, step=2)
    assert len(CALLS) == 3


def test_a_damaged_result_is_made_again(kept):
    remember(noted, 1)
    (path,) = kept.glob("*.joblib")
    path.write_bytes(path.read_bytes()[:20])
    remember(noted, 1)
    assert len(CALLS) == 2
    remember(noted, 1)
    assert len(CALLS) == 2


def test_other_code_is_another_result(monkeypatch):
    remember(noted, 1)
    monkeypatch.setattr(caching, "_package", lambda: "another version of the package")
    remember(noted, 1)
    assert len(CALLS) == 2


def test_old_results_make_room(kept, monkeypatch):
    monkeypatch.setattr(caching, "LARGEST", 1)
    for number in range(3):
        remember(noted, number)
    assert list(kept.glob("*")) == []


def test_files_and_data_sets_are_told_by_what_is_in_them(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        Image.new("L", (3, 2), 1).save(tmp_path / name / "a.png")
    samples = datasets.folder(tmp_path / "images", tmp_path / "masks", ("cat", "dog"))
    remember(noted, samples)
    remember(noted, datasets.folder(tmp_path / "images", tmp_path / "masks", ("cat", "dog")))
    assert len(CALLS) == 1
    # a corrected mask
    Image.fromarray(np.eye(2, 3, dtype=np.uint8)).save(tmp_path / "masks/a.png")
    remember(noted, samples)
    assert len(CALLS) == 2


def test_an_unknown_argument_is_refused():
    with pytest.raises(InputError, match="content can be told, got object"):
        remember(noted, object())


FACTOR = 2


def helper(number):
    return number * FACTOR if number else uses_helper(number)


def uses_helper(number):
    CALLS.append(number)
    return [helper(n) for n in [number]]


def test_what_a_function_reads_around_it_counts(monkeypatch):
    assert remember(uses_helper, 3) == remember(uses_helper, 3) == [6]
    assert len(CALLS) == 1
    monkeypatch.setitem(globals(), "FACTOR", 5)
    assert remember(uses_helper, 3) == [15]
    assert len(CALLS) == 2


def test_methods_go_with_their_object(tiny_backbone):
    first = remember(tiny_backbone.schedule, 3)
    assert torch.equal(first[0], remember(tiny_backbone.schedule, steps=3)[0])
    assert not torch.equal(first[0], remember(tiny_backbone.schedule, 4)[0][:3])
