"""From a sampled grid of alphas to the chosen ones, and the ranking without sampling."""

import pandas as pd
import pytest
import yaml

from vdq.commands import choose_alpha
from vdq.reports import alpha


@pytest.fixture
def grid(testbed, monkeypatch, tmp_path):
    """A testbed whose grid has two alphas of one method, and a place for the choice that is not conf/."""
    monkeypatch.setattr(choose_alpha, "CONF", tmp_path / "conf")
    for module in (choose_alpha, alpha, __import__("vdq.commands.search_alpha", fromlist=["run"])):
        for name, value in {"GRID": (0.2, 0.5, 0.8), "METHODS": ("asq",), "WIDTHS": ("w4a4",)}.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    return testbed


def test_grid_is_sampled_chosen_from_and_ranked(grid, tmp_path, capsys):
    with pytest.raises(ValueError, match="lacks 3 runs of the grid of alphas; `python run.py -m experiment=alpha`"):
        grid.run("stages=[choose_alpha]")
    grid.run("stages=[search_alpha]")
    assert "was not sampled yet" in capsys.readouterr().out
    for value in (0.2, 0.5, 0.8):
        grid.run("quant=asq", "bits=w4a4", f"quant.alpha={value}")
    grid.run("stages=[choose_alpha]")
    results = grid.runs / "results" / "shapes"
    table = pd.read_csv(results / "alpha.csv")
    chosen = yaml.safe_load((tmp_path / "conf" / "alpha" / "shapes.yaml").read_text())
    best = chosen["asq"]
    assert chosen == {"asq": best} and best in table["alpha"].tolist()
    assert f"Chosen: **asq {best}**" in (results / "alpha.md").read_text() and (results / "alpha.png").exists()
    capsys.readouterr()
    grid.run("stages=[search_alpha]")
    output = capsys.readouterr().out
    assert "with CLIPSIM" in output and "with PSNR" in output
    ranked = pd.read_csv(results / "search_alpha.csv")
    assert ranked["alpha"].tolist() == [0.2, 0.5, 0.8] and ranked["output_db"].between(0, 60).all()
