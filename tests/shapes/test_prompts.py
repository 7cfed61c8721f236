"""What the testbed says of prompts before it samples them, and prompts of the user's own."""

import logging

import pytest
from hydra import compose, initialize_config_dir

from vdq.installation import CONF
from vdq.models.shapes import ShapesModel
from vdq.shapes import prompts as prompt_sets
from vdq.stages.compute import encode
from vdq.stages.experiment import Experiment

STRANGE = "A photograph of a cat sits on a small red chair."


@pytest.fixture(scope="module")
def model():
    return ShapesModel()


def test_unknown_words_and_cut_prompts_are_told(model):
    (unknown,) = model.remarks([STRANGE, "a small red circle moves up"])
    assert unknown.startswith("1 of 2 prompts have words that the testbed does not know")
    assert unknown.endswith(": cat, chair, photograph, sits")
    (cut,) = model.remarks(["red " * 23 + "circle"])  # and the mark of the end
    assert cut.startswith("1 of 1 prompts are cut to 24 words and marks: 'red red")
    assert model.remarks(["red " * 22 + "circle"]) == []


@pytest.mark.parametrize("prompts", [prompt_sets.sentences, prompt_sets.labels, prompt_sets.tuning])
def test_its_own_prompts_have_nothing_to_tell(model, prompts):
    found = prompts()
    assert model.remarks([*found.calibration, *found.evaluation]) == []


def test_sets_have_no_prompt_in_common():
    sets = [prompt_sets.sentences().evaluation, prompt_sets.tuning().evaluation, prompt_sets.sentences().calibration]
    assert len(set().union(*sets)) == sum(map(len, sets)) == 48 + 192 + 10


@pytest.mark.parametrize("prompts", [prompt_sets.sentences, prompt_sets.labels, prompt_sets.tuning])
def test_files_take_the_place_of_its_own_prompts(tmp_path, prompts):
    (tmp_path / "mine.txt").write_text("a red circle\na blue star\n")
    found = prompts(prompts=str(tmp_path / "mine.txt"), num_prompts=1)
    assert (found.name, found.evaluation) == ("mine", ["a red circle"]) and len(found.calibration) == 10
    found = prompts(calibration_prompts=str(tmp_path / "mine.txt"))
    assert found.calibration == ["a red circle", "a blue star"] and found.name == prompts().name


def test_a_run_tells_it_before_sampling(tmp_path, caplog):
    (tmp_path / "mine.txt").write_text(STRANGE + "\n")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["logger=csv", f"dataset.prompts={tmp_path / 'mine.txt'}", f"paths.runs={tmp_path}"])
    with caplog.at_level(logging.WARNING, logger="vdq"):
        encode(Experiment(cfg))
    assert "prompts: 1 of 11 prompts have words that the testbed does not know" in caplog.text
