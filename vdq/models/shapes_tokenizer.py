"""The testbed's word-level tokenizer; one vocabulary serves the text encoder and the small CLIP."""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, END = "[PAD]", "[UNK]", "[EOS]"
MAX_LENGTH = 24
# Every word and mark of the captions that the testbed was trained on (vdq.shapes.scenes), in the order of their ids.
WORDS = """
, . a and around background big bigger black blue bottom center checkered circle circles cross cyan does down
downwards falls from front gets goes going gray green growing grows huge in is its large left little move moves moving
not of on orange pink place purple red right ring rises round see shrinking shrinks slides small smaller square
standing stands star stays still striped that the tiny to top triangle up upwards video wall we which white with
yellow
""".split()


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word or punctuation mark, lower-cased, closed by the end token.

    The end token has the highest id because open_clip's text tower pools where the id is largest.
    """
    words = [PAD, UNKNOWN, *WORDS, END]
    ids = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, ids[END])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN, eos_token=END, model_max_length=MAX_LENGTH
    )


def unknown_words(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[str]:
    """The words and marks of a prompt that are not in the vocabulary, as they stand there."""
    encoded = tokenizer(prompt, return_offsets_mapping=True, verbose=False)
    pairs = zip(encoded.input_ids, encoded.offset_mapping, strict=True)
    return [prompt[first:last] for token, (first, last) in pairs if token == tokenizer.unk_token_id]
