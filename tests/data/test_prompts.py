"""Prompt files are built byte by byte, so what is expected is written beside them."""

import json
import logging
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, DistributedSampler

from vdq.data.prompts import PromptDataset, PromptSet, load_prompts
from vdq.errors import UserError
from vdq.models.image_prompt import described


def test_bom_crlf_and_blank_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffa cat\r\n\r\n  a dog \r\n \t\r\nBig Sur’s cliffs\u2028here".encode())
    with caplog.at_level(logging.INFO):
        assert load_prompts(path) == ["a cat", "a dog", "Big Sur’s cliffs\u2028here"]
    assert "dropped 2 blank lines" in caplog.text


def test_a_final_newline_is_no_blank_line_and_duplicates_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(b"a cat\na dog\na cat\n")
    with caplog.at_level(logging.INFO):
        assert load_prompts(str(path)) == ["a cat", "a dog", "a cat"]
    assert "blank" not in caplog.text
    assert "1 prompts occur more than once and are kept, such as 'a cat'" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "holds no prompt"),
        (b"\xef\xbb\xbf\r\n \r\n", "holds no prompt"),
        ("café".encode("latin-1"), r"is not UTF-8 \(byte 3\)"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "p.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"p.txt {message}"):
        load_prompts(path)


def test_a_folder_is_no_prompt_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        load_prompts(tmp_path)


@pytest.mark.parametrize("field", ["calibration", "evaluation"])
def test_a_prompt_set_needs_both_parts(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} prompts of shapes are empty"):
        PromptSet(name="shapes", **{"calibration": ["a"], "evaluation": ["b"], field: []})


def test_the_index_stays_with_its_prompt() -> None:
    dataset = PromptDataset(["a", "b", "c", "d", "e"])
    loader = DataLoader(dataset, batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(1))
    pairs = [(int(i), prompt) for index, prompts in loader for i, prompt in zip(index, prompts, strict=True)]
    assert [i for i, _ in pairs] != [0, 1, 2, 3, 4] and sorted(pairs) == list(enumerate("abcde"))
    halves = [DistributedSampler(dataset, num_replicas=2, rank=rank, shuffle=False) for rank in range(2)]
    assert {dataset[i] for half in halves for i in half} == set(enumerate("abcde"))


def image_file(folder: Path) -> Path:
    Image.new("RGB", (4, 3), "red").save(folder / "first.png")
    return folder / "first.png"


def test_a_csv_gives_prompts_with_images_that_travel_as_texts(tmp_path):
    image_file(tmp_path)
    (tmp_path / "prompts.csv").write_text('prompt,image\n"a red, big star",first.png\n', encoding="utf-8")
    (prompt,) = load_prompts(tmp_path / "prompts.csv")
    assert prompt == "a red, big star" and json.dumps([prompt]) == '["a red, big star"]'
    assert prompt.opened().size == (4, 3)
    again = pickle.loads(pickle.dumps(prompt))
    assert again == prompt and again.image == tmp_path / "first.png"
    ((_, batch),) = DataLoader(PromptDataset([prompt]))
    assert batch[0].image == prompt.image
    assert described([prompt, "plain"]) == [["a red, big star", prompt.sha256], "plain"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt,picture\na,first.png\n", "has the columns .*, a CSV must have prompt,image"),
        ("prompt,image\n", "holds no prompt"),
        ("prompt,image\na red, big star,first.png\n", "row 2 must be one prompt, in quotes if it holds a comma"),
        ("prompt,image\na,\n", "row 2 must be one prompt"),
        ('prompt,image\n"a,first.png\n', "is no valid CSV at line"),
        ("prompt,image\na,second.png\n", "second.png of prompt 'a' cannot be read as an image"),
        ("prompt,image\na,prompts.csv\n", "prompts.csv of prompt 'a' cannot be read as an image"),
    ],
)
def test_a_csv_that_is_no_list_of_images_is_refused(tmp_path, content, message):
    image_file(tmp_path)
    (tmp_path / "prompts.csv").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_prompts(tmp_path / "prompts.csv")
