"""What a stage that is forced makes again: its own files and those of the stages after it."""

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from vdq.stages.configuration import forced
from vdq.stages.run_folder import RunFolder

CACHE = {"stats_s.safetensors", "samples_r.safetensors"}
QUANTIZED = {"quant_state.safetensors", "report.csv"}
SAMPLED = {"samples/0000.safetensors", "videos/0000.mp4", "sampling.json"}
IDENTITY = SimpleNamespace(name="run", mark="", signature="x", stats_signature="s", recorded_signature="r")


@pytest.fixture
def files(tmp_path):
    files = RunFolder(tmp_path, IDENTITY)
    for name in QUANTIZED | SAMPLED | {"result.json"}:
        (files.path / name).parent.mkdir(parents=True, exist_ok=True)
        (files.path / name).touch()
    (tmp_path / "cache").mkdir()
    for name in CACHE:
        (tmp_path / "cache" / name).touch()
    return files


def there(folder) -> set[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock" and path.name != ".lock")
    return {path.relative_to(folder).as_posix() for path in paths}


@pytest.mark.parametrize(
    ("stage", "left"),
    [
        ("export", QUANTIZED | SAMPLED | {"result.json"}),
        ("evaluate", QUANTIZED | SAMPLED),
        ("sample", QUANTIZED),
        ("quantize", set()),
        ("calibrate", set()),
    ],
)
def test_a_forced_stage_is_made_again_with_what_follows(files, stage, left):
    files.forget([stage])
    assert there(files.path) == left
    assert there(files.runs / "cache") == (set() if stage == "calibrate" else CACHE)


@pytest.mark.parametrize("stage", ["calibrate", "quantize", "sample"])
def test_an_export_goes_with_the_state_that_it_was_made_of_and_logs_stay(files, stage):
    for name in ("export/packed/manifest.json", "wandb/offline-run/run.wandb"):
        (files.path / name).parent.mkdir(parents=True)
        (files.path / name).touch()
    files.forget([stage])
    assert (files.path / "export").exists() == (stage == "sample")
    assert (files.path / "wandb/offline-run/run.wandb").exists()


def test_statistics_are_made_again_once_for_the_runs_of_a_sweep(files):
    files.forget(["calibrate"])
    files.stats.touch()
    files.forget(["calibrate"])
    assert files.stats.is_file()


def test_force_is_a_list_of_stages_or_all_that_are_wanted_but_the_statistics():
    def stages(force: object) -> list[str]:
        return forced(OmegaConf.create({"force": force, "stages": ["calibrate", "sample", "evaluate", "tabulate"]}))

    assert stages(False) == [] and stages(True) == ["sample", "evaluate"]
    assert stages(["evaluate", "calibrate"]) == ["calibrate", "evaluate"]
