"""Results of runs as the program writes them, made up."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

RESULT = {
    "dataset": "shapes",
    "model": "shapes",
    "kind": "static",
    "changed": "",
    "higher_is_better": {"clipsim": True, "latent_rel_l2": False},
    "clipsim": 0.25,
    "latent_rel_l2": 0.5,
    "size_mb": 2.5,
    "metrics": "m",
    "assets": {"clip": "0" * 64},
}


@pytest.fixture
def finish(tmp_path: Path) -> Callable[..., Path]:
    """Makes the folder of a finished run below ``tmp_path``."""

    def make(name: str, **fields: object) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        result = {**RESULT, "name": name, "quant": name, "bits": "w8a8", "signature": name, "reference": "fp16"}
        result |= {"finished": "2026-01-01T00:00:00+00:00"} | fields
        (folder / "result.json").write_text(json.dumps(result))
        return folder

    return make
