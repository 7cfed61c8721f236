"""What ONNX Runtime makes of a graph: whether every quantized layer is really a product of integers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnxruntime

from vdq.errors import UserError
from vdq.export.onnx_session import open_session

INTEGER_PRODUCTS = {"MatMulIntegerToFloat", "QLinearMatMul", "QGemm", "MatMulInteger"}
MADE_UNSIGNED = "_s8_2_u8"  # ends the names of weights that session.x64quantprecision made unsigned


def check_integer(path: Path, fqns: Iterable[str]) -> None:
    """Raises UserError naming the first layer of a graph that ONNX Runtime would multiply in floating point.

    It does so without a word when a pattern of operators is not the one that it replaces by an integer kernel.
    """
    products = [node for node in optimized(path).graph.node if node.op_type in INTEGER_PRODUCTS]
    integer = {name.removesuffix(MADE_UNSIGNED) for node in products for name in node.input}
    for fqn in fqns:
        if f"{fqn}.weight_codes" not in integer:
            raise UserError(
                f"{path.name}: onnxruntime {onnxruntime.__version__} does not multiply layer {fqn} in integers; "
                f"one of {', '.join(sorted(INTEGER_PRODUCTS))} is wanted"
            )


def optimized(path: Path) -> onnx.ModelProto:
    """The graph as ONNX Runtime executes it on a CPU, without the tensors of data files."""
    with TemporaryDirectory(dir=path.parent, prefix=".optimized") as folder:
        written = Path(folder) / path.name
        open_session(path, optimized_model_filepath=str(written))
        return onnx.load(written, load_external_data=False)
