"""Executable layers against numpy: every step must use the parameters of its own time range."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.flat_layers import changed, flat, layer_quant, weight_grid
from vdq.diffusion.clock import StepClock
from vdq.quant.affine import QParams
from vdq.quant.batch_layout import BatchLayout
from vdq.quant.linear import LayerSpec, QuantLinear
from vdq.quant.weight_sets import KeptWeights

STEPS, IN, OUT = 4, 16, 8


def layer(
    *, bits: int = 8, smoothing: bool = True, granularity: str | None = None, symmetric: bool = False
) -> LayerSpec:
    """Two weight ranges (one without smoothing) and four activation ranges, all far apart."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(OUT, IN, generator=generator), torch.randn(OUT, generator=generator)
    s = torch.rand(2, IN, generator=generator) * torch.tensor([[1.0], [10.0]]) + 0.2 if smoothing else None
    act = QParams(torch.tensor([1.0, 2.0, 4.0, 8.0]) / 2**bits, torch.zeros(4) if symmetric else torch.arange(4) + 1.0)
    params = layer_quant(
        weight_bits=bits,
        act_bits=bits,
        weight=weight_grid(weight, s, bits=bits, symmetric=symmetric),
        weight_range=torch.tensor([0, 0, 1, 1]) if smoothing else torch.zeros(4, dtype=torch.long),
        act=None if granularity else act,
        act_range=None if granularity else torch.arange(4),
        smoothing=s,
        symmetric_weights=symmetric,
        symmetric_acts=symmetric,
        act_granularity=granularity or "per_token",
    )
    return LayerSpec("fc", weight, bias, params, StepClock(STEPS), BatchLayout())


def numpy_rows(x: np.ndarray, bits: int, symmetric: bool = False) -> np.ndarray:
    """Fake quantization of every row by its own range, float64."""
    lo, hi = np.minimum(x.min(-1, keepdims=True), 0), np.maximum(x.max(-1, keepdims=True), 0)
    if symmetric:
        scale = np.maximum(-lo, hi) / (2 ** (bits - 1) - 1)
        return np.rint(x / scale) * scale
    scale = (hi - lo) / (2**bits - 1)
    zero = np.rint(-lo / scale)
    return (np.clip(np.rint(x / scale) + zero, 0, 2**bits - 1) - zero) * scale


def numpy_static(spec: LayerSpec, x: Tensor, step: int) -> np.ndarray:
    """Smooth, quantize, dequantize, multiply with the parameters of one step, float64."""
    p = flat(spec.quant)
    bits = p.act_bits
    s = 1.0 if p.smoothing is None else p.smoothing[step // 2].double().numpy()
    weight = numpy_rows(spec.weight.double().numpy() * s, bits, p.symmetric_weights)
    scale, zero = float(p.act.scale[step]), float(p.act.zero_point[step])
    first, last = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if p.symmetric_acts else (0, 2**bits - 1)
    codes = np.clip(np.rint(x.double().numpy() / s / scale) + zero, first, last)
    return (codes - zero) * scale @ weight.T + spec.bias.double().numpy()


def build(spec: LayerSpec) -> QuantLinear:
    return QuantLinear(spec, KeptWeights(spec.weight, spec.quant, spec.clock))


def data(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5)) * 2


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("smoothing", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_static_layer_uses_the_parameters_of_the_step(bits, smoothing, symmetric):
    spec = layer(bits=bits, smoothing=smoothing, symmetric=symmetric)
    module, x = build(spec), data(3, 5, IN)
    outputs = []
    for step in range(STEPS):
        spec.clock.set(step)
        outputs.append(module(x))
        np.testing.assert_allclose(outputs[-1], numpy_static(spec, x, step), rtol=1e-4, atol=1e-4)
    assert len({round(float(y.sum()), 4) for y in outputs}) == STEPS


@pytest.mark.parametrize("bits", [2, 6, 8, 16])
def test_static_codes_differ_from_the_formula_only_at_ties(bits):
    """One division by s * D instead of two divisions may move a code only if x / s / D is a half up to rounding."""
    spec = layer(bits=bits)
    module, x = build(spec), data(64, IN)
    for step in range(STEPS):
        spec.clock.set(step)
        s, scale = flat(spec.quant).smoothing[step // 2].double().numpy(), float(spec.quant.act.scale[step])
        zero = float(spec.quant.act.zero_point[step])
        ratio = x.double().numpy() / s / scale
        expected = np.clip(np.rint(ratio) + zero, 0, 2**bits - 1) - zero
        certain = np.abs(ratio - np.floor(ratio) - 0.5) > (1e-2 if bits == 16 else 1e-4)
        codes = module.act(x).numpy() / scale
        np.testing.assert_array_equal(codes[certain], expected[certain])
        assert certain.mean() > 0.9


@pytest.mark.parametrize("smoothing", [True, False])
def test_dynamic_layer_equals_numpy(smoothing):
    spec = layer(smoothing=smoothing, granularity="per_token")
    module, x = build(spec), data(3, 5, IN)
    for step in (0, 3):
        spec.clock.set(step)
        s = flat(spec.quant).smoothing[step // 2].double().numpy() if smoothing else 1.0
        weight = numpy_rows(spec.weight.double().numpy() * s, 8)
        expected = numpy_rows(x.double().numpy() / s, 8) @ weight.T + spec.bias.double().numpy()
        np.testing.assert_allclose(module(x), expected, rtol=1e-4, atol=0.02)  # a moved tie is one step of D


def test_shared_tokens_join_the_rows_of_a_sample_batch():
    """Upstream's reshape (section 2.4): [B*T, S, C] -> [B, T*S, C], one range per token over batch and channels."""
    spec = layer(smoothing=False, granularity="token_shared")
    module, x = build(spec), data(6, 5, IN)
    spec.rows(module, (torch.empty(2, 1),))  # the denoiser works on B = 2, so T = 3
    tokens = x.double().numpy().reshape(2, 15, IN).transpose(1, 0, 2).reshape(15, -1)
    expected = numpy_rows(tokens, 8).reshape(15, 2, IN).transpose(1, 0, 2).reshape(6, 5, IN)
    np.testing.assert_allclose(module.act(x), expected, atol=1e-5)
    packed = data(1, 7, IN)
    np.testing.assert_allclose(module.act(packed), numpy_rows(packed.double().numpy(), 8), atol=1e-5)
    with pytest.raises(ValueError, match="multiple of 2 rows, got 3"):
        module(data(3, 5, IN))


@pytest.mark.parametrize("granularity", [None, "per_token"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtype_changes_reach_weights_only(granularity, dtype):
    spec = layer(granularity=granularity)
    module = build(spec)
    x = data(3, 5, IN)
    before, reference = module.act(x), module(x)
    module.to(dtype)
    assert module.weights().dtype == module.bias.dtype == dtype
    assert module.act(x).dtype == torch.float32 and torch.equal(module.act(x), before)
    output = module(x.to(dtype))
    assert output.dtype == dtype
    assert (output.float() - reference).norm() / reference.norm() < 0.02
    assert module.to("meta").act(x.to("meta")).is_meta


def test_sixteen_bits_survive_half_precision():
    """Codes up to 65535 overflow fp16; only the dequantized activation may be cast."""
    spec = layer(bits=16)
    x = data(3, 5, IN)
    reference = build(spec)(x)
    assert (build(spec).half()(x.half()).float() - reference).norm() / reference.norm() < 2e-3


def test_zero_weight_gives_the_bias():
    spec = layer(smoothing=False)
    params = layer_quant(
        weight_bits=4,
        act_bits=8,
        weight=weight_grid(torch.zeros(OUT, IN), None, bits=4),
        weight_range=spec.quant.weight.steps,
        act=flat(spec.quant).act,
        act_range=spec.quant.act.steps,
    )
    module = build(LayerSpec("fc", torch.zeros(OUT, IN), spec.bias, params, spec.clock, spec.rows))
    assert torch.equal(module(data(2, IN)), spec.bias.expand(2, OUT))


def test_parameters_of_another_shape_are_refused():
    spec = layer()
    with pytest.raises(
        ValueError, match=r"^layer fc: smoothing.factors is \[2, 16\], must be \[2, 12\] for a weight \[8, 12\]$"
    ):
        LayerSpec("fc", torch.zeros(OUT, 12), None, spec.quant, spec.clock, spec.rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shift": torch.zeros(4, 15)}, r"layer fc: shift.values is \[4, 15\], must be \[4, 16\]"),
        ({"correction": torch.zeros(4, 9)}, r"layer fc: correction.values is \[4, 9\], must be \[4, 8\]"),
        ({"rotation": 32}, "layer fc: rotation=32 must be a power of two that divides the 16 channels"),
    ],
)
def test_tables_of_another_width_are_refused(changes, message):
    spec = layer()
    with pytest.raises(ValueError, match=message):
        replace(spec, quant=changed(spec.quant, **changes))
