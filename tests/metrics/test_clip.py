"""Oracles: EvalCrafter's own numbers on its own embeddings (fixture), numpy cosines of a small open_clip model."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vdq.metrics.clip import ClipMetric
from vdq.metrics.retrieval import PromptRetrieval

PROMPTS = ["a red circle", "two blue squares move", "a red circle"]


class SmallClip(nn.Module):
    """open_clip's CLIP with random weights; a prompt's tokens are its letters."""

    name = "small"
    sha256 = "0" * 64
    frame_size = None

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        vision = open_clip.CLIPVisionCfg(layers=1, width=32, head_width=16, patch_size=8, image_size=16)
        text = open_clip.CLIPTextCfg(context_length=24, vocab_size=130, width=32, heads=2, layers=1)
        self.model = open_clip.model.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text).eval()
        self.batches: list[int] = []

    def encode_images(self, frames: Tensor) -> Tensor:
        assert frames.dtype == torch.uint8
        self.batches.append(len(frames))
        return self.model.encode_image(frames.permute(0, 3, 1, 2).float() / 255)

    def truncated(self, prompts: list[str]) -> int:
        return sum(len(prompt) > 23 for prompt in prompts)

    def encode_text(self, prompts: list[str]) -> Tensor:
        tokens = torch.zeros(len(prompts), 24, dtype=torch.long)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt) + 1] = torch.tensor([*prompt.encode(), 129])
        return self.model.encode_text(tokens)


class Replay:
    """Embeddings recorded elsewhere: a frame's red value is its row, a prompt is a key."""

    name = "replay"
    sha256 = "1" * 64
    frame_size = None

    def __init__(self, images: Tensor, texts: dict[str, Tensor]) -> None:
        self.images, self.texts = images, texts

    def encode_images(self, frames: Tensor) -> Tensor:
        return self.images[frames[:, 0, 0, 0].long()]

    def encode_text(self, prompts: list[str]) -> Tensor:
        return torch.stack([self.texts[prompt] for prompt in prompts])


def rows_as_video(rows: range) -> Tensor:
    """uint8 [1,T,1,1,3] whose red values are `rows`."""
    return torch.tensor(list(rows), dtype=torch.uint8)[None, :, None, None, None].repeat(1, 1, 1, 1, 3)


def random_videos(count: int = 3, frames: int = 5) -> Tensor:
    return torch.randint(0, 256, (count, frames, 16, 16, 3), generator=torch.Generator().manual_seed(1)).byte()


@pytest.fixture(scope="module")
def recorded(fixtures: Path) -> tuple[dict, dict[str, Tensor]]:
    """Numbers and embeddings of two videos, recorded from EvalCrafter."""
    return json.loads((fixtures / "clip" / "clip.json").read_text()), load_file(fixtures / "clip" / "clip.safetensors")


# Which recorded embeddings give which recorded number: EvalCrafter resizes differently for its two metrics.
@pytest.mark.parametrize(
    ("features", "mode", "average", "keys"),
    [
        ("standard.image_features", "standard", "standard", ("clipsim", "clip_temp")),
        ("evalcrafter.image_features_clipsim", "evalcrafter_open_clip", "evalcrafter", ("clipsim",)),
        ("evalcrafter.image_features_clip_temp", "evalcrafter_open_clip", "evalcrafter", ("clip_temp",)),
    ],
)
def test_equals_evalcrafter_on_its_own_embeddings(
    recorded: tuple[dict, dict[str, Tensor]], features: str, mode: str, average: str, keys: tuple[str, ...]
) -> None:
    numbers, tensors = recorded
    cases, averages = numbers["cases"], numbers["dataset_average"]
    names = [case["name"] for case in cases]
    lengths = [case["video"]["T"] for case in cases]
    images = torch.cat([tensors[f"{name}.{features}"] for name in names])
    # CLIP's embeddings have no unit length; scaled ones must give the same cosines.
    scales = torch.linspace(0.5, 20, len(images))[:, None]
    encoder = Replay(images * scales, {name: 3 * tensors[f"{name}.text_features"][0] for name in names})
    metric = ClipMetric(encoder=encoder, frames_per_batch=5)
    start = 0
    for index, (name, length) in enumerate(zip(names, lengths, strict=True)):
        metric.update(rows_as_video(range(start, start + length)), [name], index=[index])
        start += length
    values, per_video = metric.compute(), metric.per_video()
    for key in keys:
        assert per_video[key] == pytest.approx([case[mode][key] for case in cases], abs=2e-6)
        assert values[key] == pytest.approx(averages[average][key], abs=2e-6)


def test_equals_numpy_cosines_of_an_open_clip_model() -> None:
    encoder, videos = SmallClip(), random_videos()
    metric = ClipMetric(encoder=encoder, frames_per_batch=2)
    metric.update(videos, PROMPTS)
    with torch.no_grad():
        images = encoder.encode_images(videos.flatten(0, 1)).double().numpy().reshape(3, 5, -1)
        texts = encoder.encode_text(PROMPTS).double().numpy()
    images /= np.sqrt((images**2).sum(-1, keepdims=True))
    texts /= np.sqrt((texts**2).sum(-1, keepdims=True))
    clipsim = [np.mean([frame @ text for frame in video]) for video, text in zip(images, texts, strict=True)]
    clip_temp = [np.mean([video[t] @ video[t + 1] for t in range(4)]) for video in images]
    assert metric.per_video() == {
        "clipsim": pytest.approx(clipsim, abs=1e-6),
        "clip_temp": pytest.approx(clip_temp, abs=1e-6),
    }
    assert metric.compute() == {
        "clipsim": pytest.approx(np.mean(clipsim), abs=1e-6),
        "clip_temp": pytest.approx(np.mean(clip_temp), abs=1e-6),
    }


def test_frames_go_through_the_encoder_once_in_batches() -> None:
    encoder = SmallClip()
    ClipMetric(encoder=encoder, frames_per_batch=2).update(random_videos(count=2), PROMPTS[:2])
    assert encoder.batches == [2, 2, 1, 2, 2, 1]


def test_cosines_are_neither_clamped_nor_scaled() -> None:
    axis = torch.tensor([1.0, 0.0])
    metric = ClipMetric(encoder=Replay(torch.stack([-axis, axis, axis]), {"a": -axis, "b": axis}))
    metric.update(rows_as_video(range(0, 2)), ["a"])
    metric.update(rows_as_video(range(1, 3)), ["a"])
    metric.update(rows_as_video(range(1, 3)), ["b"])
    assert metric.per_video() == {"clipsim": [0.0, -1.0, 1.0], "clip_temp": [-1.0, 1.0, 1.0]}


def test_names_its_weights_and_builds_no_graph() -> None:
    metric = ClipMetric(encoder=SmallClip())
    assert metric.assets == {"small": "0" * 64} and all(value.higher_is_better for value in metric.values)
    assert set(metric(random_videos(), PROMPTS)) == {"clipsim", "clip_temp"}, "forward gives the batch's values"
    assert not metric.value_clipsim[0].requires_grad


@pytest.mark.parametrize(
    ("videos", "prompts", "message"),
    [
        (random_videos(frames=1), PROMPTS, "1 frame; clip_temp"),
        (random_videos(), PROMPTS[:2], "each of the 3 videos"),
        (random_videos(), "abc", "each of the 3 videos"),
        (random_videos().float(), PROMPTS, "float32"),
        (random_videos()[0], PROMPTS, r"\[B,T,H,W,3\]"),
        (random_videos().movedim(-1, 2), PROMPTS, r"\[B,T,H,W,3\]"),
        (random_videos()[:0], [], "B >= 1"),
    ],
)
def test_refuses_bad_input(videos: Tensor, prompts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipMetric(encoder=SmallClip()).update(videos, prompts)


def test_label_tells_encoders_apart_and_notes_count_cut_prompts() -> None:
    metric = ClipMetric(encoder=SmallClip(), label="standard")
    metric.update(random_videos(), PROMPTS)
    assert set(metric.compute()) == set(metric.per_video()) == {"clipsim_standard", "clip_temp_standard"}
    assert metric.notes(["short", "a" * 24]) == {"truncated_prompts": 1}
    plain = ClipMetric(encoder=SmallClip())
    plain.update(random_videos(), PROMPTS)
    assert list(plain.compute().values()) == list(metric.compute().values())


def test_an_encoder_of_one_size_refuses_others() -> None:
    encoder = SmallClip()
    encoder.frame_size = (16, 16)
    assert ClipMetric(encoder=encoder).refusal(5, 16, 16) is None
    with pytest.raises(ValueError, match="size 16x16; small takes 8x8 only"):
        encoder.frame_size = (8, 8)
        ClipMetric(encoder=encoder).update(random_videos(), PROMPTS)


def test_refuses_an_empty_batch_size() -> None:
    with pytest.raises(ValueError, match="frames_per_batch is 0"):
        ClipMetric(encoder=SmallClip(), frames_per_batch=0)


def test_damaged_weights_are_an_error_and_no_missing_number() -> None:
    encoder = SmallClip()
    encode = encoder.encode_images
    encoder.encode_images = lambda frames: encode(frames).index_fill(1, torch.tensor([0]), torch.nan)
    with pytest.raises(ValueError, match=f"clipsim has NaN or infinite values; the weights of {encoder.name} may be"):
        ClipMetric(encoder=encoder).update(random_videos(), PROMPTS)
    with pytest.raises(ValueError, match="similarity of top1 has NaN or infinite values"):
        PromptRetrieval(encoder=encoder).update(random_videos(), PROMPTS, PROMPTS)
