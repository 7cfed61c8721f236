"""Layers of every format, and what they must compute: numpy, fp32 step by step up to the codes, then int64."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.flat_layers import flat, layer_quant, weight_grid
from vdq.diffusion.clock import StepClock
from vdq.quant.affine import QParams, code_range
from vdq.quant.batch_layout import BatchLayout
from vdq.quant.linear import LayerSpec

STEPS, WEIGHT_RANGES = 4, [0, 0, 1, 1]


class Expected(NamedTuple):
    """Accumulators int64 [n, out], the scale they are multiplied with fp64 [n, out], and the output fp64 [n, out]."""

    accumulators: np.ndarray
    scale: np.ndarray
    output: np.ndarray


def make_layer(
    *,
    weight_bits: int = 8,
    act_bits: int = 8,
    symmetric_weights: bool = False,
    symmetric_acts: bool = False,
    dynamic: bool = False,
    granularity: str = "per_token",
    smoothing: bool = True,
    bias: bool = True,
    in_features: int = 48,
    out_features: int = 20,
) -> LayerSpec:
    """Two weight ranges and four activation ranges, with zero points at both ends of the codes and between; the first
    channels of the weight are positive, negative and zero throughout.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out_features, in_features, generator=generator)
    weight[0], weight[1], weight[2] = weight[0].abs(), -weight[1].abs(), 0
    s = torch.rand(2, in_features, generator=generator) * torch.tensor([[1.0], [10.0]]) + 0.2 if smoothing else None
    first, last = code_range(act_bits, symmetric_acts)
    zeros = torch.zeros(STEPS) if symmetric_acts else torch.tensor([0.0, last, last // 2, last // 3])
    act = QParams(torch.tensor([1.0, 2.0, 4.0, 8.0]) / 2**act_bits, zeros)
    params = layer_quant(
        weight_bits=weight_bits,
        act_bits=act_bits,
        weight=weight_grid(weight, s, bits=weight_bits, symmetric=symmetric_weights),
        weight_range=torch.tensor(WEIGHT_RANGES) if smoothing else torch.zeros(STEPS, dtype=torch.long),
        act=None if dynamic else act,
        act_range=None if dynamic else torch.arange(STEPS),
        smoothing=s,
        symmetric_weights=symmetric_weights,
        symmetric_acts=symmetric_acts,
        act_granularity=granularity,
    )
    offset = torch.randn(out_features, generator=generator) if bias else None
    return LayerSpec("blocks.0.fc", weight, offset, params, StepClock(STEPS), BatchLayout())


def expected(spec: LayerSpec, x: Tensor, step: int) -> Expected:
    """Oracle of a static or per-token layer at one step: x [n, in]."""
    p = flat(spec.quant)
    range_ = int(p.weight_range[step])
    s = np.float32(1) if p.smoothing is None else p.smoothing[range_].numpy()
    w_scale, w_zero = (values[range_].numpy() for values in p.weight)
    qw = _codes(spec.weight.numpy() * s, w_scale, w_zero, p.weight_bits, p.symmetric_weights)
    if spec.quant.act.static:
        x_scale, x_zero = (values[step].numpy().reshape(1, 1) for values in p.act)
        qx = _codes(x.numpy(), x_scale * s, x_zero, p.act_bits, p.symmetric_acts)
    else:
        smoothed = x.numpy() / s
        x_scale, x_zero = _token_qparams(smoothed, p.act_bits, p.symmetric_acts)
        qx = _codes(smoothed, x_scale, x_zero, p.act_bits, p.symmetric_acts)
    accumulators = (qx - x_zero.astype(np.int64)) @ (qw - w_zero.astype(np.int64)).T
    scale = x_scale.astype(np.float64) * w_scale.astype(np.float64).T
    bias = 0 if spec.bias is None else spec.bias.double().numpy()
    return Expected(accumulators, np.broadcast_to(scale, accumulators.shape), accumulators * scale + bias)


def _codes(x: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: int, symmetric: bool) -> np.ndarray:
    """int64."""
    ratio = x / scale
    assert ratio.dtype == np.float32
    first = -(2 ** (bits - 1)) if symmetric else 0
    return np.clip(np.rint(ratio) + zero, first, first + 2**bits - 1).astype(np.int64)


def _token_qparams(x: np.ndarray, bits: int, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    """fp32 [n, 1] each."""
    lo, hi = np.minimum(x.min(1, keepdims=True), 0), np.maximum(x.max(1, keepdims=True), 0)
    smallest = np.float32(1e-6)
    if symmetric:
        scale = np.maximum(np.maximum(-lo, hi) / np.float32(2 ** (bits - 1) - 1), smallest)
        return scale, np.zeros_like(scale)
    scale = np.maximum((hi - lo) / np.float32(2**bits - 1), smallest)
    return scale, np.rint(-lo / scale)


@pytest.fixture(scope="session")
def layer() -> Callable[..., LayerSpec]:
    return make_layer


@pytest.fixture(scope="session")
def any_layer() -> Callable[..., LayerSpec]:
    """The same where `layer` is another fixture."""
    return make_layer


@pytest.fixture(scope="session")
def oracle() -> Callable[..., Expected]:
    return expected


@pytest.fixture(scope="session")
def tokens() -> Callable[[int, int], Tensor]:
    """x [n, in]: most values inside the ranges of all steps, some far outside, a token of zeros and a constant one."""

    def make(n: int, in_features: int = 48) -> Tensor:
        x = torch.randn(n, in_features, generator=torch.Generator().manual_seed(5))
        x[:, ::7] *= 30
        x[1:2], x[2:3] = 0, 3.5
        return x

    return make
