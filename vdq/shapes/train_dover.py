"""Trains the testbed's small DOVER: ``python -m vdq.shapes.train_dover``. Goes on from the last checkpoint."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vdq.shapes.train import WEIGHTS, finish, fit, is_done
from vdq.shapes.training.dover import DoverTraining


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/shapes_training"), help="checkpoints")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="where the autoencoder is and the result goes")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings, e.g. steps=100")
    arguments = parser.parse_args()
    if is_done("dover", arguments.weights, arguments.workdir):
        print(f"dover: done, see {arguments.weights / 'dover.json'}")
        return
    settings = {name: json.loads(value) for name, value in (pair.split("=", 1) for pair in arguments.set)}
    module = DoverTraining(str(arguments.weights), **settings)
    card = fit("dover", module, arguments.workdir) | {"measured": module.measure()}
    finish("dover", {"dover": module.net}, card, arguments.weights, "python -m vdq.shapes.train_dover")


if __name__ == "__main__":
    main()
