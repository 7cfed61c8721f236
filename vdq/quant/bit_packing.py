"""Codes of n bits in n bits: a stream of bits, first code first and its lowest bit first, cut into bytes.

Two 4-bit codes share a byte, the first in its low half; four 6-bit codes take three bytes. Codes above 8 bits are two
streams, all low bytes and then the bits above them.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

GROUP = 8  # codes of n bits that fill n bytes


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` codes take."""
    return sum(-(-count * part // 8) for part in _parts(bits))


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Packs integers 0..2^bits-1 of any shape, 2 to 16 bits -> uint8 [packed_bytes]."""
    low, *high = _parts(bits)
    codes = codes.flatten().long()
    streams = [_pack(codes & (1 << low) - 1, low), *(_pack(codes >> low, part) for part in high)]
    return torch.cat(streams)


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """Undoes `pack_bits`: uint8 [packed_bytes] -> long [count]."""
    low, *high = _parts(bits)
    streams = packed.split([packed_bytes(count, part) for part in (low, *high)])
    codes = _unpack(streams[0], low, count)
    for part, stream in zip(high, streams[1:], strict=True):
        codes |= _unpack(stream, part, count) << low
    return codes


def _parts(bits: int) -> list[int]:
    return [bits] if bits <= 8 else [8, bits - 8]


def _pack(codes: Tensor, bits: int) -> Tensor:
    """At most 8 bits: eight codes make one 64-bit word."""
    groups = pad(codes, (0, -len(codes) % GROUP)).view(-1, GROUP)
    words = (groups << bits * torch.arange(GROUP, device=codes.device)).sum(1, keepdim=True)
    parts = words >> 8 * torch.arange(bits, device=codes.device) & 255
    return parts.byte().flatten()[: packed_bytes(len(codes), bits)]


def _unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    groups = pad(packed, (0, -len(packed) % bits)).view(-1, bits).long()
    words = (groups << 8 * torch.arange(bits, device=packed.device)).sum(1, keepdim=True)
    codes = words >> bits * torch.arange(GROUP, device=packed.device) & (1 << bits) - 1
    return codes.flatten()[:count]
