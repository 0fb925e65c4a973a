"""Similarity of pictures and captions, by the small CLIP beside an embedded model's pipeline."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from seg4diff_tools._runs import as_path
from seg4diff_tools.backbones.loading import as_device
from seg4diff_tools.errors import CheckpointError, InputError, instance_of, list_of
from seg4diff_tools.images import ImageLike, open_images, square_pixels
from seg4diff_tools.indices import as_int

WEIGHT = 2.5

ImageVectors = Float[Tensor, "image dim"]
TextVectors = Float[Tensor, "text dim"]


@dataclass(frozen=True, eq=False)
class Clip:
    """Image and text towers with a common embedding space.

    Args:
        model: both towers, in evaluation mode.
        tokenizer: of the text tower.
        mean, std: of red, green and blue (0 to 1) in its training pictures.
    """

    model: CLIPModel
    tokenizer: CLIPTokenizer
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @torch.no_grad()
    def embed_images(self, images: ImageLike | Sequence[ImageLike], normalize: bool = True) -> ImageVectors:
        """Return vectors of images of any size; each is stretched to the tower's square.

        Args:
            images: paths, PIL images, uint8 arrays [y x 3], float tensors [3 y x] from 0 to 1, or lists of these.
            normalize: scale the vectors to length 1.
        """
        features = self.model.get_image_features(pixel_values=self._pixels(images)).pooler_output.float().cpu()
        return torch.nn.functional.normalize(features, dim=-1) if normalize else features

    @torch.no_grad()
    def embed_patches(self, images: ImageLike | Sequence[ImageLike]) -> Float[Tensor, "image patch dim"]:
        """Return the patch features of each image, before the projection to the common space.

        Args:
            images: as for `embed_images`.
        """
        return self.model.vision_model(self._pixels(images)).last_hidden_state[:, 1:].float().cpu()

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> TextVectors:
        """Return unit vectors of texts.

        Args:
            texts: captions, truncated to the tower's positions.
        """
        texts = list_of(texts, str, "texts", "texts=['a cat on grass']", "captions")
        # the tokenizer's own limit may be larger than the tower's positions
        limit = min(self.tokenizer.model_max_length, self.model.config.text_config.max_position_embeddings)
        cut = {"padding": True, "truncation": True, "max_length": limit, "return_tensors": "pt"}
        ids = self.tokenizer(texts, **cut).input_ids
        features = self.model.get_text_features(input_ids=ids.to(self.model.device)).pooler_output
        return torch.nn.functional.normalize(features.float(), dim=-1).cpu()

    def _pixels(self, images: ImageLike | Sequence[ImageLike]) -> Float[Tensor, "image 3 side side"]:
        side = self.model.config.vision_config.image_size
        pixels = square_pixels(open_images(images), side).to(self.model.device)
        mean, deviation = (
            torch.tensor(each, dtype=pixels.dtype, device=pixels.device).view(3, 1, 1) for each in (self.mean, self.std)
        )
        return (pixels - mean) / deviation


def load_clip(name: str | Path, device: str | torch.device = "cpu") -> Clip:
    """Load the CLIP beside an embedded model's pipeline, or any CLIP of transformers.

    Args:
        name: a model folder of `pretrain export`, with the CLIP in `clip` and the pipeline's tokenizer; or a folder or
            hub name of a CLIP, such as "openai/clip-vit-large-patch14".
        device: for computation.

    Raises:
        CheckpointError: no CLIP, or a damaged one.
    """
    folder, device = as_path(name, "name"), as_device(device)
    hub = folder if folder.is_dir() else str(name)
    embedded = folder.is_dir() and not (folder / "config.json").is_file()
    for part in ("clip/config.json", "tokenizer/tokenizer.json") if embedded else ():
        if not (folder / part).is_file():
            raise CheckpointError(f"expected a model folder with {part}, got {folder}: make it with `pretrain export`")
    weights, words = (folder / "clip", folder / "tokenizer") if embedded else (hub, hub)
    try:
        model = CLIPModel.from_pretrained(weights, dtype=torch.float32).to(device).eval()
        tokenizer = CLIPTokenizer.from_pretrained(words)
        if embedded:
            return Clip(model, tokenizer)
        processor = CLIPImageProcessorPil.from_pretrained(hub)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        again = "Export the model again" if embedded else "Give a model folder, or the name of a CLIP of transformers"
        raise CheckpointError(f"the CLIP in {weights} cannot be read: {reason}. {again}") from error
    return Clip(model, tokenizer, tuple(processor.image_mean), tuple(processor.image_std))


def clip_scores(images: ImageVectors, texts: TextVectors) -> Float[Tensor, " image"]:
    """Return the CLIPScore of each image with the text in the same row: 2.5 max(cos, 0).

    Args:
        images: from `Clip.embed_images`, of any length.
        texts: from `Clip.embed_texts`, as many.

    Returns:
        Values from 0 to 2.5.

    Source: Hessel et al., "CLIPScore", EMNLP 2021, equation 1, with OpenAI's CLIP.
    """
    _check_vectors(images, texts)
    return WEIGHT * torch.nn.functional.cosine_similarity(images, texts, dim=-1).clamp(min=0)


def retrieval_accuracy(images: ImageVectors, texts: TextVectors, captions: Sequence[str], group: int = 64) -> float:
    """Return the top-1 text-to-image retrieval accuracy within groups of images.

    Args:
        images: unit vectors, as many as texts.
        texts: unit vectors.
        captions: the texts; an image with an identical caption counts as correct.
        group: number of candidate images for each caption; an incomplete last group is dropped.

    Returns:
        Between 0 and 1; chance is 1 / group.

    Raises:
        InputError: vectors of other shapes, another number of captions, or fewer images than a group.
    """
    captions, group = list_of(captions, str, "captions", "the texts", "texts"), as_int(group, "group", 1)
    _check_vectors(images, texts)
    if not group <= len(images) == len(captions):
        raise InputError(
            f"expected as many captions as images, at least a group of {group}, got {len(captions)} captions for "
            f"{len(images)} images: pass one for each, or a smaller group"
        )
    right = []
    for start in range(0, len(images) - group + 1, group):
        best = (texts[start : start + group] @ images[start : start + group].mT).argmax(-1) + start
        right += [captions[i] == captions[chosen] for i, chosen in enumerate(best.tolist(), start)]
    return sum(right) / len(right)


def _check_vectors(images: Tensor, texts: Tensor) -> None:
    """Check that images and texts have equally many vectors, of one length."""
    for name, each in (("images", images), ("texts", texts)):
        instance_of(each, Float[Tensor, "_ _"], name, f"what Clip.embed_{name} returns")
    if len(images) != len(texts):
        raise InputError(f"expected one text for each image, got {len(texts)} for {len(images)} images: pass as many")
    if images.shape != texts.shape:
        raise InputError(
            f"expected images and texts embedded by one Clip, got vectors of {images.shape[1]} and {texts.shape[1]} "
            "numbers: embed both again"
        )
