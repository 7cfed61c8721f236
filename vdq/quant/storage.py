"""Atomic safetensors files with a JSON header: the on-disk form of Stats and QuantState."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from vdq.errors import UserError
from vdq.files import complete_or_nothing


def save(path: str | Path, tensors: dict[str, Tensor], header: dict[str, Any], *, kind: str, layout: int = 1) -> None:
    """Write under a temporary name in the same folder and rename, so that a reader never sees half a file. A tensor
    that has several names is written once.
    """
    from safetensors.torch import save_file

    first: dict[int, str] = {}
    names = {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}
    # Clones: safetensors refuses tensors that share memory, as views of one tensor do.
    owned = {name: tensors[name].detach().cpu().clone().contiguous() for name in first.values()}
    others = {name: owner for name, owner in names.items() if name != owner}
    texts = {"header": json.dumps(header, allow_nan=False), "others": json.dumps(others)}
    with complete_or_nothing(Path(path)) as partial:
        save_file(owned, partial, metadata={"kind": kind, "layout": str(layout)} | texts)


def load(path: str | Path, *, kind: str, layout: int = 1) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file that `save` wrote. Raises UserError when it is of another kind or layout."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("kind") != kind:
            raise UserError(f"{path} holds {metadata.get('kind') or 'no vdq data'}, must hold {kind}")
        if (found := int(metadata.get("layout", 1))) != layout:
            raise UserError(f"{path} has layout {found} of {kind}, this program reads {layout}; make it again")
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    tensors |= {name: tensors[owner] for name, owner in json.loads(metadata.get("others", "{}")).items()}
    return tensors, json.loads(metadata["header"])
