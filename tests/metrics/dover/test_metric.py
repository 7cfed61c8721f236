"""Oracle: the same steps written out, views from `views` and percentages from the logistic formula."""

import math

import pytest
import torch
from torch import Tensor, nn

from vdq.metrics.dover.metric import DoverMetric
from vdq.metrics.dover.model import Dover
from vdq.metrics.dover.views import AestheticView, TechnicalView

TECHNICAL = TechnicalView(
    clips=2,
    clip_frames=4,
    frame_interval=1,
    fragments_h=3,
    fragments_w=3,
    fragment_h=8,
    fragment_w=8,
    aligned=4,
)
AESTHETIC = AestheticView(clips=1, clip_frames=4, time_fragments=4, frame_interval=1, height=16, width=16)


class Brightness(nn.Module):
    """A backbone whose only feature is a clip's mean."""

    out_channels = 1

    def forward(self, clips: Tensor) -> Tensor:
        assert len(clips) == 1, "one clip at a time"
        return clips.mean(dim=(1, 2, 3, 4), keepdim=True)


def model() -> Dover:
    """Raw scores near the middle of the published constants, different for every draw of fragments."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dover = Dover(Brightness(), Brightness(), hidden_channels=4, name="brightness").eval()
    with torch.no_grad():
        dover.technical_head.fc_last.weight.mul_(0.1)
        dover.technical_head.fc_last.bias.fill_(-0.08)
        dover.aesthetic_head.fc_last.weight.mul_(0.1)
        dover.aesthetic_head.fc_last.bias.fill_(0.12)
    return dover


def metric(**settings) -> DoverMetric:
    return DoverMetric(**{"model": model(), "technical": TECHNICAL, "aesthetic": AESTHETIC} | settings)


def videos(count: int = 3, frames: int = 10) -> Tensor:
    """Bright to the right and towards the end, so that places and frames matter."""
    generator = torch.Generator().manual_seed(0)
    ramp = torch.arange(48)[:, None] * 4 + torch.arange(frames)[:, None, None, None] * 6
    return (ramp + torch.randint(0, 12, (count, frames, 40, 48, 3), generator=generator)).clamp(max=255).byte()


def scores(measured: DoverMetric, *batches: tuple[Tensor, list[int] | None]) -> dict[str, list[float]]:
    for batch, index in batches:
        measured.update(batch, index=index)
    return measured.per_video()


def test_values_do_not_depend_on_batches_or_order() -> None:
    three = videos()
    together = scores(metric(), (three, [4, 7, 9]))
    apart = scores(metric(), (three[2:], [9]), (three[:1], [4]), (three[1:2], [7]))
    assert together == apart
    assert len(set(together["vqa_t"])) == 3 and all(0 < value < 100 for value in together["vqa_t"])


def test_draws_depend_on_seed_and_index() -> None:
    same = videos(1).repeat(2, 1, 1, 1, 1)
    first, second = scores(metric(), (same, [0, 1]))["vqa_t"]
    assert first != second, "two videos get two draws"
    assert scores(metric(seed=1), (same, [0, 1]))["vqa_t"][0] != first
    unnumbered = scores(metric(), (same, None))["vqa_t"]
    assert unnumbered[0] == unnumbered[1]


def test_raw_scores_of_several_draws_are_averaged() -> None:
    three = videos(frames=16)
    raw = {}
    for count in (1, 3):
        measured = metric(num_offsets=count)
        seen = []
        measured.model.register_forward_hook(lambda _, args, output, seen=seen: seen.append((args[1], output.item())))
        value = scores(measured, (three[:1], [5]))
        raw[count] = {
            branch: [score for name, score in seen if name == branch] for branch in ("technical", "aesthetic")
        }
        for key, branch, mean, std in (
            ("vqa_t", "technical", -0.0758, 0.0129),
            ("vqa_a", "aesthetic", 0.1253, 0.0318),
        ):
            average = sum(raw[count][branch]) / len(raw[count][branch])
            assert value[key] == [pytest.approx(100 / (1 + math.exp(-(average - mean) / std)), rel=1e-9)]
    assert len(raw[1]["technical"]) == 2 and len(raw[3]["technical"]) == 6
    assert raw[3]["technical"][:2] == raw[1]["technical"], "more draws continue the same series"
    assert len(set(raw[3]["technical"])) == 6
    assert len(raw[3]["aesthetic"]) == 3 and len(set(raw[3]["aesthetic"])) > 1


def test_aesthetic_branch_runs_once_where_its_frames_are_fixed() -> None:
    measured = metric(num_offsets=3)
    seen = []
    measured.model.register_forward_hook(lambda _, args, __: seen.append(args[1]))
    scores(measured, (videos(1, frames=4), [0]))
    assert seen.count("aesthetic") == 1 and seen.count("technical") == 6


def test_constants_and_assets() -> None:
    ours, theirs = (scores(metric(constants=name), (videos(), [0, 1, 2])) for name in ("evalcrafter", "dover"))
    logit = [math.log(value / (100 - value)) for value in theirs["vqa_a"]]
    raw = [0.1107 + 0.07355 * z for z in logit]
    assert ours["vqa_a"] == pytest.approx([100 / (1 + math.exp(-(r - 0.1253) / 0.0318)) for r in raw])
    measured = metric()
    assert measured.assets == {"brightness": "random"} and all(value.higher_is_better for value in measured.values)
    assert measured.inputs == ("videos",) and measured.keys == ("vqa_a", "vqa_t")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_offsets": 0}, "num_offsets is 0"),
        ({"constants": "head"}, "constants is 'head'; one of evalcrafter, dover is allowed"),
    ],
)
def test_refuses_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metric(**settings)


def test_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match="videos has type torch.float32"):
        metric().update(videos().float())
    with pytest.raises(ValueError, match="index is"):
        metric().update(videos(), index=[0])
