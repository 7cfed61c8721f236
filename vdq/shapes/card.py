"""The cards of the testbed's weights as one table: ``python -m vdq.shapes.card FILE``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd

from vdq.files import write_text

WEIGHTS = Path(__file__).parent / "weights"
PARTS = ("autoencoder", "clip", "denoiser", "dover")
NOTE = "Written by `python -m vdq.shapes.card`."


def table(weights: Path = WEIGHTS) -> str:
    """Markdown with one row a trained network: parameters, training, and what was measured."""
    cards = [json.loads((weights / f"{part}.json").read_text()) for part in PARTS]
    rows = [
        {
            "network": name,
            "parameters": f"{parameters:,}",
            "MB": f"{card['bytes'][f'{name}.safetensors'] / 1e6:.1f}",
            "steps": card["settings"]["steps"],
            "batch": card["settings"]["batch_size"],
            "final loss": f"{card['final_loss']:.4f}",
            "measured on held-out renderings": ", ".join(f"{k} {v:.4g}" for k, v in card.get("measured", {}).items())
            or "–",
        }
        for card in cards
        for name, parameters in card["parameters"].items()
    ]
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), f"# Weights of the testbed\n\n{table()}\n\n{NOTE}\n")
