"""GPTQ (Frantar et al. 2023, arXiv 2210.17323): rounding that lets later columns make up for the error of earlier ones.

The objective is the error of the layer's output on recorded inputs, |X' (W' - What)^T|^2, where rounding to nearest
minimizes |W' - What|^2.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vdq.quant.affine import QParams, code_range

DAMPING = 0.01
BLOCK = 128  # columns whose corrections are gathered before the columns behind them are touched


def gram(inputs: Tensor) -> Tensor:
    """X^T X summed over steps, fp64 [C, C]: inputs [N, n, C], one step at a time."""
    total = torch.zeros(inputs.shape[-1], inputs.shape[-1], dtype=torch.float64, device=inputs.device)
    for x in inputs:
        total += (x.float().T @ x.float()).double()
    return total


class Feedback(NamedTuple):
    """What rounding needs to know of the inputs, of any weight that multiplies them: the order of the columns, long
    [in], and upper triangular U of the inverse Gram matrix in that order, fp64 [in, in].
    """

    order: Tensor
    factor: Tensor


def feedback(gram: Tensor, *, damping: float = DAMPING) -> Feedback:
    """What GPTQ needs of gram [in, in] = X^T X: columns in the order of falling diagonal, and the Cholesky factor of
    the inverse, after damping times the mean of the diagonal is added to it. Where the matrix is zero or not positive
    definite even so, the identity, with which rounding is to nearest.
    """
    diagonal = gram.diagonal()
    order = diagonal.argsort(descending=True)
    return Feedback(order, _inverse_factor(gram.double()[order][:, order], damping * float(diagonal.double().mean())))


def gptq_codes(weight: Tensor, qparams: QParams, feedback: Feedback, *, bits: int, symmetric: bool = False) -> Tensor:
    """Codes of a weight [out, in], integers in fp32, for qparams [out, 1].

    Columns are rounded one after another, each with its error spread over those still to come by the factor (eq. 2 and
    3 of the paper).
    """
    first, last = code_range(bits, symmetric)
    scale, zero_point = (values.double() for values in qparams)
    order, factor = feedback
    work = weight.double()[:, order]
    codes = torch.empty_like(work)
    for start in range(0, work.shape[1], BLOCK):
        stop = min(start + BLOCK, work.shape[1])
        errors = torch.empty_like(work[:, start:stop])
        for column in range(start, stop):
            w = work[:, column : column + 1]
            code = torch.clamp(torch.round(w / scale) + zero_point, first, last)
            error = (w - (code - zero_point) * scale) / factor[column, column]
            work[:, column + 1 : stop] -= error * factor[column, column + 1 : stop]
            codes[:, column : column + 1], errors[:, column - start : column - start + 1] = code, error
        work[:, stop:] -= errors @ factor[start:stop, stop:]
    return codes[:, order.argsort()].float()


def _inverse_factor(gram: Tensor, added: float) -> Tensor:
    """Upper triangular U with U^T U = (gram + added I)^-1, the identity where there is none: fp64 [in, in]."""
    damped = gram + added * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    lower, failed = torch.linalg.cholesky_ex(damped)
    if not int(failed):
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return torch.eye(len(gram), dtype=gram.dtype, device=gram.device) if int(failed) else upper
