"""Encoded prompts of a pipeline, kept on disk: a prompt is encoded once."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vdq.errors import UserError
from vdq.files import complete_or_nothing
from vdq.models.image_prompt import described

VERSION = 1  # to be raised when the same prompt would give other encodings


@dataclass(frozen=True)
class Encoded:
    """n prompts with what the pipeline's encoders make of each: `encodings` has for every prompt a list with what each
    call of an encoding method returned, nested tuples, lists and dicts of tensors and None.
    """

    prompts: list[str]
    encodings: list[list[Any]]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: slice) -> Encoded:
        return Encoded(self.prompts[rows], self.encodings[rows])

    def batch(self, device: torch.device) -> list[Any]:
        """What the calls return for all prompts together, on a device. Raises UserError when they cannot be one batch,
        because prompts of other lengths have encodings of other lengths.
        """
        return joined(self.encodings, device)


class EncodedStore:
    """Files of encoded prompts in a folder; `model` says what the encodings depend on beside the prompt."""

    def __init__(self, folder: Path, model: Any) -> None:
        self.folder, self.model = folder, model

    def key(self, prompt: str) -> str:
        """Another one for every encoding."""
        text = json.dumps([VERSION, self.model, *described([prompt])], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def path(self, prompt: str) -> Path:
        return self.folder / f"{self.key(prompt)}.safetensors"

    def read(self, prompt: str) -> list[Any] | None:
        """None if the prompt is not there or its file is damaged."""
        try:
            tensors = load_file(self.path(prompt))
        except (OSError, SafetensorError):
            return None
        names = json.loads(bytes(tensors.pop("tree").tolist()))
        return _tree(names, tensors)

    def write(self, prompt: str, encoding: list[Any]) -> None:
        tensors: dict[str, Tensor] = {}
        names = json.dumps(_names(encoding, tensors))
        tensors["tree"] = torch.tensor(list(names.encode()), dtype=torch.uint8)
        self.folder.mkdir(parents=True, exist_ok=True)
        with complete_or_nothing(self.path(prompt)) as partial:
            save_file(tensors, partial)


def joined(parts: list[Any], device: torch.device) -> Any:
    """Trees of tensors of one prompt each, joined along their first dimension, on a device. Raises UserError."""
    first = parts[0]
    if isinstance(first, Tensor):
        if len({part.shape for part in parts}) > 1 or (len(parts) > 1 and first.shape[0] != 1):
            raise UserError(
                f"batch_size={len(parts)} must be 1: this pipeline encodes prompts to tensors of other shapes"
            )
        return torch.cat([part.to(device) for part in parts])
    if isinstance(first, dict):
        return {name: joined([part[name] for part in parts], device) for name in first}
    if isinstance(first, list | tuple):
        return type(first)(joined(list(each), device) for each in zip(*parts, strict=True))
    return first


def _names(node: Any, tensors: dict[str, Tensor]) -> Any:
    """The tree with a name in place of every tensor, which goes into `tensors`."""
    if isinstance(node, Tensor):
        tensors[str(len(tensors))] = node.detach().cpu().clone().contiguous()
        return {"tensor": str(len(tensors) - 1)}
    if isinstance(node, dict):
        return {"dict": {name: _names(value, tensors) for name, value in node.items()}}
    if isinstance(node, list | tuple):
        return {type(node).__name__: [_names(value, tensors) for value in node]}
    return node


def _tree(node: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {name: _tree(each, tensors) for name, each in value.items()}
    return {"list": list, "tuple": tuple}[kind](_tree(each, tensors) for each in value)
