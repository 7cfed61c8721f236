"""Which layers store a shift for others, on a model whose fused projection has parts q, k and v."""

from dataclasses import replace

import torch

from vdq.quant import LinearParams, QParams, QuantState, model_size
from vdq.quant.sharing import shift_owners

STEPS = 3


def shifted(weight: torch.Tensor, shift: torch.Tensor | None) -> LinearParams:
    out = len(weight)
    return LinearParams(
        weight_bits=8,
        act_bits=8,
        weight=QParams(torch.ones(1, out, 1), torch.zeros(1, out, 1)),
        weight_range=torch.zeros(STEPS, dtype=torch.long),
        act=QParams(torch.ones(STEPS), torch.zeros(STEPS)),
        act_range=torch.arange(STEPS),
        shift=shift,
    )


def test_equal_tables_of_one_input_are_stored_once(small_stdit):
    net = small_stdit()
    qkv, fc1 = net.blocks[0].attn.qkv.weight.chunk(3), net.blocks[0].mlp.fc1.weight
    table = torch.randn(STEPS, 32, generator=torch.Generator().manual_seed(0))
    names = ("blocks.0.attn.q", "blocks.0.attn.k", "blocks.0.attn.v")
    layers = {name: shifted(weight, table.clone()) for name, weight in zip(names, qkv, strict=True)}
    layers["blocks.0.mlp.fc1"] = shifted(fc1, table)  # equal, but of another input
    assert shift_owners(net, layers) == dict.fromkeys(names, names[0]) | {"blocks.0.mlp.fc1": "blocks.0.mlp.fc1"}
    once = model_size(net, QuantState(layers, STEPS)).parameters

    changed = table.clone()
    changed[1, 4] = torch.nextafter(changed[1, 4], changed[1, 4] + 1)
    layers[names[1]] = shifted(qkv[1], changed)
    assert shift_owners(net, layers)[names[1]] == names[1] and shift_owners(net, layers)[names[2]] == names[0]
    twice = model_size(net, QuantState(layers, STEPS)).parameters
    assert round((twice - once) * 1e6) == table.numel() * 4

    layers[names[1]] = replace(layers[names[1]], shift=None)
    assert names[1] not in shift_owners(net, layers)
    assert round((once - model_size(net, QuantState(layers, STEPS)).parameters) * 1e6) == 0
