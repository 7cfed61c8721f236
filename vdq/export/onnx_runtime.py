"""Sampling from an `onnx_qdq` artefact: ONNX Runtime computes the denoiser."""

from __future__ import annotations

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
from vdq.export.rebuild import rebuild
from vdq.installation import require

KIND, VERSION = "onnx_qdq", 1
NULL_CAPTION = "null_caption.safetensors"
PACKAGES = ("onnx", "onnxruntime", "onnxscript")


class OnnxDenoiser(nn.Module):
    """The graphs of an artefact, called as an STDiT is; the clock's step chooses the graph.

    One graph is in memory at a time: with one for every step each is loaded once a batch. `threads`: None is ONNX
    Runtime's choice.
    """

    def __init__(self, folder: Path, graphs: list[str], clock: StepClock, threads: int | None = None) -> None:
        super().__init__()
        self.folder, self.graphs, self.clock, self.threads = folder, graphs, clock, threads
        self.loaded: tuple[str, Any] | None = None
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
            output[row], output[count + row] = self._run(x[pair], timestep[pair], y[pair], mask[row : row + 1])
        return torch.stack(output)

    def _run(self, x: Tensor, timestep: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        session = self._session()
        feed = {
            "x": x.float().numpy(),
            "timestep": timestep.long().numpy(),
            "y": y.float().numpy(),
            "mask": mask.long().numpy(),
            "step": np.array(self.clock.step, np.int64),
        }
        taken = {entry.name for entry in session.get_inputs()}  # `step` only where something is gathered by it
        (output,) = session.run(None, {name: value for name, value in feed.items() if name in taken})
        return torch.from_numpy(output)

    def _session(self) -> Any:
        wanted = self.graphs[self.clock.step]
        if self.loaded is None or self.loaded[0] != wanted:
            self.loaded = None  # its memory is free for the next
            self.loaded = (wanted, _open(self.folder / wanted, self.threads))
        return self.loaded[1]


def load(path: str | Path, *, sampler: Sampler | None = None, threads: int | None = None) -> ArtefactModel:
    """Loads the model of an artefact of `export=onnx_qdq`. `sampler`: None is the one it was made for.

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
    return ArtefactModel(OnnxDenoiser(path, graphs, clock, threads), sampler, clock, manifest)


def _open(path: Path, threads: int | None) -> Any:
    from vdq.export.onnx_session import open_session

    try:
        return open_session(path, intra_op_num_threads=threads or 0)
    except Exception as error:  # of several types that are no part of its interface
        raise UserError(f"{path} cannot be loaded by onnxruntime: {str(error).splitlines()[0]}") from error
