"""Calibration: what observers record, how parts of it join, and its file."""

import numpy as np
import pytest
import torch
from pytorch_lightning.plugins.precision import HalfPrecision
from torch import nn

from vdq.diffusion.clock import StepClock
from vdq.models.stdit import FusedLinear
from vdq.quant.observers import Observer
from vdq.quant.stats import LayerStats, Stats

STEPS = 3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Module()
        self.attn.qkv = FusedLinear(6, 12, parts=("q", "k", "v"))
        self.text = nn.Linear(6, 4)
        self.kept = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.kept(self.attn.qkv(x)[0]).sum() + self.text(text).sum()


def inputs(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 5, 6, generator=generator) * (step + 1), torch.randn(1, 8, 6, generator=generator)


def calibrate(net: Net, batches: list[slice], **kwargs) -> Stats:
    clock = StepClock(STEPS)
    with Observer(net, clock, lambda fqn: fqn != "kept", lambda fqn: fqn == "text") as observer:
        for rows in batches:
            for step in range(STEPS):
                clock.set(step)
                x, text = inputs(step)
                net(x[rows], text[:, rows])
    return observer.stats(num_prompts=sum(len(range(8)[rows]) for rows in batches), **kwargs)


def test_statistics_equal_numpy():
    stats = calibrate(Net(), [slice(0, 8)], signature="abc")
    assert (stats.num_steps, stats.num_prompts, stats.signature) == (STEPS, 8, "abc")
    assert set(stats.layers) == {"attn.qkv", "text"}
    for step in range(STEPS):
        for fqn, tensor in zip(("attn.qkv", "text"), inputs(step), strict=True):
            x, layer = tensor.numpy(), stats.layers[fqn]
            np.testing.assert_array_equal(layer.min[step], x.min((0, 1)))
            np.testing.assert_array_equal(layer.max[step], x.max((0, 1)))
            # Specification 3.1: maximum over the tokens of a row, mean over rows; packed text is one row.
            np.testing.assert_allclose(layer.absmax[step], np.abs(x).max(1).mean(0), rtol=1e-6)
    assert layer.absmax.dtype == torch.float32


def test_batch_size_does_not_matter():
    net = Net()
    whole = calibrate(net, [slice(0, 8)])
    parts = calibrate(net, [slice(0, 3), slice(3, 7), slice(7, 8)])
    one_by_one = calibrate(net, [slice(row, row + 1) for row in range(8)])
    devices = calibrate(net, [slice(0, 2)]).merge(calibrate(net, [slice(2, 4)]), calibrate(net, [slice(4, 8)]))
    assert whole.num_prompts == parts.num_prompts == one_by_one.num_prompts == devices.num_prompts
    for fqn, layer in whole.layers.items():
        for other in (parts.layers[fqn], one_by_one.layers[fqn], devices.layers[fqn]):
            assert torch.equal(layer.min, other.min) and torch.equal(layer.max, other.max)
            assert torch.equal(layer.absmax, other.absmax) and torch.equal(layer.rows, other.rows)


def test_inputs_that_are_not_packed_are_averaged_over_all_rows():
    """Also those of a call with one row, which packed inputs have too."""
    x = torch.tensor([[[1.0, -4]], [[3, 2]], [[2, 0]]])  # rows of one token of two channels
    for batches in ([x], [x[:1], x[1:]], [x[:1], x[1:2], x[2:]], [x[:, 0]], [x[:1, 0], x[1:, 0]]):
        net, clock = nn.Linear(2, 2), StepClock(1)
        with Observer(net, clock, lambda fqn: True) as observer:
            for batch in batches:
                net(batch)
        layer = observer.stats(num_prompts=3).layers[""]
        assert layer.absmax.tolist() == [[2, 2]] and layer.rows.tolist() == [3]


def test_hooks_are_gone_afterwards():
    net = Net()
    calibrate(net, [slice(0, 8)])
    assert not any(module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(bad):
    net, clock = Net(), StepClock(STEPS)
    x, text = inputs(0)
    x[2, 3, 4] = bad
    clock.set(2)
    with (
        Observer(net, clock, lambda fqn: True),
        pytest.raises(ValueError, match="layer attn.qkv received NaN or infinite values at step 2"),
    ):
        net(x, text)


def test_a_step_without_input_is_refused():
    net, clock = Net(), StepClock(STEPS)
    with Observer(net, clock, lambda fqn: fqn != "kept") as observer:
        with pytest.raises(ValueError, match="layer attn.qkv saw no input during calibration"):
            observer.stats(num_prompts=1)
        net(*inputs(0))
    with pytest.raises(ValueError, match="layer .* saw no input at step 1"):
        observer.stats(num_prompts=1)


def test_half_precision_inputs_give_fp32_statistics():
    net, clock = nn.Linear(6, 2).half(), StepClock(1)
    x = inputs(0)[0].half()
    with Observer(net, clock, lambda fqn: True) as observer:
        net(x)
    layer = observer.stats(num_prompts=1).layers[""]
    assert layer.min.dtype == layer.max.dtype == layer.absmax.dtype == torch.float32
    np.testing.assert_array_equal(layer.max[0], x.float().numpy().max((0, 1)))


def test_file_round_trip(tmp_path):
    stats = calibrate(Net(), [slice(0, 8)], signature="abc")
    stats.save(tmp_path / "new" / "stats.safetensors")
    loaded = Stats.load(tmp_path / "new" / "stats.safetensors")
    assert (loaded.num_steps, loaded.num_prompts, loaded.signature) == (STEPS, 8, "abc")
    assert loaded.layers.keys() == stats.layers.keys()
    for fqn, layer in stats.layers.items():
        for name in ("min", "max", "abs_sum", "rows"):
            assert torch.equal(getattr(layer, name), getattr(loaded.layers[fqn], name))
    assert [fqn for fqn, layer in loaded.layers.items() if layer.packed] == ["text"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["stats.safetensors"]


def test_statistics_that_do_not_match_are_not_merged():
    with pytest.raises(ValueError, match="packed"):
        LayerStats.empty(2, 3).merge(LayerStats.empty(2, 3, packed=True))
    with pytest.raises(ValueError, match="signatures"):
        Stats({}, 2, 1, "a").merge(Stats({}, 2, 1, "b"))


def test_statistics_are_fp32_inside_a_half_precision_trainer():
    with HalfPrecision("16-true").predict_step_context():
        layer = LayerStats.empty(2, 3)
    assert (layer.min.dtype, layer.max.dtype, layer.abs_sum.dtype) == (torch.float32, torch.float32, torch.float64)
