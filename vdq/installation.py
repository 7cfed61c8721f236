"""Where an installed package and a checkout keep the configuration, and which extras are installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from vdq.errors import UserError

_PACKED = Path(__file__).with_name("conf")  # of a wheel; a checkout has it beside the package
IS_CHECKOUT = not _PACKED.is_dir()
CONF = Path(__file__).parents[1] / "conf" if IS_CHECKOUT else _PACKED


def require(what: str, extra: str, *modules: str) -> None:
    """Raises UserError if one of these modules of an extra is not installed; ``what`` needs them."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise UserError(f"{what} needs {' and '.join(missing)}, try `pip install 'vdq[{extra}]'`")
