"""Sessions of ONNX Runtime whose integer products are exact on this CPU.

x86 CPUs without VNNI add products of unsigned and signed bytes two by two in 16 bits. These sums saturate where weights
go beyond 64 and activations are large, and no runtime says so: a layer with extreme codes is compared instead.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from vdq.backends.integer import BITS
from vdq.diffusion.clock import StepClock
from vdq.errors import UserError
from vdq.export.onnx_graph import Graph, TensorFile, layer_template
from vdq.quant.batch_layout import BatchLayout
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.linear import LayerSpec
from vdq.quant.parts import AffineWeights, StaticActs

# Makes int8 weights beyond 64 unsigned, also on CPUs with VNNI, which the kernels for these do not use: no session gets
# it without need.
PRECISE = {"session.x64quantprecision": "1"}
FEATURES, ZERO_POINT = 96, 3


def open_session(
    model: Path | bytes, *, entries: dict[str, str] | None = None, **settings: Any
) -> onnxruntime.InferenceSession:
    """A session on the CPU that multiplies bytes exactly. entries: of its configuration, beside the needed ones;
    settings: attributes of SessionOptions, such as intra_op_num_threads. Raises UserError if no session is exact here.
    """
    return plain_session(model, exact_entries() | (entries or {}), **settings)


@cache
def exact_entries() -> dict[str, str]:
    """Configuration that a session needs to be exact on this CPU: none with VNNI. Raises UserError if none helps."""
    for entries in ({}, PRECISE):

        def run(model: bytes, x: np.ndarray, entries: dict[str, str] = entries) -> np.ndarray:
            return plain_session(model, entries, intra_op_num_threads=1).run(None, {"x": x})[0]

        if all(multiplies_exactly(run, unsigned=unsigned) for unsigned in (False, True)):
            return entries
    (name,) = PRECISE
    raise UserError(
        f"onnxruntime {onnxruntime.__version__} does not multiply bytes exactly on this CPU, with {name}=1 neither; "
        "another version may, and an artefact of export=packed is sampled without it"
    )


def multiplies_exactly(
    run: Callable[[bytes, np.ndarray], np.ndarray], *, weight_bits: int = BITS, unsigned: bool = False
) -> bool:
    """Whether `run(model, x)` computes what it should of an exported layer with extreme codes of weights and inputs.

    The layer's weights are int8, or uint8 where `unsigned`; its output has whole numbers below 2^24.
    """
    low, high = -(2 ** (weight_bits - 1)), 2 ** (weight_bits - 1) - 1
    weight = torch.tensor([[high], [low], [low + 1], [1]]).float().expand(-1, FEATURES)
    x = (torch.tensor([255.0, 0.0, 254.0]) - ZERO_POINT).view(1, -1, 1).repeat(1, 1, FEATURES)
    first = torch.zeros(1, dtype=torch.long)
    ones = torch.ones(1, len(weight), 1)
    quant = LayerQuant(
        weight=AffineWeights(bits=weight_bits, symmetric=True, scale=ones, zero_point=0 * ones, steps=first),
        act=StaticActs(bits=BITS, scale=torch.ones(1), zero_point=torch.full((1,), float(ZERO_POINT)), steps=first),
    )
    layer = LayerSpec("layer", weight, None, quant, StepClock(1), BatchLayout())
    graph = Graph(layer_template(layer, x.shape), TensorFile(io.BytesIO()), [0])
    model = graph.build({layer.fqn: layer}, zero_points=True, unsigned=unsigned).SerializeToString()
    return np.allclose(run(model, x.numpy()), (x @ weight.T).numpy(), rtol=1e-6, atol=0)


def plain_session(model: Path | bytes, entries: dict[str, str], **settings: Any) -> onnxruntime.InferenceSession:
    """A session on the CPU with these entries alone, exact or not."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for name, value in settings.items():
        setattr(options, name, value)
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
