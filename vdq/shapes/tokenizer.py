"""The testbed's word-level tokenizer; one vocabulary serves the text encoder and the small CLIP."""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from vdq.shapes.scenes import vocabulary

PAD, UNKNOWN, END = "[PAD]", "[UNK]", "[EOS]"
MAX_LENGTH = 24


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word or punctuation mark, lower-cased, closed by the end token.

    The end token has the highest id because open_clip's text tower pools where the id is largest.
    """
    words = [PAD, UNKNOWN, *vocabulary(), END]
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
