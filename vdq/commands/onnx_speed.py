"""Measures what the types of exported weights cost here: ``python -m vdq.commands.onnx_speed FILE.md``.

One linear layer as the export writes it, in ONNX Runtime and OpenVINO, with the settings that exist. Needs both.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import openvino
import pandas as pd
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from vdq.backends.integer import BITS
from vdq.benchmark.block import relative_error
from vdq.benchmark.machine import Machine
from vdq.benchmark.rounds import PEER, Contender, measure, summary
from vdq.cli import count, file_to_write
from vdq.diffusion.clock import StepClock
from vdq.export.onnx_graph import DATA, IR_VERSION, Graph, TensorFile, layer_template
from vdq.export.onnx_linear import OPSET
from vdq.export.onnx_session import PRECISE, exact_entries, plain_session
from vdq.files import write_text
from vdq.machine import cpu_name
from vdq.methods.static import StaticMethod
from vdq.quant.batch_layout import BatchLayout
from vdq.quant.linear import LayerSpec
from vdq.quant.stats import LayerStats
from vdq.reports.text import markdown

SHAPES = ((1152, 1152), (1152, 4608), (4608, 1152))  # of STDiT-XL/2: C -> C, C -> 4C, 4C -> C
MODEL = "layer.onnx"
FLOATING = {"LP_TRANSFORMS_MODE": False}
TEXT = """# What the types of exported weights cost

One linear layer, W8A8 or W7A8, weights per output channel and asymmetric, {tokens} tokens of normal noise: milliseconds
of CPU time, and how many times as fast as fp32 in ONNX Runtime; medians of {rounds} rounds in turn.
`off by` is the distance to the product in fp32, relative to its norm, the largest of the three: 8-bit rows differ in it
by saturation alone. ONNX Runtime runs graphs of `export.steps=gather`, OpenVINO of `constant`.

Measured on {cpu}, where sums of u8 x s8 products {saturate}, with {versions}.
Written by `python -m vdq.commands.onnx_speed`.

{table}
"""


class CpuTime(Machine):
    """Seconds that this process computed, which hardly depend on what else runs."""

    def now(self) -> float:
        return time.process_time()


class Form(NamedTuple):
    """Weights as an export writes them; without bits, in full precision."""

    name: str
    weight_bits: int | None = BITS
    unsigned: bool = False


def table(tokens: int, rounds: int) -> pd.DataFrame:
    """One row a runtime, form and setting, one column a shape."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    errors: dict[tuple[str, ...], float] = {}
    for inputs, outputs in SHAPES:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, tokens, inputs, generator=generator)
        weight = torch.randn(outputs, inputs, generator=generator)
        with tempfile.TemporaryDirectory() as folder:
            contenders = list(_contenders(x, weight, Path(folder)))
            timed = measure(contenders, rounds=rounds, limit=1.0, clock=CpuTime(), done=lambda: None)
        full = [round_.seconds[contenders[0].name] for round_ in timed]
        for contender in contenders:
            name, own = contender.name, [round_.seconds[contender.name] for round_ in timed]
            ratio = summary([before / after for before, after in zip(full, own, strict=True)])
            cell = f"{1000 * summary(own).median:.1f} ({ratio.median:.2f}x)"
            found.setdefault(name, {})[f"{inputs} → {outputs}"] = cell
            errors[name] = max(errors.get(name, 0.0), contender.facts["error"])
    named = [dict(zip(("runtime", "weights", "setting"), name, strict=True)) for name in found]
    return pd.DataFrame(
        [row | found[name] | {"off by": f"{errors[name]:.4f}"} for row, name in zip(named, found, strict=True)]
    )


def _contenders(x: Tensor, weight: Tensor, folder: Path) -> Iterator[Contender]:
    expected = x @ weight.T
    for runtime, (load, cases) in RUNTIMES.items():
        for number, (form, setting) in enumerate(cases):
            path = folder / runtime / str(number)
            path.mkdir(parents=True)
            _write(form, x, weight, path, zero_points=load is _onnxruntime)
            run = load(path / MODEL, setting, x)
            settings = ", ".join(f"{name}={value}" for name, value in setting.items()) or "none"
            facts = {"error": relative_error(torch.from_numpy(run(0)), expected)}
            yield Contender((runtime, form.name, settings), PEER, form.name, run, facts=facts)


def _write(form: Form, x: Tensor, weight: Tensor, folder: Path, *, zero_points: bool) -> None:
    """The layer's graph, quantized for the range of x."""
    if form.weight_bits is None:
        onnx.save_model(_full_precision(x, weight), folder / MODEL)
        return
    low, high = (bound[None] for bound in x[0].aminmax(dim=0))
    stats = LayerStats(low, high, high.double(), torch.ones(1, dtype=torch.long))
    quant = StaticMethod(weight_bits=form.weight_bits, act_bits=BITS).layer(weight, stats, 1)
    layer = LayerSpec("layer", weight, None, quant, StepClock(1), BatchLayout())
    with (folder / DATA).open("wb") as file:
        graph = Graph(layer_template(layer, x.shape), TensorFile(file), [0])
        onnx.save_model(graph.build({"layer": layer}, zero_points=zero_points, unsigned=form.unsigned), folder / MODEL)


def _full_precision(x: Tensor, weight: Tensor) -> onnx.ModelProto:
    shapes = {"x": x.shape, "output": [*x.shape[:-1], len(weight)]}
    x_info, y_info = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    stored = numpy_helper.from_array(weight.T.contiguous().numpy(), "weight")
    node = helper.make_node("MatMul", ["x", "weight"], ["output"])
    graph = helper.make_graph([node], "layer", [x_info], [y_info], [stored])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _onnxruntime(path: Path, entries: dict[str, Any], x: Tensor) -> Callable[[int], np.ndarray]:
    entries = {"session.force_spinning_stop": "1", **entries}
    session, feed = plain_session(path, entries, intra_op_num_threads=torch.get_num_threads()), {"x": x.numpy()}
    return lambda _: session.run(None, feed)[0]


def _openvino(path: Path, settings: dict[str, Any], x: Tensor) -> Callable[[int], np.ndarray]:
    core, inputs = openvino.Core(), [x.numpy()]
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32", **settings}
    request = core.compile_model(path, "CPU", settings).create_infer_request()
    return lambda _: request.infer(inputs, share_inputs=True, share_outputs=True)[0]


FULL, INT8, UINT8, NARROW = Form("fp32", None), Form("int8"), Form("uint8", unsigned=True), Form("int8, 7 bits", 7)
RUNTIMES = {
    "ONNX Runtime": (_onnxruntime, [(FULL, {}), (INT8, {}), (INT8, PRECISE), (UINT8, {}), (NARROW, {})]),
    "OpenVINO": (_openvino, [(FULL, {}), (INT8, {}), (INT8, FLOATING), (UINT8, {}), (NARROW, {})]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=file_to_write, help="Markdown file to write")
    parser.add_argument("--tokens", type=count, default=1024, help="rows of the product (%(default)s)")
    parser.add_argument("--rounds", type=count, default=7, help="of which medians are taken (%(default)s)")
    asked = parser.parse_args()
    with torch.inference_mode():
        rows = markdown(table(asked.tokens, asked.rounds))
    facts = {
        "cpu": f"{cpu_name()} ({torch.backends.cpu.get_cpu_capability()})",
        "saturate": "saturate" if exact_entries() else "are exact",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "openvino")),
    }
    text = TEXT.format(tokens=asked.tokens, rounds=asked.rounds, table=rows, **facts)
    write_text(asked.file, text)


if __name__ == "__main__":
    main()
