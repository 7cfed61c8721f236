"""Tables say when their rows come from different versions of the code."""

import pandas as pd
import pytest

from vdq.tracking.versions import newest, versions_note

ONE, TWO = {"samples": 1, "quant.asq": 1}, {"samples": 1, "quant.asq": 2}
OTHER = {"samples": 1, "quant.tsw": 3}  # another method has numbers of its own


@pytest.mark.parametrize(
    ("versions", "told"),
    [
        ([], ""),
        ([ONE, ONE, OTHER], ""),
        ([None, None], ""),
        ([ONE, TWO, OTHER], "**Versions differ**, and numbers may with them: quant.asq (1 and 2)."),
        ([ONE, None], "**Versions differ**, and numbers may with them: 1 of 2 runs are of an earlier version."),
    ],
)
def test_different_versions_of_the_same_code_are_told(versions, told):
    assert versions_note(pd.DataFrame({"versions": versions})) == told
    assert versions_note(pd.DataFrame({"signature": ["a"]})) == ""  # results of before versions were kept


def test_runs_of_an_earlier_version_are_left_out_where_later_ones_are_there():
    runs = pd.DataFrame({"signature": list("abcd"), "versions": [ONE, TWO, OTHER, None]})
    assert newest(runs)["signature"].tolist() == ["b", "c", "d"]
    assert newest(runs.iloc[[0, 2]])["signature"].tolist() == ["a", "c"]
    assert newest(pd.DataFrame({"signature": ["a"]}))["signature"].tolist() == ["a"]
