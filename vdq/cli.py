"""Turns what a user can get wrong into one sentence: which field, which value, what is allowed."""

from __future__ import annotations

import difflib
import errno
import re
import traceback
from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

from hydra.errors import ConfigCompositionException, HydraException, InstantiationException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

PLAIN = {bool: "true or false", int: "an integer", float: "a number", str: "text", type(None): "null"}


def one_sentence(error: Exception) -> str | None:
    """The sentence for an error of the user's input, or None for an error of the program, which needs its traceback."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, value = (error.missing_cfg_file or "").rpartition("/")
        return f"{group}={value} is not known; {_allowed(value, error.options)}"
    if isinstance(error, ConfigCompositionException) and (key := re.search(r"'([^']+)'", str(error))):
        return _unknown_key(key[1], error.__cause__)
    if isinstance(error, InstantiationException):
        return _instantiation(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        name = error.filename or "a file"
        return f"{name} cannot be written: {error.strerror}; with more space the same command goes on"
    if isinstance(error, (HydraException, OmegaConfBaseException)) or _raised_by_us(error):
        return _first_line(error)
    return None


def _raised_by_us(error: Exception) -> bool:
    """Whether it is a ValueError of this package, and not of a library that the program misused."""
    if not isinstance(error, ValueError) or error.__traceback__ is None:
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").partition(".")[0] == "vdq"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _unknown_key(name: str, cause: BaseException | None) -> str:
    parent = getattr(cause, "parent_node", None)
    if parent is None and name.count("=") == 1 and "," in name:
        return f"{name} holds several values; add -m to run one after the other"
    if parent is None:
        return f"{name} cannot be set; `python run.py --cfg job` shows every field"
    if getattr(cause, "key", None) in parent:
        return f"{name} cannot be set: {_first_line(cause)}"
    prefix = name.rpartition(".")[0]
    keys = [f"{prefix}.{key}" if prefix else str(key) for key in parent if not str(key).startswith("_")]
    return f"{name} is not a field; {_allowed(name, keys)}"


def _instantiation(error: InstantiationException) -> str | None:
    """The words of the constructor that refused its arguments; an unexpected argument names the field."""
    cause = error.__cause__
    field = (re.search(r"full_key: (\S+)", str(error)) or ("", ""))[1]
    if isinstance(cause, TypeError) and (argument := re.search(r"unexpected keyword argument '(\w+)'", str(cause))):
        return f"{field}.{argument[1]} is not a field of {field}; `python run.py --cfg job` shows those that are"
    if not isinstance(cause, ValueError):
        return None
    sentence = _first_line(cause)
    return sentence if sentence.startswith(field) else f"{field}: {sentence}"


def check_types(prefix: str, values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Raises ValueError for a value that has none of its hint's types; hints with other than plain types are left
    out. ``prefix`` stands before the field's name.
    """
    for name, hint in hints.items():
        types = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if name not in values or not PLAIN.keys() >= set(types):
            continue
        if type(values[name]) not in {*types, *([int] if float in types else [])}:
            raise ValueError(f"{prefix}{name}={values[name]} must be {' or '.join(PLAIN[kind] for kind in types)}")


def _allowed(value: str, options: list[str]) -> str:
    close = difflib.get_close_matches(value, options, n=1)
    return f"allowed: {', '.join(sorted(options))}" + (f" (did you mean {close[0]}?)" if close else "")
