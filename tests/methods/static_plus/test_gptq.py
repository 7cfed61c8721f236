"""GPTQ against the column-by-column update with an explicit inverse (optimal brain quantization), in numpy."""

import numpy as np
import pytest
import torch

from vdq.methods.static_plus.gptq import BLOCK, feedback, gptq_codes, gram
from vdq.quant.affine import QParams, dequantize, qparams_from_range, quantize, tensor_range


def problem(outputs: int, inputs: int, rows: int, bits: int, seed: int = 0):
    """Correlated inputs [N, n, in], a weight [out, in] and its min-max grid."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator) + 2 * torch.eye(inputs)
    x = torch.randn(3, rows, inputs, generator=generator) @ mix
    weight = torch.randn(outputs, inputs, generator=generator)
    return x, weight, qparams_from_range(*tensor_range(weight, "per_channel"), bits=bits)


def brain_surgeon(weight: np.ndarray, scale, zero_point, hessian: np.ndarray, bits: int) -> np.ndarray:
    """Quantize a column, give its error to the others by the inverse Hessian, strike it from the inverse."""
    w, inverse = weight.copy(), np.linalg.inv(hessian)
    codes = np.zeros_like(w)
    for j in np.argsort(-np.diag(hessian), kind="stable"):
        codes[:, j] = np.clip(np.rint(w[:, j] / scale) + zero_point, 0, 2**bits - 1)
        error = (w[:, j] - (codes[:, j] - zero_point) * scale) / inverse[j, j]
        w -= np.outer(error, inverse[j])
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes


@pytest.mark.parametrize(("inputs", "bits"), [(12, 4), (40, 3), (BLOCK + 9, 4)])
def test_equals_the_explicit_update(inputs, bits):
    x, weight, grid = problem(5, inputs, 4 * inputs, bits)
    matrix = gram(x)
    flat = x.flatten(0, 1).double().numpy()
    np.testing.assert_allclose(matrix.numpy(), flat.T @ flat, atol=1e-6 * (flat**2).sum())
    damped = matrix.numpy() + 0.01 * np.diag(matrix.numpy()).mean() * np.eye(inputs)
    expected = brain_surgeon(weight.double().numpy(), *(v[:, 0].double().numpy() for v in grid), damped, bits)
    ours = gptq_codes(weight, grid, feedback(matrix), bits=bits)
    # a value at the edge of two codes may fall to either side, and moves the columns behind it
    assert (ours.numpy() == expected).mean() > 0.98


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_output_error_is_smaller_than_of_nearest_rounding(bits):
    x, weight, grid = problem(16, 32, 200, bits)
    errors = [
        ((dequantize(codes, grid) - weight) @ x.flatten(0, 1).T).square().sum()
        for codes in (gptq_codes(weight, grid, feedback(gram(x)), bits=bits), quantize(weight, grid, bits=bits))
    ]
    assert errors[0] < 0.7 * errors[1]


def test_independent_inputs_are_rounded_to_nearest():
    _, weight, grid = problem(6, 10, 20, 4)
    for matrix in (torch.eye(10).double(), torch.zeros(10, 10).double()):
        assert torch.equal(gptq_codes(weight, grid, feedback(matrix), bits=4), quantize(weight, grid, bits=4))


def test_codes_stay_in_range_and_symmetric_grids_work():
    x, weight, _ = problem(6, 10, 40, 3)
    grid = qparams_from_range(*(bound / 2 for bound in tensor_range(weight, "per_channel")), bits=3, symmetric=True)
    codes = gptq_codes(weight, QParams(*grid), feedback(gram(x)), bits=3, symmetric=True)
    assert codes.min() >= -4 and codes.max() <= 3 and torch.equal(codes, codes.round())
