"""What produced a result: signatures, versions, commit, and what really ran."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from vdq import __version__
from vdq.installation import IS_CHECKOUT

PACKAGES = ("torch", "pytorch-lightning", "hydra-core", "diffusers", "transformers", "open_clip_torch", "av")


def manifest(result: dict, execution: dict) -> dict:
    """The content of ``manifest.json``."""
    return {
        "result": result,
        "execution": execution,
        "versions": {
            "python": platform.python_version(),
            "vdq": __version__,
            **{name: version(name) for name in PACKAGES},
        },
        "git": git_commit(),
    }


def git_commit() -> str | None:
    """Commit of the source tree, with ``-dirty`` after it if files were changed; None outside a git checkout."""
    if not IS_CHECKOUT:  # site-packages may lie in another project's repository
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
