"""Guidance against a numpy formula, and what the denoiser is given."""

import numpy as np
import pytest
import torch

from vdq.models.guidance import Conditions, Reusing, guided

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


class Preparing(Fixed):
    """Offers to prepare, and lists what it prepared."""

    def __init__(self):
        super().__init__()
        self.prepared = []

    def prepare(self, y, mask):
        self.prepared.append(("captions", y, mask))
        return self.prepared[-1]

    def prepare_timestep(self, timestep):
        self.prepared.append(("timestep", timestep))
        return self.prepared[-1]


def test_everything_is_prepared_once():
    """Two batches of one size, one of another, three steps each: what is prepared equals what a plain call is given."""
    plain, denoiser = Fixed(), Preparing()
    reusing = Reusing(denoiser)
    for conditions in (CONDITIONS, CONDITIONS[:2], CONDITIONS[:1]):
        x = X[: len(conditions)]
        plain.output = denoiser.output = torch.randn(2 * len(x), 8, 2, 3, 3)
        for timestep in (999, 500, 0):
            expected = guided(plain, x, timestep, conditions)
            assert all(map(torch.equal, guided(reusing, x, timestep, conditions), expected))
            given, time, captions = denoiser.given
            assert (time[0], captions[0]) == ("timestep", "captions")
            for ours, theirs in zip((given, time[1], *captions[1:]), plain.given, strict=True):
                assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype
    assert [kind for kind, *_ in denoiser.prepared].count("captions") == 3
    assert [kind for kind, *_ in denoiser.prepared].count("timestep") == 3 * 2


def test_a_denoiser_that_does_not_prepare_is_given_everything():
    denoiser = Fixed()
    reused = guided(Reusing(denoiser), X, 946, CONDITIONS)
    given = denoiser.given
    assert all(map(torch.equal, reused, guided(denoiser, X, 946, CONDITIONS)))
    assert all(map(torch.equal, given, denoiser.given))


def test_rejected_arguments():
    with pytest.raises(ValueError, match="guidance_channels=5 must be in 0..4"):
        guided(Fixed(), X, 0, CONDITIONS, guidance_channels=5)
    with pytest.raises(ValueError, match="x has 1 rows, conditions have 2"):
        guided(Fixed(), X[:1], 0, CONDITIONS)
