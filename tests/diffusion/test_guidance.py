"""Guidance against a numpy formula, and what the denoiser is given."""

import numpy as np
import pytest
import torch

from vdq.diffusion.guidance import guided
from vdq.models.base import Conditions

X = torch.randn(2, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
CONDITIONS = Conditions(torch.randn(2, 1, 5, 6), torch.randn(5, 6), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]))


class Fixed:
    """Returns one random output whatever it is given, and keeps that."""

    def __init__(self):
        self.output = torch.randn(4, 8, 2, 3, 3, generator=torch.Generator().manual_seed(1))

    def __call__(self, *given):
        self.given = given
        return self.output


@pytest.mark.parametrize(("scale", "channels"), [(7.0, 3), (1.0, 3), (4.5, 4), (7.0, 0)])
def test_mixes_the_first_channels_only(scale, channels):
    denoiser = Fixed()
    eps, variance = guided(denoiser, X, 500, CONDITIONS, guidance_scale=scale, guidance_channels=channels)
    caption, null = denoiser.output.numpy()[:2], denoiser.output.numpy()[2:]
    expected = caption[:, :4].copy()
    expected[:, :channels] = scale * caption[:, :channels] - (scale - 1) * null[:, :channels]
    np.testing.assert_allclose(eps.numpy(), expected, atol=1e-5)
    np.testing.assert_array_equal(variance.numpy(), caption[:, 4:])


def test_what_the_denoiser_is_given():
    denoiser = Fixed()
    guided(denoiser, X, 946, CONDITIONS)
    x, timestep, y, mask = denoiser.given
    assert torch.equal(x[:2], X) and torch.equal(x[2:], X)
    assert timestep.tolist() == [946] * 4 and timestep.dtype == torch.long
    assert torch.equal(y[:2], CONDITIONS.y) and all(torch.equal(row[0], CONDITIONS.null) for row in y[2:])
    assert mask is CONDITIONS.mask


def test_rejected_arguments():
    with pytest.raises(ValueError, match="guidance_channels=5 must be in 0..4"):
        guided(Fixed(), X, 0, CONDITIONS, guidance_channels=5)
    with pytest.raises(ValueError, match="x has 1 rows, conditions have 2"):
        guided(Fixed(), X[:1], 0, CONDITIONS)
