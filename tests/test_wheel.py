"""A wheel works where no checkout is: it is built, installed beside its core dependencies alone, and run elsewhere."""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def call(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    text = [str(part) for part in command]
    return subprocess.run(text, cwd=cwd, env=kept | environment, capture_output=True, text=True, timeout=600)


def core_dependencies(needing: Distribution, found: dict[str, Distribution]) -> dict[str, Distribution]:
    """The installed distributions that `needing` needs without any extra, and those that these need."""
    for text in needing.requires or []:
        needed = Requirement(text)
        key = re.sub(r"[-_.]+", "-", needed.name).lower()
        if key in found or not any(wanted(needed, extra) for extra in ("", *needed.extras)):
            continue
        try:
            found[key] = distribution(key)
        except PackageNotFoundError:  # of an environment marker that this interpreter's pip saw otherwise
            continue
        core_dependencies(found[key], found)
    return found


def wanted(needed: Requirement, extra: str) -> bool:
    return needed.marker is None or needed.marker.evaluate({"extra": extra})


def link(site: Path, needed: Distribution) -> None:
    """Puts what belongs to a distribution into `site`, as links."""
    home = Path(needed.locate_file(""))
    for name in {file.parts[0] for file in needed.files or [] if ".." not in file.parts}:
        if not (site / name).exists() and not name.endswith(".pth") and name != "__pycache__":
            (site / name).symlink_to(home / name)


@pytest.fixture(scope="module")
def vdq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program `vdq` of a new environment, which has the wheel and its core dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    source, environment = folder / "source", folder / "environment"
    for name in ("vdq", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ("--no-deps", "--no-build-isolation", "--quiet")
    built = call(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, source, cwd=folder)
    assert built.returncode == 0, built.stderr
    shutil.rmtree(source)
    call(sys.executable, "-m", "venv", "--without-pip", environment, cwd=folder).check_returncode()
    python, [wheel] = environment / "bin" / "python", folder.glob("*.whl")
    install = ("-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet")
    installed = call(sys.executable, *install, wheel, cwd=folder)
    assert installed.returncode == 0, installed.stderr
    [site] = environment.glob("lib/python*/site-packages")
    [metadata] = site.glob("vdq-*.dist-info")
    for needed in core_dependencies(Distribution.at(metadata), {}).values():
        link(site, needed)
    return environment / "bin" / "vdq"


def test_a_run_outside_the_repository(vdq, tmp_path):
    done = call(vdq, "debug=quick", "quant=tsq_tsw", "bits=w6a8", "logger=csv", "sampler.steps=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| tsq_tsw  | w6a8 " in done.stdout
    assert list(tmp_path.glob("runs/tsq_tsw_w6a8_*/result.json"))
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]  # nothing lies anywhere else


def test_help_and_mistakes_are_those_of_a_checkout(vdq, tmp_path):
    here = call(sys.executable, ROOT / "run.py", "--help", cwd=tmp_path)
    there = call(vdq, "--help", cwd=tmp_path)
    assert there.returncode == 0 and there.stdout == here.stdout
    wrong = call(vdq, "bits=w6a8x", cwd=tmp_path)
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: bits=w6a8x is not known; allowed: ")


def test_a_missing_extra_is_named(vdq, tmp_path):
    random = [f"model.weights.{part}=random" for part in ("denoiser", "autoencoder", "text_encoder")]
    done = call(vdq, "model=opensora_v1_512", *random, "logger=csv", "stages=[calibrate]", cwd=tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(r"error: .* needs .*bs4.*, try `pip install 'vdq\[opensora\]'`\n", done.stderr), done.stderr
