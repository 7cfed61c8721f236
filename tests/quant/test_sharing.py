"""Which names tensors of layers are stored under, on a model whose fused projection has parts q, k and v."""

import torch

from tests.flat_layers import changed, layer_quant
from vdq.quant import LayerQuant, QParams, QuantState, model_size, projections
from vdq.quant.sharing import SharedTensors

STEPS = 3
NAMES = ("blocks.0.attn.q", "blocks.0.attn.k", "blocks.0.attn.v")
FC1 = "blocks.0.mlp.fc1"


def shifted(weight: torch.Tensor, shift: torch.Tensor | None) -> LayerQuant:
    out = len(weight)
    return layer_quant(
        weight=QParams(torch.ones(1, out, 1), torch.zeros(1, out, 1)),
        weight_range=torch.zeros(STEPS, dtype=torch.long),
        act=QParams(torch.ones(STEPS), torch.zeros(STEPS)),
        act_range=torch.arange(STEPS),
        shift=shift,
    )


def owners(net: torch.nn.Module, layers: dict[str, LayerQuant]) -> dict[str, str]:
    """Of every shift: the layer that stores it."""
    shared, found = SharedTensors(), {}
    for p in projections(net, layers.__contains__):
        stored = shared.stored_as(p, layers[p.fqn])
        if f"{p.fqn}.shift.values" in stored:
            found[p.fqn] = stored[f"{p.fqn}.shift.values"].removesuffix(".shift.values")
    return found


def test_equal_tables_of_one_input_are_stored_once(small_stdit):
    net = small_stdit()
    qkv, fc1 = net.blocks[0].attn.qkv.weight.chunk(3), net.blocks[0].mlp.fc1.weight
    table = torch.randn(STEPS, 32, generator=torch.Generator().manual_seed(0))
    layers = {name: shifted(weight, table.clone()) for name, weight in zip(NAMES, qkv, strict=True)}
    layers[FC1] = shifted(fc1, table)  # equal, but of another input
    assert owners(net, layers) == dict.fromkeys(NAMES, NAMES[0]) | {FC1: FC1}
    once = model_size(net, QuantState(layers, STEPS)).parameters

    other = table.clone()
    other[1, 4] = torch.nextafter(other[1, 4], other[1, 4] + 1)
    layers[NAMES[1]] = shifted(qkv[1], other)
    assert owners(net, layers) == {NAMES[0]: NAMES[0], NAMES[1]: NAMES[1], NAMES[2]: NAMES[0], FC1: FC1}
    twice = model_size(net, QuantState(layers, STEPS)).parameters
    assert round((twice - once) * 1e6) == table.numel() * 4

    layers[NAMES[1]] = changed(layers[NAMES[1]], shift=None)
    assert NAMES[1] not in owners(net, layers)
    assert round((once - model_size(net, QuantState(layers, STEPS)).parameters) * 1e6) == 0


def test_parts_of_one_layer_store_a_table_once(small_stdit):
    net = small_stdit()
    (p,) = projections(net, lambda fqn: fqn == FC1)
    quant = shifted(p.weight, torch.zeros(STEPS, 32))
    stored = SharedTensors().stored_as(p, quant)
    assert stored[f"{FC1}.static.steps"] == stored[f"{FC1}.shift.steps"] == f"{FC1}.shift.steps"
    assert stored[f"{FC1}.affine.steps"] == f"{FC1}.affine.steps"
