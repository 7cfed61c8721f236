"""Which layers are what, by the patterns of a family, and how a denoiser's family is found."""

import pytest
import torch
from torch import nn

from vdq.models.family import Family, family_of, register
from vdq.models.stdit import STDiT
from vdq.models.stdit_family import STDIT, example_inputs
from vdq.quant import projections


class Subclass(STDiT):
    pass


def small(kind: type[STDiT] = STDiT) -> STDiT:
    return kind(input_size=(2, 4, 4), hidden_size=8, depth=2, num_heads=2, caption_channels=8, model_max_length=6)


def test_the_family_is_that_of_the_class_or_of_one_it_extends():
    assert family_of(small()) is family_of(small(Subclass)) is STDIT
    assert family_of(nn.Linear(1, 1)) is None


def test_classes_of_one_name_have_the_families_of_their_packages():
    ours, theirs = (type("Denoiser", (nn.Linear,), {"__module__": package}) for package in ("ours", "theirs"))
    family = register(Family(name="ours", denoisers=("ours.Denoiser",), quantizable=("*",)))
    assert family_of(ours(1, 1)) is family and family_of(theirs(1, 1)) is None
    with pytest.raises(ValueError, match="package.Denoiser"):
        register(Family(name="bare", denoisers=("Denoiser",), quantizable=("*",)))


def test_linears_of_the_blocks_are_quantizable_and_captions_are_packed():
    net = small()
    chosen = [p for p in projections(net) if STDIT.is_quantizable(p.fqn)]
    assert len(chosen) == 2 * 13 and all(p.fqn.startswith("blocks.") for p in chosen)
    packed = {p.input_fqn for p in chosen if STDIT.is_packed(p.input_fqn)}
    assert packed == {f"blocks.{number}.cross_attn.kv_linear" for number in range(2)}
    assert set(STDIT.token_orders(net)) | packed == {p.fqn for p in chosen}


def test_packed_lengths_are_those_of_the_tokens_that_the_layer_gets():
    """The rows of the null caption take those of their prompts; copies that fill the row up belong to the last."""
    net, seen = small(), []
    net.blocks[0].cross_attn.kv_linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    x, timestep, y = (torch.cat([part] * 4) for part in example_inputs(net))
    mask = torch.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]])
    net(x, timestep, y, mask)
    lengths = net.packed_lengths(x, timestep, y, mask)
    assert lengths.tolist() == [2, 5, 2, 5] and seen[0][0] == 1 and seen[0][1] >= lengths.sum()
    assert net.packed_lengths(x, timestep, net.prepare(y, mask)).tolist() == [2, 5, 2, 5]
    assert net.packed_lengths(x, timestep, y).tolist() == [6] * 4
