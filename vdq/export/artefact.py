"""The folder of an artefact: written whole or not at all, and read only if it is what was written.

`manifest.json` names the kind, the layout's version, the run that it came from and the size and SHA-256 of every file.
"""

from __future__ import annotations

import hashlib
import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vdq.errors import UserError
from vdq.export.base import Exporter, QuantizedRun
from vdq.files import check_folder, check_name, complete_folder_or_nothing, write_json
from vdq.sources import digest
from vdq.tracking.manifest import git_commit

MANIFEST = "manifest.json"


def write(exporter: Exporter, run: QuantizedRun, path: Path) -> dict[str, Any]:
    """Makes the folder, or replaces it, and returns its manifest. Raises UserError as `check_place`."""
    check_place(path)
    with complete_folder_or_nothing(path) as folder:
        contents = exporter.write(run, folder)
        manifest = {
            "kind": exporter.name,
            "version": exporter.version,
            "run": run.name,
            "signature": run.signature,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {"python": platform.python_version(), "torch": version("torch")},
            "git": git_commit(),
            "contents": contents,
            "files": {name: _facts(folder / name) for name in _names(folder)},
        }
        write_json(folder / MANIFEST, manifest | {"sha256": _own_digest(manifest)})
    return manifest


def check_place(path: Path) -> None:
    """Raises UserError if what is there is neither an artefact nor an empty folder, or if no folder can be made."""
    check_name("export.path", path)
    if path.exists() and not is_artefact(path) and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"export.path={path} exists and is no artefact of this program, it is not replaced")
    check_folder("export.path", path)


def read(path: str | Path, kind: str, layout: int) -> dict[str, Any]:
    """The manifest of an undamaged artefact of that kind and version. Raises UserError naming what is wrong."""
    path = Path(path)
    manifest = read_manifest(path)
    for field, wanted in (("kind", kind), ("version", layout)):
        if manifest[field] != wanted:
            again = "; export it again" if field == "version" else ""
            raise UserError(
                f"{path / MANIFEST}: {field}={manifest[field]} cannot be loaded; {wanted} is allowed{again}"
            )
    for name, facts in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise UserError(f"{file} is missing; the artefact has {len(manifest['files'])} files and their manifest")
        if (size := file.stat().st_size) != facts["bytes"]:
            raise UserError(f"{file} has {size} bytes, its manifest says {facts['bytes']}: it is truncated or changed")
        if digest(file) != facts["sha256"]:
            raise UserError(f"{file} is damaged: its SHA-256 is not {facts['sha256']}, as its manifest says")
    return manifest


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest alone, undamaged; the files are not looked at. Raises UserError."""
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} is no artefact, it has no {MANIFEST}") from None
    except OSError as error:
        raise UserError(f"artefact {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{file} cannot be read ({str(error).splitlines()[0]})") from error
    if not isinstance(manifest, dict) or not {"kind", "version", "files", "sha256"} <= manifest.keys():
        raise UserError(f"{file} is not the manifest of an artefact")
    if _own_digest(manifest) != manifest["sha256"]:
        raise UserError(f"{file} is damaged: its content does not have the SHA-256 {manifest['sha256']} that it names")
    return manifest


def is_artefact(path: Path) -> bool:
    """Whether a folder was made here, damaged or not."""
    try:
        return "kind" in json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def total_bytes(manifest: dict[str, Any]) -> int:
    """The size of all files beside the manifest."""
    return sum(facts["bytes"] for facts in manifest["files"].values())


def _names(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def _facts(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": digest(file)}


def _own_digest(manifest: dict[str, Any]) -> str:
    """Of everything that the manifest says beside this digest."""
    text = json.dumps({key: manifest[key] for key in sorted(manifest.keys() - {"sha256"})}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
