"""Logging without W&B."""

import warnings

import pandas as pd
import yaml

from vdq.tracking.csv import CsvTracker


def test_configuration_and_metrics_are_written_each_time(tmp_path):
    for value in (0.5, 0.25):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            CsvTracker().log(tmp_path, {"quant": {"alpha": 0.5}}, {}, {"psnr": value}, pd.DataFrame(), pd.DataFrame())
        assert pd.read_csv(tmp_path / "csv" / "metrics.csv")["psnr"].tolist() == [value]
    assert yaml.safe_load((tmp_path / "csv" / "hparams.yaml").read_text())["quant"] == {"alpha": 0.5}
