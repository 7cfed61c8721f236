"""The fast transform against scipy's Hadamard matrices."""

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag
from scipy.linalg import hadamard as matrix

from vdq.quant.rotation import hadamard


@pytest.mark.parametrize(("width", "block"), [(1, 1), (6, 2), (8, 8), (96, 32), (1152, 128), (4608, 512)])
@pytest.mark.parametrize("shape", [(3,), (2, 5)])
def test_it_equals_the_matrix(width, block, shape):
    x = torch.randn(*shape, width, generator=torch.Generator().manual_seed(0))
    expected = x.double().numpy() @ block_diag(*[matrix(block) / np.sqrt(block)] * (width // block))
    found = hadamard(x, block)
    assert found.dtype == torch.float32 and found.shape == x.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(hadamard(found, block), x, rtol=0, atol=1e-5)  # its own inverse


def test_strided_inputs_and_no_rows():
    x = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(hadamard(x.T, 16), hadamard(x.T.contiguous(), 16), rtol=0, atol=0)
    assert hadamard(torch.empty(0, 16), 16).shape == (0, 16)


def test_an_outlier_is_spread_over_its_block_alone():
    x = torch.zeros(8)
    x[5] = 12
    assert torch.equal(hadamard(x, 4).abs(), torch.tensor([0.0] * 4 + [6.0] * 4))


@pytest.mark.parametrize("block", [-2, 0, 3, 6, 16, 2.0])
def test_other_blocks_are_refused(block):
    with pytest.raises(ValueError, match=f"^rotation={block} must be a power of two that divides the 24 channels$"):
        hadamard(torch.zeros(2, 24), block)
