"""ONNX graphs of a quantized denoiser: traced once, written once for every group of steps, with one file of tensors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from vdq.export.onnx_linear import DOMAIN, OPERATOR, OPSET, expand
from vdq.models.stdit import STDiT
from vdq.quant.convert import quantized_layers
from vdq.quant.linear import LayerSpec

INPUTS, OUTPUT, STEP = ("x", "timestep", "y", "mask"), "output", "step"
IR_VERSION = 10  # the first with opset 21
DATA = "denoiser.data"
ROWS = 2  # of a batch: a prompt and the null caption
EXTERNAL_BYTES = 1024  # smaller tensors are inside the graph
ALIGNMENT = 4096  # a page, so that files can be mapped


def traced(quantized: STDiT) -> ModelProto:
    """The graph of an STDiT with layers of OnnxBackend, fp32 on the CPU: one node for each of them.

    Inputs, for one prompt: x fp32 [2, c, T, H, W], timestep int64 [2], y fp32 [2, 1, L, D], mask int64 [1, L].
    """
    length, width = quantized.y_embedder.y_embedding.shape
    example = (
        torch.zeros(ROWS, quantized.in_channels, *quantized.input_size),
        torch.zeros(ROWS, dtype=torch.long),
        torch.zeros(ROWS, 1, length, width),
        torch.ones(1, length, dtype=torch.long),
    )
    return traced_call(quantized, dict(zip(INPUTS, example, strict=True)))


def traced_call(quantized: nn.Module, example: dict[str, Tensor]) -> ModelProto:
    """The same of any network that is a function of tensors, whose inputs get these names."""
    for chatty in ("onnx_ir", "onnxscript"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    program = torch.onnx.export(
        quantized.eval(),
        tuple(example.values()),
        dynamo=True,
        opset_version=OPSET,
        input_names=list(example),
        output_names=[OUTPUT],
        verbose=False,
    )
    return _without_traces(program.model_proto)


def layer_specs(quantized: nn.Module) -> dict[str, LayerSpec]:
    """The layers of OnnxBackend by fqn."""
    return {fqn: module.layer for fqn, module in quantized_layers(quantized).items()}


def step_groups(layers: Iterable[LayerSpec], *, constant: bool) -> list[list[int]]:
    """Steps that one graph serves: those of equal weights, and where `constant` of equal rows of all tables."""
    layers = list(layers)
    tables = [layer.quant.weight.steps for layer in layers]
    if constant:
        tables += [part.steps for layer in layers for part in layer.quant.parts if part.steps is not None]
        tables += [layer.quant.act.step_bits for layer in layers if layer.quant.act.step_bits is not None]
    groups: dict[tuple[int, ...], list[int]] = {}
    for step, ranges in enumerate(torch.stack(tables, 1).tolist()):
        groups.setdefault(tuple(ranges), []).append(step)
    return list(groups.values())


def layer_template(layer: LayerSpec, shape: Sequence[int]) -> ModelProto:
    """What `traced` would return of a network of this layer alone: x fp32 `shape` [..., in] -> output [..., out]."""
    shapes = {"x": shape, OUTPUT: [*shape[:-1], len(layer.weight)]}
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in shapes.items())
    node = helper.make_node(OPERATOR, ["x"], [OUTPUT], domain=DOMAIN, fqn=layer.fqn)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(helper.make_graph([node], "layer", [x], [y]), opset_imports=opsets, ir_version=IR_VERSION)


def write_graphs(
    template: ModelProto,
    layers: dict[str, LayerSpec],
    folder: Path,
    *,
    constant: bool,
    unsigned: bool,
    window: range | None = None,
) -> list[str]:
    """Writes the graphs of all steps, or of those of a window, and their data file; returns the file name of the graph
    of every one of these steps.

    `template` is what `traced` returns. Where `constant`, no graph takes the step and int8 weights have no zero points;
    else the graph of a time range gathers what changes in it by its input `step`, an int64 scalar. Where `unsigned`,
    weights that could saturate are uint8.
    """
    found = step_groups(layers.values(), constant=constant)
    groups = [kept for steps in found if (kept := [step for step in steps if window is None or step in window])]
    files = {}
    with (folder / DATA).open("wb") as file:
        tensors = TensorFile(file)
        for number, steps in enumerate(groups):
            name = "denoiser.onnx" if len(groups) == 1 else f"denoiser_{number:02d}.onnx"
            model = Graph(template, tensors, steps).build(layers, zero_points=not constant, unsigned=unsigned)
            onnx.save_model(model, folder / name)
            files |= dict.fromkeys(steps, name)
    for name in dict.fromkeys(files.values()):
        onnx.checker.check_model(folder / name, full_check=True)
    return [files[step] for step in sorted(files)]


class TensorFile:
    """The data file of all graphs: what has the same name and key is written once."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.known = file, {}

    def tensor(self, name: str, key: int | None, make: Callable[[], TensorProto]) -> TensorProto:
        """A TensorProto `name` that refers to the file, or holds the value itself if that is small."""
        if (name, key) not in self.known:
            self.known[name, key] = self._stored(make())
        tensor = TensorProto()
        tensor.CopyFrom(self.known[name, key])
        tensor.name = name
        return tensor

    def _stored(self, tensor: TensorProto) -> TensorProto:
        if len(tensor.raw_data) < EXTERNAL_BYTES:
            return tensor
        self.file.write(bytes(-self.file.tell() % ALIGNMENT))
        place = {"location": DATA, "offset": self.file.tell(), "length": len(tensor.raw_data)}
        self.file.write(tensor.raw_data)
        stored = TensorProto(data_type=tensor.data_type, dims=tensor.dims, data_location=TensorProto.EXTERNAL)
        for field, value in place.items():
            stored.external_data.add(key=field, value=str(value))
        return stored


class Graph:
    """The graph of some steps, made from the traced one; also the Pieces that its layers add to."""

    def __init__(self, template: ModelProto, tensors: TensorFile, steps: list[int]) -> None:
        self.template, self.tensors, self.steps = template, tensors, steps
        self.nodes: list[NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self.gathers = False

    def build(self, layers: dict[str, LayerSpec], *, zero_points: bool, unsigned: bool) -> ModelProto:
        source = self.template.graph
        for tensor in source.initializer:
            self._add(tensor.name, None, lambda tensor=tensor: numpy_helper.from_array(numpy_helper.to_array(tensor)))
        for node in source.node:
            if node.domain == DOMAIN:
                layer = layers[node.attribute[0].s.decode()]
                expand(layer, self, node.input[0], node.output[0], zero_points=zero_points, unsigned=unsigned)
            else:
                self.nodes.append(node)
        inputs = list(source.input)
        if self.gathers:
            inputs.append(helper.make_tensor_value_info(STEP, TensorProto.INT64, []))
        graph = GraphProto(name="denoiser", node=self.nodes, input=inputs, output=source.output)
        graph.initializer.extend(self.initializers.values())
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=self.template.ir_version, producer_name="vdq")

    def node(self, operator: str, inputs: list[str], output: str, **attributes: int) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, make: Callable[[], Tensor], *, key: int | None = None, nibbles: bool = False) -> str:
        return self._add(name, key, lambda: _proto(make(), nibbles=nibbles))

    def per_step(self, name: str, values: Tensor) -> str:
        rows = values[self.steps]
        if (rows == rows[0]).all():
            return self._add(name, self.steps[0], lambda: _proto(rows[0]))
        self.gathers = True
        table = self.constant(f"{name}s", lambda: values)
        return self.node("Gather", [table, STEP], name)

    def _add(self, name: str, key: int | None, make: Callable[[], TensorProto]) -> str:
        self.initializers[name] = self.tensors.tensor(name, key, make)
        return name


def _proto(value: Tensor, *, nibbles: bool = False) -> TensorProto:
    """With the value in `raw_data`; of nibbles two share a byte, the first in the low half (ONNX IR, uint4)."""
    array = np.ascontiguousarray(value.detach().cpu().numpy())
    if not nibbles:
        return numpy_helper.from_array(array)
    codes = np.append(array.astype(np.uint8).ravel(), np.zeros(array.size % 2, np.uint8))
    packed = codes[::2] | codes[1::2] << 4
    return TensorProto(data_type=TensorProto.UINT4, dims=array.shape, raw_data=packed.tobytes())


def _without_traces(model: ModelProto) -> ModelProto:
    """Without what the exporter notes of the machine: names and lines of source files."""
    for part in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return model
