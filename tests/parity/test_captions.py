"""Caption cleaning against Open-Sora's own, recorded in t5_clean.json."""

import json
from pathlib import Path

import pytest

from vdq.models.captions import clean


def test_cleaning_equals_upstream(fixtures: Path) -> None:
    path = fixtures / "opensora" / "t5_clean.json"
    if not path.is_file():
        pytest.skip("the fixtures have no opensora/t5_clean.json")
    cases = json.loads(path.read_text())["cases"]
    assert len(cases) > 0
    assert {case["input"]: clean(case["input"]) for case in cases} == {case["input"]: case["output"] for case in cases}
