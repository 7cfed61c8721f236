"""Every notebook is executed as Jupyter does it, in a kernel of its own, on the shipped weights with few steps."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import jupytext
import pytest
from hydra import compose, initialize_config_dir
from nbclient import NotebookClient
from nbformat import NotebookNode

from vdq.commands.run import run
from vdq.tracking import runs

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.py"))
OWN_METHOD = FOLDER / "04_bring_your_own_method.py"
PROMPTS, STEPS = 2, 2
LIGHT = ("~metrics.dover", "~metrics.lpips")  # for time, and for weights that not every machine has
ABSOLUTE = re.compile(r"""["'`\s(](/(home|root|work|tmp|mnt|Users|opt|var)/|[A-Za-z]:\\)""")

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with statistics, a full-precision run and one of ASQ."""
    folder = tmp_path_factory.mktemp("notebooks") / "runs"
    settings = [f"dataset.num_prompts={PROMPTS}", f"sampler.steps={STEPS}", f"paths.runs='{folder}'", "logger=csv"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        run(compose("config", overrides=["quant=asq", *settings, *LIGHT]))
    return folder


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Sets what the notebooks read from the environment; returns their runs folder, which does not exist yet."""
    folder = tmp_path / "runs of a notebook"
    values = {"RUNS": folder, "PROMPTS": PROMPTS, "STEPS": STEPS, "OVERRIDES": " ".join(LIGHT)}
    for name, value in values.items():
        monkeypatch.setenv(f"VDQ_NOTEBOOK_{name}", str(value))
    return folder


def execute(path: Path, cwd: Path) -> NotebookNode:
    """The notebook with its outputs; raises if a cell does."""
    notebook = jupytext.read(path)
    return NotebookClient(
        notebook, timeout=600, startup_timeout=300, resources={"metadata": {"path": str(cwd)}}
    ).execute()


def mime_types(notebook: NotebookNode) -> list[str]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [kind for output in outputs for kind in output.get("data", {})]


def definitions(path: Path) -> list[ast.AST]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, kinds)]


@pytest.mark.slow
@every_notebook
def test_every_cell_runs_and_figures_are_shown(path, settings, finished):
    shutil.copytree(finished, settings)
    before = sorted(FOLDER.iterdir())
    shown = mime_types(execute(path, cwd=FOLDER))
    assert "image/png" in shown
    assert sorted(FOLDER.iterdir()) == before  # everything that is written lies in the runs folder
    if path == OWN_METHOD:
        results = runs(settings)
        own = results[results["quant"] == "clamped"]
        [asq] = results.loc[(results["quant"] == "asq") & results["bits"].isin(own["bits"]), "latent_rel_l2"]
        assert len(own) == own["latent_rel_l2"].nunique() == 4  # each share has its own run
        assert (own["latent_rel_l2"] == asq).sum() == 1  # the whole range is ASQ


@pytest.mark.slow
def test_registry_may_be_empty_and_the_repository_root_is_a_place_to_start(settings):
    shown = mime_types(execute(FOLDER / "03_tables_and_figures.py", cwd=ROOT))
    assert "text/markdown" in shown and "image/png" not in shown
    assert not settings.exists()


def test_there_are_four():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04"]


@every_notebook
def test_is_a_percent_script_without_paths_of_a_machine(path):
    text = path.read_text(encoding="utf-8")
    notebook = jupytext.read(path)
    assert notebook.metadata["jupytext"]["text_representation"]["format_name"] == "percent"
    assert {cell.cell_type for cell in notebook.cells} == {"code", "markdown"}
    assert not ABSOLUTE.search(text)


@every_notebook
def test_defines_nothing_but_the_method_that_it_is_about(path):
    assert [node.name for node in definitions(path)] == (["ClampedMethod"] if path == OWN_METHOD else [])


def test_method_has_fewer_than_30_lines():
    [method] = definitions(OWN_METHOD)
    assert method.end_lineno - method.lineno + 1 < 30


def test_no_ipynb_is_committed():
    """The scripts are the notebooks; an .ipynb beside them would have to be kept in step."""
    listed = subprocess.run(["git", "ls-files", "*.ipynb"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git repository")
    assert listed.stdout == ""
