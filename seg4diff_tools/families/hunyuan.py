"""HunyuanImage 2.1: [image, ByT5 tokens of quoted text, language model's tokens, pads of both]; pads are masked."""

from typing import Any

from torch import nn

from seg4diff_tools.families._private import module_function
from seg4diff_tools.families.chat import chat_room
from seg4diff_tools.families.record import DOUBLE_AND_SINGLE, Family, Inputs, Layout, image_then_text, patch_grid
from seg4diff_tools.prompts import Token, label_template, numbered

STREAMS = ("encoder_hidden_states", "encoder_hidden_states_2")


def _layout(transformer: nn.Module, inputs: Inputs) -> Layout:
    return image_then_text(patch_grid(transformer, inputs["hidden_states"]), HUNYUAN_IMAGE.text_length(inputs))


def _label(pipe: Any, text: str, length: int) -> tuple[Token, ...]:
    glyphs = pipe.tokenizer_2_max_length
    template, skipped = pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx
    words = label_template(pipe.tokenizer, text, length - glyphs, template, skipped=skipped)
    # the pipeline's own search for quoted text, which ByT5 reads by letters
    quoted = module_function(pipe, "extract_glyph_text")(text)
    ids = [] if quoted is None else pipe.tokenizer_2(quoted, truncation=True, max_length=glyphs).input_ids
    letters = [Token(0, pipe.tokenizer_2.decode([number]), "template", reader="ByT5") for number in ids]
    read = [token for token in words if token.kind != "pad"]
    pads = [Token(0, "<pad>", "pad", reader="ByT5")] * (glyphs - len(ids))
    rest = [token for token in words if token.kind == "pad"]
    return numbered([*letters, *read, *pads, *rest])


def _reader(pipe: Any) -> tuple[Any, int]:
    tokens = pipe.tokenizer_max_length + pipe.prompt_template_encode_start_idx
    return pipe.tokenizer, chat_room(pipe.tokenizer, pipe.prompt_template_encode.format, tokens)


def _at_an_instant(inputs: dict[str, Any]) -> dict[str, Any]:
    """Set `timestep_r` to the timestep, so that the distilled model predicts the instantaneous velocity.

    The pipeline passes the next timestep of its schedule, for the mean velocity up to it.
    """
    return inputs if inputs.get("timestep_r") is None else inputs | {"timestep_r": inputs["timestep"]}


HUNYUAN_IMAGE = Family(
    name="hunyuan-image",
    pipelines=("HunyuanImagePipeline",),
    transformer="HunyuanImageTransformer2DModel",
    layout=_layout,
    label=_label,
    tokenizer_and_limit=_reader,
    block_lists=DOUBLE_AND_SINGLE,
    text_inputs=(*STREAMS, "encoder_attention_mask", "encoder_attention_mask_2"),
    streams=STREAMS,
    patch_size=1,
    finalize_inputs=_at_an_instant,
    no_guidance_kwargs={},
    scale_name="distilled_guidance_scale",
    guidance_scale=3.25,
    branches=("cond", "uncond"),
    sequential=True,
)
