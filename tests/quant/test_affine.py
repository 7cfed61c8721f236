"""Quantizers against vectors of the specification, a numpy oracle and torch's own fake quantization."""

import numpy as np
import pytest
import torch

from vdq.quant.affine import (
    QParams,
    check_bits,
    code_range,
    fake_quantize,
    qparams_from_range,
    quantize,
    tensor_range,
)


def numpy_codes(x: np.ndarray, bits: int, symmetric: bool, axis: int | None) -> tuple[np.ndarray, ...]:
    """Textbook min-max quantization in float64: codes, scale, zero point and distance of x / D from a rounding tie."""
    x = x.astype(np.float64)
    lo = np.minimum(x.min(axis=axis, keepdims=True), 0)
    hi = np.maximum(x.max(axis=axis, keepdims=True), 0)
    if symmetric:
        scale, zero = np.maximum(-lo, hi) / (2 ** (bits - 1) - 1), np.zeros_like(lo)
        first, last = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    else:
        scale, (first, last) = (hi - lo) / (2**bits - 1), (0, 2**bits - 1)
        zero = np.rint(-lo / scale)
    codes = np.clip(np.rint(x / scale) + zero, first, last)
    return codes, scale, zero, np.abs(x / scale - np.floor(x / scale) - 0.5)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 6, 8, 16])
@pytest.mark.parametrize(("granularity", "axis"), [("per_tensor", None), ("per_channel", 1), ("per_token", 1)])
def test_codes_equal_the_numpy_oracle(bits, symmetric, granularity, axis):
    x = torch.randn(24, 40, generator=torch.Generator().manual_seed(bits)) * 3 + 0.4
    qparams = qparams_from_range(*tensor_range(x, granularity), bits=bits, symmetric=symmetric)
    codes, scale, zero, tie = numpy_codes(x.numpy(), bits, symmetric, axis)
    certain = tie > (1e-2 if bits == 16 else 1e-4)  # fp32 holds x / D of 16-bit codes to about 4e-3
    assert certain.mean() > 0.9
    np.testing.assert_allclose(qparams.scale, scale, rtol=1e-6)
    np.testing.assert_array_equal(qparams.zero_point, zero)
    np.testing.assert_array_equal(quantize(x, qparams, bits=bits, symmetric=symmetric).numpy()[certain], codes[certain])
    restored = fake_quantize(x, qparams, bits=bits, symmetric=symmetric).numpy()
    np.testing.assert_allclose(restored[certain], ((codes - zero) * scale)[certain], rtol=1e-5, atol=1e-6)


def test_fake_quantize_equals_torch():
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    qparams = qparams_from_range(*tensor_range(x), bits=8)
    theirs = torch.fake_quantize_per_tensor_affine(x, float(qparams.scale), int(qparams.zero_point), 0, 255)
    torch.testing.assert_close(fake_quantize(x, qparams, bits=8), theirs, rtol=0, atol=1e-6)


def test_vectors_of_the_specification():
    x = torch.tensor([-1.0, 1.0])
    scale, zero = qparams = qparams_from_range(*tensor_range(x), bits=8)
    assert float(scale) == pytest.approx(0.00784314, abs=1e-8)
    assert float(zero) in (127, 128)  # 127.5 up to fp32 rounding
    assert fake_quantize(x, qparams, bits=8).abs().min() == pytest.approx(0.9961, abs=1e-4)

    scale, zero = qparams_from_range(torch.tensor(0.2), torch.tensor(1.0), bits=8)
    assert (float(scale), float(zero)) == (pytest.approx(1 / 255), 0)
    scale, zero = qparams_from_range(torch.tensor(-3.0), torch.tensor(-1.0), bits=8)
    assert (float(scale), float(zero)) == (pytest.approx(3 / 255), 255)

    x = torch.tensor([-1, 1, 0.3])
    qparams = qparams_from_range(*tensor_range(x), bits=4, symmetric=True)
    assert float(qparams.scale) == pytest.approx(1 / 7)
    torch.testing.assert_close(fake_quantize(x, qparams, bits=4, symmetric=True), torch.tensor([-1, 1, 2 / 7]))


def test_half_rounds_to_even_before_the_zero_point_is_added():
    qparams = QParams(torch.tensor(1.0), torch.tensor(3.0))
    codes = quantize(torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5]), qparams, bits=4)
    assert codes.tolist() == [1, 3, 3, 5, 5]


def test_zero_is_exact_in_every_range():
    edges = torch.randn(2, 500, generator=torch.Generator().manual_seed(1)).sort(dim=0).values
    for bits in (2, 5, 8, 16):
        qparams = qparams_from_range(*edges, bits=bits)
        assert fake_quantize(torch.zeros(500), qparams, bits=bits).count_nonzero() == 0


def test_ranges_reduce_what_the_granularity_says():
    x = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(2, 3, 4)
    assert [list(tensor_range(x, g)[0].shape) for g in ("per_tensor", "per_channel", "per_token", "token_shared")] == [
        [1, 1, 1],
        [2, 1, 1],
        [2, 3, 1],
        [1, 3, 1],
    ]
    with pytest.raises(ValueError, match="granularity=per_group"):
        tensor_range(x, "per_group")


def test_shared_token_range_joins_batch_and_channels():
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(2))
    x[1] *= 10
    lo, hi = tensor_range(x, "token_shared")
    for token in range(3):
        assert lo[0, token, 0] == x.numpy()[:, token].min()
        assert hi[0, token, 0] == x.numpy()[:, token].max()


def test_tiny_ranges_do_not_poison_the_others():
    """Upstream replaces every scale as soon as one is below eps; here only that one."""
    lo, hi = torch.tensor([0.0, -1.0, 0.0]), torch.tensor([0.0, 1.0, 1e-9])
    scale, zero = qparams_from_range(lo, hi, bits=8)
    np.testing.assert_allclose(scale, [1e-6, 2 / 255, 1e-6])
    assert torch.isfinite(zero).all()


@pytest.mark.parametrize("value", [0.0, 3.5, -2.0])
def test_constant_tensors_are_exact(value):
    x = torch.full((4, 5), value)
    qparams = qparams_from_range(*tensor_range(x), bits=8)
    torch.testing.assert_close(fake_quantize(x, qparams, bits=8), x)


def test_half_precision_input_is_quantized_in_fp32():
    x = torch.randn(8, 8).half()
    qparams = qparams_from_range(*tensor_range(x), bits=16)
    codes = quantize(x, qparams, bits=16)
    assert codes.dtype == qparams.scale.dtype == torch.float32
    assert codes.max() == 65535


@pytest.mark.parametrize("bits", [0, 1, 17, 8.0, "8", None])
def test_bits_outside_2_to_16_are_refused(bits):
    with pytest.raises(ValueError, match=f"weight_bits={bits} must be an integer in 2..16"):
        check_bits(bits, "weight_bits")
    with pytest.raises(ValueError, match="2..16"):
        code_range(bits)
