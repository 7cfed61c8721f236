"""Both versions of the elementwise passes, against numpy in double precision."""

import logging
import subprocess

import numpy as np
import pytest
import torch
from torch import Tensor

from vdq.backends.cpu import backend as int8_cpu
from vdq.backends.cpu import native as int8_native
from vdq.backends.cpu.native import NativePasses
from vdq.backends.cpu.passes import BLOCK, Codes, Grid, Modulation, Source, TorchPasses
from vdq.compiled import shared_library

# Rounding of fp32 may move a value over a border of two codes: by one code, in few places.
PLACES = 1e-3


@pytest.fixture(params=[TorchPasses, NativePasses], ids=lambda passes: passes.name)
def passes(request):
    try:
        return request.param()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"nothing compiles here: {error}")


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def values(source: Source) -> np.ndarray:
    """What is quantized, [B * rows, C] fp64, before the division."""
    x = source.x.double().numpy()
    batch, rows, channels = x.shape
    if source.swap:
        x = x.reshape(batch, *source.swap, channels)
        x = x if source.position is None else x + source.position.double().numpy()[None, :, None]
        x = x.swapaxes(1, 2).reshape(batch, rows, channels)
    if source.gelu:
        x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    if source.norm:
        shift, scale = (part.double().numpy()[:, None] for part in source.norm)
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * (1 + scale) + shift
    return x.reshape(batch * rows, channels)


def expected(source: Source, grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, step size and zero point of every token."""
    t = values(source) / (1 if grid.divisor is None else grid.divisor.double().numpy())
    low, high = np.minimum(t.min(1, keepdims=True), 0), np.maximum(t.max(1, keepdims=True), 0)
    if grid.zero is not None:
        scale, zero = np.ones_like(low), np.full_like(low, grid.zero)
    elif grid.symmetric:
        scale, zero = np.maximum(-low, high) / (2 ** (grid.bits - 1) - 1), np.full_like(low, 2 ** (grid.bits - 1))
    else:
        scale = (high - low) / (2**grid.bits - 1)
        zero = np.rint(-low / scale)
    return np.clip(np.rint(t / scale) + zero, 0, 2**grid.bits - 1), scale[:, 0], zero[:, 0]


def check(passes, source: Source, grids: list[Grid]) -> None:
    found = passes.quantize(source, grids)
    assert len(found) == len(grids)
    for codes, grid in zip(found, grids, strict=True):
        p, scale, zero = expected(source, grid)
        assert codes.p.dtype == torch.uint8
        difference = np.abs(codes.p.numpy().astype(np.float64) - p)
        assert difference.max() <= 1 and (difference > 0).mean() < PLACES, (difference > 0).mean()
        if grid.zero is None:
            np.testing.assert_allclose(codes.scale, scale, rtol=1e-5)
            np.testing.assert_array_equal(codes.shift, 128 - zero)
        assert (codes.sums is not None) == grid.sums
        if grid.sums:  # of the codes that are there, exactly
            np.testing.assert_array_equal(codes.sums, codes.p.numpy().astype(np.float64).sum(1) - len(p[0]) * zero)


def grids(channels: int, sums: bool = True) -> list[Grid]:
    """Static, dynamic and dynamic symmetric ones, with and without a divisor."""
    divisor = torch.rand(channels, generator=torch.Generator().manual_seed(3)) * 0.05 + 0.01
    return [
        Grid(divisor, 100, 8, False, sums),
        Grid(divisor * 16, 5, 4, False, sums),
        Grid(divisor, None, 8, False, sums),
        Grid(None, None, 6, True, sums),
    ]


@pytest.mark.parametrize("sums", [False, True])
@pytest.mark.parametrize(("batch", "frames", "places", "channels"), [(1, 1, 1, 4), (2, 3, 5, 36), (1, 4, 300, 131)])
def test_every_source_to_every_grid(batch, frames, places, channels, sums, passes):
    x = data(batch, frames * places, channels) * 2
    assert batch * frames * places < 100 or x[0].numel() > BLOCK
    modulation = Modulation(data(batch, channels, seed=1), data(batch, channels, seed=2))
    position = data(frames, channels, seed=4)
    sources = [
        Source(x),
        Source(x, (frames, places)),
        Source(x, (frames, places), position),
        Source(x, norm=modulation),
        Source(x * 3, gelu=True),
    ]
    for source in sources:
        check(passes, source, grids(channels, sums))


def test_division_is_exact(passes):
    """Codes of what nothing but a division precedes are those of numpy's fp32, at ties and bounds too."""
    divisor = torch.full((64,), 0.25)
    x = torch.cat([(torch.arange(64.0) - 20.5) * 0.25, torch.linspace(-1e30, 1e30, 64), data(64)]).view(1, 3, 64)
    (codes,) = passes.quantize(Source(x), [Grid(divisor, 7, 8, False, False)])
    want = np.clip(np.rint(x[0].numpy() / np.float32(0.25)) + 7, 0, 255)
    np.testing.assert_array_equal(codes.p, want)


def test_gelu_far_out(passes):
    x = torch.tensor([[[-1e30, -100.0, -10.0, -1.0, 0.0, 1.0, 10.0, 100.0]]])
    (codes,) = passes.quantize(Source(x, gelu=True), [Grid(torch.full((8,), 0.1), 50, 8, False, False)])
    assert codes.p[0].tolist() == [50, 50, 50, 48, 50, 58, 150, 255]


def test_a_constant_token_and_one_of_zeros(passes):
    x = torch.tensor([[[0.0] * 5, [3.5] * 5, [-2.0] * 5]])
    (codes,) = passes.quantize(Source(x), [Grid(None, None, 8, False, True)])
    assert codes.p.tolist() == [[0] * 5, [255] * 5, [0] * 5]
    assert codes.shift.tolist() == [128, 128, 128 - 255] and codes.scale[0] == torch.tensor(1e-6)


def test_written_where_it_is_wanted(passes):
    x = data(1, 6, 10)
    grid = grids(10)[2]
    whole = Codes.empty(6, 10, grid)
    for part, codes in zip(x.split(2, 1), whole.split(2), strict=True):
        passes.quantize(Source(part), [grid], [codes])
    (once,) = passes.quantize(Source(x), [grid])
    assert all(torch.equal(a, b) for a, b in zip(whole, once, strict=True))


def test_no_tokens(passes):
    (codes,) = passes.quantize(Source(data(1, 0, 10)), [grids(10)[2]])
    assert codes.p.shape == (0, 10) and codes.sums.shape == (0,)


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("into", [False, True])
def test_finish(into, offset, passes):
    y, base, codes = data(7, 33), data(7, 33, seed=1), Codes(None, *data(3, 7, seed=2))
    w_sums, w_offset, bias = data(3, 33, seed=3)
    want = y + codes.shift[:, None] * w_sums + (codes.sums[:, None] * w_offset if offset else 0)
    want = (want * codes.scale[:, None] + bias + (base if into else 0)).numpy()
    target = base if into else y
    assert passes.finish(y, codes, w_sums, w_offset if offset else None, bias, base if into else None) is target
    np.testing.assert_allclose(target, want, rtol=1e-5, atol=1e-6)


def test_without_a_compiler_torch_does_it_and_the_log_tells(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, error in [("no-such-compiler", "no-such-compiler"), ("false", "non-zero exit status")]:
        monkeypatch.setenv("CXX", name)
        int8_native.passes_library.cache_clear()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert isinstance(int8_cpu.elementwise_passes.__wrapped__(), TorchPasses)
        assert caplog.messages[0].startswith("int8_cpu: elementwise passes run in torch") and error in caplog.text
    int8_native.passes_library.cache_clear()


@pytest.mark.parametrize("source", [int8_native.PASSES, int8_native.GEMM], ids=lambda source: source.stem)
def test_compiled_once(source, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        path = shared_library(source)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"it does not compile here: {error}")
    written = path.stat().st_mtime_ns
    assert shared_library(source) == path and path.stat().st_mtime_ns == written
    assert [file.name for file in path.parent.iterdir()] == [path.name]
