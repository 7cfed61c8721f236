"""The packed artefact: integer weights at their bit-width and everything else that sampling needs of the denoiser.

A folder of `weights_<n>.safetensors`, a card `README.md` and `manifest.json`. The tensors are, for every quantized
layer, those of its parts (`<fqn>.stored_codes.codes`, `<fqn>.static.scale`, ...), and every other entry of the
denoiser's state dict as it is; a part of a fused linear that stays in full precision is `<fqn>.weight`, and so is the
original weight of a quantized layer that is needed: of all where some steps are kept in full precision, and of those
whose codes of all weight sets would take more, which are made of it again. What several parts share is stored once; the
manifest's `same` names it for the others (vdq.quant.sharing).
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vdq.backends.base import Backend
from vdq.diffusion.clock import StepClock
from vdq.diffusion.samplers import Sampler
from vdq.diffusion.timesteps import listed
from vdq.errors import UserError
from vdq.export import artefact
from vdq.export.base import Exporter, QuantizedRun
from vdq.export.card import card
from vdq.export.model import ArtefactModel
from vdq.files import complete_or_nothing, write_text
from vdq.methods.base import Method
from vdq.models.base import VideoModel
from vdq.quant.convert import apply
from vdq.quant.layers import linear_modules, projections, split
from vdq.quant.set_bytes import SetBytes, summary
from vdq.quant.sharing import SharedTensors
from vdq.quant.state import QuantState
from vdq.quant.stored_layers import Kind, restored_layers, stored_layer
from vdq.quant.weight_codes import stand_in
from vdq.rebuild import rebuild

log = logging.getLogger(__name__)
KIND, VERSION = "packed", 2
GROUPS = ("model", "sampler", "quant", "backend")
AUTO, _, REQUANTIZE = WEIGHT_SETS = ("auto", "keep", "requantize")
SHARD_BYTES = 1e9  # files, and so the memory that writing takes, are not much larger
FULL_PRECISION = "all else in full precision"
SOURCES = "original weights of quantized layers"


class PackedExporter(Exporter):
    """Any method that quantizes, on any backend. Of a dynamic one the weights are integers, and activations are
    measured at run time as before.

    weight_sets: "keep" stores the codes of all weight sets of a layer, "requantize" its original weight in its own
    precision, of which the same codes are made when a step needs them; "auto" what is smaller, but "keep" where a layer
    is small (vdq.quant.set_bytes). Codes that do not follow from rounding a weight are always stored. Raises UserError
    for another value.
    """

    name, version = KIND, VERSION
    keeps_steps = True

    def __init__(self, *, path: str | None = None, weight_sets: str = AUTO) -> None:
        super().__init__(path=path)
        if weight_sets not in WEIGHT_SETS:
            raise UserError(f"export.weight_sets={weight_sets} must be one of {', '.join(WEIGHT_SETS)}")
        self.weight_sets = weight_sets

    @property
    def choices(self) -> dict[str, Any]:
        return {} if self.weight_sets == AUTO else {"weight_sets": self.weight_sets}

    def check(self, method: Method, sampler: Sampler, backend: Backend) -> None:
        if not method.quantizes:
            raise UserError("export=packed stores integer weights, quant=fp16 has none; other methods are allowed")

    def write(self, run: QuantizedRun, folder: Path) -> dict[str, Any]:
        entries = run.denoiser.state_dict()
        before = list(entries.values())
        contents = {
            "num_steps": run.state.num_steps,
            "kept_steps": list(run.state.kept_steps),
            "timesteps": run.state.timesteps or listed(run.model.timesteps(run.sampler)),
            "calibrated": run.state.calibrated,
            "denoiser": run.model.architecture,
            "dtypes": {name: Kind.of(tensor).dtype for name, tensor in entries.items() if _in_other_precision(tensor)},
            "latent_shape": run.model.latent_shape and list(run.model.latent_shape),
            "fps": run.model.fps,
            "seed": run.config["seed"],
            "config": {group: run.config[group] for group in GROUPS},
            "companions": run.model.companions,
            **self.choices,
            **write_tensors(run.denoiser, run.state, folder, weight_sets=self.weight_sets),
            "full_precision_bytes": sum(tensor.nbytes for tensor in before),
            "half_precision_bytes": sum(2 * tensor.numel() for tensor in before),
        }
        write_text(folder / "README.md", card(run, contents))
        return contents


@dataclass(frozen=True, eq=False)
class PackedModel(ArtefactModel):
    """A packed artefact that is loaded, with the parameters of its layers."""

    _: KW_ONLY
    state: QuantState

    def video_model(self, **changes: Any) -> VideoModel:
        """The model around this denoiser, as of every artefact; raises UserError also where the changes make another
        schedule.
        """
        model = super().video_model(**changes)
        if set(changes) - set(model.unsigned):
            self.state.serving(listed(model.timesteps(self.sampler)))
        return model


def load(
    path: str | Path,
    *,
    backend: Backend | None = None,
    clock: StepClock | None = None,
    model: VideoModel | None = None,
    sampler: Sampler | None = None,
    match: str | None = None,
) -> PackedModel:
    """The model that a packed artefact was made from, on the CPU; needs no calibration and no full-precision weights.
    With the machine, threads and batches of the run it samples the same bits. `backend`, `sampler`: None is the run's
    own. `clock`: None is a new one. `model`: a video model of the same structure, needed where the artefact does not
    describe it (VideoModel.architecture); of its denoiser no weight is used. `match`: what a schedule with other
    timesteps does, "nearest", or None, which refuses it (QuantState.serving).

    Codes stay memory-mapped where the backend does not unpack them: the files must not be changed meanwhile. Raises
    UserError when the artefact is damaged, of another version, or not made of the tensors that its layers need.
    """
    path = Path(path)
    manifest = artefact.read(path, KIND, VERSION)
    contents = manifest["contents"]
    config = contents["config"]
    backend = backend or rebuild(config["backend"], Backend, "backend")
    net = _structure(contents["denoiser"], contents.get("dtypes", {}), model, path)
    tensors = _read_tensors([path / name for name in manifest["files"] if name.endswith(".safetensors")])
    _check_tensors(tensors, expected_tensors(net, contents), path)
    state = replace(planned(contents), layers=restored_layers(net, contents, tensors, path))
    timesteps, own = state.timesteps, rebuild(config["sampler"], Sampler, "sampler")
    if model is not None or sampler is not None:
        around = model or rebuild(config["model"], VideoModel, "model", net=net)
        timesteps = listed(around.timesteps(sampler or own))
    state, sampler = state.serving(timesteps, match), sampler or own
    clock = clock or StepClock(state.num_steps)
    for field, number in (("sampler.steps", sampler.steps), ("clock.num_steps", clock.num_steps)):
        if number != state.num_steps:
            raise UserError(f"{path}: {field}={number} must be {state.num_steps}, the steps that its tables are for")
    denoiser = apply(filled(net, tensors), state, clock, backend)
    return PackedModel(denoiser, sampler, clock, manifest, model, state=state)


def planned(contents: dict[str, Any]) -> QuantState:
    """What a manifest's contents say of the steps, without any layer; no timesteps if an earlier version wrote it."""
    times = {name: contents.get(name) and tuple(contents[name]) for name in ("timesteps", "calibrated")}
    return QuantState({}, contents["num_steps"], **times, kept_steps=tuple(contents.get("kept_steps", ())))


def _in_other_precision(tensor: Tensor) -> bool:
    """Than fp32."""
    return tensor.is_floating_point() and tensor.dtype != torch.float32


def _structure(
    architecture: dict[str, Any] | None, dtypes: dict[str, str], model: VideoModel | None, path: Path
) -> nn.Module:
    """The denoiser with its parameters on the meta device; buffers that no file holds have their values. dtypes: of
    the entries of its state dict, as far as they are not fp32.
    """
    net = _empty(architecture, model, path)
    own = dict(net.named_parameters()) | dict(net.named_buffers())
    for name in net.state_dict().keys() & own.keys():
        if own[name].is_floating_point():
            own[name].data = own[name].data.to(getattr(torch, dtypes.get(name, "float32")))
    return net


def _empty(architecture: dict[str, Any] | None, model: VideoModel | None, path: Path) -> nn.Module:
    if architecture is None and model is None:
        raise UserError(f"{path} does not describe its denoiser: it can be loaded with `model`, the model of the run")
    if model is not None:
        empty = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in model.structure.parameters()}
        return copy.deepcopy(model.structure, empty)
    with torch.device("meta"):
        return rebuild(architecture, nn.Module, "denoiser")


def expected_tensors(structure: nn.Module, contents: dict[str, Any]) -> dict[str, Kind]:
    """Shape and dtype of every tensor that the artefact of a network with these contents holds, by name: those of
    quantized layers as the manifest has them, all others as the network.
    """
    expected = {name: Kind(tuple(shape), dtype) for name, (shape, dtype) in contents["tensors"].items()}
    coded = contents["layers"].keys() - contents.get("sources", [])
    kept = {f"{p.fqn}.weight": p.weight for p in projections(structure) if p.fqn not in coded}
    return expected | {name: Kind.of(tensor) for name, tensor in (kept | _unquantized(structure)).items()}


def write_tensors(denoiser: nn.Module, state: QuantState, folder: Path, *, weight_sets: str = AUTO) -> dict[str, Any]:
    """Writes the files of tensors, a layer in memory at a time, and returns what the manifest has of them. layers: the
    parts of every quantized layer; tensors: [shape, dtype] of what is stored of them, by name; same: names of what is
    not, each with the name that is stored; sources: the quantized layers whose original weight is stored; bytes: of
    every part of the model.
    """
    written: dict[str, Any] = {"layers": {}, "tensors": {}, "same": {}, "sources": []}
    parts: Counter[str] = Counter()
    shard: dict[str, Tensor] = {}
    number = 1
    for name, label, tensor in _stored_tensors(denoiser, state, weight_sets, written):
        # Clones: safetensors refuses tensors that share memory, as the tables of steps of several layers do.
        shard[name] = tensor.detach().cpu().clone().contiguous()
        parts[label] += tensor.nbytes
        if sum(kept.nbytes for kept in shard.values()) >= SHARD_BYTES:
            _write_shard(folder, number, shard)
            shard, number = {}, number + 1
    _write_shard(folder, number, shard)
    kept = parts.pop(FULL_PRECISION, 0)
    return written | {"bytes": dict(parts) | {FULL_PRECISION: kept}}


def _write_shard(folder: Path, number: int, shard: dict[str, Tensor]) -> None:
    with complete_or_nothing(folder / f"weights_{number}.safetensors") as partial:
        save_file(shard, partial)


def _stored_tensors(
    denoiser: nn.Module, state: QuantState, weight_sets: str, written: dict[str, Any]
) -> Iterator[tuple[str, str, Tensor]]:
    """(name, label of its size, tensor) of all that is stored; what the manifest has of a layer goes to `written`."""
    shared, chosen = SharedTensors(), []
    for p in projections(denoiser):
        if p.fqn not in state.layers:
            yield f"{p.fqn}.weight", FULL_PRECISION, p.weight
            continue
        quant = state.layers[p.fqn].to(p.weight.device)
        size = SetBytes.stored(p.weight, quant, held=bool(state.kept_steps))
        from_weight = size is not None and (size.from_weight if weight_sets == AUTO else weight_sets == REQUANTIZE)
        if from_weight or state.kept_steps:
            written["sources"].append(p.fqn)
            yield f"{p.fqn}.weight", SOURCES, p.weight
        if size is not None:
            chosen.append((size, from_weight))
        yield from stored_layer(p, quant if from_weight else quant.with_codes(p.weight), shared, written)
    if told := summary(chosen):
        log.info("export: weight sets: %s", told)
    yield from ((name, FULL_PRECISION, tensor) for name, tensor in _unquantized(denoiser).items())


def _unquantized(net: nn.Module) -> dict[str, Tensor]:
    """The state dict without the weights of linear layers."""
    linears = {f"{fqn}.weight" for fqn, _ in linear_modules(net)}
    return {name: tensor for name, tensor in net.state_dict().items() if name not in linears}


def _read_tensors(files: list[Path]) -> dict[str, Tensor]:
    """Memory-mapped tensors of all files. Raises UserError for a file that is none of safetensors."""
    tensors = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                tensors |= {name: opened.get_tensor(name) for name in opened.keys()}
        except SafetensorError as error:
            raise UserError(f"{file} must be a whole safetensors file; reading it failed: {error}") from error
    return tensors


def _check_tensors(tensors: dict[str, Tensor], expected: dict[str, Kind], path: Path) -> None:
    if missing := sorted(expected.keys() - tensors.keys()):
        raise UserError(f"{path} lacks {len(missing)} of {len(expected)} tensors, such as {missing[0]}")
    if extra := sorted(tensors.keys() - expected.keys()):
        raise UserError(f"{path} has {len(extra)} tensors that no layer needs, such as {extra[0]}")
    for name, kind in expected.items():
        if (found := Kind.of(tensors[name])) != kind:
            raise UserError(f"{path}: tensor {name} is {_words(found)}, must be {_words(kind)}")


def _words(kind: Kind) -> str:
    return f"{kind.dtype} {list(kind.shape)}"


def filled(net: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """`net` with its tensors; stand-ins in place of weights of which only codes are left."""
    # Clones: how a file aligns a tensor would decide how sums are rounded.
    values = {name: tensors[name].clone() for name in _unquantized(net)}
    for fqn, linear in linear_modules(net):
        parts = split(fqn, linear)
        if any(f"{p.fqn}.weight" in tensors for p in parts):
            absent = (stand_in(*p.weight.shape, p.weight.dtype) for p in parts)
            rows = [tensors.get(f"{p.fqn}.weight", zeros) for p, zeros in zip(parts, absent, strict=True)]
            values[f"{fqn}.weight"] = torch.cat(rows)
        else:
            values[f"{fqn}.weight"] = stand_in(*linear.weight.shape, linear.weight.dtype)
    net.load_state_dict(values, assign=True)
    return net.eval().requires_grad_(False)
