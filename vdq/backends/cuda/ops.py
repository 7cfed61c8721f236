"""The kernels as operations of torch: they can be traced, compiled and captured, and have no state."""

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

from vdq.backends.cuda.kernels import BLOCK_K, BLOCK_M, linear_kernel, quantize_kernel

MAX_PARTS = 3
# A program of `quantize_kernel` works on so many numbers, if a token has not more.
BLOCK = 4096
LARGEST_BUCKET = 2**15


@triton_op("vdq::quantize_tokens", mutates_args={})
def quantize_tokens(
    x: Tensor,
    step: Tensor,
    tables: list[Tensor],
    zeros: list[Tensor],
    parts: int,
    bits: int,
    symmetric: bool,
    with_sums: bool,
    groups: int = 0,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    swap_a: int = 0,
    swap_b: int = 0,
    position: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes int8 [parts, M, C] of x [M, C] for 1 to 3 layers, sums int32, scales fp32 and zero points int32 [parts, M].

    Static with zeros: tables [steps, C] fp32 and zeros [steps] int32 a layer; without, dynamic, divided by tables
    first if there are any, with a range for each token, or for `groups` tokens M / groups apart. Sums are empty without
    `with_sums`, scales and zero points if static. shift, scale [samples, C] (any row stride): of the modulated norm,
    for which the tables hold reciprocals. swap_a, swap_b, position [swap_a, C]: as the kernel says.
    """
    rows, channels = x.shape
    dynamic = not zeros
    codes = torch.empty(parts, rows, channels, dtype=torch.int8, device=x.device)
    sums = torch.empty(parts, rows if with_sums else 0, dtype=torch.int32, device=x.device)
    scales = torch.empty(parts, rows if dynamic else 0, dtype=torch.float32, device=x.device)
    zero_points = torch.empty(parts, rows if dynamic else 0, dtype=torch.int32, device=x.device)
    if not rows:
        return codes, sums, scales, zero_points
    block_c = _power_of_two(channels, 16)
    block_r = _power_of_two(groups, 1) if groups else max(1, BLOCK // block_c)
    programs = rows // groups if groups else -(-rows // block_r)
    # `step` stands for arguments that the flags leave unread.
    wrap_triton(quantize_kernel)[(programs,)](
        x,
        step if shift is None else shift,
        step if scale is None else scale,
        step if position is None else position,
        step,
        *_padded(tables, step),
        *_padded(zeros, step),
        codes,
        sums,
        scales,
        zero_points,
        rows,
        channels,
        1 if shift is None else rows // shift.shape[0],
        0 if shift is None else shift.stride(0),
        swap_a,
        swap_b,
        max(groups, 1),
        PARTS=parts,
        NORM=shift is not None,
        SWAP=swap_a > 0,
        POSITION=position is not None,
        DYNAMIC=dynamic,
        TABLE=bool(tables),
        SYMMETRIC=symmetric,
        SHARED=groups > 0,
        SUMS=with_sums,
        BITS=bits,
        BLOCK_R=block_r,
        BLOCK_C=block_c,
        num_warps=min(16, max(1, block_r * block_c // 1024)),
    )
    return codes, sums, scales, zero_points


@triton_op("vdq::int8_linear", mutates_args={})
def int8_linear(
    codes: Tensor,
    sums: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    per_token: bool,
    weight: Tensor,
    slots: Tensor,
    ranges: Tensor,
    w_scale: Tensor,
    w_total: Tensor,
    w_offset: Tensor | None,
    bias: Tensor | None,
    step: Tensor,
    dtype: torch.dtype,
    gelu: bool = False,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    next_factor: Tensor | None = None,
    next_zero: Tensor | None = None,
    next_bits: int = 8,
    next_sums: bool = False,
) -> tuple[Tensor, Tensor]:
    """[M, N] of codes int8 [M, K]; the tensors are those of `linear_kernel`, gate with any row stride.

    dtype int32: the integer sums. int8: the codes for a static layer that next_factor and next_zero belong to. Else
    the output, or residual + gate * output. The second tensor holds the sums of the codes int32 [M] with `next_sums`
    and is empty without.
    """
    out = torch.empty(codes.shape[0], weight.shape[1], dtype=dtype, device=codes.device)
    out_sums = torch.zeros(codes.shape[0] if next_sums else 0, dtype=torch.int32, device=codes.device)
    if not out.numel():
        return out, out_sums
    (rows, depth), columns = codes.shape, weight.shape[1]
    mode = {torch.int32: "sums", torch.int8: "codes"}.get(dtype, "float" if residual is None else "add")
    rows_per_sample = rows if gate is None else rows // gate.shape[0]

    def grid(meta: dict) -> tuple[int]:
        return (-(-rows // meta["BLOCK_M"]) * -(-columns // meta["BLOCK_N"]),)

    # `step` stands for arguments that the flags leave unread.
    wrap_triton(linear_kernel)[grid](
        codes,
        weight,
        out,
        sums,
        x_scale,
        x_zero,
        w_scale,
        w_total,
        step if w_offset is None else w_offset,
        step if bias is None else bias,
        slots,
        ranges,
        step,
        step if residual is None else residual,
        step if gate is None else gate,
        step if next_factor is None else next_factor,
        step if next_zero is None else next_zero,
        out_sums,
        rows,
        columns,
        depth,
        min(_power_of_two(rows, 16), LARGEST_BUCKET),
        rows_per_sample,
        0 if gate is None else gate.stride(0),
        MODE=mode,
        PER_TOKEN=per_token,
        OFFSET=w_offset is not None,
        BIAS=bias is not None,
        GELU=gelu,
        GATE="none" if gate is None else "token" if rows_per_sample % BLOCK_M else "tile",
        NEXT_SUMS=next_sums,
        NEXT_BITS=next_bits,
        EVEN_K=depth % BLOCK_K == 0,
    )
    return out, out_sums


def _power_of_two(number: int, least: int) -> int:
    """The smallest that holds `number`."""
    return max(least, 1 << (number - 1).bit_length())


def _padded(tensors: list[Tensor], unread: Tensor) -> list[Tensor]:
    return [*tensors, *[unread] * (MAX_PARTS - len(tensors))]
