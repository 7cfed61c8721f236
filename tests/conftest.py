"""Shared helpers: where the golden fixtures are, and one test case per golden file of a kind."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

FIXTURES = Path(os.environ.get("VDQ_FIXTURES", Path(__file__).parents[2] / "shared" / "fixtures"))
MISSING = f"{FIXTURES.name} folder has no such file; set VDQ_FIXTURES"


@dataclass(frozen=True)
class Golden:
    """One .json/.safetensors pair: configuration and tensors."""

    path: Path
    config: dict
    tensors: dict[str, Tensor]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name starts with `prefix`, without it."""
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}

    def beside(self, stem: str) -> "Golden":
        """Another pair of the same folder."""
        return Golden.load(self.path.with_name(f"{stem}.json"))

    @classmethod
    def load(cls, path: Path) -> "Golden":
        return cls(path, json.loads(path.read_text()), load_file(path.with_suffix(".safetensors")))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "golden(folder, kind): once per golden file of that kind, as argument `golden`")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is not None:
        paths = _golden_paths(*marker.args)
        missing = [pytest.param(None, marks=pytest.mark.skip(reason=MISSING), id="missing")]
        params = [pytest.param(path, id=path.stem) for path in paths] or missing
        metafunc.parametrize("golden", params, indirect=True, scope="module")


@pytest.fixture(scope="module")
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden.load(request.param)


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Root of the golden fixtures; skips the test when it is missing."""
    if not FIXTURES.is_dir():
        pytest.skip(MISSING)
    return FIXTURES


def _golden_paths(folder: str, kind: str) -> list[Path]:
    pairs = (path for path in sorted((FIXTURES / folder).glob("*.json")) if path.with_suffix(".safetensors").exists())
    return [path for path in pairs if json.loads(path.read_text()).get("kind") == kind]
