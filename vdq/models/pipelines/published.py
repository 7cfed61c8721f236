"""The files of a published pipeline: which classes it is made of, their configurations, and their weights."""

from __future__ import annotations

import importlib
import inspect
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from torch import nn

from vdq.errors import UserError
from vdq.models.base import RANDOM
from vdq.sources import Source, check_unmoved, find_folder, identity, named_folder

INDEX = "model_index.json"
DENOISERS = ("transformer", "transformer_2")
DECODER = "vae"
SCHEDULER = "scheduler"
CONFIG_FILES = {SCHEDULER: "scheduler_config.json", "guider": "guider_config.json"}  # of others: config.json
DEPTHS = ("num_layers", "num_single_layers")  # arguments of transformers that say how many blocks they have
LORA = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class Published:
    """A pipeline in the layout of diffusers: a local folder, a repository on the Hub, or "random".

    structure: `pipeline`, the name of its class, then its components by name, each with `_class_name` and the arguments
    of its configuration, and other arguments of the pipeline; None where the files say it. With a structure nothing is
    fetched until weights are needed. Nothing is read before it is asked for. Raises UserError.
    """

    source: Source
    structure: dict[str, Any] | None
    cache: Path

    def __post_init__(self) -> None:
        if self.random and self.structure is None:
            raise UserError(f"{self.source.field}={RANDOM} needs model.structure, as the named models have it")
        if not self.random:
            named_folder(self.source)
        if self.structure is not None:
            _check_structure(self.structure)

    @property
    def field(self) -> str:
        """For messages."""
        return f"{self.source.field}={self.source.value}"

    @property
    def random(self) -> bool:
        return self.source.value == RANDOM

    @cached_property
    def identity(self) -> str:
        """What tells its weights from others; read from no network."""
        return RANDOM if self.random else identity(self.source, self.cache)

    @cached_property
    def index(self) -> dict[str, Any]:
        """The pipeline's class, its components, each as [library, class] or [null, null], and its other arguments."""
        if self._from_files:
            return self._json(INDEX)
        parts = {name: _library(part) for name, part in self.structure.items() if isinstance(part, dict)}
        plain = {name: value for name, value in self.structure.items() if not isinstance(value, dict)}
        return {"_class_name": plain.pop("pipeline"), **plain, **parts}

    @cached_property
    def pipeline_class(self) -> type:
        name = self.index.get("_class_name")
        kind = getattr(diffusers, str(name), None)
        if kind is None:
            raise UserError(f"{self.field} is a {name}, which diffusers {diffusers.__version__} lacks")
        return kind

    @cached_property
    def components(self) -> dict[str, tuple[str, str]]:
        """Library and class of every component that is there, by its name."""
        return {
            name: tuple(value)
            for name, value in self.index.items()
            if isinstance(value, list) and len(value) == 2 and value[1] is not None
        }

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the pipeline that are no components, such as boundary_ratio."""
        return {k: v for k, v in self.index.items() if not k.startswith("_") and not isinstance(v, list)}

    def shallow(self) -> dict[str, Any]:
        """A `structure` of the same pipeline with one block of each kind."""
        parts: dict[str, Any] = {}
        for name, (library, kind) in self.components.items():
            parts[name] = {"_class_name": kind} | self.config(name) if library == "diffusers" else [library, kind]
        for name in DENOISERS:
            if name in parts:
                known = inspect.signature(self.kind(name).__init__).parameters
                parts[name] |= {depth: 1 for depth in DEPTHS if depth in known}
        return {"pipeline": self.index["_class_name"]} | self.arguments | parts

    def kind(self, name: str) -> type:
        """The class of a component."""
        library, kind = self.components[name]
        return getattr(importlib.import_module(library), kind)

    def config(self, name: str) -> dict[str, Any]:
        """The configuration of a component of diffusers."""
        if not self._from_files:
            return {key: value for key, value in self.structure[name].items() if key != "_class_name"}
        return self._json(f"{name}/{CONFIG_FILES.get(name, 'config.json')}")

    def full_config(self, name: str) -> dict[str, Any]:
        """The configuration with what it leaves at the defaults of its class."""
        defaults = inspect.signature(self.kind(name).__init__).parameters
        return {argument: p.default for argument, p in defaults.items()} | self.config(name)

    def scheduler(self, changes: dict[str, Any]) -> Any:
        """A new scheduler, some of whose fields are replaced; `_class_name` takes one of another class."""
        changes = dict(changes)
        name, kind = changes.pop("_class_name", None), self.kind(SCHEDULER)
        if name is not None:
            kind = getattr(diffusers, name, None)
            if not (inspect.isclass(kind) and issubclass(kind, diffusers.SchedulerMixin)):
                raise UserError(f"model.scheduler._class_name={name} must be a scheduler of diffusers")
        allowed = [field for field in inspect.signature(kind.__init__).parameters if field != "self"]
        for field in changes:
            if field not in allowed:
                raise UserError(
                    f"model.scheduler.{field} is no field of {kind.__name__}; allowed: {', '.join(allowed)}"
                )
        return kind.from_config(self.config(SCHEDULER) | changes)

    def empty(self, name: str) -> nn.Module:
        """A component of diffusers without weights, on the meta device; buffers have their values."""
        with init_empty_weights():
            try:
                net = self.kind(name).from_config(self.config(name))
            except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
                where = f"{self.field}: {name}" if self._from_files else f"model.structure.{name}"
                raise UserError(f"{where} cannot be built ({str(error).splitlines()[0]})") from error
        return net.eval().requires_grad_(False)

    def load(self, name: str, dtype: torch.dtype) -> nn.Module:
        """A component with its weights, on the CPU. Random ones are the same every time, and none is left at zero."""
        if self.random:
            return self._drawn(name).to(dtype)
        folder = self.folder([f"{name}/*", f"{SCHEDULER}/*.json"])
        for part in (name, SCHEDULER) if name in DENOISERS else ():
            self._check_written_down(part, folder)
        if "quantization_config" in self.config(name):
            raise UserError(f"{self.field}: {name} is quantized already; the weights must be those in full precision")
        if (folder / LORA).is_file():
            raise UserError(
                f"{self.field} has {LORA} beside it, which is not applied; fuse it and save the pipeline anew"
            )
        try:
            settings = {"subfolder": name, "torch_dtype": dtype, "output_loading_info": True}
            found, loaded = self.kind(name).from_pretrained(folder, **settings)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{self.field}: {name} cannot be read ({reason})") from error
        wrong = sorted(
            str(each) for keys in ("missing_keys", "unexpected_keys", "mismatched_keys") for each in loaded[keys]
        )
        if wrong:
            fused = " (fused projections must be taken apart: unfuse_qkv_projections)" if "to_qkv" in str(wrong) else ""
            what = f"{len(wrong)} tensors of {name} do not fit {self.components[name][1]}"
            raise UserError(f"{self.field}: {what}, such as {wrong[0]}{fused}")
        # Clones: the rounding of sums depends on how a tensor is aligned, and a mapped file aligns it anyhow.
        for tensor in (*found.parameters(), *found.buffers()):
            tensor.data = tensor.data.clone()
        return found.eval().requires_grad_(False)

    def _check_written_down(self, name: str, folder: Path) -> None:
        """Raises UserError where `structure`, which was used before any file was here, says something else than the
        published file.
        """
        if self._from_files:
            return
        published = self.kind(name).load_config(folder, subfolder=name)
        for field, value in self.config(name).items():
            if field in published and published[field] != value:
                raise UserError(
                    f"model.structure.{name}.{field}={value} must be {published[field]}, as {self.source.value} has it"
                )

    def plain(self, name: str) -> Any:
        """A component of diffusers that is no network, such as a guider; None for others, which only encoding needs."""
        if self.components[name][0].partition(".")[0] != "diffusers" or issubclass(self.kind(name), nn.Module):
            return None
        return self.kind(name).from_config(self.config(name))

    def folder(self, patterns: list[str]) -> Path:
        """The local folder with the files that match the patterns, fetched if they must be."""
        path = find_folder(self.source, [INDEX, *patterns])
        check_unmoved(self.source, path, self.cache)
        return path

    @property
    def _from_files(self) -> bool:
        local = not self.random and Path(self.source.value).expanduser().is_dir()
        return local or self.structure is None

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder(["*.json"]) / name
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(f"{self.field} lacks {name}, a pipeline of diffusers has it") from (error)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read as JSON ({error})") from error
        if not isinstance(found, dict):
            raise UserError(f"{path} holds a {type(found).__name__}, must hold the fields of a configuration")
        return found

    def _drawn(self, name: str) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = self.kind(name).from_config(self.config(name))
            for parameter in net.parameters():
                if not parameter.any():
                    nn.init.normal_(parameter, std=0.02)
        return net.eval().requires_grad_(False)


def _check_structure(structure: dict[str, Any]) -> None:
    """Raises UserError where a class is none of diffusers."""
    named = {"pipeline": (structure.get("pipeline"), diffusers.DiffusionPipeline)}
    for name, part in structure.items():
        if isinstance(part, dict):
            named[f"{name}._class_name"] = (part.get("_class_name"), object)
    for field, (name, base) in named.items():
        kind = getattr(diffusers, str(name), None)
        if not (inspect.isclass(kind) and issubclass(kind, base)):
            raise UserError(f"model.structure.{field}={name} must be a class of diffusers {diffusers.__version__}")


def _library(part: dict[str, Any]) -> list[str]:
    return ["diffusers", part["_class_name"]]
