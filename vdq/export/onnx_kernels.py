"""What ONNX Runtime makes of a graph: whether every quantized layer is really a product of integers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnxruntime

INTEGER_PRODUCTS = {"MatMulIntegerToFloat", "QLinearMatMul", "QGemm", "MatMulInteger"}


def check_integer(path: Path, fqns: Iterable[str]) -> None:
    """Raises ValueError naming the first layer of a graph that ONNX Runtime would multiply in floating point.

    It does so without a word when a pattern of operators is not the one that it replaces by an integer kernel.
    """
    integer = {name for node in optimized(path).graph.node if node.op_type in INTEGER_PRODUCTS for name in node.input}
    for fqn in fqns:
        if f"{fqn}.weight_codes" not in integer:
            raise ValueError(
                f"{path.name}: onnxruntime {onnxruntime.__version__} does not multiply layer {fqn} in integers; "
                f"one of {', '.join(sorted(INTEGER_PRODUCTS))} is wanted"
            )


def optimized(path: Path) -> onnx.ModelProto:
    """The graph as ONNX Runtime executes it on a CPU, without the tensors of data files."""
    with TemporaryDirectory(dir=path.parent, prefix=".optimized") as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it warns that such a file fits this CPU only
        options.optimized_model_filepath = str(Path(folder) / path.name)
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath, load_external_data=False)
