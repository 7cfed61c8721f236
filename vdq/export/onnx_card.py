"""The card of an `onnx_qdq` artefact: what the graphs take and give, and what a session has to set."""

from __future__ import annotations

from typing import Any

from vdq.export.base import QuantizedRun
from vdq.export.onnx_runtime import NULL_CAPTION

UINT8, INT8 = "uint8", "int8"
CARD = """# {run}

The denoiser of `{model}`, quantized statically: `quant={quant}`, {weight_bits}-bit weights per output channel,
{act_bits}-bit activations per tensor. Made by vdq:
`python run.py 'stages=[export]' export=onnx_qdq export.steps={steps} export.weight_type={weight_type}`.

ONNX opset 21, IR version 10. One prompt a call: `x` fp32 {x}, its two rows are the same latents; `timestep` int64 [2];
`y` fp32 {y}, the features of the caption and the null caption (`{null}`); `mask` int64 {mask}, 1 where a token of the
caption counts. {step} `output` fp32 {output}: noise estimate, then variance logits.

The {count} graph(s) read their tensors from `denoiser.data`; `manifest.json` names the graph of every step of
`{sampler}`, and holds the configuration and the SHA-256 of every file. The graphs fit no other sampler or step count.

```
python -m vdq.export.sample PATH --prompt "..."
```

## In a session of your own

{session}
{random}
Licence: these weights are derived from those of `{model}` and stay under their licence.
"""
TRANSFORMER_CARD = """# {run}

The denoiser of `{model}`, quantized statically: `quant={quant}`, {weight_bits}-bit weights per output channel,
{act_bits}-bit activations per tensor. Made by vdq:
`python run.py 'stages=[export]' export=onnx_qdq export.steps={steps} export.weight_type={weight_type}`.

ONNX opset 21, IR version 10. A graph takes the tensors of one call of the transformer in its pipeline, for one prompt,
by the names of its arguments; of an argument that is a tuple, the name is followed by the place of each tensor:

| input | type | shape |
|---|---|---|
{inputs}

{step} The output is `output` fp32, what the transformer returns.

The {count} graph(s) read their tensors from `denoiser.data` beside them; `manifest.json` names the graph of every step
of the run's scheduler, and holds the configuration and the SHA-256 of every file.

```
python -m vdq.export.sample PATH --prompt "..."
```

## What was lost

- Other sizes, numbers of frames and tokens, schedules and step counts: the graphs fit no others. {fixed}
- The dtype: all but the quantized products is fp32.
- Whatever is not a transformer: text encoder, autoencoder, scheduler, guidance.

## In a session of your own

{session}
{random}
Licence: these weights are derived from those of `{model}` and stay under their licence.
"""
STEP = "`step` int64 scalar, the number of the denoising step, where a graph has this input."
NO_STEP = "No graph takes the step: every scale is a constant."
NOTES = {
    UINT8: "right in every session; export.weight_type=int8 lets CPUs with VNNI use it",
    INT8: "a session on x86 without VNNI needs session.x64quantprecision=1, see the README.md of the artefact",
}
UNSIGNED = """\
There is nothing to set. The 8-bit weights are uint8, which ONNX Runtime multiplies exactly on every CPU, and OpenVINO
in floating point. CPUs with VNNI are faster with `export.weight_type=int8`, and phones need that."""
NARROW = """\
There is nothing to set. With so few bits no sum of products saturates, whatever the CPU."""
SIGNED = """\
**x86 without VNNI needs a setting.** The 8-bit weights are int8. CPUs with AVX2 or AVX-512 but without VNNI (Intel's
servers before Cascade Lake, AMD before Zen 4; `lscpu | grep -E 'avx512_vnni|avx_vnni'` finds nothing there) add their
products with uint8 inputs two by two in 16 bits. These sums saturate, and the output is wrong without an error. There,
and only there, as it makes VNNI idle:

```python
options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.x64quantprecision", "1")  # ONNX Runtime stays in integers
compiled = core.compile_model(model, "CPU", {"LP_TRANSFORMS_MODE": False})  # OpenVINO computes in floating point
```

`vdq.export.onnx_session.open_session` finds out whether a CPU needs this; `vdq.export.sample` uses it. No session gets
an export with `export.weight_type=uint8` wrong, nor one of a run with `bits.weight=7`."""


def card(run: QuantizedRun, contents: dict[str, Any], *, saturating: bool) -> str:
    """Writes the card of an STDiT. saturating: whether sums of products would leave 16 bits with int8 weights."""
    channels, *size = run.model.latent_shape
    length, width = run.denoiser.y_embedder.y_embedding.shape
    return CARD.format(
        x=[2, channels, *size],
        y=[2, 1, length, width],
        null=NULL_CAPTION,
        mask=[1, length],
        output=[2, 2 * channels, *size],
        sampler=run.config["sampler"]["_target_"].rpartition(".")[2],
        **_common(run, contents, saturating),
    )


def transformer_card(run: QuantizedRun, contents: dict[str, Any], *, saturating: bool) -> str:
    """Writes the card of transformers of diffusers."""
    inputs = [f"| `{name}` | {dtype} | {shape} |" for name, (dtype, shape) in contents["inputs"].items()]
    fixed = ", ".join(f"{name}={value}" for name, value in contents["fixed"].items())
    return TRANSFORMER_CARD.format(
        inputs="\n".join(inputs),
        fixed=f"Fixed as well: {fixed}." if fixed else "",
        **_common(run, contents, saturating),
    )


def _common(run: QuantizedRun, contents: dict[str, Any], saturating: bool) -> dict[str, Any]:
    quant = next(iter(run.state.layers.values()))
    return {
        "run": run.name,
        "model": run.config["model"]["name"],
        "quant": run.config["quant"]["name"],
        "weight_bits": quant.weight.bits,
        "act_bits": quant.act.bits,
        "steps": contents["steps"],
        "weight_type": contents["weight_type"] if saturating else "null",
        "step": STEP if contents["steps"] == "gather" else NO_STEP,
        "count": len(set(contents["graphs"])),
        "session": {UINT8: UNSIGNED, INT8: SIGNED}[contents["weight_type"]] if saturating else NARROW,
        "random": "\nThe weights are random: this is for work on structure and speed.\n" if run.model.random else "",
    }
