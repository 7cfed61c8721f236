"""The stream of bits against numpy's."""

import numpy as np
import pytest
import torch

from vdq.quant.bit_packing import pack_bits, packed_bytes, unpack_bits


def numpy_stream(codes: np.ndarray, bits: int) -> np.ndarray:
    """The lowest `bits` bits of every code, one after the other."""
    columns = np.unpackbits(codes.astype("<u2").view(np.uint8).reshape(-1, 2), axis=1, bitorder="little")
    return np.packbits(columns[:, :bits].ravel(), bitorder="little")


@pytest.mark.parametrize("count", [1, 7, 8, 9, 24, 1001])
@pytest.mark.parametrize("bits", range(2, 17))
def test_every_width_is_numpys_stream_of_bits_and_reads_back(bits, count):
    codes = np.random.default_rng(bits).integers(0, 2**bits, count)
    codes[0], codes[-1] = 0, 2**bits - 1
    packed = pack_bits(torch.from_numpy(codes), bits)
    low = min(bits, 8)
    parts = [numpy_stream(codes & (2**low - 1), low), *([numpy_stream(codes >> 8, bits - 8)] if bits > 8 else [])]
    np.testing.assert_array_equal(packed, np.concatenate(parts))
    assert packed.dtype == torch.uint8 and len(packed) == packed_bytes(count, bits)
    np.testing.assert_array_equal(unpack_bits(packed, bits, count), codes)


def test_known_bytes():
    """Two 4-bit codes in a byte, four 6-bit codes in three bytes; written out by hand."""
    assert pack_bits(torch.tensor([1, 15, 8]), 4).tolist() == [0xF1, 0x08]
    assert pack_bits(torch.tensor([0b000001, 0b100010, 0b111111, 0b101010]), 6).tolist() == [
        0b10_000001,
        0b1111_1000,
        0b101010_11,
    ]


def test_size_is_that_of_the_bits():
    for bits in range(2, 17):
        assert packed_bytes(8 * 36, bits) == 36 * bits


def test_any_shape_and_floats_that_are_whole():
    codes = torch.arange(60.0).view(5, 12)
    assert torch.equal(unpack_bits(pack_bits(codes, 6), 6, 60).view(5, 12), codes.long())
