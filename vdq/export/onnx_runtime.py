"""Sampling from an `onnx_qdq` artefact: ONNX Runtime computes the denoiser."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vdq.diffusion.clock import StepClock
from vdq.diffusion.samplers import Sampler
from vdq.errors import UserError
from vdq.export import artefact
from vdq.export.model import ArtefactModel
from vdq.export.onnx_calls import fixed_of, tensors_of
from vdq.export.transformers import transformers
from vdq.installation import require
from vdq.models.base import VideoModel
from vdq.rebuild import rebuild

KIND, VERSION = "onnx_qdq", 1
STEP = "step"  # the input of graphs that gather what changes with the step
NULL_CAPTION = "null_caption.safetensors"
PACKAGES = ("onnx", "onnxruntime", "onnxscript")


class Graphs(nn.Module):
    """The graphs of an artefact, of which the clock's step chooses one.

    One graph is in memory at a time: with one for every step each is loaded once a batch. `threads`: None is ONNX
    Runtime's choice.
    """

    def __init__(self, folder: Path, graphs: list[str], clock: StepClock, threads: int | None = None) -> None:
        super().__init__()
        self.folder, self.graphs, self.clock, self.threads = folder, graphs, clock, threads
        self.loaded: tuple[str, Any] | None = None

    def run(self, inputs: dict[str, Tensor]) -> Tensor:
        """Computes the output, fp32 on the CPU. Raises UserError for inputs of other names or shapes."""
        session = self._session()
        feed = {name: tensor.numpy() for name, tensor in inputs.items()}
        taken = {entry.name: entry.shape for entry in session.get_inputs()}
        if STEP in taken:  # only where something is gathered by it
            feed[STEP] = np.array(self.clock.step, np.int64)
        found = {name: list(array.shape) for name, array in feed.items()}
        if found != taken:
            raise UserError(f"{self.folder}: a call with tensors {found} must have those of the graph, {taken}")
        (output,) = session.run(None, feed)
        return torch.from_numpy(output)

    def _session(self) -> Any:
        wanted = self.graphs[self.clock.step]
        if self.loaded is None or self.loaded[0] != wanted:
            self.loaded = None  # its memory is free for the next
            self.loaded = (wanted, _open(self.folder / wanted, self.threads))
        return self.loaded[1]


class OnnxDenoiser(Graphs):
    """Graphs of an STDiT, called as it is."""

    def __init__(self, folder: Path, graphs: list[str], clock: StepClock, threads: int | None = None) -> None:
        super().__init__(folder, graphs, clock, threads)
        self.register_buffer("null_caption", load_file(folder / NULL_CAPTION)["y_embedding"])

    def forward(self, x: Tensor, timestep: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [2n, c, T, H, W], timestep [2n], y [2n, 1, L, D], mask [n, L] or None -> [2n, 2c, T, H, W] fp32 on the CPU.

        Row i is a prompt and row n + i its null caption: a graph takes these two at a time.
        """
        count = len(x) // 2
        if mask is None:
            mask = torch.ones(count, y.shape[2], dtype=torch.long)
        output = [None] * len(x)
        for row in range(count):
            pair = [row, count + row]
            inputs = {"x": x[pair].float(), "timestep": timestep[pair].long()}
            inputs |= {"y": y[pair].float(), "mask": mask[row : row + 1].long()}
            output[row], output[count + row] = self.run(inputs)
        return torch.stack(output)


def transformer_of(structure: nn.Module, graphs: Graphs, fixed: dict[str, str]) -> nn.Module:
    """Makes a transformer of diffusers that looks as ever and computes with graphs; its weights take no memory.

    structure: the transformer without weights, of which a copy is made. fixed: arguments of a call that are no tensors,
    by name, as text; they are part of the graphs. The copy takes arguments by name, returns a tuple, and raises
    UserError for other ones.
    """
    found = copy.deepcopy(structure)
    for module in found.modules():
        for name, parameter in module.named_parameters(recurse=False):
            zeros = torch.zeros(()).expand(parameter.shape)
            module.register_parameter(name, nn.Parameter(zeros, requires_grad=False))

    def forward(**call: Any) -> tuple[Tensor]:
        for name, value in fixed_of(call).items():
            if value != fixed.get(name):
                raise UserError(f"{graphs.folder}: {name}={value} must be {fixed.get(name)}, as it was exported")
        return (graphs.run(tensors_of(call)),)

    found.forward = forward
    return found


def load(
    path: str | Path,
    *,
    sampler: Sampler | None = None,
    threads: int | None = None,
    model: VideoModel | None = None,
) -> ArtefactModel:
    """Loads the model of an artefact of `export=onnx_qdq`. `sampler`: None is the one it was made for. `model`: the
    video model around the denoiser, None for the one that the artefact describes.

    Raises UserError when the artefact is damaged, of another version or incomplete, when a graph and the step map do
    not fit together, for another sampler or step count, and where ONNX Runtime does not multiply bytes exactly.
    """
    path = Path(path)
    require("export=onnx_qdq", "export", "onnx", "onnxruntime")
    from vdq.export.onnx_session import exact_entries

    exact_entries()
    manifest = artefact.read(path, KIND, VERSION)
    contents = manifest["contents"]
    graphs, steps = contents["graphs"], contents["num_steps"]
    for step, name in enumerate(graphs):
        if name not in manifest["files"]:
            raise UserError(f"{path}: contents.graphs names {name} for step {step}, the artefact has no such file")
    own = rebuild(contents["config"]["sampler"], Sampler, "sampler")
    sampler = sampler or own
    if type(sampler) is not type(own):
        raise UserError(f"{path}: sampler={type(sampler).__name__} must be {type(own).__name__}, as it was exported")
    for field, number in (("sampler.steps", sampler.steps), ("graphs", len(graphs))):
        if number != steps:
            raise UserError(f"{path}: {field}={number} must be {steps}, the steps that it was quantized for")
    clock = StepClock(steps)
    if (fixed := contents.get("fixed")) is None:
        return ArtefactModel(OnnxDenoiser(path, graphs, clock, threads), sampler, clock, manifest, model)
    around = model or rebuild(contents["config"]["model"], VideoModel, "model")
    shared, structures = Graphs(path, graphs, clock, threads), transformers(around, around.structure)
    nets = {name: transformer_of(structure, shared, fixed) for name, structure in structures.items()}
    denoiser = nn.ModuleDict(nets) if len(nets) > 1 else next(iter(nets.values()))
    return ArtefactModel(denoiser, sampler, clock, manifest, model)


def _open(path: Path, threads: int | None) -> Any:
    from vdq.export.onnx_session import open_session

    try:
        return open_session(path, intra_op_num_threads=threads or 0)
    except Exception as error:  # of several types that are no part of its interface
        raise UserError(f"{path} cannot be loaded by onnxruntime: {str(error).splitlines()[0]}") from error
