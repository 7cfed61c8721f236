"""Groups of tokens against what the layers of a network really get, and their sizes against numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from vdq.methods import StaticPlusMethod
from vdq.methods.static_plus.token_groups import TOKEN_GROUPS, group_sizes, token_groups
from vdq.models.stdit import STDiT

WIDTH = 32
MARK = 100.0


@pytest.fixture(scope="module")
def net(small_stdit) -> STDiT:
    return small_stdit(hidden_size=WIDTH, num_heads=2, depth=1)


def marked(net: STDiT) -> dict[str, torch.Tensor]:
    """Inputs of the first layer of every branch, rows flattened, for tokens whose channels f and T + s tell that they
    are of frame f and position s; no branch changes them.
    """
    frames, positions = net.pos_embed_temporal.shape[1], net.pos_embed.shape[1]
    assert frames + positions <= WIDTH and frames != positions
    tokens = torch.zeros(2, frames, positions, WIDTH)
    for frame in range(frames):
        tokens[:, frame, :, frame] = MARK
    for position in range(positions):
        tokens[:, :, position, frames + position] = MARK
    block, seen = net.blocks[0], {}
    for name, parameter in block.named_parameters():
        if "proj" in name or "fc2" in name:
            nn.init.zeros_(parameter)
    names = ("attn.qkv", "attn_temp.qkv", "cross_attn.q_linear", "mlp.fc1")
    hooks = [
        block.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: args[0].flatten(0, -2)})
        )
        for name in names
    ]
    captions = net._captions(torch.zeros(2, 1, 6, 8), None)
    with torch.no_grad():
        block(tokens.flatten(1, 2), captions, torch.zeros(2, 6, WIDTH))
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("kind", TOKEN_GROUPS)
def test_groups_are_those_of_the_rows_that_layers_get(kind, net):
    frames, positions = net.pos_embed_temporal.shape[1], net.pos_embed.shape[1]
    found = token_groups(net, kind)
    first = {"attn.qkv": "attn.q", "attn_temp.qkv": "attn_temp.v"}
    for name, rows in marked(net).items():
        marks = rows[:, :frames] if kind == "frame" else rows[:, frames : frames + positions]
        groups = found[f"blocks.0.{first.get(name, name)}"]
        assert torch.equal(groups.of(torch.arange(len(rows))), marks.argmax(1)), name
        assert groups.count == marks.shape[1]
    for branch, name in (("attn", "k"), ("attn_temp", "q"), ("cross_attn", "q_linear"), ("mlp", "fc1")):
        last = "fc2" if branch == "mlp" else "proj"
        assert torch.equal(found[f"blocks.0.{branch}.{last}"].rows, found[f"blocks.0.{branch}.{name}"].rows)
    assert all(fqn.startswith("blocks.0.") and "kv_linear" not in fqn for fqn in found) and len(found) == 12


def test_sizes_equal_numpy():
    generator = torch.Generator().manual_seed(0)
    x, groups = torch.randn(2, 9, 5, generator=generator), torch.tensor([[0, 0, 1, 1, 1, 1, 3, 3, 3]] * 2)
    x[:, 6:] *= 7
    found = group_sizes(x, groups, 4).numpy()
    for step in range(2):
        values = x[step].double().numpy()
        for group in range(4):
            own = values[groups[step].numpy() == group]
            power = (np.square(own).sum() / 5 + np.square(values).mean()) / (len(own) + 1)
            assert found[step, group] == pytest.approx(np.sqrt(power), rel=1e-5)
    assert torch.equal(group_sizes(torch.zeros(1, 3, 2), torch.zeros(1, 3, dtype=torch.long), 2), torch.ones(1, 2))


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match="token_groups=frame needs a model with a known .*, Sequential has none"):
        StaticPlusMethod(token_groups="frame").layer_options(nn.Sequential(nn.Linear(2, 2)), {"0"})
