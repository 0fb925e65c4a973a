"""What sets the supported architectures apart: the only package that knows the inside of diffusers' models.

A family is one frozen record in a module of its own. Adding one is described in `book/add_your_model.md`; a record of your own
goes to the front of `FAMILIES`.
"""

import inspect
from typing import Any

from torch import nn

from seg4diff_tools.errors import UnknownArchitectureError
from seg4diff_tools.families.auraflow import AURAFLOW
from seg4diff_tools.families.chroma import CHROMA
from seg4diff_tools.families.ernie import ERNIE_IMAGE
from seg4diff_tools.families.flux import FLUX
from seg4diff_tools.families.flux2 import FLUX2
from seg4diff_tools.families.hunyuan import HUNYUAN_IMAGE
from seg4diff_tools.families.krea2 import KREA2
from seg4diff_tools.families.ovis import OVIS_IMAGE
from seg4diff_tools.families.qwen import QWEN_IMAGE
from seg4diff_tools.families.record import Family, Layout
from seg4diff_tools.families.sd3 import SD3
from seg4diff_tools.families.transformers import model_lock, transformer_of, uncompiled
from seg4diff_tools.families.zimage import Z_IMAGE

FAMILIES: list[Family] = [
    *(SD3, FLUX, FLUX2, CHROMA, AURAFLOW, QWEN_IMAGE, Z_IMAGE, HUNYUAN_IMAGE, OVIS_IMAGE, KREA2, ERNIE_IMAGE),
]

__all__ = ["FAMILIES", "Family", "Layout", "family_of", "guidance_weight", "model_lock", "transformer_of", "uncompiled"]


def family_of(transformer: nn.Module) -> Family:
    """The family of a diffusers transformer, compiled or not, by its class or a parent class.

    Raises:
        UnknownArchitectureError: the class belongs to no known family; its layout is not guessed.
    """
    transformer = transformer_of(transformer)
    names = {cls.__name__ for cls in type(transformer).__mro__}
    for family in FAMILIES:
        if family.transformer in names:
            return family
    supported = ", ".join(f"{family.transformer} ({family.name})" for family in FAMILIES)
    raise UnknownArchitectureError(
        f"{type(transformer).__name__} is not an architecture that this package knows; supported: {supported}. "
        "Pass the transformer of such a pipeline, or add a record to seg4diff_tools.families.FAMILIES."
    )


def guidance_weight(pipeline: Any) -> float | None:
    """The weight of classifier-free guidance, if the pipeline's sampling loop runs with it right now; else None."""
    # A pipeline keeps its last guidance scale, so that alone says nothing about a forward outside its loop.
    loop = inspect.unwrap(type(pipeline).__call__).__code__
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not loop:
        frame = frame.f_back
    if frame is None:
        return None
    # guidance-distilled models have a true_cfg_scale beside the guidance_scale that they read
    for flag, weight in (("do_true_cfg", "true_cfg_scale"), ("do_classifier_free_guidance", "guidance_scale")):
        if flag in frame.f_locals:
            return float(frame.f_locals[weight]) if frame.f_locals[flag] else None
    if (guider := frame.f_locals.get("guider")) is not None:
        return float(guider.guidance_scale) if guider._enabled and guider.num_conditions > 1 else None
    return float(pipeline.guidance_scale) if getattr(pipeline, "do_classifier_free_guidance", False) else None
