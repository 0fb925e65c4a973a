"""Supported architectures, one frozen record each: the only package that depends on the internals of diffusers' models.

`book/add_your_model.md` describes how to add one; `register` adds a record at run time.
"""

from typing import Any

from torch import nn

from seg4diff_tools.errors import InputError, UnknownArchitectureError, instance_of
from seg4diff_tools.families._private import SamplingLoop, sampling_loop, uncompiled
from seg4diff_tools.families.auraflow import AURAFLOW
from seg4diff_tools.families.bria import BRIA
from seg4diff_tools.families.chroma import CHROMA
from seg4diff_tools.families.cogvideox import COGVIDEOX
from seg4diff_tools.families.cogview4 import COGVIEW4
from seg4diff_tools.families.ernie import ERNIE_IMAGE
from seg4diff_tools.families.flux import FLUX
from seg4diff_tools.families.flux2 import FLUX2
from seg4diff_tools.families.hidream import HIDREAM_IMAGE
from seg4diff_tools.families.hunyuan import HUNYUAN_IMAGE
from seg4diff_tools.families.hunyuan_video import HUNYUAN_VIDEO
from seg4diff_tools.families.krea2 import KREA2
from seg4diff_tools.families.longcat import LONGCAT_IMAGE
from seg4diff_tools.families.lumina2 import LUMINA2
from seg4diff_tools.families.ovis import OVIS_IMAGE
from seg4diff_tools.families.qwen import QWEN_IMAGE
from seg4diff_tools.families.record import Family, Layout
from seg4diff_tools.families.refused import why_refused
from seg4diff_tools.families.sd3 import SD3
from seg4diff_tools.families.transformers import model_lock, transformer_of
from seg4diff_tools.families.zimage import Z_IMAGE

FAMILIES: list[Family] = [
    *(SD3, FLUX, FLUX2, CHROMA, AURAFLOW, QWEN_IMAGE, Z_IMAGE, HUNYUAN_IMAGE, OVIS_IMAGE, KREA2, ERNIE_IMAGE),
    *(COGVIEW4, LONGCAT_IMAGE, LUMINA2, HIDREAM_IMAGE, BRIA, COGVIDEOX, HUNYUAN_VIDEO),
]

__all__ = [
    "FAMILIES",
    "Family",
    "Layout",
    "SamplingLoop",
    "family_of",
    "model_lock",
    "refuse_split",
    "register",
    "sampling_loop",
    "transformer_of",
    "uncompiled",
    "why_refused",
]


def register(family: Family) -> None:
    """Register a family, ahead of all others that cover the same transformer.

    Args:
        family: the record; replaces one of the same name.

    Raises:
        InputError: not a Family.
    """
    instance_of(family, Family, "family", "a record built with seg4diff_tools.families.Family")
    FAMILIES[:] = [family, *(known for known in FAMILIES if known.name != family.name)]


def refuse_split(model: Any, name: str) -> None:
    """Refuse a model or pipeline that `device_map` spread over several accelerators.

    Raises:
        InputError: it is on more than one.
    """
    places = {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()} - {"cpu", "disk"}
    if len(places) > 1:
        listed = ", ".join(f"cuda:{place}" if place.isdigit() else place for place in sorted(places))
        raise InputError(
            f"expected a {name} on one device, got one that device_map spread over {listed}: load it without "
            "device_map, and call enable_model_cpu_offload() if it does not fit"
        )


def family_of(transformer: nn.Module) -> Family:
    """Return the family of a diffusers transformer, compiled or not, by its class or a parent class.

    Raises:
        UnknownArchitectureError: the class belongs to no known family; its layout is not guessed.
        InputError: it is split over several accelerators.
    """
    transformer = transformer_of(transformer)
    refuse_split(transformer, "transformer")
    names = {cls.__name__ for cls in type(transformer).__mro__}
    for family in FAMILIES:
        if family.transformer in names:
            if reason := family.refused(transformer):
                raise UnknownArchitectureError(
                    f"expected a supported transformer, got {type(transformer).__name__}{reason}"
                )
            return family
    supported = ", ".join(f"{family.transformer} ({family.name})" for family in FAMILIES)
    # a pipeline of a U-Net has no transformer, and comes here itself
    parts = getattr(transformer, "components", {}).values()
    reason = why_refused({*names, *(type(part).__name__ for part in parts)})
    way_out = "" if "no joint map" in reason else ", or add the architecture with seg4diff_tools.families.register"
    raise UnknownArchitectureError(
        f"expected a supported transformer, got {type(transformer).__name__}{reason}; supported: {supported}. Pass "
        f"such a transformer, its pipeline or a backbone{way_out}"
    )
