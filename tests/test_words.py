"""OpenVocabulary of any prompt are found again, in order, in every family's tokenizer."""

from unicodedata import normalize

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import BUILDERS, VIDEO_BUILDERS, wrapped

from seg4diff_tools.errors import PromptError

# letters, marks and digits of every script, in words short enough for the shortest of the text encoders
WORDS = st.lists(
    st.text(st.characters(categories=["L", "M", "N"], max_codepoint=0xFFFF), min_size=1, max_size=4), min_size=1
)


@pytest.fixture(scope="module", params=[*BUILDERS, *VIDEO_BUILDERS])
def backbone(request):
    return wrapped(request.param)


@given(words=WORDS.map(lambda words: [normalize("NFC", word) for word in words[:5]]))
@settings(derandomize=True, database=None, deadline=None, max_examples=25)
def test_words_of_any_prompt_are_found_in_order(backbone, words):
    prompt = backbone.encode_prompt(" ".join(words))
    assert prompt.words == tuple(words)
    for reader in prompt.readers:
        start, taken = 0, []
        for place, word in enumerate(words):
            same = regex.compile(regex.escape(word), regex.IGNORECASE)
            occurrence = sum(same.fullmatch(other) is not None for other in words[:place])
            span = prompt.span(word, occurrence, reader)
            tokens = [prompt.tokens[index] for index in span]
            assert min(token.start for token in tokens) == start
            assert max(token.stop for token in tokens) == start + len(word)
            taken += span
            start += len(word) + 1
        # each token belongs to one word, and none is left over
        assert tuple(sorted(taken)) == prompt.indices("word", reader=reader)


def test_a_part_of_a_hindi_word_is_no_word(backbone):
    prompt = backbone.encode_prompt("एक हिन्दी किताब")
    assert prompt.words == ("एक", "हिन्दी", "किताब")
    with pytest.raises(PromptError, match="'हिन' is not in the prompt"):
        prompt.span("हिन")


SPACELESS = "一只猫在树上和一只猫, a cat's cat"


@pytest.mark.parametrize(
    ("phrase", "text"),
    [("猫", ["猫"] * 2), ("树上", ["树上"]), ("cat", ["cat"] * 2), ("cat#2", ["cat"]), ("猫#2", ["猫"])],
)
def test_scripts_without_spaces_and_numbered_labels(tiny_backbone, phrase, text):
    prompt = tiny_backbone.encode_prompt(SPACELESS)
    tokens = [prompt.tokens[index] for index in prompt.span(phrase)]
    pieces = {(token.start, token.stop) for token in tokens}
    letters = sorted({place for start, stop in pieces for place in range(start, stop)})
    found = "".join(SPACELESS[place] for place in letters)
    assert found.startswith("".join(text)[: len(found)])
    first = SPACELESS.index(text[0])
    second = SPACELESS.index(text[0], first + 1) if "#" in phrase else first
    assert letters[0] == second


def test_latin_words_keep_their_boundaries(tiny_backbone):
    prompt = tiny_backbone.encode_prompt("concatenate 猫cat")
    with pytest.raises(PromptError, match="'con' is not in the prompt"):
        prompt.span("con")
    assert prompt.span("猫")
