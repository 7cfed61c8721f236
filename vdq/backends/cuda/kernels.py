"""Triton kernels: tokens to codes, and products of codes with what follows them.

Codes are signed bytes q - first - 2^(bits-1), so that zero points are -128..127 whatever the format. Whatever depends
on the denoising step is a table that is read at `step`, a number on the device: nothing waits for the host. Strides are
of contiguous tensors.
"""

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = knobs.runtime.interpret
LAYER_NORM_EPS = tl.constexpr(1e-6)
SMALLEST_SCALE = tl.constexpr(1e-6)  # vdq.quant.affine.EPS
# Multiples of the blocks of every configuration below.
BLOCK_M, BLOCK_K = 128, 128


@triton.jit
def round_half_even(x):
    """Integers from |x| < 2^22: added to 1.5 * 2^23, its fraction is rounded off and the rest is in the low bits."""
    return (x + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000


@triton.jit
def to_codes(steps, zero, BITS: tl.constexpr):
    """Clamped before they are rounded, as the bounds are integers: the same codes, and none is too large to round."""
    low, high = -(2 ** (BITS - 1)), 2 ** (BITS - 1) - 1
    steps = tl.minimum(tl.maximum(steps, (low - zero).to(tl.float32)), (high - zero).to(tl.float32))
    return round_half_even(steps) + zero


@triton.jit
def token_qparams(lo, hi, BITS: tl.constexpr, SYMMETRIC: tl.constexpr):
    """Scale and zero point as codes are held here (vdq.quant.affine.qparams_from_range)."""
    half = 2 ** (BITS - 1)
    lo, hi = tl.minimum(lo, 0.0), tl.maximum(hi, 0.0)
    if SYMMETRIC:
        scale = tl.maximum(tl.div_rn(tl.maximum(-lo, hi), tl.full(lo.shape, half - 1, tl.float32)), SMALLEST_SCALE)
        zero = tl.zeros(lo.shape, tl.int32)
    else:
        scale = tl.maximum(tl.div_rn(hi - lo, tl.full(lo.shape, 2 * half - 1, tl.float32)), SMALLEST_SCALE)
        zero = round_half_even(tl.div_rn(-lo, scale)) - half
    return scale, zero


@triton.jit
def quantize_part(
    y, rows, valid, columns, inside, step, table, zero, codes, sums, scales, zeros, C,
    DYNAMIC: tl.constexpr, TABLE: tl.constexpr, EXACT: tl.constexpr, SYMMETRIC: tl.constexpr, SHARED: tl.constexpr,
    SUMS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Codes of the tokens y [R, C] for one layer, and their sums, scales and zero points."""
    known = valid[:, None] & inside[None, :]
    if TABLE:
        channel = tl.load(table + step * C + columns, mask=inside, other=1.0)[None, :]
        if EXACT:
            y = tl.div_rn(y, tl.broadcast_to(channel, y.shape))
        else:
            y *= channel
    if DYNAMIC:
        lo = tl.min(tl.where(known, y, 0.0), 1)
        hi = tl.max(tl.where(known, y, 0.0), 1)
        if SHARED:
            lo = tl.broadcast_to(tl.min(lo, 0), lo.shape)
            hi = tl.broadcast_to(tl.max(hi, 0), hi.shape)
        scale, z = token_qparams(lo, hi, BITS, SYMMETRIC)
        tl.store(scales + rows, scale, mask=valid)
        tl.store(zeros + rows, z, mask=valid)
        if EXACT:
            y = tl.div_rn(y, tl.broadcast_to(scale[:, None], y.shape))
        else:
            y *= tl.div_rn(tl.full(scale.shape, 1, tl.float32), scale)[:, None]
        q = to_codes(y, z[:, None], BITS)
    else:
        q = to_codes(y, tl.load(zero + step), BITS)
    tl.store(codes + rows.to(tl.int64)[:, None] * C + columns[None, :], q.to(tl.int8), mask=known)
    if SUMS:
        tl.store(sums + rows, tl.sum(tl.where(known, q, 0), 1), mask=valid)


@triton.jit
def quantize_kernel(
    x, shift, scale, position, step,
    table0, table1, table2, zero0, zero1, zero2, codes, sums, scales, zeros,
    M, C, rows_per_sample, modulation_stride, swap_a, swap_b, groups,
    PARTS: tl.constexpr, NORM: tl.constexpr, SWAP: tl.constexpr, POSITION: tl.constexpr, DYNAMIC: tl.constexpr,
    TABLE: tl.constexpr, SYMMETRIC: tl.constexpr, SHARED: tl.constexpr, SUMS: tl.constexpr, BITS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Codes of x [M, C] for up to three layers, R whole tokens a program.

    table [steps, C] fp32, if TABLE: scale * s if static, s if dynamic; zero [steps] int32 if static. codes int8 [PARTS,
    M, C], sums int32 and, if dynamic, scales fp32 and zeros int32, [PARTS, M]. NORM: of LayerNorm(x) * (1 + scale) +
    shift with one scale and shift for each `rows_per_sample`; the tables then hold reciprocals, as a correctly rounded
    division takes ten instructions and a norm is rounded anyhow. SWAP: token (n, j, i) of the codes is token (n, i, j)
    of x, i < swap_a, j < swap_b; POSITION: after position [swap_a, C] is added at i. SHARED: tokens M / groups apart
    have one range.
    """
    index = tl.arange(0, BLOCK_R)
    if SHARED:
        rows = tl.program_id(0) + index * (M // groups)
        valid = index < groups
    else:
        rows = tl.program_id(0) * BLOCK_R + index
        valid = rows < M
    columns = tl.arange(0, BLOCK_C)
    inside = columns < C
    known = valid[:, None] & inside[None, :]
    sources = rows
    if SWAP:
        sample, place = rows // (swap_a * swap_b), rows % (swap_a * swap_b)
        i, j = place % swap_a, place // swap_a
        sources = (sample * swap_a + i) * swap_b + j
    y = tl.load(x + sources.to(tl.int64)[:, None] * C + columns[None, :], mask=known, other=0.0).to(tl.float32)
    if POSITION:
        y += tl.load(position + i[:, None] * C + columns[None, :], mask=known, other=0.0).to(tl.float32)
    if NORM:
        y = y - (tl.sum(y, 1) / C)[:, None]
        squares = tl.where(inside[None, :], y * y, 0.0)
        y = y * tl.rsqrt(tl.sum(squares, 1) / C + LAYER_NORM_EPS)[:, None]
        at = (rows // rows_per_sample)[:, None] * modulation_stride + columns[None, :]
        y *= 1.0 + tl.load(scale + at, mask=known, other=0.0).to(tl.float32)
        y += tl.load(shift + at, mask=known, other=0.0).to(tl.float32)
    now = tl.load(step)
    quantize_part(
        y, rows, valid, columns, inside, now, table0, zero0, codes, sums, scales, zeros, C,
        DYNAMIC, TABLE, not NORM, SYMMETRIC, SHARED, SUMS, BITS,
    )  # fmt: skip
    part = tl.cast(M, tl.int64)
    if PARTS > 1:
        quantize_part(
            y, rows, valid, columns, inside, now, table1, zero1,
            codes + part * C, sums + part, scales + part, zeros + part, C,
            DYNAMIC, TABLE, not NORM, SYMMETRIC, SHARED, SUMS, BITS,
        )  # fmt: skip
    if PARTS > 2:
        quantize_part(
            y, rows, valid, columns, inside, now, table2, zero2,
            codes + 2 * part * C, sums + 2 * part, scales + 2 * part, zeros + 2 * part, C,
            DYNAMIC, TABLE, not NORM, SYMMETRIC, SHARED, SUMS, BITS,
        )  # fmt: skip


def _configurations() -> list[triton.Config]:
    """(rows, columns, depth) of a block, warps, stages; one small block where nothing is timed."""
    if INTERPRETED:
        choices = [(32, 32, 32, 4, 1)]
    else:
        choices = [
            (128, 256, 128, 8, 3),
            (128, 128, 128, 8, 3),
            (128, 128, 64, 4, 4),
            (64, 128, 128, 4, 4),
            (64, 64, 128, 4, 4),
        ]
    return [
        triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP_M": 8}, num_warps=warps, num_stages=stages)
        for m, n, k, warps, stages in choices
    ]


@triton.autotune(configs=_configurations(), key=["bucket", "N", "K", "MODE"], reset_to_zero=["next_sums"])
@triton.jit
def linear_kernel(
    codes, weight, out, sums, x_scale, x_zero, w_scale, w_total, w_offset, bias, slots, ranges, step,
    residual, gate, next_factor, next_zero, next_sums,
    M, N, K, bucket, rows_per_sample, gate_stride,
    MODE: tl.constexpr, PER_TOKEN: tl.constexpr, OFFSET: tl.constexpr, BIAS: tl.constexpr, GELU: tl.constexpr,
    GATE: tl.constexpr, NEXT_SUMS: tl.constexpr, NEXT_BITS: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """acc = sum_i (q_i - z) (w_i + offset) = sum_i q_i w_i - z total + offset sum_i q_i, total = sum_i w_i + K offset.

    codes int8 [M, K] with their sums int32 [M], if OFFSET; x_scale fp32 and x_zero int32, [M] if PER_TOKEN, else
    [steps]. weight int8 [sets, N, K], the set of a step in slots int32 [steps]; w_scale fp32, w_total and w_offset
    int32, [ranges, N], the range of a step in ranges int32 [steps]. bias fp32 [N]. By MODE, out [M, N] is "sums": acc,
    int32. "float": y = acc x_scale w_scale + bias, its GELU if GELU. "add": residual [M, N] + y, times the gate
    [samples, N] of every `rows_per_sample`: GATE is "none", "tile" if BLOCK_M divides that, else "token". "codes":
    codes of y with next_factor [steps, N], 1 / (scale * s), and next_zero [steps]; their sums are added to next_sums
    int32 [M] if NEXT_SUMS. `bucket`, M rounded up, only selects the
    measured configuration.
    """
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    tile, per_group = tl.program_id(0), GROUP_M * tiles_n
    first = tile // per_group * GROUP_M
    height = tl.minimum(tiles_m - first, GROUP_M)
    pid_m, pid_n = first + tile % per_group % height, tile % per_group // height

    now = tl.load(step)
    set_, range_ = tl.load(slots + now), tl.load(ranges + now)
    rows, columns = pid_m * BLOCK_M + tl.arange(0, BLOCK_M), pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    row_valid, column_valid = rows < M, columns < N
    a = codes + rows.to(tl.int64)[:, None] * K + depth[None, :]
    b = weight + set_.to(tl.int64) * N * K + columns[None, :] * K + depth[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for k in range(0, K, BLOCK_K):
        if EVEN_K:
            qa = tl.load(a, mask=row_valid[:, None], other=0)
            qb = tl.load(b, mask=column_valid[None, :], other=0)
        else:
            left = depth < K - k
            qa = tl.load(a, mask=row_valid[:, None] & left[None, :], other=0)
            qb = tl.load(b, mask=column_valid[None, :] & left[:, None], other=0)
        acc = tl.dot(qa, qb, acc, out_dtype=tl.int32)
        a += BLOCK_K
        b += BLOCK_K

    channel = range_ * N + columns
    if PER_TOKEN:
        zero = tl.load(x_zero + rows, mask=row_valid, other=0)[:, None]
        act_scale = tl.load(x_scale + rows, mask=row_valid, other=0.0)[:, None]
    else:
        zero, act_scale = tl.load(x_zero + now), tl.load(x_scale + now)
    acc -= zero * tl.load(w_total + channel, mask=column_valid, other=0)[None, :]
    if OFFSET:
        token_sums = tl.load(sums + rows, mask=row_valid, other=0)[:, None]
        acc += token_sums * tl.load(w_offset + channel, mask=column_valid, other=0)[None, :]

    at = rows.to(tl.int64)[:, None] * N + columns[None, :]
    valid = row_valid[:, None] & column_valid[None, :]
    if MODE == "sums":
        tl.store(out + at, acc, mask=valid)
    else:
        y = acc.to(tl.float32) * (act_scale * tl.load(w_scale + channel, mask=column_valid, other=0.0)[None, :])
        if BIAS:
            y += tl.load(bias + columns, mask=column_valid, other=0.0)[None, :]
        if GELU:  # of the tanh approximation: x (1 + tanh u) / 2 = x sigmoid(2 u)
            y *= tl.sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y))
        if MODE == "add":
            if GATE == "tile":
                from_gate = pid_m * BLOCK_M // rows_per_sample * gate_stride + columns
                y *= tl.load(gate + from_gate, mask=column_valid, other=0.0).to(tl.float32)[None, :]
            if GATE == "token":
                from_gate = (rows // rows_per_sample)[:, None] * gate_stride + columns[None, :]
                y *= tl.load(gate + from_gate, mask=valid, other=0.0).to(tl.float32)
            y += tl.load(residual + at, mask=valid, other=0.0).to(tl.float32)
        if MODE == "codes":
            y *= tl.load(next_factor + now * N + columns, mask=column_valid, other=0.0)[None, :]
            q = to_codes(y, tl.load(next_zero + now), NEXT_BITS)
            tl.store(out + at, q.to(tl.int8), mask=valid)
            if NEXT_SUMS:
                tl.atomic_add(next_sums + rows, tl.sum(tl.where(valid, q, 0), 1), mask=row_valid, sem="relaxed")
        else:
            tl.store(out + at, y.to(out.dtype.element_ty), mask=valid)
