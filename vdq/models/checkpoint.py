"""Released checkpoints into STDiT without a second copy in memory (spec/opensora.md section 3)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vdq.files import complete_or_nothing
from vdq.models.stdit import STDiT
from vdq.sources import sha256

PICKLED = (".pth", ".pt")
RECOMPUTED = ("pos_embed", "pos_embed_temporal")  # fit one size of video only


def load_denoiser(build: Callable[[], STDiT], path: Path, cache: Path, field: str = "model.weights.denoiser") -> STDiT:
    """The network of ``build`` with the weights of a file: fp32 on the CPU, in eval mode, without gradients.

    The file is .safetensors, or .pth or .pt of torch.save: names to tensors, or such a dictionary under "ema". The
    latter is converted once, to fp32 in ``cache``/weights. What is fp32 on disk stays there, memory-mapped. Position
    tables are those of the network's own size. Raises ValueError, which names ``field``, when the file is of another
    kind, damaged, wants to run code, or does not hold exactly the network's tensors.
    """
    name = f"{field}={path}"
    if path.suffix not in (".safetensors", *PICKLED) or not path.is_file():
        raise ValueError(f"{name} must be a file that ends in .safetensors, {' or '.join(PICKLED)}")
    with torch.device("meta"):
        net = build()
    content = _converted(net, path, cache, name) if path.suffix in PICKLED else _read(path, name)
    tensors = {key: value.float() for key, value in _fitting(net, content, name).items()}
    net.load_state_dict(tensors | net.position_tables(), assign=True)
    return net.eval().requires_grad_(False)


def _converted(net: STDiT, path: Path, cache: Path, name: str) -> dict[str, Tensor]:
    copy = cache / "weights" / f"{sha256(path, cache)[:16]}.safetensors"
    if not copy.is_file():
        tensors = _fitting(net, _unpickle(path, name), name)
        with complete_or_nothing(copy) as partial:
            save_file({key: value.float().contiguous() for key, value in tensors.items()}, partial)
    return _read(copy, f"{copy} (made from {name}; delete it to make it again)")


def _read(path: Path, name: str) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{name} must be a whole safetensors file; reading it failed: {error}") from error


def _unpickle(path: Path, name: str) -> dict[Any, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file fails anywhere in torch's reader, with almost any type
        raise ValueError(
            f"{name} must be a whole zip file of torch.save with nothing but tensors, and no code is run from it; "
            f"reading it failed with {type(error).__name__}"
        ) from error
    if isinstance(content, dict):
        content = content.get("ema", content)
    if not isinstance(content, dict):
        raise ValueError(f"{name} must hold a dictionary of names to tensors, not a {type(content).__name__}")
    return content


def _fitting(net: STDiT, content: dict[Any, Any], name: str) -> dict[str, Tensor]:
    """``content`` without the position tables. Raises ValueError unless it then is what ``net`` needs."""
    found = {key: value for key, value in content.items() if key not in RECOMPUTED}
    expected = {key: value for key, value in net.state_dict().items() if key not in RECOMPUTED}
    kinds = {key: (_kind(found[key]), _kind(value)) for key, value in expected.items() if key in found}
    faults = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [str(key) for key in found if key not in expected],
        "wrong": [f"{key} {kind} instead of {needed}" for key, (kind, needed) in kinds.items() if kind != needed],
    }
    words = [f"{len(keys)} {fault} ({', '.join(keys[:3])})" for fault, keys in faults.items() if keys]
    if words:
        raise ValueError(f"{name} must hold the {len(expected)} tensors of the denoiser, but has {', '.join(words)}")
    return found


def _kind(value: Any) -> str:
    """Shape of a floating-point tensor of any precision; anything else by what it is."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{list(value.shape)}" if value.is_floating_point() else f"{list(value.shape)} of {value.dtype}"
