"""Released and fine-tuned checkpoints into STDiT without a second copy in memory."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vdq.errors import UserError
from vdq.files import complete_or_nothing
from vdq.models.stdit import STDiT
from vdq.sources import sha256

log = logging.getLogger(__name__)
PICKLED = (".pth", ".pt")
INDEX = ".safetensors.index.json"  # of a checkpoint in several files
NESTED = ("ema", "state_dict", "model", "module")  # where trainers put the weights; averaged ones first
# What DDP, torch.compile and wrappers put before every name; the longer one first.
PREFIXES = ("module.", "_orig_mod.", "model.diffusion_model.", "model.")
ZIP, LEGACY_PICKLE = b"PK\x03\x04", b"\x80"
RECOMPUTED = ("pos_embed", "pos_embed_temporal")  # fit one size of video only


def load_denoiser(build: Callable[[], STDiT], path: Path, cache: Path, field: str = "model.weights.denoiser") -> STDiT:
    """The network of ``build`` with the weights of a file: fp32 on the CPU, in eval mode, without gradients.

    The file is .safetensors, the index of several of them, or .pth or .pt of torch.save: names to tensors, or such a
    dictionary under one of NESTED. What torch.save wrote is converted once, to fp32 in ``cache``/weights. What is fp32
    on disk stays there, memory-mapped. One of PREFIXES that all names have is taken away, which is logged. Position
    tables are those of the network's own size. Raises UserError, which names ``field``, when the file is of another
    kind, damaged, wants to run code, or does not hold exactly the network's tensors.
    """
    name = f"{field}={path}"
    if not path.name.endswith((".safetensors", INDEX, *PICKLED)) or not path.is_file():
        raise UserError(f"{name} must be a file that ends in .safetensors, {INDEX}, {' or '.join(PICKLED)}")
    _check_format(path, name)
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


def files(path: Path) -> list[Path]:
    """The files that hold a checkpoint: the path itself, and those that it names if it is an index.

    Raises UserError for an index that cannot be read or names a file that is not beside it.
    """
    if not path.name.endswith(INDEX):
        return [path]
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} must be an index of safetensors files with a weight_map") from error
    if missing := [name for name in names if not (path.parent / name).is_file()]:
        raise UserError(f"{path} names {missing[0]}, which is not beside it")
    return [path, *(path.parent / name for name in names)]


def _check_format(path: Path, name: str) -> None:
    """Raises UserError where the beginning of a file is that of another format than its name says."""
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix in PICKLED and start[8:9] == b"{":
        raise UserError(f"{name} must be a file of torch.save, but is a safetensors file: name it .safetensors")
    if path.suffix == ".safetensors" and start.startswith((ZIP, LEGACY_PICKLE)):
        raise UserError(f"{name} must be a safetensors file, but is one of torch.save: name it {PICKLED[0]}")


def _read(path: Path, name: str) -> dict[str, Tensor]:
    first, *shards = files(path)
    try:
        if shards:
            return {key: value for shard in shards for key, value in load_file(shard).items()}
        return load_file(first)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{name} must be a whole safetensors file; reading it failed: {error}") from error


def _unpickle(path: Path, name: str) -> dict[Any, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file fails anywhere in torch's reader, with almost any type
        raise UserError(
            f"{name} must be a whole zip file of torch.save with nothing but tensors, and no code is run from it; "
            f"reading it failed with {type(error).__name__}"
        ) from error
    while isinstance(content, dict) and (key := next((key for key in NESTED if key in content), None)):
        content = content[key]
    if not isinstance(content, dict):
        raise UserError(f"{name} must hold a dictionary of names to tensors, not a {type(content).__name__}")
    return content


def _unprefixed(content: dict[Any, Any], name: str) -> dict[Any, Any]:
    """``content`` without a prefix that every name has."""
    prefix = next((p for p in PREFIXES if content and all(str(key).startswith(p) for key in content)), None)
    if prefix is None:
        return content
    log.info("%s: every name begins with %s, which is taken away", name, prefix)
    return {key.removeprefix(prefix): value for key, value in content.items()}


def _fitting(net: STDiT, content: dict[Any, Any], name: str) -> dict[str, Tensor]:
    """``content`` without prefix and position tables. Raises UserError unless it then is what ``net`` needs."""
    found = {key: value for key, value in _unprefixed(content, name).items() if key not in RECOMPUTED}
    expected = {key: value for key, value in net.state_dict().items() if key not in RECOMPUTED}
    kinds = {key: (_kind(found[key]), _kind(value)) for key, value in expected.items() if key in found}
    faults = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [str(key) for key in found if key not in expected],
        "wrong": [f"{key} {kind} instead of {needed}" for key, (kind, needed) in kinds.items() if kind != needed],
    }
    words = [f"{len(keys)} {fault} ({', '.join(keys[:3])})" for fault, keys in faults.items() if keys]
    if words:
        raise UserError(f"{name} must hold the {len(expected)} tensors of the denoiser, but has {', '.join(words)}")
    return found


def _kind(value: Any) -> str:
    """Shape of a floating-point tensor of any precision; anything else by what it is."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{list(value.shape)}" if value.is_floating_point() else f"{list(value.shape)} of {value.dtype}"
