"""What conf/ holds: the fields there are, the options of its groups, and the objects that they describe."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, OmegaConf

from vdq.cli import check_types, one_sentence, unknown_field
from vdq.diffusion.timesteps import NEAREST
from vdq.errors import UserError
from vdq.installation import CONF
from vdq.quant.keep import Keep
from vdq.sources import NotFetchedError, without_network

TYPES = {
    "seed": int,
    "batch_size": int | None,
    "tabulate": bool,
    "reseeded": bool,
    "videos": str | None,
    "prompts": str | None,
    "reference": str | None,
    "skip_bad": bool,
    "artefact": str | None,
}
KEEP = {"keep": list[str], "keep_steps": list[int]}  # fields of every method
PLAIN_GROUPS = ("alpha", "bits", "paths")
NAMED = ("model", "quant")
NO_ARGUMENTS = ("name", "match", *KEEP)  # fields of groups that stages read, and no object is made of
# Stages in the order in which they use each other's artefacts.
STAGES = ("calibrate", "quantize", "sample", "evaluate", "export")


def check(cfg: DictConfig) -> None:
    """Raises UserError for a field of the top level that has the wrong type, and for a field that nothing reads."""
    _check_known(cfg)
    check_types("", {name: cfg[name] for name in TYPES}, TYPES)
    check_types("alpha.", cfg.alpha, dict.fromkeys(cfg.alpha, float))
    check_types("paths.", cfg.paths, dict.fromkeys(cfg.paths, str))
    for name, value in cfg.alpha.items():
        if not 0 <= value <= 1:
            raise UserError(f"alpha.{name}={value} must be in 0..1")
    for group in NAMED:
        name = cfg[group].get("name")
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+-]*", name):
            raise UserError(f"{group}.name={name} must be a name for folders: letters, digits and _ . + -")
    if (match := cfg.quant.get("match")) not in (None, NEAREST):
        raise UserError(f"quant.match={match} must be null or {NEAREST}")
    if cfg.batch_size is not None and cfg.batch_size < 1:
        raise UserError(f"batch_size={cfg.batch_size} must be null or at least 1")
    if not isinstance(cfg.force, bool) and not (OmegaConf.is_list(cfg.force) and set(cfg.force) <= set(STAGES)):
        raise UserError(f"force={cfg.force} must be true or false, or a list of {', '.join(STAGES)}")


def forced(cfg: DictConfig) -> list[str]:
    """The stages that ``force`` wants again, in their order. true stands for those of ``stages`` without calibrate:
    statistics and the reference serve other runs as well.
    """
    named = set(cfg.stages) - {"calibrate"} if cfg.force is True else set(cfg.force or ())
    return [stage for stage in STAGES if stage in named]


def _check_known(cfg: DictConfig) -> None:
    """Raises UserError for a field that nothing reads, which ``+name=value`` can add.

    Objects check the arguments that they are made of themselves; here are the top level and groups of plain values.
    """
    top, plain_fields = _fields()
    for name in cfg:
        if name not in top:
            raise UserError(unknown_field(str(name), [], sorted(top)))
    for group, fields in plain_fields.items():
        for name in cfg[group]:
            if name not in fields:
                raise UserError(unknown_field(f"{group}.{name}", [group], sorted(fields)))
    for name, metric in cfg.metrics.items():
        if not OmegaConf.is_dict(metric) or "_target_" not in metric:
            raise UserError(f"metrics.{name}={metric} must be a metric: a mapping with _target_, as in conf/metrics")


@cache
def _fields() -> tuple[set[str], dict[str, set[str]]]:
    """The names of the top level, and by group those of groups of plain values."""
    groups = {path.name: path for path in CONF.iterdir() if path.is_dir()}
    written = [CONF / "config.yaml", *groups["experiment"].glob("*.yaml")]  # experiments may name parts of their sweeps
    top = {str(key) for path in written for key in OmegaConf.load(path)} | set(groups)
    top -= {"defaults", "hydra", "experiment", "debug"}
    return top, {
        group: {str(key) for path in groups[group].glob("*.yaml") for key in OmegaConf.load(path)}
        for group in PLAIN_GROUPS
    }


def made(group: str, cfg: DictConfig) -> Any:
    """The object of a config group. NO_ARGUMENTS, such as ``name`` for folders and tables, are no arguments of it.

    Raises UserError for a value of the wrong type or one that the object's constructor refuses.
    """
    return _instantiate(group, cfg)


def kept(quant: DictConfig) -> Keep:
    """What ``quant`` leaves in full precision. Raises UserError for a value of the wrong type."""
    fields = {name: value for name, value in plain(quant).items() if name in KEEP}
    check_types("quant.", fields, KEEP)
    return Keep(tuple(fields.get("keep", ())), tuple(fields.get("keep_steps", ())))


def made_of_what_is_here(group: str, cfg: DictConfig) -> Any:
    """As `made`, but fetches nothing: None if that would be necessary, and then all else was found right."""
    with without_network():
        try:
            return _instantiate(group, cfg)
        except NotFetchedError:
            _check_parts(group, cfg)
            return None


def _check_parts(group: str, cfg: DictConfig) -> None:
    """Makes every object by itself, those of its parts first, each as far as that is possible without fetching."""
    for name, part in cfg.items():
        if OmegaConf.is_dict(part) and "_target_" in part:
            _check_parts(f"{group}.{name}", part)
    with suppress(NotFetchedError):
        _instantiate(group, cfg, _recursive_=False)


def _instantiate(group: str, cfg: DictConfig, **options: bool) -> Any:
    arguments = {key: value for key, value in plain(cfg).items() if key not in NO_ARGUMENTS}
    _check_types(group, arguments)
    tree = OmegaConf.create()
    OmegaConf.update(tree, group, arguments)  # errors then name the field as the user wrote it
    try:
        return instantiate(OmegaConf.select(tree, group), _convert_="all", **options)
    except InstantiationException as error:
        if (sentence := one_sentence(error)) is None:
            raise
        kind = NotFetchedError if isinstance(error.__cause__, NotFetchedError) else UserError
        raise kind(sentence) from error


def _check_types(group: str, arguments: dict[str, Any]) -> None:
    """Of all fields of an object and of its parts."""
    target = _located(group, arguments["_target_"])
    check_types(f"{group}.", arguments, get_type_hints(target.__init__ if isinstance(target, type) else target))
    for name, part in arguments.items():
        if isinstance(part, dict) and "_target_" in part:
            _check_types(f"{group}.{name}", part)


def _located(group: str, path: str) -> Any:
    """The class or function of an import path. Raises UserError where there is none; an error inside its module keeps
    its traceback.
    """
    try:
        return get_method(path)
    except ImportError as error:
        cause = error.__cause__
        absent = isinstance(cause, ModuleNotFoundError) and f"{path}.".startswith(f"{cause.name}.")
        if not absent and not isinstance(cause, AttributeError):
            raise
        raise UserError(f"{group}._target_={path} is not found; Python looks where PYTHONPATH says") from error


def folders() -> tuple[Path, ...]:
    """Where configuration is looked for: conf/, then what the running command has of its own, such as --config-dir."""
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    own = [Path(source.path) for source in sources if source.schema == "file"]
    return tuple(dict.fromkeys([CONF, *own]))


def options(group: str) -> list[str]:
    """The names of the options of a config group."""
    return sorted({path.stem for folder in folders() for path in (folder / group).glob("*.yaml")})


def option(group: str, name: str) -> DictConfig:
    """One option of a config group as Hydra composes it, its interpolations as they are written."""
    return _option(group, name, folders()).copy()


@cache
def _option(group: str, name: str, places: tuple[Path, ...]) -> DictConfig:
    search = json.dumps([f"file://{place}" for place in places[1:]])
    running = GlobalHydra.instance().hydra  # of `python run.py`, beside which Hydra refuses to compose
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", [f"{group}={name}", f"hydra.searchpath={search}"])[group]
    finally:
        GlobalHydra.instance().clear()
        if running is not None:
            GlobalHydra.instance().initialize(running)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A configuration as dictionaries and lists, every interpolation resolved."""
    return OmegaConf.to_container(cfg, resolve=True)
