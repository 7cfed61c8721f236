"""The fast transform against scipy's Hadamard matrices."""

import logging

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag
from scipy.linalg import hadamard as matrix
from torch.fx.experimental.proxy_tensor import make_fx

from vdq.quant import rotation
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


@pytest.fixture
def uncompiled(monkeypatch):
    """A machine where nothing compiles."""
    monkeypatch.setenv("CXX", "false")
    rotation._library.cache_clear()
    yield
    rotation._library.cache_clear()


@pytest.mark.parametrize(("width", "block"), [(6, 2), (96, 32), (1152, 128), (1024, 1024)])
def test_without_a_compiler_the_bits_are_the_same_and_the_log_tells(width, block, caplog, request):
    x = torch.randn(7, width, generator=torch.Generator().manual_seed(0))
    expected = hadamard(x, block)
    request.getfixturevalue("uncompiled")
    with caplog.at_level(logging.WARNING):
        assert torch.equal(hadamard(x, block), expected)
    assert caplog.messages[0].startswith("rotations run in torch, to the same bits but slower")


def test_bits_do_not_depend_on_the_rows_around():
    x = torch.randn(70, 128, generator=torch.Generator().manual_seed(0))
    whole = hadamard(x, 128)
    for rows in (1, 2, 3, 64):
        assert torch.equal(hadamard(x[:rows], 128), whole[:rows])


def test_additions_are_rounded_one_by_one():
    """Written out with numpy's fp32: pairs half a block apart, then their sums, at last one factor."""
    x = np.random.default_rng(0).standard_normal((9, 16)).astype(np.float32)
    y = x
    for _ in range(4):
        y = np.stack([y[:, :8] + y[:, 8:], y[:, :8] - y[:, 8:]], 2).reshape(9, 16)
    np.testing.assert_array_equal(hadamard(torch.from_numpy(x), 16).numpy(), y * np.float32(0.25))


def test_a_graph_holds_it_as_one_operator():
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    graph = make_fx(lambda x: hadamard(x, 16))(x)
    assert "vdq.hadamard" in graph.code
    other = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(graph(other), hadamard(other, 16))
    assert hadamard(torch.empty(3, 32, device="meta"), 16).shape == (3, 32)


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
