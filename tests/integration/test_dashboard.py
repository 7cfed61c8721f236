"""The dashboard's panels read what a run really logs: their keys are looked up in an offline W&B run."""

import subprocess
import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("wandb_workspaces")
ROOT = Path(__file__).parents[2]


def load(path: Path) -> ModuleType:
    """A file that belongs to no package."""
    spec = spec_from_file_location(path.stem, path)
    module = sys.modules.setdefault(path.stem, module_from_spec(spec))  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def dashboard() -> ModuleType:
    return load(ROOT / "sweeps" / "dashboard.py")


@pytest.fixture(scope="module")
def logged(finished, tmp_path_factory: pytest.TempPathFactory):
    """What W&B was given of a static run with every metric, read back from the files of the offline run."""
    settings = [setting for setting in finished.settings if setting not in ("logger=csv", "~metrics.fidelity")]
    bed = replace(
        finished, runs=tmp_path_factory.mktemp("logged") / "runs", settings=(*settings, "logger.mode=offline")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DATA_DIR", str(tmp_path_factory.mktemp("wandb")))
        folder = bed.run("quant=asq", "dataset.num_prompts=1")
    return load(ROOT / "tests" / "tracking" / "test_wandb.py").eventually(folder)


def logged_keys(logged) -> set[str]:
    keys = {
        f"config:{group}.{name}" for group, fields in logged.config.items() if type(fields) is dict for name in fields
    }
    keys |= {f"summary:{name}" for name in logged.values}
    for name in ("quantization_report", "videos"):
        keys |= {f"table:{name}"} | {f"table:{name}.{column}" for column in logged.table(name)}
    return keys


def panels(dashboard) -> list:
    return [panel for question in dashboard.questions("me") for panel in question.panels]


def test_every_key_of_a_panel_is_logged(dashboard, logged):
    used = {key for panel in panels(dashboard) for key in dashboard.keys(panel)} | {"config:quant.name", "summary:bits"}
    assert {"config:quant.alpha", "summary:clipsim", "summary:psnr", "table:videos"} < used
    assert used <= logged_keys(logged)


def test_offline_run_holds_every_metric_and_media(logged):
    assert {"clipsim", "clip_temp", "top1", "psnr", "ssim", "latent_rel_l2", "size_mb"} <= logged.values.keys()
    videos = logged.table("videos")
    assert {"prompt", "video", "reference", "clipsim", "psnr"} <= set(videos.columns) and len(videos) == 1
    for media in [*videos["video"], *videos["reference"]]:
        assert logged.staged[media["path"]].stat().st_size > 0
    assert len(logged.table("quantization_report")) > 78 and 0 <= logged.config["quant"]["alpha"] <= 1


def test_panels_and_workspace_can_be_sent(dashboard):
    """As far as that can be seen without W&B's server."""
    for panel in panels(dashboard):
        assert panel._to_model().model_dump_json(by_alias=True)
    names = [section.name for section in dashboard.workspace("me", "vdq").sections]
    assert names == [question.title for question in dashboard.questions("me")] and len(names) == 4
    assert len(dashboard.report("me", "vdq").blocks) == 1 + 3 * len(names)


def test_prints_what_it_would_create_when_not_logged_in(dashboard, tmp_path):
    environment = {"PATH": "", "HOME": str(tmp_path), "WANDB_MODE": "offline", "NETRC": str(tmp_path / "none")}
    command = [sys.executable, str(ROOT / "sweeps" / "dashboard.py"), "--entity", "me", "--project", "mine"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("would create in me/mine: the workspace and the report")
    for question in dashboard.questions("me"):
        assert question.title in done.stdout
    assert "ScatterPlot: config:quant.alpha, summary:clipsim" in done.stdout
