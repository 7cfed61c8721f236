"""Top-1 retrieval against a numpy computation on a stand-in encoder."""

import numpy as np
import pytest
import torch

from vdq.metrics.retrieval import PromptRetrieval

CANDIDATES = ["red", "green", "blue", "nothing"]
TEXT = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1]])


class MeanColor:
    """Embeds a frame by its mean colour and a prompt by the colour it names."""

    name, sha256, frame_size = "mean color", "0", None

    def encode_images(self, frames):
        return frames.float().mean((1, 2)) - 20

    def encode_text(self, prompts):
        return TEXT[[CANDIDATES.index(prompt) for prompt in prompts]]


def test_top1_equals_numpy():
    videos = torch.from_numpy(np.random.default_rng(0).integers(0, 40, (12, 3, 4, 4, 3), dtype=np.uint8))
    prompts = [CANDIDATES[i % 3] for i in range(12)]
    metric = PromptRetrieval(encoder=MeanColor())
    metric.update(videos[:5], prompts[:5], CANDIDATES, index=range(5))
    metric.update(videos[5:], prompts[5:], CANDIDATES, index=range(5, 12))

    frames = videos.numpy().astype(float).mean((2, 3)) - 20
    frames /= np.linalg.norm(frames, axis=-1, keepdims=True)
    texts = TEXT.numpy() / np.linalg.norm(TEXT.numpy(), axis=-1, keepdims=True)
    best = (frames @ texts.T).mean(1).argmax(-1)
    hits = best == np.arange(12) % 3
    assert 0 < hits.mean() < 1
    assert metric.per_video()["top1"] == hits.astype(float).tolist()
    assert metric.compute()["top1"] == pytest.approx(hits.mean())


def test_a_prompt_that_is_no_candidate_is_refused():
    video = torch.zeros(1, 2, 4, 4, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="'yellow', which is not one of the 4 candidates"):
        PromptRetrieval(encoder=MeanColor()).update(video, ["yellow"], CANDIDATES)
