"""Image encoders, one vector for each picture: DINO by name, or the features of the scene detector."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from seg4diff_tools._runs import as_path
from seg4diff_tools.backbones.loading import as_device
from seg4diff_tools.errors import CheckpointError, InputError, instance_of
from seg4diff_tools.generation.detector import DetectorNet, load_detector
from seg4diff_tools.images import ImageLike, open_images, square_pixels
from seg4diff_tools.indices import as_int

DINO = "facebook/dinov2-base"
DETECTOR = "scene detector"
CLASS_TOKEN = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit")
"""Model types of transformers whose first output token is a class token; DINO of 2021 is a "vit"."""


@dataclass(frozen=True, eq=False)
class ImageEncoder:
    """A network that encodes each picture as one vector.

    Attributes:
        name: of the measure in tables, such as "dinov2-base" or "scene detector".
        model: in evaluation mode.
        read: from the model and pixels to vectors.
        settings: of the preprocessing.
        preprocess: from PIL images to the model's pixels, by the settings.
    """

    name: str
    model: nn.Module = field(repr=False)
    read: Callable[[Any, Tensor], Tensor] = field(compare=False, repr=False)
    settings: Mapping[str, Any] = field(repr=False)
    preprocess: Callable[[list[PIL.Image.Image]], Mapping[str, Tensor]] = field(compare=False, repr=False)

    @torch.no_grad()
    def embed(self, images: ImageLike | Sequence[ImageLike], batch: int = 32) -> Float[Tensor, "image dim"]:
        """Return vectors of length 1, in fp32 on the CPU.

        Args:
            images: paths, PIL images, uint8 arrays [y x 3], float tensors [3 y x] from 0 to 1, or lists of these.
            batch: images at once.

        Raises:
            InputError: an unreadable image, or none.
        """
        pictures, batch = open_images(images), as_int(batch, "batch", 1)
        device, vectors = next(self.model.parameters()).device, []
        for start in range(0, len(pictures), batch):
            pixels = self.preprocess(pictures[start : start + batch])["pixel_values"].to(device, torch.float32)
            vectors.append(self.read(self.model, pixels))
        return nn.functional.normalize(torch.cat(vectors), dim=-1).float().cpu()


def _class_token(model: nn.Module, pixels: Float[Tensor, "image 3 y x"]) -> Float[Tensor, "image dim"]:
    """Return the class token of a vision transformer, after the last layer norm."""
    return model(pixels).last_hidden_state[:, 0]


def _detector_features(net: DetectorNet, pixels: Float[Tensor, "image 3 y x"]) -> Float[Tensor, "image dim"]:
    """Return the spatial mean of the scene detector's features before its output layers."""
    found: list[Tensor] = []
    with net.merge.register_forward_hook(lambda module, given, features: found.append(features)):
        net(pixels)
    return found[0].mean((2, 3))


def load_image_encoder(name: str | Path = DINO, device: str | torch.device = "cpu") -> ImageEncoder:
    """Load a DINO through transformers, or the scene detector that comes with this package.

    Args:
        name: "scene detector" for the features of the packaged detector, trained on drawn scenes only; else the hub
            name or the folder of a DINO, such as "facebook/dinov2-base". Weights are read from safetensors; code beside
            them is never run.
        device: for computation.

    Raises:
        CheckpointError: no such model, one that cannot be downloaded, or one of another kind.
    """
    device = as_device(device)
    if name == DETECTOR:
        detector = load_detector(device=device)
        side = detector.config.side
        return ImageEncoder(DETECTOR, detector.net, _detector_features, {"side": side}, partial(_square, side))
    folder = as_path(name, "name")
    where = folder if folder.is_dir() else str(name)
    try:
        kind = AutoConfig.from_pretrained(where, trust_remote_code=False).model_type
        if kind not in CLASS_TOKEN:
            raise ValueError(f"a {kind}, not one of {', '.join(CLASS_TOKEN)}")
        processor = AutoImageProcessor.from_pretrained(where, trust_remote_code=False, backend="pil")
        model, info = AutoModel.from_pretrained(
            where, trust_remote_code=False, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        # the class token is read before the pooler, which DINO leaves untrained
        if missing := [key for key in info["missing_keys"] if not key.startswith("pooler.")]:
            raise ValueError(f"its file lacks {len(missing)} weights, such as {missing[0]}")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(". ")
        raise CheckpointError(
            f"expected a DINO as an image encoder, got {str(name)!r} ({reason}): download it where there is a network "
            f"(`hf download {DINO}`), or pass {DETECTOR!r}"
        ) from error
    model = model.to(device).eval().requires_grad_(False)
    preprocess = partial(processor, return_tensors="pt")
    return ImageEncoder(Path(name).name, model, _class_token, processor.to_dict(), preprocess)


def _square(side: int, images: list[PIL.Image.Image]) -> dict[str, Tensor]:
    """Return the scene detector's input pixels."""
    return {"pixel_values": square_pixels(images, side)}


def image_similarity(
    before: ImageLike | Sequence[ImageLike],
    after: ImageLike | Sequence[ImageLike],
    encoder: ImageEncoder | str | Path = DINO,
) -> Float[Tensor, " image"]:
    """Return the cosine similarity of an encoder's vectors of pictures before and after an edit.

    Args:
        before: pictures, one or several, as for `ImageEncoder.embed`.
        after: as many.
        encoder: from `load_image_encoder`, or its name.

    Returns:
        From -1 to 1; 1 for equal pictures.

    Raises:
        InputError: numbers of pictures that differ.
        CheckpointError: an encoder that cannot be loaded.

    Source: Seg4Diff, arXiv 2509.18096, figures 18, 20 and 23, with DINO.
    """
    pairs = [open_images(before), open_images(after)]
    if len(pairs[0]) != len(pairs[1]):
        raise InputError(
            f"expected a picture after for each before, got {len(pairs[1])} for {len(pairs[0])}: pass as many"
        )
    chosen = as_encoder(encoder)
    return (chosen.embed(pairs[0]) * chosen.embed(pairs[1])).sum(-1)


def as_encoder(encoder: Any) -> ImageEncoder:
    """Return an image encoder, loaded or by name; raise an InputError for anything else."""
    if isinstance(encoder, (str, Path)):
        return load_image_encoder(encoder)
    instance_of(encoder, ImageEncoder, "encoder", f"encoder={DINO!r}")
    return encoder
