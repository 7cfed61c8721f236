"""Objects of this package from their description in an artefact, which may come from anybody."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any, TypeVar

from vdq.errors import UserError

T = TypeVar("T")
TARGET = "_target_"


def rebuild(description: dict[str, Any], base: type[T], field: str, **more: Any) -> T:
    """The object that a config group describes: `_target_` and arguments; ``name`` is no argument.

    Only subclasses of `base` that this package defines are called. Raises UserError that names `field`.
    """
    target = description.get(TARGET)
    arguments = {key: value for key, value in description.items() if key not in (TARGET, "name")} | more
    kind = _find(str(target))
    if not (inspect.isclass(kind) and issubclass(kind, base) and kind.__module__.startswith("vdq.")):
        raise UserError(f"{field}.{TARGET}={target} must be a {base.__name__} of the package vdq")
    try:
        inspect.signature(kind).bind(**arguments)
    except TypeError as error:
        raise UserError(f"{field}: {kind.__name__} of this version takes other arguments ({error})") from error
    return kind(**arguments)


def _find(target: str) -> object:
    module, _, name = target.rpartition(".")
    if not module.startswith("vdq."):
        return None
    try:
        return getattr(import_module(module), name, None)
    except ImportError:
        return None
