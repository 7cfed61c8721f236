"""ONNX Runtime and OpenVINO on a QDQ model made by ONNX Runtime's own `quantize_static`.

Only products with constant weights are quantized, and no output, which both run faster than with every tensor
quantized; attention stays in full precision as in ours. Weights have 8 bits, or 7 for OpenVINO on a CPU where its sums
of 8 bits saturate.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vdq.backends.integer import BITS
from vdq.benchmark.machine import Machine
from vdq.benchmark.rounds import PEER, Contender
from vdq.errors import UserError
from vdq.export.onnx_session import exact_entries, multiplies_exactly, open_session

OPSET = 21
ORT_FULL = "ONNX Runtime"
INTEGER_OPS = ("QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulInteger", "DynamicQuantizeMatMul")
PRODUCTS = ("MatMul", "Gemm")


def onnxruntime_static(module: nn.Module, x: Tensor, machine: Machine, folder: Path) -> list[Contender]:
    """ONNX Runtime in full precision, which is its own baseline, and on the QDQ model."""
    full, quantized = _exported(module, x, folder, weight_bits=BITS)
    run_full, _ = _session(full, x)
    run, operations = _session(quantized, x)
    integer = {name: number for name, number in operations.items() if name in INTEGER_OPS}
    facts = {"linears": sum(integer.values()), "operations": integer}
    settings = "".join(f", {name}={value}" for name, value in exact_entries().items())
    computes = f"static QDQ, u8 per tensor{settings}: {_listed(integer) or 'floating point'}"
    return [
        Contender(ORT_FULL, PEER, "fp32", run_full),
        Contender(f"{ORT_FULL} static", PEER, computes, run, ORT_FULL, facts),
    ]


def openvino_static(module: nn.Module, x: Tensor, machine: Machine, folder: Path) -> list[Contender]:
    bits = openvino_weight_bits()
    _, quantized = _exported(module, x, folder, weight_bits=bits)
    compiled = _compiled(quantized)
    request, inputs = compiled.create_infer_request(), x.numpy()
    precisions = Counter(
        str(operation.get_rt_info()["runtimePrecision"].value)
        for operation in compiled.get_runtime_model().get_ops()
        if operation.get_rt_info()["layerType"].value == "FullyConnected"
    )
    integer = {name: number for name, number in precisions.items() if name in ("u8", "i8")}
    weights = "" if bits == BITS else f", {bits}-bit weights"
    computes = f"static QDQ, u8 per tensor{weights}: {_listed(precisions)}"

    def run(_: int) -> Any:
        return request.infer([inputs], share_inputs=True, share_outputs=True)[0]

    facts = {"linears": sum(integer.values()), "operations": dict(precisions)}
    return [Contender("OpenVINO static", PEER, computes, run, facts=facts)]


@cache
def openvino_weight_bits() -> int:
    """The widest weights whose integer products are exact in OpenVINO on this CPU: 8 bits, or 7 where sums of two
    products with 8 saturate. Raises UserError if neither is exact.
    """
    for bits in (BITS, BITS - 1):
        if multiplies_exactly(lambda model, x: _compiled(model)([x])[0], weight_bits=bits):
            return bits
    raise UserError("openvino does not multiply bytes exactly on this CPU, also not with weights of 7 bits")


def _compiled(model: Path | bytes) -> Any:
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    return core.compile_model(core.read_model(model), "CPU", settings)


def _exported(module: nn.Module, x: Tensor, folder: Path, *, weight_bits: int) -> tuple[Path, Path]:
    """The files of the full-precision and the QDQ model, which are made once."""
    full, prepared, quantized = (folder / f"{name}.onnx" for name in ("full", "prepared", f"qdq_{weight_bits}"))
    if not prepared.is_file():
        _export(module, x, full, prepared)
    if not quantized.is_file():
        _quantize(prepared, quantized, x, weight_bits=weight_bits)
    return full, quantized


def _export(module: nn.Module, x: Tensor, full: Path, prepared: Path) -> None:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    for library in ("onnxscript", "onnx_ir"):
        logging.getLogger(library).setLevel(logging.WARNING)
    settings = {"input_names": ["x"], "output_names": ["y"], "opset_version": OPSET, "external_data": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), full, dynamo=True, verbose=False, **settings)
    # A product and its bias become one Gemm, whose bias is quantized too: else ONNX Runtime does that later, in fp32.
    quant_pre_process(str(full), str(prepared), skip_symbolic_shape=True)


def _quantize(prepared: Path, quantized: Path, x: Tensor, *, weight_bits: int) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class OneBatch(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"x": x.numpy()}])

        def get_next(self) -> dict | None:
            return next(self.batches, None)

    graph = onnx.load(prepared, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    attention = [node.name for node in graph.node if node.op_type in PRODUCTS and node.input[1] not in weights]
    quantize_static(
        prepared,
        quantized,
        OneBatch(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=weight_bits < BITS,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=list(PRODUCTS),
        nodes_to_exclude=attention,
        extra_options={"WeightSymmetric": True, "OpTypesToExcludeOutputQuantization": list(PRODUCTS)},
    )


def _session(path: Path, x: Tensor) -> tuple[Callable[[int], Any], Counter[str]]:
    """A call of the model, and how often the graph that ONNX Runtime made of it has each operation."""
    import onnx

    written = path.with_suffix(".optimized.onnx")
    session = open_session(
        path,
        # Its threads would go on spinning while the next contender is timed.
        entries={"session.force_spinning_stop": "1"},
        intra_op_num_threads=torch.get_num_threads(),
        optimized_model_filepath=str(written),
    )
    graph = onnx.load(written, load_external_data=False).graph
    inputs = {"x": x.numpy()}
    return lambda _: session.run(None, inputs)[0], Counter(node.op_type for node in graph.node)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items())
