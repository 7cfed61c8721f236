"""Prompt files are built byte by byte, so what is expected is written beside them."""

import logging
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from vdq.data.prompts import PromptDataset, PromptSet, load_prompts


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
