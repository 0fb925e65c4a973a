"""LongCat-Image: [512 language model's tokens, image], FLUX.1's blocks; quoted text is read letter by letter."""

from typing import Any

from torch import nn

from seg4diff_tools.errors import PromptError
from seg4diff_tools.families._private import module_function
from seg4diff_tools.families.record import DOUBLE_AND_SINGLE, Family, Inputs, Layout, text_then_image
from seg4diff_tools.prompts import Token, check_prompt, numbered, reader_name, too_long


def _layout(transformer: nn.Module, inputs: Inputs) -> Layout:
    # (1, row, column) of the image, with an offset; reference images have another first number
    own = inputs["img_ids"][inputs["img_ids"][:, 0] == 1]
    rows, columns = (int(own[:, axis].max() - own[:, axis].min()) + 1 for axis in (1, 2))
    references = len(inputs["img_ids"]) - len(own)
    return text_then_image((rows, columns), inputs["encoder_hidden_states"].shape[1], references=references)


def _label(pipe: Any, text: str, length: int) -> tuple[Token, ...]:
    reader, tokens, first = reader_name(pipe.tokenizer), [], 0
    for part, quoted in module_function(pipe, "split_quotation")(text):
        for piece in part if quoted else [part]:
            for start, stop in check_prompt(pipe.tokenizer, len(text) * 4, piece):
                read = piece[start:stop]
                start += first + len(read) - len(read.lstrip())
                stop += first
                if start < stop:
                    tokens.append(Token(0, text[start:stop], "word", start, stop, reader))
                else:
                    tokens.append(Token(0, read, "template", reader=reader))
            first += len(piece)
    if len(tokens) > length:
        raise PromptError(too_long(text, len(tokens), length, tokens[length].start))
    pads = [Token(0, "<pad>", "pad", reader=reader)] * (length - len(tokens))
    return numbered([*pads, *tokens] if pipe.tokenizer.padding_side == "left" else [*tokens, *pads])


# The pipeline's own rewriting of prompts is off: it would replace their words.
LONGCAT_IMAGE = Family(
    name="longcat-image",
    pipelines=("LongCatImagePipeline",),
    transformer="LongCatImageTransformer2DModel",
    layout=_layout,
    label=_label,
    tokenizer_and_limit=lambda pipe: (pipe.tokenizer, pipe.tokenizer_max_length),
    block_lists=DOUBLE_AND_SINGLE,
    timestep_affine=(0.0, 1e-3),
    text_inputs=("encoder_hidden_states", "txt_ids"),
    packed=True,
    call_kwargs={"enable_prompt_rewrite": False},
    guidance_scale=4.5,
    negative="",
    branches=("cond", "uncond"),
    sequential=True,
)
