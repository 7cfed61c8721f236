"""The card of a packed artefact: what it is, for whoever finds the folder."""

from __future__ import annotations

from collections import Counter
from typing import Any

from vdq.diffusion.timesteps import described, distance
from vdq.export.base import QuantizedRun
from vdq.methods.base import Method
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.parts import ActQuantizer, Branch, InputTransform, OutputTransform, WeightQuantizer

CARD = """# {run}

The denoiser of `{model}` quantized {kind}: {layers} linear layers with {bits}-bit weights. Made by vdq
(`python run.py 'stages=[export]' export=packed`).

| | |
|---|---|
| method | `quant={quant}` {settings} |
{parts}{kept}
| sampler | `{sampler}`, {schedule} |
| run | `{run}`, signature `{signature}` |
| made with | backend `{backend}` |

| part | bytes |
|---|---|
{sizes}
| together | {total:,} |
| the denoiser before | {full:,}, {ratio:.2f} times as much |
| the same in fp16 | {half:,}, {half_ratio:.2f} times as much |

```python
from vdq.export import packed
model = packed.load("PATH")     # needs no calibration and no full-precision weights
videos = model.video_model()    # text encoder and autoencoder, which are not in this folder
latents = model.sample(videos.encode(["a prompt"]), noise)    # on one machine, the bits of the run's model
```

`manifest.json` holds the configuration and the size and SHA-256 of every file.{random}

Licence: these weights are derived from those of `{model}` ({source}) and stay under their licence.
"""


def card(run: QuantizedRun, contents: dict[str, Any]) -> str:
    """Markdown."""
    config, layers = contents["config"], list(run.state.layers.values())
    quant, model = config["quant"], config["model"]
    static = all(quant.act.static for quant in layers)
    total = sum(contents["bytes"].values())
    settings = {key: value for key, value in quant.items() if key not in ("_target_", "name", *Method.neutral)}
    return CARD.format(
        run=run.name,
        signature=run.signature,
        model=model.get("name", model["_target_"]),
        kind="statically" if static else "dynamically",
        layers=len(layers),
        bits=", ".join(map(str, sorted({quant.weight.bits for quant in layers}))),
        quant=quant.get("name", quant["_target_"]),
        settings=", ".join(f"{key}={value}" for key, value in settings.items()),
        parts="\n".join(_lines(layers)),
        kept="".join(f"\n{line}" for line in kept_rows(run)),
        sampler=config["sampler"]["_target_"].rpartition(".")[2],
        schedule=_schedule(contents),
        backend=run.backend.arithmetic,
        sizes="\n".join(f"| {part} | {count:,} |" for part, count in contents["bytes"].items()),
        total=total,
        full=contents["full_precision_bytes"],
        ratio=contents["full_precision_bytes"] / total,
        half=contents["half_precision_bytes"],
        half_ratio=contents["half_precision_bytes"] / total,
        random="\n\nThe weights are random: this is for work on structure and speed." if run.model.random else "",
        source=_source(model.get("weights")),
    )


def _schedule(contents: dict[str, Any]) -> str:
    """Of the timesteps that the tables are for, and how far away those are that they were calibrated at."""
    words = f"{described(contents['timesteps'])}: the tables fit no other timesteps"
    if contents["calibrated"] is None:
        return words
    largest, mean = distance(contents["timesteps"], contents["calibrated"])
    apart = f"at most {largest:.4g} and on average {mean:.4g} away"
    return f"{words}; each step has the parameters of another timestep, {apart}, which costs quality"


def _lines(layers: list[LayerQuant]) -> list[str]:
    """A row for everything that the parts of layers say of themselves, with the number of layers that say it."""
    slots = {"inputs": InputTransform, "weights": WeightQuantizer, "activations": ActQuantizer}
    slots |= {"branches": Branch, "outputs": OutputTransform}
    rows = []
    for name, slot in slots.items():
        said = Counter(part.line for quant in layers for part in quant.parts if isinstance(part, slot))
        rows += [f"| {name} | {line} ({count} layers) |" for line, count in said.items()]
    return rows


def kept_rows(run: QuantizedRun) -> list[str]:
    """A row for the layers, and one for the steps, that the user wants in full precision."""
    quant, steps, lines = run.config["quant"], run.state.kept_steps, []
    if patterns := quant.get("keep"):
        count = sum(row.reason.startswith("quant.keep") for row in run.state.report)
        lines.append(f"| kept layers | {count} in full precision: {', '.join(f'`{each}`' for each in patterns)} |")
    if steps:
        numbers = ", ".join(map(str, steps))
        lines.append(f"| kept steps | {numbers} of 0..{run.state.num_steps - 1} in full precision |")
    return lines


def _source(weights: Any) -> str:
    """Where the denoiser came from; the weights that ship with the package if nothing else is said."""
    denoiser = weights.get("denoiser") if isinstance(weights, dict) else weights
    return f"`{denoiser}`" if denoiser else "the weights that ship with vdq, Apache-2.0"
