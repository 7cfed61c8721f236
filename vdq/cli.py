"""Turns what a user can get wrong into one sentence: which field, which value, what is allowed."""

from __future__ import annotations

import difflib
import errno
import math
import re
import shlex
import sys
from argparse import ArgumentTypeError
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vdq.errors import UserError
from vdq.files import check_file

VALUED_FLAGS = {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"}
MULTIRUN, SHOWN = {"--multirun", "-m"}, {"--cfg", "-c", "--info", "-i"}
PLAIN = {bool: "true or false", int: "an integer", float: "a number", str: "text", type(None): "null"}
PLAIN |= {list: "a list such as [1,2]", dict: "a mapping such as {name: value}"}
OPEN = r"model\.(call|scheduler)[.=]"  # arguments that set fields with keys of the user's own
LISTS = (Sequence, list, tuple)
LARGEST = 2**63 - 1  # a larger integer has no place in a tensor


def one_sentence(error: Exception) -> str | None:
    """The sentence for an error of the user's input, or None for an error of the program, which needs its traceback."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, value = (error.missing_cfg_file or "").rpartition("/")
        return f"{group}={value} is not known; {_allowed(value, error.options)}"
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if isinstance(error, ConfigCompositionException) and (key := re.search(r"'([^']+)'", str(error))):
        return _unknown_key(key[1], error.__cause__)
    if isinstance(error, InstantiationException):
        return _instantiation(error)
    if isinstance(error, ValueError) and str(error).startswith("Config group override must be"):
        return "a config group takes the name of one of its options, which null is not; leave the argument out"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        name = error.filename or "a file"
        return f"{name} cannot be written: {error.strerror}; with more space the same command goes on"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{error.filename} is no name of a file or folder: {error.strerror}"
    if isinstance(error, (HydraException, OmegaConfBaseException, UserError)):
        return _first_line(error)
    return None


@contextmanager
def one_sentence_at_the_end() -> Iterator[None]:
    """Ends the program with one sentence for an error of the user's input; any other error keeps its traceback."""
    try:
        yield
    except Exception as error:
        if (message := one_sentence(error)) is None:
            raise
        sys.exit(f"error: {message}")


def file_to_write(text: str) -> Path:
    """For argparse: the file of an argument. One that cannot be written is refused before any work."""
    try:
        check_file("FILE", Path(text))
    except UserError as error:
        raise ArgumentTypeError(str(error)) from error
    return Path(text)


def count(text: str) -> int:
    """For argparse: a number of things, of which at least one is wanted."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text} must be an integer, at least 1")
    return int(text)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def flags_first(arguments: list[str]) -> list[str]:
    """Command-line arguments with the flags in front, where argparse wants them; the order is otherwise kept.

    Raises UserError for flags that exclude each other.
    """
    flags, rest, remaining = [], [], iter(arguments)
    for argument in remaining:
        (flags if argument.startswith("-") else rest).append(argument)
        if argument in VALUED_FLAGS:
            flags += [value for value in [next(remaining, None)] if value is not None]
    names = {flag.partition("=")[0] for flag in flags}
    if names & MULTIRUN and (shown := sorted(names & SHOWN)):
        raise UserError(f"{shown[0]} shows the configuration of one run; leave out -m, or {shown[0]}")
    return flags + rest


def opened(arguments: list[str]) -> list[str]:
    """The arguments with Hydra's mark for new keys before those that set a part of an open field (OPEN), since a model
    that sets some of its keys does not say which others there are.
    """
    return [f"++{each}" if re.match(OPEN, each) else each for each in arguments]


def quoted(field: str, value: str) -> str:
    """The argument field=value as it can be pasted into a shell, whatever the text of the value."""
    mark = '"' if "'" in value and '"' not in value else "'"
    text = re.sub(rf"(\\*)({mark}|$)", lambda found: 2 * found[1] + (f"\\{mark}" if found[2] else ""), value)
    argument = f"{field}={mark}{text}{mark}"
    return shlex.quote(argument) if re.search(r'[$`"\\!]', argument) else f'"{argument}"'


def _unreadable(override: str) -> str:
    """For an argument that Hydra's grammar cannot read."""
    field, equals, value = override.partition("=")
    if not equals:
        return f"{override} is no argument; write FIELD=VALUE"
    return f"{override} has characters that must be quoted, for the shell and for Hydra: {quoted(field, value)}"


def _unknown_key(name: str, cause: BaseException | None) -> str:
    parent = getattr(cause, "parent_node", None)
    field, _, value = name.partition("=")
    if parent is None and value and "," in name:
        return f"{name} holds several values; add -m to run one after the other, or quote it: {quoted(field, value)}"
    if parent is None:
        return f"{name} cannot be set; `--cfg job` shows every field"
    if getattr(cause, "key", None) in parent:
        return f"{name} cannot be set: {_first_line(cause)}"
    *parts, _ = name.split(".")
    node, known = parent._get_root(), []
    for part in parts:  # down to the first name that is not there
        if not isinstance(node, DictConfig) or part not in node:
            break
        node, known = node._get_node(part), [*known, part]
    return unknown_field(name, known, node if isinstance(node, DictConfig) else ())


def unknown_field(name: str, known: list[str], fields: Iterable[Any]) -> str:
    """The sentence for a name of which only the first parts are `known`, which have these fields."""
    prefix, parts = ".".join(known), name.split(".")
    keys = [".".join([*known, str(key)]) for key in fields if not str(key).startswith("_")]
    wrong = ".".join(parts[: len(known) + 1])
    return f"{wrong} is not a field; " + (_allowed(wrong, keys) if keys else f"{prefix} has no fields to set")


def _instantiation(error: InstantiationException) -> str | None:
    """The words of the constructor that refused its arguments; an unexpected argument names the field.

    What a library's constructor refuses was the user's value; a ValueError of ours that is no UserError is a bug.
    """
    cause = error.__cause__
    field = (re.search(r"full_key: (\S+)", str(error)) or ("", ""))[1]
    if isinstance(cause, TypeError) and (argument := re.search(r"unexpected keyword argument '(\w+)'", str(cause))):
        return f"{field}.{argument[1]} is not a field of {field}; `--cfg job` shows those that are"
    if cause is None:  # what shall be made is no description of an object
        return _first_line(error)
    if isinstance(cause, OSError):
        return one_sentence(cause)
    ours = "Error in call to target 'vdq." in str(error)
    if not isinstance(cause, UserError if ours else ValueError):
        return None
    sentence = _first_line(cause)
    return sentence if sentence.startswith(field) else f"{field}: {sentence}"


def check_types(prefix: str, values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Raises UserError for a value, or one in a list or mapping, that has none of its hint's types; hints with other
    than plain types, lists and mappings are left out. ``prefix`` stands before the field's name.
    """
    for name, hint in hints.items():
        if name in values:
            _check_type(f"{prefix}{name}", values[name], hint)


def _check_type(name: str, value: Any, hint: Any) -> None:
    hints = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    types = tuple(_plain_type(get_origin(each) or each) for each in hints)
    if not PLAIN.keys() >= set(types):
        return
    if type(value) not in {*types, *([int] if float in types else [])}:
        raise UserError(f"{name}={value} must be {' or '.join(PLAIN[kind] for kind in types)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}={value} must be a finite number")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise UserError(f"{name}={value} must be at most {LARGEST}")
    if isinstance(value, (list, dict)) and (inner := get_args(hints[types.index(type(value))])):
        members = value.items() if isinstance(value, dict) else enumerate(value)
        for key, member in members:
            _check_type(f"{name}.{key}", member, inner[-1])


def _plain_type(hint: Any) -> Any:
    """What a configuration has in its place."""
    return list if hint in LISTS else str if hint is Path else hint


def _allowed(value: str, options: list[str]) -> str:
    close = difflib.get_close_matches(value, options, n=1)
    return f"allowed: {', '.join(sorted(options))}" + (f" (did you mean {close[0]}?)" if close else "")
