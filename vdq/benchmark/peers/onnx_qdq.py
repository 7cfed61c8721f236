"""ONNX Runtime and OpenVINO on a QDQ model made by ONNX Runtime's own `quantize_static`.

Only products with constant weights are quantized, and no output, which both run faster than with every tensor
quantized; attention stays in full precision as in ours.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vdq.benchmark.machine import Machine
from vdq.benchmark.rounds import PEER, Contender

OPSET = 21
ORT_FULL = "ONNX Runtime"
INTEGER_OPS = ("QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulInteger", "DynamicQuantizeMatMul")
PRODUCTS = ("MatMul", "Gemm")


def onnxruntime_static(module: nn.Module, x: Tensor, machine: Machine, folder: Path) -> list[Contender]:
    """Full precision, its own baseline, and QDQ."""
    full, quantized = _exported(module, x, folder)
    run_full, _ = _session(full, x)
    run, operations = _session(quantized, x)
    integer = {name: number for name, number in operations.items() if name in INTEGER_OPS}
    facts = {"linears": sum(integer.values()), "operations": integer}
    computes = f"static QDQ, u8 per tensor: {_listed(integer) or 'floating point'}"
    return [
        Contender(ORT_FULL, PEER, "fp32", run_full),
        Contender(f"{ORT_FULL} static", PEER, computes, run, ORT_FULL, facts),
    ]


def openvino_static(module: nn.Module, x: Tensor, machine: Machine, folder: Path) -> list[Contender]:
    import openvino

    _, quantized = _exported(module, x, folder)
    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(core.read_model(quantized), "CPU", settings)
    request, inputs = compiled.create_infer_request(), x.numpy()
    precisions = Counter(
        str(operation.get_rt_info()["runtimePrecision"].value)
        for operation in compiled.get_runtime_model().get_ops()
        if operation.get_rt_info()["layerType"].value == "FullyConnected"
    )
    integer = {name: number for name, number in precisions.items() if name in ("u8", "i8")}
    computes = f"static QDQ, u8 per tensor: {_listed(precisions)}"

    def run(_: int) -> Any:
        return request.infer([inputs], share_inputs=True, share_outputs=True)[0]

    facts = {"linears": sum(integer.values()), "operations": dict(precisions)}
    return [Contender("OpenVINO static", PEER, computes, run, facts=facts)]


def _exported(module: nn.Module, x: Tensor, folder: Path) -> tuple[Path, Path]:
    """Full precision and QDQ as files, made once."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class OneBatch(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"x": x.numpy()}])

        def get_next(self) -> dict | None:
            return next(self.batches, None)

    full, prepared, quantized = folder / "full.onnx", folder / "prepared.onnx", folder / "qdq.onnx"
    if quantized.is_file():
        return full, quantized
    for library in ("onnxscript", "onnx_ir"):
        logging.getLogger(library).setLevel(logging.WARNING)
    settings = {"input_names": ["x"], "output_names": ["y"], "opset_version": OPSET, "external_data": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), full, dynamo=True, verbose=False, **settings)
    # A product and its bias become one Gemm, whose bias is quantized too: else ONNX Runtime does that later, in fp32.
    quant_pre_process(str(full), str(prepared), skip_symbolic_shape=True)
    graph = onnx.load(prepared, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    attention = [node.name for node in graph.node if node.op_type in PRODUCTS and node.input[1] not in weights]
    quantize_static(
        prepared,
        quantized,
        OneBatch(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=list(PRODUCTS),
        nodes_to_exclude=attention,
        extra_options={"WeightSymmetric": True, "OpTypesToExcludeOutputQuantization": list(PRODUCTS)},
    )
    return full, quantized


def _session(path: Path, x: Tensor) -> tuple[Callable[[int], Any], Counter[str]]:
    """One call, and the operations of the graph that ONNX Runtime made of the model."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    options.log_severity_level = 3
    # Its threads would go on spinning while the next contender is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    inputs = {"x": x.numpy()}
    return lambda _: session.run(None, inputs)[0], Counter(node.op_type for node in graph.node)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items())
