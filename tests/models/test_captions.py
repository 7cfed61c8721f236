"""Features against transformers called directly, and when the encoder is loaded."""

import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, T5EncoderModel

from vdq.models import captions
from vdq.models.captions import CaptionEncoder
from vdq.sources import Source

PROMPTS = ["A red kite!", "", "two turtles " * 30]
LENGTH, WIDTH = 20, 32


@pytest.fixture
def encoder(tiny_opensora, tmp_path):
    def build(value: str | Path = tiny_opensora.folder / "text_encoder", dtype: str = "fp32", **settings):
        source = Source("model.weights.text_encoder", str(value), None, 19.0)
        settings = {"max_length": LENGTH, "width": WIDTH, "cache": tmp_path} | settings
        return CaptionEncoder(source=source, dtype=dtype, **settings)

    return build


def test_features_are_those_of_t5_on_padded_batches(encoder, tiny_opensora, caplog):
    caption = encoder()
    with caplog.at_level(logging.WARNING):
        assert caption.prepare(PROMPTS, "cpu") == 3
    assert "1 prompts have more than 20 tokens" in caplog.text
    y, mask = caption.features(PROMPTS)

    folder = tiny_opensora.folder / "text_encoder"
    texts = [captions.clean(prompt) for prompt in PROMPTS]
    tokens = AutoTokenizer.from_pretrained(folder)(
        texts, max_length=LENGTH, padding="max_length", truncation=True, return_tensors="pt"
    )
    assert torch.equal(mask, tokens.attention_mask)
    assert mask.sum(1).tolist()[1:] == [1, LENGTH]  # an empty prompt is its end token
    with torch.inference_mode():
        expected = T5EncoderModel.from_pretrained(folder)(**tokens).last_hidden_state
    assert y.shape == (3, 1, LENGTH, WIDTH)
    torch.testing.assert_close(y[:, 0], expected * mask[..., None], rtol=1e-5, atol=1e-5)


def test_known_prompts_do_not_load_the_encoder(encoder, monkeypatch):
    encoder().prepare(PROMPTS, "cpu")
    monkeypatch.setattr(captions.T5EncoderModel, "from_pretrained", lambda *_, **__: pytest.fail("T5 was loaded"))
    again = encoder()
    assert again.prepare([*PROMPTS, "a RED kite!"], "cpu") == 0  # the same after cleaning
    assert again.features(PROMPTS)[0].shape == (3, 1, LENGTH, WIDTH)


def test_a_damaged_file_is_encoded_again(encoder, tmp_path):
    caption = encoder()
    caption.prepare(PROMPTS[:1], "cpu")
    before = caption.features(PROMPTS[:1])[0]
    path = next((tmp_path / "captions").iterdir())
    path.write_bytes(path.read_bytes()[:40])
    assert caption.prepare(PROMPTS[:1], "cpu") == 1
    assert torch.equal(caption.features(PROMPTS[:1])[0], before)


def test_precision_and_token_limit_are_part_of_the_key(encoder):
    encoder().prepare(PROMPTS[:1], "cpu")
    assert encoder(dtype="bf16").prepare(PROMPTS[:1], "cpu") == 1
    assert encoder(max_length=10).prepare(PROMPTS[:1], "cpu") == 1
    assert encoder(dtype="bf16").features(PROMPTS[:1])[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dtype": "fp16"}, "model.text_dtype=fp16 must be one of fp32, bf16; T5 overflows in fp16"),
        ({"dtype": "int8"}, "model.text_dtype=int8 must be one of fp32, bf16"),
    ],
)
def test_refused_precision(encoder, settings, words):
    with pytest.raises(ValueError, match=words):
        encoder(**settings)


def test_refused_folders(encoder, tmp_path, tiny_opensora):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no T5 encoder with its tokenizer"):
        encoder(tmp_path / "empty").prepare(["new"], "cpu")
    with pytest.raises(ValueError, match="has features of width 32; the denoiser's caption_channels=64 must be equal"):
        encoder(width=64).prepare(["new"], "cpu")


def test_random_features_need_no_encoder(encoder):
    caption = encoder("random")
    assert caption.prepare(PROMPTS, "cpu") == 0
    y, mask = caption.features(PROMPTS)
    assert torch.equal(caption.features(PROMPTS[:1])[0][0], y[0])
    assert mask.sum(1).tolist() == [4, 1, LENGTH] and not torch.equal(y[0], y[2])
