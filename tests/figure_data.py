"""What the tests of figures draw."""

import numpy as np
import pandas as pd
import xarray as xr

IMAGE = np.random.default_rng(0).integers(0, 256, (29, 23, 3), dtype=np.uint8)
NAMES = ("cat", "tree", "grass")


def maps(**sizes):
    """Maps of 5 x 7 cells with a coordinate along every axis."""
    values = np.random.default_rng(1).random((*sizes.values(), 5, 7), dtype=np.float32)
    words = ("cat", "tree", "grass", "a", "on")
    coords = {name: list(words[:size]) if name == "token" else range(size) for name, size in sizes.items()}
    return xr.DataArray(values, coords, (*sizes, "y", "x"))


def score_table():
    """Scores of three layers at four steps, in no order."""
    layers, steps = np.meshgrid(range(3), [1, 8, 20, 28])
    score = (layers.ravel() + 1) / (steps.ravel() + 2)
    columns = {"layer": layers.ravel(), "steps_from_end": steps.ravel(), "mIoU": score, "pACC": 1 - score}
    return pd.DataFrame(columns).sample(frac=1, random_state=0)
