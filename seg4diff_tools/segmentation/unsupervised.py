"""Segmentation without class names: the pads of an empty prompt group the image (Seg4Diff, Fig 9b and Table 2)."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from jaxtyping import Int, UInt8
from tqdm.auto import tqdm

from seg4diff_tools.backbones.loading import as_backbone
from seg4diff_tools.errors import instance_of
from seg4diff_tools.images import open_images
from seg4diff_tools.segmentation import masks
from seg4diff_tools.segmentation.engine import model_layers, pad_maps
from seg4diff_tools.segmentation.options import Unsupervised, option_settings
from seg4diff_tools.segmentation.results import same_content, thumbnails
from seg4diff_tools.segmentation.segment import ManyImages, Model, OneImage, image_list
from seg4diff_tools.segmentation.workbench import Workbench, label_frame, token_centers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = Unsupervised()
"""The paper's way."""


@dataclass(frozen=True, eq=False, repr=False)
class Grouping:
    """Groups of image places, found without class names.

    Attributes:
        label_map: number of the group at each pixel, in the image's own size (with fit="crop" of its center).
        proposals: distribution over image tokens of each group, dims (group, y, x).
        token_maps: mean over heads of what image tokens give to each text token, dims (token, y, x).
        groups: the group of each text token.
        settings: JSON-serializable settings that determine the result.
        image: the part of the image that the label map covers, RGB.
    """

    label_map: Int[np.ndarray, "y x"]
    proposals: xr.DataArray
    token_maps: xr.DataArray
    groups: Int[np.ndarray, " token"]
    settings: dict[str, Any]
    image: UInt8[np.ndarray, "y x 3"]

    def plot(self, *, title: str = "") -> "Figure":
        """Draw the image and the groups over it."""
        from seg4diff_tools.plotting import static

        return static.label_maps(self.image, {"groups": self.label_map}, self._names(), title=title)

    def _names(self) -> list[str]:
        return [f"group {index}" for index in range(len(self.proposals))]

    def __eq__(self, other: object) -> bool:
        return same_content(self, other) if isinstance(other, Grouping) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        height, width = self.label_map.shape
        tokens, model = len(self.groups), self.settings["model"]
        return f"Grouping({model}, {height} x {width} px: {len(self.proposals)} groups of {tokens} tokens)"

    def _repr_html_(self) -> str:
        return thumbnails(self.image, self.label_map, self._names(), repr(self))


def group(
    model: Model,
    images: OneImage | ManyImages | str | Path,
    options: Unsupervised = PAPER,
    *,
    progress: bool = True,
) -> Any:
    """Group the places of images by the text tokens that they attend to; no class name is needed.

    Args:
        model: a backbone, a diffusers pipeline, or the name or folder of a model.
        images: one image of any size, several, or a folder, as in `segment`.
        options: everything else; `Unsupervised(**paper.RELEASED["group"])` are the choices of the released code.
        progress: show a progress bar for several images.

    Returns:
        One `Grouping` for one image, a list for several.

    Raises:
        InputError: an unreadable image, tokens that the prompt does not have, or a layer out of range.

    Source: Seg4Diff, arXiv 2509.18096, section 4.3.
    """
    instance_of(options, Unsupervised, "options", "options such as Unsupervised(threshold=0.05)")
    sources, single = image_list(images)
    backbone = as_backbone(model)
    layers = model_layers(backbone, options)
    results = []
    for source in tqdm(sources, unit="image", disable=not progress or single, desc=f"{backbone.name} group"):
        (picture,) = open_images(source)
        work = Workbench(backbone)
        frame = work.frame(picture, options).image
        (maps,) = pad_maps(work, [picture], options).flatten(1, 2).mean(1)
        proposals, groups = masks.merge_maps(maps, options.threshold, options.rounds, options.merging)
        encoded = backbone.encode_prompt(options.prompt, zero_tokens=options.zero_tokens)
        centers = token_centers(frame, maps.shape[1:])
        tokens = {"token": list(encoded.indices(*options.kinds, reader=options.reader)), **centers}
        settings = {
            "model": backbone.name,
            **option_settings(options),
            "layers": layers,
            "frame": list(label_frame(backbone, (picture.height, picture.width), options.fit, options.size)),
            "protocol": "unsupervised, greedy merging of token maps (Seg4Diff, Table 2)",
        }
        proposal_axes = {"group": range(len(proposals)), **centers}
        results.append(
            Grouping(
                label_map=masks.label_map(proposals, frame.size[::-1]).cpu().numpy(),
                proposals=xr.DataArray(proposals.cpu().numpy(), proposal_axes, ("group", "y", "x"), name="proposals"),
                token_maps=xr.DataArray(maps.cpu().numpy(), tokens, ("token", "y", "x"), name="i2t"),
                groups=groups.numpy(),
                settings=settings,
                image=np.array(frame),
            )
        )
    return results[0] if single else results
