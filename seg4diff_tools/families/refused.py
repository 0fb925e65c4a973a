"""Architectures that are refused with the reason: without joint attention, or with one that no record covers yet."""

from collections.abc import Iterable

CROSS = "reads the text in cross-attention, whose softmax has no image keys"
ONE_WAY = "lets image tokens attend to text, but text tokens have no queries"
_MODELS = {
    CROSS: {
        "UNet2DConditionModel": "the U-Net of Stable Diffusion 1, 2 and XL",
        "Kandinsky3UNet": "Kandinsky 3",
        "PixArtTransformer2DModel": "PixArt",
        "HunyuanDiT2DModel": "Hunyuan-DiT",
        "LuminaNextDiT2DModel": "Lumina-Next",
        "SanaTransformer2DModel": "Sana",
        "WanTransformer3DModel": "Wan",
        "LTXVideoTransformer3DModel": "LTX-Video",
        "LatteTransformer3DModel": "Latte",
        "CosmosTransformer3DModel": "Cosmos",
        "AllegroTransformer3DModel": "Allegro",
        "SkyReelsV2Transformer3DModel": "SkyReels",
        "Kandinsky5Transformer3DModel": "Kandinsky 5",
    },
    ONE_WAY: {"PRXTransformer2DModel": "PRX", "NucleusMoEImageTransformer2DModel": "Nucleus-Image"},
}
"""Names of the models by the class of the transformer or U-Net, by the reason."""
_UNRECORDED = {
    "MochiTransformer3DModel": "Mochi 1",
    "HunyuanVideo15Transformer3DModel": "HunyuanVideo 1.5",
    "HunyuanVideoFramepackTransformer3DModel": "FramePack",
    "EasyAnimateTransformer3DModel": "EasyAnimate",
    "ConsisIDTransformer3DModel": "ConsisID",
}
"""Names of models of videos with joint attention, by the class of the transformer."""


def why_refused(classes: Iterable[str]) -> str:
    """Return why a model cannot be supported, as the end of a sentence; empty if nothing is known against it.

    Args:
        classes: names of the classes of the model or of a pipeline's parts.
    """
    names = set(classes)
    for reason, models in _MODELS.items():
        for found in names & models.keys():
            return f"; {models[found]} {reason}, so there is no joint map to read"
    for found in names & _UNRECORDED.keys():
        return (
            f"; {_UNRECORDED[found]} has joint attention over text and video, but no record says where its tokens stand"
        )
    return ""
