"""A CLIP tokenizer for the words of the scenes."""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from seg4diff_tools.scenes import BACKGROUNDS
from seg4diff_tools.scenes.drawings import COLORS, concepts

MAX_TOKENS = 77
_START, _END = "<|startoftext|>", "<|endoftext|>"
_PLACE_WORDS = ("of", "on", "in", "under", "above", "below", "left", "right")
_DETAIL_WORDS = ("at", "top", "bottom", "middle", "front", "behind", "small", "large")
_FUNCTION_WORDS = (
    "a",
    "an",
    "and",
    "the",
    *_PLACE_WORDS,
    *_DETAIL_WORDS,
    "one",
    "two",
    "three",
    "four",
    "with",
    "photo",
    "picture",
)


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """Train a byte-pair tokenizer on the words of scenes; write CLIP's `vocab.json` and `merges.txt` into a folder.

    Every concept, also those outside the training vocabulary, becomes few tokens; other text splits into letters.
    """
    names = [word for c in concepts().values() for word in (c.name, c.plural)]
    words = sorted({part for name in [*names, *COLORS, *BACKGROUNDS] for part in name.split()} | set(_FUNCTION_WORDS))
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=_END))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=4096, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(words, trainer)
    bpe = json.loads(tokenizer.to_str())["model"]
    # every byte also as the last letter of a word, or unseen words could not be encoded
    pieces = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters), *bpe["vocab"], _START, _END])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in bpe["merges"]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    made = CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS, pad_token=_END)
    made.save_pretrained(folder)
    return made
