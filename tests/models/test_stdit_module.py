"""STDiT's own promises: names, gradients, captions without padding, dtypes and rejected input."""

import inspect
import json
import weakref
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vdq.models.stdit import CAPTION_ROWS, FusedLinear, STDiT, pack_captions

SMALL = dict(
    input_size=(2, 4, 6), hidden_size=32, depth=2, num_heads=4, caption_channels=8, model_max_length=5, mlp_ratio=2.0
)


@pytest.fixture
def model():
    """Small, with no zero-initialized layer left."""
    torch.manual_seed(0)
    model = STDiT(**SMALL)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 4, 2, 4, 6, generator=generator)
    y = torch.randn(3, 1, 5, 8, generator=generator)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    return x, torch.tensor([999, 421, 0]), y, mask


def test_thirteen_projections_of_a_block(model):
    names = []
    for fqn, module in model.blocks[0].named_modules():
        if isinstance(module, FusedLinear):
            names += [f"{fqn.rpartition('.')[0]}.{part}" for part in module.parts]
        elif isinstance(module, nn.Linear):
            names.append(fqn)
    attention = [f"{name}.{part}" for name in ("attn", "attn_temp") for part in ("q", "k", "v", "proj")]
    cross = ["cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj"]
    assert sorted(names) == sorted([*attention, *cross, "mlp.fc1", "mlp.fc2"])


def test_fused_linear_equals_its_rows():
    fused, x = FusedLinear(6, 12, parts=("q", "k", "v")), torch.randn(2, 3, 6)
    for number, part in enumerate(fused(x)):
        rows = slice(4 * number, 4 * number + 4)
        torch.testing.assert_close(part, F.linear(x, fused.weight[rows], fused.bias[rows]))


def test_gradient_reaches_every_parameter(model, inputs):
    model(*inputs).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_fresh_model_returns_zero(inputs):
    """Upstream's initialization."""
    assert STDiT(**SMALL)(*inputs).abs().max() == 0


def test_padding_never_reaches_kv_linear(model, inputs):
    x, t, y, mask = inputs
    seen = []
    model.blocks[1].cross_attn.kv_linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    output = model(x, t, y, mask)
    projected = model.y_embedder(y)[:, 0]
    expected = torch.cat([projected[row, : int(mask[row].sum())] for row in range(3)])
    copies = expected[-1:].expand(-len(expected) % CAPTION_ROWS, -1)  # so that no rounding depends on the batch
    torch.testing.assert_close(seen[0], torch.cat([expected, copies])[None])
    poisoned = torch.where(mask[:, None, :, None] != 0, y, torch.full_like(y, 1e4))
    assert torch.equal(output, model(x, t, poisoned, mask))


def test_kept_tokens_need_not_come_first(model, inputs):
    """Attention to a set of tokens does not depend on where in the row they stand."""
    x, t, y, mask = inputs
    model = model.double()  # in fp32, another order of the sums differs by up to 1e-4 on some CPUs
    torch.testing.assert_close(model(x, t, y.flip(2), mask.flip(1)), model(x, t, y, mask), atol=1e-5, rtol=1e-5)


def test_batch_rows_are_independent(model, inputs):
    model = model.double()
    together = model(*inputs)
    for row in range(3):
        alone = model(*(tensor[row : row + 1] for tensor in inputs))
        torch.testing.assert_close(alone, together[row : row + 1], atol=1e-5, rtol=1e-5)


def test_full_mask_equals_no_mask(model, inputs):
    x, t, y, mask = inputs
    model = model.double()
    torch.testing.assert_close(model(x, t, y, torch.ones_like(mask)), model(x, t, y), atol=1e-5, rtol=1e-5)


def test_bfloat16_does_not_round_the_timestep(model):
    """947 and 948 are one number in bf16; their embeddings must differ as the sinusoids of the two integers do."""
    timesteps = torch.tensor([947, 948])
    expected = model.t_embedder(timesteps)
    actual = model.to(torch.bfloat16).t_embedder(timesteps)
    assert actual.dtype == torch.bfloat16
    difference = (actual[0] - actual[1]).float()
    torch.testing.assert_close(difference, expected[0] - expected[1], atol=0.1 * expected.abs().max().item(), rtol=0)
    assert difference.abs().max() > 0


def test_bfloat16_weights_take_and_return_float32(model, inputs):
    expected = model(*inputs)
    actual = model.to(torch.bfloat16)(*inputs)
    assert actual.dtype == torch.float32
    assert (actual - expected).norm() < 0.05 * expected.norm()


def calls_of(model):
    """Counts the calls of every module by name while the model is used."""
    calls = Counter()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [True, False])
def test_prepared_inputs_change_no_bit(model, inputs, masked, dtype):
    """Oracle: the plain call, which the fixtures check. Twice each step, as in two batches of one schedule."""
    x, t, y, mask = inputs
    mask = mask if masked else None
    model.to(dtype).requires_grad_(False)
    steps = [t, t.flip(0), torch.full_like(t, 947)]
    expected = [model(x, step, y, mask) for step in steps]
    calls, times = calls_of(model), [model.prepare_timestep(step) for step in steps]
    for _ in range(2):
        captions = model.prepare(y, mask)
        for step, plain in zip(times, expected, strict=True):
            assert torch.equal(model(x, step, captions), plain)
    assert calls["blocks.1.mlp"] == 6
    assert calls["y_embedder"] == calls["blocks.0.cross_attn.kv_linear"] == calls["blocks.1.cross_attn.kv_linear"] == 2
    assert calls["t_embedder"] == calls["t_block"] == 3


def test_prepared_inputs_follow_a_cast_of_the_model(model, inputs):
    x, t, y, mask = inputs
    model.requires_grad_(False)
    time, captions = model.prepare_timestep(t), model.prepare(y, mask)
    outputs = []
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        outputs.append(model(x, time, captions))
        assert torch.equal(outputs[-1], model(x, t, y, mask))
    assert not torch.equal(*outputs)


def test_prepared_captions_are_freed_at_once(model, inputs):
    """Without the garbage collector, which knows nothing of a device's memory."""
    x, t, y, mask = inputs
    captions = model.requires_grad_(False).prepare(y, mask)
    memory = weakref.ref(captions.memory)
    model(x, t, captions)
    del captions
    assert memory() is None


def test_released_files_lack_only_the_position_tables(model):
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("pos_embed")}
    result = STDiT(**SMALL).load_state_dict(state, strict=False)
    assert sorted(result.missing_keys) == ["pos_embed", "pos_embed_temporal"] and not result.unexpected_keys


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_size": (2, 5, 6)}, r"input_size=\(2, 5, 6\)"),
        ({"hidden_size": 30}, "hidden_size=30"),
        ({"num_heads": 5}, "num_heads=5"),
    ],
)
def test_rejected_sizes(change, message):
    with pytest.raises(ValueError, match=message):
        STDiT(**SMALL | change)


def test_rejected_inputs(model, inputs):
    x, t, y, mask = inputs
    with pytest.raises(ValueError, match="x has shape"):
        model(x[..., :4], t, y, mask)
    with pytest.raises(ValueError, match="mask has shape"):
        model(x, t, y, mask[:2])
    with pytest.raises(ValueError, match="mask has shape"):
        pack_captions(y, mask[:, :4])
    with pytest.raises(ValueError, match="out_features=10"):
        FusedLinear(4, 10, parts=("q", "k", "v"))


def test_dimensions_build_the_same_structure():
    given = {
        "input_size": [2, 8, 12],
        "in_channels": 3,
        "patch_size": [2, 4, 4],
        "hidden_size": 40,
        "depth": 3,
        "num_heads": 5,
        "mlp_ratio": 2.5,
        "caption_channels": 10,
        "model_max_length": 7,
        "space_scale": 0.5,
        "time_scale": 2.0,
    }
    net = STDiT(**given)
    assert net.dimensions == given == json.loads(json.dumps(net.dimensions))
    with torch.device("meta"):
        assert STDiT().dimensions == {name: _plain(value.default) for name, value in _arguments().items()}


def _arguments():
    return {name: value for name, value in inspect.signature(STDiT.__init__).parameters.items() if name != "self"}


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
