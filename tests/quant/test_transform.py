"""Without rounding no transform changes the product: against numpy's, in every executable layer."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag, hadamard
from torch import Tensor

from tests.flat_layers import changed, flat, layer_quant, weight_grid
from vdq.backends import FakeQuantBackend
from vdq.diffusion.clock import StepClock
from vdq.quant.affine import QParams
from vdq.quant.batch_layout import BatchLayout
from vdq.quant.codebook import Codebook
from vdq.quant.linear import LayerSpec
from vdq.quant.transform import shift_correction, video_rows
from vdq.quant.weight_codes import pack_codes

STEPS, IN, OUT = 4, 48, 20
TRANSFORMS = ["shift", "smoothing", "rotation", "shift+smoothing", "shift+rotation", "shift+smoothing+rotation"]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parts(name: str) -> tuple[Tensor | None, Tensor | None, int]:
    """Shift and smoothing of every step and the block."""
    factors = torch.rand(STEPS, IN, generator=torch.Generator().manual_seed(2)) * 5 + 0.2
    return (
        3 * random(STEPS, IN, seed=1) if "shift" in name else None,
        factors if "smoothing" in name else None,
        16 if "rotation" in name else 0,
    )


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_product_stays(name):
    weight, x = random(OUT, IN), random(7, IN, seed=3) * 4
    for step in range(STEPS):
        shift, smoothing, rotation = (t[step] if isinstance(t, Tensor) else t for t in parts(name))
        rows = {"shift": shift, "smoothing": smoothing}
        quant = layer_quant(
            weight=QParams(torch.ones(1, OUT, 1), torch.zeros(1, OUT, 1)),
            weight_range=torch.zeros(1, dtype=torch.long),
            rotation=rotation,
            **{kind: None if row is None else row[None] for kind, row in rows.items()},
        )
        transformed = quant.transformed_weight(weight, 0)
        y = quant.transform_input(x, torch.tensor(0)) @ transformed.T
        y = y if shift is None else y + shift_correction(weight, shift[None])
        exact = x.double().numpy() @ weight.double().numpy().T
        assert np.linalg.norm(y.numpy() - exact) <= 1e-5 * np.linalg.norm(exact)
        restored = quant.restored_weight(transformed, 0)
        torch.testing.assert_close(restored, weight, rtol=1e-5, atol=1e-5)


def layer(name: str, *, bits: int = 16, dynamic: bool = False, step_ranges: bool = True) -> LayerSpec:
    """Every step has an activation range of its own and, where there is smoothing, a weight range."""
    weight, bias = random(OUT, IN), random(OUT, seed=4)
    shift, smoothing, rotation = parts(name)
    every, none = torch.arange(STEPS), torch.zeros(STEPS, dtype=torch.long)
    params = layer_quant(
        weight_bits=bits,
        act_bits=bits,
        weight=weight_grid(weight, smoothing, bits=bits, rotation=rotation),
        weight_range=none if smoothing is None else every,
        act=None if dynamic else QParams(torch.full((STEPS,), 200 / 2**bits), torch.full((STEPS,), 2.0 ** (bits - 1))),
        act_range=None if dynamic else every,
        smoothing=smoothing,
        shift=shift,
        rotation=rotation,
        correction=None if shift is None else shift_correction(weight, shift),
    )
    if dynamic and smoothing is None:  # tables of a dynamic layer follow its weights
        rows = vars(flat(params))
        params = changed(params, **{k: v if (v := rows[k]) is None else v[:1] for k in ("shift", "correction")})
    return LayerSpec("fc", weight, bias, params, StepClock(STEPS), BatchLayout())


def check_steps(spec: LayerSpec, x: Tensor, expected: Callable[[int], np.ndarray], tolerance: float) -> None:
    module = FakeQuantBackend().layer(spec)
    for step in range(STEPS):
        spec.clock.set(step)
        y = expected(step)
        assert np.linalg.norm(module(x).numpy() - y) <= tolerance * np.linalg.norm(y)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_layers_of_16_bits_are_almost_the_original(name, dynamic):
    spec, x = layer(name, dynamic=dynamic), random(2, 5, IN, seed=3) * 4
    exact = x.double().numpy() @ spec.weight.double().numpy().T + spec.bias.double().numpy()
    check_steps(spec, x, lambda step: exact, 3e-3)


def numpy_layer(spec: LayerSpec, x: np.ndarray, step: int) -> np.ndarray:
    """Shift, smooth, rotate by scipy's matrix, quantize both sides, multiply, correct: float64."""
    p = flat(spec.quant)
    H = block_diag(*[hadamard(p.rotation) / np.sqrt(p.rotation)] * (IN // p.rotation)) if p.rotation else np.eye(IN)
    weight = spec.weight.double().numpy()
    if p.smoothing is not None:
        weight = weight * p.smoothing[step].double().numpy()
    weight = weight @ H
    if p.shift is not None:
        x = x - p.shift[step].double().numpy()
    if p.smoothing is not None:
        x = x / p.smoothing[step].double().numpy()
    x = x @ H
    lo, hi = weight.min(-1, keepdims=True).clip(max=0), weight.max(-1, keepdims=True).clip(min=0)
    scale = (hi - lo) / (2**p.weight_bits - 1)
    zero = np.rint(-lo / scale)
    weight = (np.clip(np.rint(weight / scale) + zero, 0, 2**p.weight_bits - 1) - zero) * scale
    bits = p.act_bits if p.step_bits is None else int(p.step_bits[step])
    scale, zero = (values[step].double().numpy() for values in p.act)
    if p.act_group is not None:
        scale, zero = (np.tile(v[p.act_group.numpy()], len(x) // len(p.act_group))[:, None] for v in (scale, zero))
    x = (np.clip(np.rint(x / scale) + zero, 0, 2**bits - 1) - zero) * scale
    y = x @ weight.T + spec.bias.double().numpy()
    return y if p.correction is None else y + p.correction[step].double().numpy()


def numpy_steps(spec: LayerSpec, x: Tensor) -> Callable[[int], np.ndarray]:
    return lambda step: numpy_layer(spec, x.double().numpy().reshape(-1, IN), step).reshape(*x.shape[:-1], OUT)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("bits", [4, 8])
def test_layers_equal_numpy(name, bits):
    """A tie that fp32 decides otherwise moves a code by one."""
    spec, x = layer(name, bits=bits), random(2, 16, IN, seed=3) * 4
    check_steps(spec, x, numpy_steps(spec, x), 2e-3)


def test_steps_have_bits_of_their_own():
    spec, x = layer("shift+smoothing"), random(2, 16, IN, seed=3) * 4
    bits = torch.tensor([4, 8, 4, 6])
    act = QParams(100 / 2.0**bits, 2.0 ** (bits - 1))
    params = changed(spec.quant, act=act, act_bits=8, step_bits=bits)
    spec = replace(spec, quant=params)
    check_steps(spec, x, numpy_steps(spec, x), 2e-3)
    reference = replace(spec, quant=changed(params, step_bits=None))
    different = []
    for step in range(STEPS):
        spec.clock.set(step)
        different.append(not torch.equal(*(FakeQuantBackend().layer(s)(x * 9) for s in (spec, reference))))
    assert different == [True, False, True, True]  # at 8 bits both clamp alike


GROUPS = torch.tensor([0, 2, 2, 1, 0, 1])


def grouped(name: str) -> LayerSpec:
    """Three groups for the six rows of a video."""
    spec = layer(name, bits=8)
    widths = torch.tensor([20.0, 60.0, 200.0]) * torch.tensor([1.0, 1.5, 2.0, 3.0])[:, None]
    act = QParams(widths / 255, torch.tensor([128.0, 100.0, 90.0]).expand(STEPS, -1))
    return replace(spec, quant=changed(spec.quant, act=act, act_group=GROUPS))


@pytest.mark.parametrize("name", ["", "smoothing", "shift+smoothing+rotation"])
@pytest.mark.parametrize("shape", [(2, 6), (6, 2), (4, 3), (12,)])
def test_rows_are_quantized_by_their_group(name, shape):
    """Two videos, whatever dimensions a layer gets their rows in."""
    spec, x = grouped(name), random(*shape, IN, seed=3) * 9
    check_steps(spec, x, numpy_steps(spec, x), 2e-3)


def test_groups_are_for_whole_videos():
    module = FakeQuantBackend().layer(grouped(""))
    with pytest.raises(ValueError, match="act_group is for videos of 6 token rows, got 10 rows, which are not whole"):
        module(torch.zeros(2, 5, IN))
    assert video_rows(torch.zeros(3, 4, IN), 6).shape == (2, 6, IN)


def coded(name: str) -> LayerSpec:
    spec = layer(name, bits=8)
    levels = torch.tensor([-9.0, -2.0, -0.5, 0.0, 0.25, 1.0, 6.0])
    return replace(spec, quant=changed(spec.quant, act=None, codebook=Codebook(levels, levels[1:] - 0.2)))


@pytest.mark.parametrize("name", ["", "smoothing", "shift+rotation"])
def test_codebooks_take_the_level_between_the_edges(name):
    spec, x = coded(name), random(3, 7, IN, seed=3) * 3
    module, p = FakeQuantBackend().layer(spec), flat(spec.quant)
    assert spec.quant.act.static
    for step in range(STEPS):
        spec.clock.set(step)
        transformed = spec.quant.transform_input(x, torch.tensor(step))
        found = getattr(module, "inner", module).act(transformed if "rotation" in name else x).numpy()
        levels, edges = (values.numpy() for values in p.codebook)
        np.testing.assert_array_equal(found, levels[np.searchsorted(edges, transformed.numpy())])
        weight = spec.quant.dequantized_weight(spec.weight, int(p.weight_range[step]))
        y = torch.from_numpy(found) @ weight.T + spec.bias
        y = y if p.correction is None else y + p.correction[step]
        torch.testing.assert_close(module(x), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", [layer("shift+smoothing+rotation", bits=8), grouped("shift"), coded("rotation")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtype_changes_reach_weights_only(spec, dtype):
    module, x = FakeQuantBackend().layer(spec), random(2, 6, IN, seed=3) * 4
    spec.clock.set(2)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    expected = module(x)
    module.to(dtype)
    kept = {name for name, buffer in module.named_buffers() if torch.equal(buffer, before[name])}
    assert kept >= {name for name in before if not name.endswith(("bias", "weights.table"))}
    y = module(x.to(dtype))
    assert y.dtype == dtype and (y.float() - expected).norm() / expected.norm() < 0.1


@pytest.mark.parametrize("weight_sets", ["keep", "packed", "requantize"])
def test_where_weights_are_changes_no_bit(weight_sets):
    spec, x = layer("shift+smoothing+rotation", bits=6), random(2, 6, IN, seed=3)
    ours, kept = FakeQuantBackend(weight_sets).layer(spec), FakeQuantBackend("keep").layer(spec)
    for step in (0, 3, 1):
        spec.clock.set(step)
        assert torch.equal(ours(x), kept(x))


def test_stored_codes_are_used_instead_of_rounding():
    spec = layer("smoothing", bits=4)
    p = spec.quant
    assert torch.equal(p.packed_codes(spec.weight), p.with_codes(spec.weight).weight.codes)
    codes = torch.randint(0, 16, (STEPS, OUT, IN), generator=torch.Generator().manual_seed(9))
    p = changed(p, codes=pack_codes(codes, bits=4))
    for weight_range in range(STEPS):
        assert torch.equal(p.weight_codes(spec.weight, weight_range), codes[weight_range].float())
        expected = (codes[weight_range] - p.weight.zero_point[weight_range]) * p.weight.scale[weight_range]
        assert torch.equal(p.dequantized_weight(spec.weight, weight_range), expected)
    module = FakeQuantBackend().layer(replace(spec, quant=p))
    assert torch.equal(module.weights(), p.dequantized_weight(spec.weight, 0))
