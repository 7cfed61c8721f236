"""QVD from the command line: its tables in the run folder, its distances among the metrics."""

import json

import pandas as pd

TABLES = ("coverage", "temporal_features", "timestep_table")
DISTANCES = {"fvd_fp16_shapes", "fvd_shapes"}


def test_run_folder_has_the_tables_and_the_distances(finished):
    folder = finished.run("quant=qvd", "metrics=shapes_fvd", "metrics.fvd.real.num_clips=4")
    tables = {name: pd.read_csv(folder / f"{name}.csv") for name in TABLES}
    assert len(tables["coverage"]) == 78 and set(tables["temporal_features"]["fqn"]) == {
        "t_embedder.mlp.2",
        "t_block.1",
    }
    assert tables["timestep_table"]["layers_not_needed"][0].split()[-1] == "t_block.1"
    result = json.loads((folder / "result.json").read_text())
    assert all(result[key] >= 0 for key in DISTANCES)
    assert (result["kind"], result["quantized_layers"]) == ("static", 80)
    assert not any(result["described"][key]["higher_is_better"] for key in DISTANCES)


def test_default_metrics_have_no_distance_of_sets(finished):
    result = json.loads((finished.run("quant=tsq_tsw") / "result.json").read_text())
    assert not DISTANCES & result.keys()
