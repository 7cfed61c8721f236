"""Which share of a model's arithmetic linears and attention have: ``python -m vdq.commands.flops_models FILE``.

Counted on tensors without data, so nothing is downloaded and no weight is made.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from vdq.benchmark.work import Shares, shares
from vdq.commands.sizes_models import composed, overrides, write_page
from vdq.diffusion.samplers import Sampler
from vdq.models.base import VideoModel
from vdq.models.one_block import Call
from vdq.models.pipelines.one_block import first_blocks, video_tokens
from vdq.reports.text import markdown
from vdq.stages.experiment import Experiment

TEXT = """# Where the arithmetic of published models is

Of one call of the denoiser for one video, without guidance's second one, at the model's own size: tokens of the video,
operations of all matrix products (two a multiply-add, in 1e12), and the share of the linears that are quantized and of
attention; the rest is embedders and modulation. The last column is how much faster a call becomes at most when these
linears take half their time and nothing else changes: integers in linears alone save memory on large videos, and little
time.

{table}

Counted with `torch.utils.flop_counter` on tensors without data. Written by `python -m vdq.commands.flops_models`.
{missing}"""


def counted(name: str) -> tuple[int, Shares]:
    """Tokens and shares of a named model, at the size and steps of its configuration. Raises RuntimeError where its
    code asks for data.
    """
    experiment = Experiment(composed(*overrides(name), "logger=csv"))
    return of_model(experiment.model, experiment.sampler)


def of_model(model: VideoModel, sampler: Sampler) -> tuple[int, Shares]:
    """Tokens of one video and the shares of its call."""
    net, prefix = model.structure, ""
    if len(model.denoisers) > 1:
        net, prefix = net[model.denoisers[0]], f"{model.denoisers[0]}."

    def quantizable(fqn: str) -> bool:
        return model.quantizable(prefix + fqn)

    def without_data(tensor: Tensor) -> Tensor:
        return tensor.to("meta", torch.float32 if tensor.is_floating_point() else tensor.dtype)

    # Not the method of diffusers' models, which warns.
    net = nn.Module.to(copy.deepcopy(net), "meta", torch.float32)
    given = model.first_call(sampler) if model.makes_blocks else Call(model.family.example_inputs(net), {})
    call = tree_map_only(Tensor, without_data, given)
    rows, tokens, _ = video_tokens(net, call, first_blocks(net, quantizable)[0])
    found = shares(net, lambda: net(*call.args, **call.named), quantizable)
    return tokens, found._replace(all=found.all // rows)


def table(found: dict[str, tuple[int, Shares]]) -> pd.DataFrame:
    """One row a model."""
    rows = [
        {
            "model": name,
            "tokens": f"{tokens:,}",
            "TFLOP": f"{of.all / 1e12:,.0f}",
            "linears": f"{of.linear:.0%}",
            "attention": f"{of.attention:.0%}",
            "at most": f"{of.limit:.2f}x",
        }
        for name, (tokens, of) in found.items()
    ]
    return pd.DataFrame(rows)


def page(names: Iterable[str]) -> str:
    """Markdown, of these models."""
    found, missing = {}, []
    for name in names:
        try:
            found[name] = counted(name)
        except (RuntimeError, NotImplementedError) as error:  # of code that needs to see numbers
            missing.append(f"\n{name} cannot be counted so: {str(error).splitlines()[0].rstrip('.')}.\n")
    return TEXT.format(table=markdown(table(found)), missing="".join(missing))


if __name__ == "__main__":
    write_page(__doc__, page)
