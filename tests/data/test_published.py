"""Downloads from a folder that stands in for ViDiT-Q's repository; the real prompt files where they are at hand."""

from pathlib import Path

import pytest

from vdq.data import published
from vdq.data.published import CALIBRATION, OPENSORA, UCF101, opensora, ucf101

NAMES = {OPENSORA: "opensora_48.txt", CALIBRATION: "opensora_calib_10.txt", UCF101: "ucf101_101.txt"}


@pytest.fixture
def upstream(tmp_path, monkeypatch):
    """An empty folder that the files are downloaded from."""
    folder = tmp_path / "upstream"
    folder.mkdir()
    monkeypatch.setattr(published, "FOLDER", folder.as_uri())
    return folder


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("one\ntwo\nthree\n")
    return path


def test_real_files_have_the_expected_checksums_and_counts(media, upstream, tmp_path):
    prompts = media / "prompts"
    for file, name in NAMES.items():
        (upstream / file.name).write_bytes((prompts / name).read_bytes())
    sora, ucf = opensora(str(tmp_path)), ucf101(str(tmp_path))
    assert (sora.name, len(sora.calibration), len(sora.evaluation)) == ("opensora", 10, 48)
    assert (ucf.name, ucf.calibration, len(ucf.evaluation)) == ("ucf101", sora.calibration, 101)
    assert "archery" in ucf.evaluation and not any("\r" in prompt for prompt in ucf.evaluation)
    for file in NAMES:
        (upstream / file.name).unlink()
    assert opensora(str(tmp_path)) == sora  # found, not downloaded again


def test_other_content_is_refused_and_not_kept(upstream, tmp_path):
    (upstream / OPENSORA.name).write_text("something else\n")
    with pytest.raises(ValueError, match="dataset.prompts=null: .*t2v_sora.txt cannot be downloaded .*invalid hash"):
        opensora(str(tmp_path))
    assert not list((tmp_path / "prompts").iterdir())


def test_without_network_the_sentence_names_field_address_and_what_is_allowed(upstream, tmp_path, texts):
    with pytest.raises(ValueError, match="dataset.calibration_prompts=null: .*t2v_samples_10.txt.* give a local path"):
        opensora(str(tmp_path), prompts=str(texts))


def test_files_of_ones_own_are_read_before_anything_is_fetched(upstream, tmp_path, monkeypatch):
    monkeypatch.setattr("vdq.data.published.find_download", lambda *_: pytest.fail("something was fetched"))
    with pytest.raises(ValueError, match="nowhere.txt cannot be read"):
        opensora(str(tmp_path), calibration_prompts="nowhere.txt")
    with pytest.raises(ValueError, match="num_prompts=0 must be null or at least 1"):
        opensora(str(tmp_path), num_prompts=0)


def test_files_of_ones_own(upstream, tmp_path, texts):
    chosen = ucf101(str(tmp_path), prompts=str(texts), calibration_prompts=str(texts), num_prompts=2)
    assert (chosen.name, chosen.calibration, chosen.evaluation) == ("mine", ["one", "two", "three"], ["one", "two"])
    with pytest.raises(ValueError, match=r"dataset.num_prompts=4 must be null or 1..3"):
        opensora(str(tmp_path), prompts=str(texts), calibration_prompts=str(texts), num_prompts=4)
    with pytest.raises(ValueError, match="cannot be read"):
        opensora(str(tmp_path), prompts=str(Path("nowhere.txt")))
