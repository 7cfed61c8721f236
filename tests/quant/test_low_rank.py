"""The branch beside the integers: against numpy's singular value decomposition, and as part of a layer."""

import numpy as np
import pytest
import torch

from tests.flat_layers import changed, layer_quant, weight_grid
from vdq.backends import FakeQuantBackend, ReferenceBackend
from vdq.diffusion.clock import StepClock
from vdq.quant.affine import QParams
from vdq.quant.batch_layout import BatchLayout
from vdq.quant.linear import LayerSpec
from vdq.quant.low_rank import low_rank
from vdq.quant.weight_codes import pack_codes

IN, OUT, RANK = 24, 20, 4
WEIGHT = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0))


def test_branch_leaves_what_the_largest_directions_leave():
    left, sizes, right = np.linalg.svd(WEIGHT.double().numpy())
    expected = left[:, :RANK] * sizes[:RANK] @ right[:RANK]
    branch = low_rank(WEIGHT, RANK)
    assert branch.down.shape == (RANK, IN) and branch.up.shape == (OUT, RANK) and branch.up.dtype == torch.float16
    np.testing.assert_allclose(branch.weight.numpy(), expected, atol=2e-3)  # of half precision
    assert np.linalg.norm(WEIGHT.numpy() - branch.weight.numpy()) == pytest.approx(np.linalg.norm(sizes[RANK:]), 1e-3)


def test_sizes_are_those_of_the_meta_device():
    whole, meta = low_rank(WEIGHT, 100), low_rank(WEIGHT.to("meta"), 100)
    assert [(t.down.shape, t.up.shape) for t in (whole, meta)] == [((OUT, IN), (OUT, OUT))] * 2
    assert meta.up.is_meta and meta.up.dtype == whole.up.dtype


@pytest.mark.parametrize("backend", [FakeQuantBackend, ReferenceBackend])
@pytest.mark.parametrize("smoothed", [False, True])
def test_layer_adds_the_branch_of_what_it_quantizes(backend, smoothed):
    """Against numpy: the branch multiplies x / s before its rounding."""
    s = torch.linspace(0.5, 3, IN) if smoothed else torch.ones(IN)
    branch, bias = low_rank(WEIGHT * s, RANK), torch.randn(OUT, generator=torch.Generator().manual_seed(1))
    rest = WEIGHT * s - branch.weight
    qparams = weight_grid(rest, None, bits=4)
    codes = (rest / qparams.scale[0] + qparams.zero_point[0]).round().clamp(0, 15)
    params = layer_quant(
        weight_bits=4,
        act_bits=4,
        weight=qparams,
        weight_range=torch.zeros(1, dtype=torch.long),
        act=QParams(torch.tensor([0.5]), torch.tensor([7.0])),
        act_range=torch.zeros(1, dtype=torch.long),
        smoothing=s[None] if smoothed else None,
        codes=pack_codes([codes], bits=4),
        low_rank=branch,
    )
    layer = backend().layer(LayerSpec("fc", WEIGHT, bias, params, StepClock(1), BatchLayout()))
    x = torch.randn(2, 5, IN, generator=torch.Generator().manual_seed(2))
    divided = x.double().numpy() / s.double().numpy()
    quantized = (np.clip(np.rint(divided / 0.5) + 7, 0, 15) - 7) * 0.5
    held = ((codes - qparams.zero_point[0]) * qparams.scale[0]).double().numpy()
    expected = quantized @ held.T + divided @ branch.weight.double().numpy().T + bias.double().numpy()
    np.testing.assert_allclose(layer(x).numpy(), expected, atol=1e-4)
    with pytest.raises(ValueError, match="low_rank needs stored codes"):
        changed(params, codes=None)
