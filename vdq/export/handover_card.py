"""The card of a folder that other programs load: what it is, how to load it, and what was lost."""

from __future__ import annotations

from collections.abc import Iterable

from vdq.diffusion.timesteps import described
from vdq.export.base import QuantizedRun
from vdq.export.card import kept_rows
from vdq.export.transformers import timesteps_of
from vdq.methods.base import Method

CARD = """# {run}

The denoiser of `{model}` quantized by vdq (`python run.py 'stages=[export]' export={export}`): {layers} linear layers
with {weight_bits}-bit weights and {act_bits}-bit activations, all else in the precision of the model.

| | |
|---|---|
| method | `quant={quant}` {settings} |
| schedule | {schedule} |{kept}
| run | `{run}`, signature `{signature}` |
{facts}

## Use

{use}

## What was lost

{lost}
{random}
Licence: these weights are derived from those of `{model}` and stay under their licence.
"""


def handover_card(run: QuantizedRun, export: str, *, use: str, facts: dict[str, str], lost: Iterable[str]) -> str:
    """Writes the card in Markdown. facts: further rows of the table, by name."""
    quant = run.config["quant"]
    layers = list(run.state.layers.values())
    settings = {key: value for key, value in quant.items() if key not in ("_target_", "name", *Method.neutral)}
    return CARD.format(
        run=run.name,
        signature=run.signature,
        model=run.config["model"]["name"],
        export=export,
        layers=len(layers),
        weight_bits=_numbers(layer.weight.bits for layer in layers),
        act_bits=_numbers(layer.act.bits for layer in layers),
        quant=quant["name"],
        settings=", ".join(f"{key}={value}" for key, value in settings.items()),
        schedule=_schedule(run),
        kept="".join(f"\n{row}" for row in kept_rows(run)),
        facts="\n".join(f"| {name} | {value} |" for name, value in facts.items()),
        use=use,
        lost="\n".join(f"- {line}" for line in lost),
        random="\nThe weights are random: this is for work on structure and speed.\n" if run.model.random else "",
    )


def _schedule(run: QuantizedRun) -> str:
    """Describes the schedule of calibration, and how far the parameters of a step are from it."""
    words = described(timesteps_of(run))
    if run.state.distance is None:
        return words
    apart = f"at most {run.state.distance.largest:.4g} away"
    return f"{words}; each step has the parameters of another timestep, {apart}, which costs quality"


def _numbers(values: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(set(values))))
