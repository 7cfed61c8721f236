"""C++ files of this package as shared libraries, compiled once for the machine that they run on."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from vdq.files import complete_or_nothing

# Sums keep their order but where a source says otherwise; nobody reads errno or traps of floats here.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-mprefer-vector-width=512",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-fopenmp",
)


def shared_library(source: Path) -> Path:
    """The compiled source, from the cache folder or compiled into it, which takes a second or two.

    Raises OSError or subprocess.CalledProcessError where it cannot be compiled.
    """
    compiler = os.environ.get("CXX", "c++")
    # What -march=native means here is part of the name: a home folder may be shared between machines.
    target = _run(compiler, *FLAGS, "-x", "c++", "-dM", "-E", "/dev/null")
    content = b"\0".join([source.read_bytes(), " ".join(FLAGS).encode(), target])
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vdq"
    path = folder / f"{source.stem}_{hashlib.sha256(content).hexdigest()[:16]}.so"
    if not path.is_file():
        with complete_or_nothing(path) as partial:
            object_file = partial.with_suffix(".o")
            try:
                _run(compiler, *FLAGS, "-c", str(source), "-o", str(object_file))
                # Not linked with OpenMP: it finds the one that torch has loaded, whose threads are those of the
                # products. A second one would wait in a busy loop on the same cores.
                _run(compiler, "-shared", str(object_file), "-o", str(partial))
            finally:
                object_file.unlink(missing_ok=True)
    return path


def _run(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout
