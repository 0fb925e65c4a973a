"""The transformer behind whatever holds it, and torch.compile kept from running it while hooks have to see it."""

import sys
import weakref
from _thread import RLock
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def transformer_of(model: Any) -> nn.Module:
    """The transformer of a backbone or a pipeline, or the transformer itself; of a compiled one, the module that it wraps."""
    transformer = getattr(model, "transformer", model)
    return getattr(transformer, "_orig_mod", transformer)


def model_lock(model: Any) -> RLock:
    """What a thread holds while it runs or watches a model, so that threads take turns."""
    return _TURNS.setdefault(transformer_of(model), RLock())


_TURNS: weakref.WeakKeyDictionary[nn.Module, RLock] = weakref.WeakKeyDictionary()


@contextmanager
def uncompiled() -> Iterator[None]:
    """Runs what torch.compile has compiled as it was written: compiled code skips hooks that came after it, in silence."""
    # what was never imported has compiled nothing, and its import takes seconds
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
