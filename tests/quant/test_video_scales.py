"""Layers whose activation scales are measured for each video and channel, against numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from torch import Tensor, nn

from tests.flat_layers import changed, layer_quant, weight_grid
from vdq.backends import FakeQuantBackend
from vdq.diffusion.clock import StepClock
from vdq.models.reuse import Memory, Prepared
from vdq.models.stdit import STDiT
from vdq.quant.batch_layout import BatchLayout
from vdq.quant.bit_switch import BitSwitch
from vdq.quant.linear import LayerSpec

STEPS, IN, OUT, ROWS = 3, 16, 6, 4
WEIGHT, BIAS = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0)), torch.arange(float(OUT))
LENGTHS = [2, 5, 2, 5]  # of packed captions: two of a caption, the same two of the null caption


def data(*shape: int) -> Tensor:
    """Channels, tokens and videos of different size."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    sizes = [torch.logspace(0, 1, size).view(-1, *[1] * (len(shape) - 1 - d)) for d, size in enumerate(shape)]
    return x * sizes[0] * sizes[-1]


class PackedCaptions(nn.Identity):
    """Stands for a denoiser that packs its captions as STDiT does."""

    packed_lengths = staticmethod(STDiT.packed_lengths)


def spec(*, block: int = 1, bits: int = 4, rotation: int = 0, switch: BitSwitch | None = None) -> LayerSpec:
    params = layer_quant(
        weight_bits=8,
        act_bits=bits,
        weight=weight_grid(WEIGHT, None, bits=8, rotation=rotation),
        weight_range=torch.zeros(STEPS, dtype=torch.long),
        act_granularity="per_video",
        act_block=block,
        rotation=rotation,
    )
    rows = BatchLayout()
    rows(PackedCaptions(), (torch.empty(ROWS, 1), torch.empty(ROWS), torch.empty(ROWS, 1, 5, 8)))
    clock = switch.clock if switch else StepClock(STEPS)
    return LayerSpec("fc", WEIGHT, BIAS, params, clock, rows, switch)


def numpy_quantized(x: np.ndarray, block: int, bits: int) -> np.ndarray:
    """All tokens [n, C] of one row of the batch, float64."""
    largest = np.abs(x).max(0).reshape(-1, block).max(1)
    scale = np.repeat(largest, block) / (2 ** (bits - 1) - 1)
    return np.clip(np.rint(x / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale


def numpy_weight(weight: np.ndarray) -> np.ndarray:
    lo, hi = np.minimum(weight.min(1, keepdims=True), 0), np.maximum(weight.max(1, keepdims=True), 0)
    scale = (hi - lo) / 255
    z = np.rint(-lo / scale)
    return (np.clip(np.rint(weight / scale) + z, 0, 255) - z) * scale


def expected(rows: list[np.ndarray], block: int, bits: list[int]) -> np.ndarray:
    """Outputs of the tokens of all rows, one after another."""
    quantized = [numpy_quantized(x, block, b) for x, b in zip(rows, bits, strict=True)]
    return np.concatenate(quantized) @ numpy_weight(WEIGHT.double().numpy()).T + BIAS.double().numpy()


@pytest.mark.parametrize("block", [1, 4, 16])
@pytest.mark.parametrize("folded", [1, 3])  # frames or places in dim 0, as inputs of attention have
def test_every_row_and_block_of_channels_has_its_own_scale(folded, block):
    x = data(ROWS * folded, 5, IN)
    found = FakeQuantBackend().layer(spec(block=block))(x)
    assert found.shape == (ROWS * folded, 5, OUT)
    rows = list(x.double().numpy().reshape(ROWS, -1, IN))
    np.testing.assert_allclose(found.reshape(-1, OUT), expected(rows, block, [4] * ROWS), rtol=1e-4, atol=1e-4)


def caption_spec(prepared: bool, masked: bool, **options: object) -> LayerSpec:
    layer = spec(**options)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1] * 5]) if masked else None  # tiled for the rows of the null caption
    inputs = (torch.empty(ROWS, 1, 5, 8), mask)
    prepared_inputs = (Prepared(inputs, Memory()),) if prepared else inputs
    layer.rows(PackedCaptions(), (torch.empty(ROWS, 1), torch.empty(ROWS), *prepared_inputs))
    return layer


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("prepared", [True, False])
def test_packed_captions_are_taken_apart(prepared, masked, block):
    lengths = LENGTHS if masked else [5] * ROWS
    x = data(1, sum(lengths), IN) * torch.linspace(0.2, 3, sum(lengths))[:, None]
    found = FakeQuantBackend().layer(caption_spec(prepared, masked, block=block))(x)
    rows = np.split(x[0].double().numpy(), np.cumsum(lengths)[:-1])
    np.testing.assert_allclose(found[0], expected(rows, block, [4] * ROWS), rtol=1e-4, atol=1e-4)


def test_packed_tokens_of_something_else_are_refused():
    with pytest.raises(ValueError, match="13 packed tokens must be those of the captions, 14"):
        FakeQuantBackend().layer(caption_spec(prepared=True, masked=True))(data(1, 13, IN))
    with pytest.raises(ValueError, match="must be packed captions, which this denoiser has not"):
        layer = spec()
        layer.rows(nn.Identity(), (), {"hidden_states": torch.empty(ROWS, 1)})
        FakeQuantBackend().layer(layer)(data(1, 14, IN))
    with pytest.raises(ValueError, match="need a multiple of 4 rows, got 6"):
        FakeQuantBackend().layer(spec())(data(6, 5, IN))


def switch() -> BitSwitch:
    """Two videos, of which the second has changed before step 2."""
    watched = BitSwitch(StepClock(STEPS), low=4, high=8)
    for step, outputs in enumerate(([1.0, 1.0], [1.0, 2.0])):
        watched.clock.set(step)
        watched.observe(step, torch.tensor(outputs)[:, None])
    watched.clock.set(2)
    return watched


@pytest.mark.parametrize("packed", [False, True])
def test_bits_of_a_row_are_those_of_its_video(packed):
    lengths = LENGTHS if packed else [5] * ROWS
    x = data(1, sum(lengths), IN)
    layer = caption_spec(True, True, switch=switch()) if packed else spec(switch=switch())
    found = FakeQuantBackend().layer(layer)(x if packed else x.view(ROWS, 5, IN))
    rows = np.split(x[0].double().numpy(), np.cumsum(lengths)[:-1])
    wanted = expected(rows, 1, [4, 8, 4, 8])
    np.testing.assert_allclose(found.reshape(-1, OUT), wanted, rtol=1e-4, atol=2e-3)  # a moved tie is one step of D
    assert np.abs(wanted - expected(rows, 1, [8] * ROWS)).max() > 0.1


def test_variant_tells_the_bits_of_the_videos():
    layer = FakeQuantBackend().layer(spec(switch=(watched := switch())))
    changed = layer.act.variant
    watched.clock.set(0)
    assert layer.act.variant != changed


@pytest.mark.parametrize("block", [1, 8])
def test_rotated_layer_is_the_papers_formula(block):
    """Y = Q(X H / s) s Q(W H)^T + b, H block-diagonal; scipy's Hadamard matrix."""
    matrix = np.kron(np.eye(IN // 8), hadamard(8) / np.sqrt(8))
    x, layer = data(ROWS, 5, IN), FakeQuantBackend().layer(spec(block=block, rotation=8, bits=8))
    quantized = np.concatenate([numpy_quantized(row @ matrix, block, 8) for row in x.double().numpy()])
    wanted = quantized @ numpy_weight(WEIGHT.double().numpy() @ matrix).T + BIAS.double().numpy()
    difference = layer(x).reshape(-1, OUT).double().numpy() - wanted
    assert np.linalg.norm(difference) < 1e-3 * np.linalg.norm(wanted)  # a moved tie is one step of D


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scales_are_fp32_whatever_the_dtype(dtype):
    module, x = FakeQuantBackend().layer(spec(bits=8)), data(ROWS, 5, IN)
    exact = module(x)
    half = module.to(dtype)(x.to(dtype))
    assert half.dtype == dtype and (half.float() - exact).norm() < 0.02 * exact.norm()
    assert module.act(x).dtype == torch.float32


def test_a_channel_of_zeros_stays_zero():
    x = data(ROWS, 5, IN)
    x[..., 3] = 0
    module = FakeQuantBackend().layer(spec())
    assert (module.act(x)[..., 3] == 0).all() and torch.isfinite(module(x)).all()


def test_more_bits_are_closer():
    x, errors = data(ROWS, 5, IN), []
    for bits in (16, 8, 6, 4, 2):
        layer = spec()
        layer = replace(layer, quant=changed(layer.quant, act_bits=bits))
        errors.append(float((FakeQuantBackend().layer(layer).act(x) - x).norm() / x.norm()))
    assert errors == sorted(errors) and errors[0] < 1e-4
