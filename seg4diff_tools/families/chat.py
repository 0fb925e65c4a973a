"""Prompts inside the chat template of a language model."""

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from seg4diff_tools.errors import PromptError
from seg4diff_tools.prompts import Token, label_template

Render = Callable[[str], str]
"""Function from a prompt to the full input text of the text encoder."""


def chat_room(tokenizer: PreTrainedTokenizerBase, render: Render, tokens: int) -> int:
    """Return the number of prompt tokens that fit into a template.

    Args:
        tokenizer: of the text encoder.
        render: puts a prompt into the template.
        tokens: total token limit of the text encoder.
    """
    return tokens - len(tokenizer(render(""), add_special_tokens=False).input_ids)


def label_chat(
    tokenizer: PreTrainedTokenizerBase,
    render: Render,
    text: str,
    length: int,
    *,
    skipped: int = 0,
    room: int | None = None,
) -> tuple[Token, ...]:
    """Label every text token of a prompt inside a chat template.

    Args:
        tokenizer: of the text encoder.
        render: puts a prompt into the template.
        text: the prompt, in Unicode NFC.
        length: number of text tokens.
        skipped: tokens at the start of the template whose features the pipeline drops.
        room: token limit of the encoder for the whole text; None for `length`.

    Raises:
        PromptError: the prompt is too long, or the template changes it.
    """
    template = render("{}")
    if render(text) != template.replace("{}", text):
        raise PromptError(
            f"the model's chat template changes the prompt {text!r}: leave out white space at its ends and tokens in "
            f"brackets"
        )
    left = tokenizer.padding_side == "left"
    return label_template(tokenizer, text, length, template, skipped=skipped, room=room, specials=False, left=left)
