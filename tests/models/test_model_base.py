"""Conditions: length, slices, casts and shape checks; VideoModel cannot be left half-implemented."""

import pytest
import torch

from vdq.models.base import VideoModel
from vdq.models.guidance import Conditions

Y, NULL, MASK = torch.randn(3, 1, 5, 8), torch.randn(5, 8), torch.ones(3, 5, dtype=torch.long)


def test_slices_keep_the_null_caption():
    part = Conditions(Y, NULL, MASK)[1:]
    assert len(part) == 2
    assert torch.equal(part.y, Y[1:]) and torch.equal(part.null, NULL) and torch.equal(part.mask, MASK[1:])
    assert Conditions(Y, NULL)[:1].mask is None


def test_to_casts_captions_but_not_the_mask():
    moved = Conditions(Y, NULL, MASK).to("cpu", torch.bfloat16)
    assert (moved.y.dtype, moved.null.dtype, moved.mask.dtype) == (torch.bfloat16, torch.bfloat16, torch.long)
    assert Conditions(Y, NULL, MASK).to("cpu").y.dtype == torch.float32


@pytest.mark.parametrize("arguments", [(Y[:, 0], NULL), (Y, NULL[:4]), (Y, NULL, MASK[:2]), (Y, NULL, MASK[:, :4])])
def test_rejected_shapes(arguments):
    with pytest.raises(ValueError, match="must be"):
        Conditions(*arguments)


def test_video_model_is_abstract():
    with pytest.raises(TypeError, match="decode"):
        VideoModel()
