"""The packed artefact: integer weights at their bit-width and everything else that sampling needs of the denoiser.

A folder of `weights_<n>.safetensors`, a card `README.md` and `manifest.json`. The tensors are, for every quantized
layer, those of LinearParams (`<fqn>.weight_codes`, `<fqn>.weight_scale`, ...), and every other entry of the denoiser's
state dict as it is; a part of a fused linear that stays in full precision is `<fqn>.weight`. A shift that several
layers of one input have is stored with the first of them, which the manifest names as `shift_of` of the others.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vdq.backends.base import Backend
from vdq.diffusion.clock import StepClock
from vdq.diffusion.samplers import Sampler
from vdq.errors import UserError
from vdq.export import artefact
from vdq.export.base import Exporter, QuantizedRun
from vdq.export.card import card
from vdq.export.model import ArtefactModel
from vdq.export.rebuild import rebuild
from vdq.files import complete_or_nothing, write_text
from vdq.methods.base import Method
from vdq.models.base import VideoModel
from vdq.quant.bit_packing import packed_bytes
from vdq.quant.coded import stand_in
from vdq.quant.convert import apply
from vdq.quant.layers import linear_modules, projections, split
from vdq.quant.params import CODES, SCALARS, LinearParams
from vdq.quant.sharing import shift_owners
from vdq.quant.state import QuantState

KIND, VERSION = "packed", 1
GROUPS = ("model", "sampler", "quant", "backend")
SHARD_BYTES = 1e9  # files, and so the memory that writing takes, are not much larger
PARTS = {
    CODES: "integer weights",
    "weight_scale": "scales and zero points of weights",
    "weight_zero_point": "scales and zero points of weights",
    "act_scale": "scales and zero points of activations",
    "act_zero_point": "scales and zero points of activations",
    "codebook_levels": "codebooks of activations",
    "codebook_edges": "codebooks of activations",
    "low_rank_down": "low-rank branches",
    "low_rank_up": "low-rank branches",
    "smoothing": "smoothing factors",
    "shift": "shifts and corrections",
    "correction": "shifts and corrections",
    "weight_range": "tables of steps",
    "act_range": "tables of steps",
    "step_bits": "tables of steps",
    "act_group": "groups of tokens",
}
FULL_PRECISION = "all else in full precision"


class PackedExporter(Exporter):
    """Any recipe that quantizes, on any backend. Of a dynamic one the weights are integers, and activations are
    measured at run time as before.
    """

    name, version = KIND, VERSION

    def check(self, method: Method, sampler: Sampler, backend: Backend) -> None:
        if not method.quantizes:
            raise UserError("export=packed stores integer weights, quant=fp16 has none; other recipes are allowed")

    def write(self, run: QuantizedRun, folder: Path) -> dict[str, Any]:
        before = list(run.denoiser.state_dict().values())
        contents = {
            "num_steps": run.state.num_steps,
            "denoiser": run.model.architecture,
            "latent_shape": list(run.model.latent_shape),
            "fps": run.model.fps,
            "seed": run.config["seed"],
            "config": {group: run.config[group] for group in GROUPS},
            "companions": run.model.companions,
            "layers": descriptions(run.denoiser, run.state),
            "bytes": write_tensors(run.denoiser, run.state, folder),
            "full_precision_bytes": sum(tensor.nbytes for tensor in before),
            "half_precision_bytes": sum(2 * tensor.numel() for tensor in before),
        }
        write_text(folder / "README.md", card(run, contents))
        return contents


@dataclass(frozen=True, eq=False)
class PackedModel(ArtefactModel):
    """With the parameters of its layers."""

    _: KW_ONLY
    state: QuantState


def load(
    path: str | Path,
    *,
    backend: Backend | None = None,
    clock: StepClock | None = None,
    model: VideoModel | None = None,
) -> PackedModel:
    """The model that a packed artefact was made from, on the CPU; needs no calibration and no full-precision weights.
    With the machine, threads and batches of the run it samples the same bits. `backend`: None is the run's own.
    `clock`: None is a new one. `model`: a video model of the same structure, needed where the artefact does not
    describe it (VideoModel.architecture); of its denoiser no weight is used.

    Codes stay memory-mapped where the backend does not unpack them: the files must not be changed meanwhile. Raises
    UserError when the artefact is damaged, of another version, or not made of the tensors that its layers need.
    """
    path = Path(path)
    manifest = artefact.read(path, KIND, VERSION)
    contents = manifest["contents"]
    config, steps = contents["config"], contents["num_steps"]
    sampler = rebuild(config["sampler"], Sampler, "sampler")
    backend = backend or rebuild(config["backend"], Backend, "backend")
    clock = clock or StepClock(steps)
    for field, number in (("sampler.steps", sampler.steps), ("clock.num_steps", clock.num_steps)):
        if number != steps:
            raise UserError(f"{path}: {field}={number} must be {steps}, the steps that its tables are for")
    net = _structure(contents["denoiser"], model, path)
    tensors = _read_tensors([path / name for name in manifest["files"] if name.endswith(".safetensors")])
    _check_tensors(tensors, expected_tensors(net, contents["layers"], steps), contents["layers"], path)
    state = QuantState({fqn: _params(fqn, facts, tensors) for fqn, facts in contents["layers"].items()}, steps)
    denoiser = apply(_filled(net, tensors, state), state, clock, backend)
    return PackedModel(denoiser, sampler, clock, manifest, model, state=state)


def _structure(architecture: dict[str, Any] | None, model: VideoModel | None, path: Path) -> nn.Module:
    """The denoiser without weights, on the meta device."""
    if architecture is None and model is None:
        raise UserError(f"{path} does not describe its denoiser: it can be loaded with `model`, the model of the run")
    if model is not None:
        return copy.deepcopy(model.structure).to("meta")
    with torch.device("meta"):
        return rebuild(architecture, nn.Module, "denoiser")


class Kind(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype


def expected_tensors(structure: nn.Module, layers: dict[str, dict[str, Any]], steps: int) -> dict[str, Kind]:
    """Shape and dtype of every tensor that the artefact of a network with these quantized layers holds, by name."""
    expected = {}
    for p in projections(structure):
        if p.fqn in layers:
            kinds = _layer_tensors(layers[p.fqn], *p.weight.shape, steps)
            expected |= {f"{p.fqn}.{name}": Kind(*kind) for name, kind in kinds.items()}
        else:
            expected[f"{p.fqn}.weight"] = Kind(tuple(p.weight.shape), p.weight.dtype)
    return expected | {name: Kind(tuple(t.shape), t.dtype) for name, t in _unquantized(structure).items()}


def write_tensors(denoiser: nn.Module, state: QuantState, folder: Path) -> dict[str, int]:
    """Writes the files of tensors, a layer in memory at a time, and returns the bytes of every part of the model."""
    parts: Counter[str] = Counter()
    shard: dict[str, Tensor] = {}
    number = 1
    for name, tensor in _stored_tensors(denoiser, state):
        # Clones: safetensors refuses tensors that share memory, as the tables of steps of several layers do.
        shard[name] = tensor.detach().cpu().clone().contiguous()
        parts[PARTS.get(name.rpartition(".")[2], FULL_PRECISION)] += tensor.nbytes
        if sum(kept.nbytes for kept in shard.values()) >= SHARD_BYTES:
            _write_shard(folder, number, shard)
            shard, number = {}, number + 1
    _write_shard(folder, number, shard)
    return {part: parts[part] for part in dict.fromkeys([*PARTS.values(), FULL_PRECISION]) if parts[part]}


def _write_shard(folder: Path, number: int, shard: dict[str, Tensor]) -> None:
    with complete_or_nothing(folder / f"weights_{number}.safetensors") as partial:
        save_file(shard, partial)


def _stored_tensors(denoiser: nn.Module, state: QuantState) -> Iterator[tuple[str, Tensor]]:
    owners = shift_owners(denoiser, state.layers)
    for p in projections(denoiser):
        if p.fqn in state.layers:
            params = state.layers[p.fqn].to(p.weight.device)
            tensors = params.tensors() | {CODES: params.packed_codes(p.weight)}
            if owners.get(p.fqn, p.fqn) != p.fqn:
                del tensors["shift"]
            yield from ((f"{p.fqn}.{name}", tensor) for name, tensor in tensors.items())
        else:
            yield f"{p.fqn}.weight", p.weight
    yield from _unquantized(denoiser).items()


def _unquantized(net: nn.Module) -> dict[str, Tensor]:
    """The state dict without the weights of linear layers."""
    linears = {f"{fqn}.weight" for fqn, _ in linear_modules(net)}
    return {name: tensor for name, tensor in net.state_dict().items() if name not in linears}


def descriptions(denoiser: nn.Module, state: QuantState) -> dict[str, dict[str, Any]]:
    """Of every quantized layer, what decides names and shapes of its tensors, and how they are read."""
    layers = {fqn: params.scalars() | _dimensions(params) for fqn, params in state.layers.items()}
    for fqn, owner in shift_owners(denoiser, state.layers).items():
        layers[fqn] |= {} if fqn == owner else {"shift_of": owner}
    return layers


def _dimensions(params: LinearParams) -> dict[str, Any]:
    def length(tensor: Tensor | None) -> int:
        return 0 if tensor is None else len(tensor)

    return {
        "weight_ranges": params.num_weight_ranges,
        "act_ranges": params.num_act_ranges,
        "smoothing": params.smoothing is not None,
        "act_table": params.act_range is not None,
        "act_groups": params.num_act_groups,
        "token_rows": length(params.act_group),
        "shifts": length(params.shift),
        "corrections": length(params.correction),
        "half_tables": any(t is not None and t.dtype == torch.float16 for t in (params.shift, params.correction)),
        "step_bits": params.step_bits is not None,
        "levels": length(params.codebook and params.codebook.levels),
        "rank": length(params.low_rank and params.low_rank.down),
    }


def _layer_tensors(facts: dict[str, Any], out: int, in_: int, steps: int) -> dict[str, tuple]:
    sets, acts = facts["weight_ranges"], facts["act_ranges"]
    kinds = {
        CODES: ((sets, packed_bytes(out * in_, facts["weight_bits"])), torch.uint8),
        "weight_scale": ((sets, out, 1), torch.float32),
        "weight_zero_point": ((sets, out, 1), torch.float32),
        "weight_range": ((steps,), torch.long),
    }
    if facts["smoothing"]:
        kinds["smoothing"] = ((sets, in_), torch.float32)
    rows, levels = facts.get("token_rows"), facts.get("levels")  # artefacts of older versions have none
    if acts and not levels:
        shape = (acts, facts["act_groups"]) if rows else (acts,)
        kinds |= {name: (shape, torch.float32) for name in ("act_scale", "act_zero_point")}
    if facts.get("act_table", acts):
        kinds["act_range"] = ((steps,), torch.long)
    if rows:
        kinds["act_group"] = ((rows,), torch.long)
    if levels:
        kinds |= {"codebook_levels": ((levels,), torch.float32), "codebook_edges": ((levels - 1,), torch.float32)}
    tables = torch.float16 if facts.get("half_tables") else torch.float32
    if facts.get("shifts") and "shift_of" not in facts:
        kinds["shift"] = ((facts["shifts"], in_), tables)
    if facts.get("corrections"):
        kinds["correction"] = ((facts["corrections"], out), tables)
    if rank := facts.get("rank"):
        kinds |= {"low_rank_down": ((rank, in_), torch.float16), "low_rank_up": ((out, rank), torch.float16)}
    if facts.get("step_bits"):
        kinds["step_bits"] = ((steps,), torch.long)
    return kinds


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


def _check_tensors(
    tensors: dict[str, Tensor], expected: dict[str, Kind], layers: dict[str, dict[str, Any]], path: Path
) -> None:
    if missing := sorted(expected.keys() - tensors.keys()):
        raise UserError(f"{path} lacks {len(missing)} of {len(expected)} tensors, such as {missing[0]}")
    if extra := sorted(tensors.keys() - expected.keys()):
        raise UserError(f"{path} has {len(extra)} tensors that no layer needs, such as {extra[0]}")
    for name, kind in expected.items():
        found = Kind(tuple(tensors[name].shape), tensors[name].dtype)
        if found != kind:
            raise UserError(f"{path}: tensor {name} is {_words(found)}, must be {_words(kind)}")
    for fqn, facts in layers.items():
        if (shift := f"{facts.get('shift_of', fqn)}.shift") not in tensors and facts.get("shifts"):
            raise UserError(f"{path} lacks tensor {shift}, the shift of layer {fqn}")
        rows = (len(tensors.get(f"{fqn}.{table}", ())) for table in ("act_scale", "shift", "correction"))
        act_ranges = next(filter(None, rows), 0)
        for table, ranges in (("weight_range", facts["weight_ranges"]), ("act_range", act_ranges)):
            steps = tensors.get(f"{fqn}.{table}")
            if ranges and not (0 <= int(steps.min()) and int(steps.max()) < ranges):
                raise UserError(f"{path}: tensor {fqn}.{table} has values outside 0..{ranges - 1}, its ranges")


def _words(kind: Kind) -> str:
    return f"{str(kind.dtype).removeprefix('torch.')} {list(kind.shape)}"


def _params(fqn: str, facts: dict[str, Any], tensors: dict[str, Tensor]) -> LinearParams:
    named = {name: tensors[f"{fqn}.{name}"] for name in PARTS if f"{fqn}.{name}" in tensors}
    if "shift_of" in facts:
        named["shift"] = tensors[f"{facts['shift_of']}.shift"]
    return LinearParams.from_tensors(named, {key: facts[key] for key in facts.keys() & set(SCALARS)})


def _filled(net: nn.Module, tensors: dict[str, Tensor], state: QuantState) -> nn.Module:
    """`net` with its tensors; stand-ins in place of weights of which only codes are left."""
    values = {name: tensors[name] for name in _unquantized(net)}
    for fqn, linear in linear_modules(net):
        parts = split(fqn, linear)
        quantized = [p.fqn in state.layers for p in parts]
        if all(quantized):
            values[f"{fqn}.weight"] = stand_in(*linear.weight.shape)
        else:
            rows = zip(parts, quantized, strict=True)
            values[f"{fqn}.weight"] = torch.cat(
                [stand_in(*p.weight.shape) if coded else tensors[f"{p.fqn}.weight"] for p, coded in rows]
            )
    net.load_state_dict(values, assign=True)
    return net.eval().requires_grad_(False)
