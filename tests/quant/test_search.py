"""Layer-output errors against numpy, and the recorder against what really went into the layers."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.flat_layers import flat
from vdq.backends import FakeQuantBackend
from vdq.diffusion.clock import StepClock
from vdq.methods.static import StaticMethod
from vdq.quant.batch_layout import BatchLayout
from vdq.quant.linear import LayerSpec
from vdq.quant.search import ROWS, InputRecorder, output_error
from vdq.quant.stats import LayerStats

STEPS, CHANNELS, OUT = 4, 6, 5


def stats_of(x):
    """[steps, rows, C] as one row a step."""
    return LayerStats(x.amin(1), x.amax(1), x.abs().amax(1).double(), torch.ones(STEPS, dtype=torch.long))


@pytest.fixture
def layer():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(STEPS, 32, CHANNELS, generator=generator) * torch.tensor([1, 1, 8, 1, 0.2, 1.0])
    return torch.randn(OUT, CHANNELS, generator=generator), x


@pytest.mark.parametrize("alpha", [None, 0.5])
@pytest.mark.parametrize("ranges", [1, "per_step"])
def test_error_equals_numpy(layer, alpha, ranges):
    weight, x = layer
    method = StaticMethod(weight_bits=4, act_bits=5, num_time_ranges=ranges, alpha=alpha)
    quant = method.layer(weight, stats_of(x), STEPS)
    params = flat(quant)
    found = output_error(weight, quant, {step: x[step] for step in (0, 3)})

    def fake(values, scale, zero, bits):
        return (np.clip(np.rint(values / scale) + zero, 0, 2**bits - 1) - zero) * scale

    w = weight.double().numpy()
    error = norm = 0.0
    for step in (0, 3):
        k = int(params.weight_range[step])
        s = np.ones(CHANNELS) if alpha is None else params.smoothing[k].double().numpy()
        inputs = x[step].double().numpy()
        wq = fake(w * s, params.weight.scale[k].double().numpy(), params.weight.zero_point[k].double().numpy(), 4)
        a = int(params.act_range[step])
        xq = fake(inputs / s, params.act.scale[a].item(), params.act.zero_point[a].item(), 5)
        error += ((xq @ wq.T - inputs @ w.T) ** 2).sum()
        norm += ((inputs @ w.T) ** 2).sum()
    assert found == pytest.approx(error / norm, rel=2e-3)


def test_more_bits_are_nearer(layer):
    weight, x = layer
    inputs = {step: x[step] for step in range(STEPS)}
    errors = [
        output_error(
            weight, StaticMethod(weight_bits=b, act_bits=b, alpha=0.5).layer(weight, stats_of(x), STEPS), inputs
        )
        for b in (4, 6, 8)
    ]
    assert errors[0] > 5 * errors[1] > 25 * errors[2] > 0


def test_recorder_keeps_rows_of_chosen_steps_only():
    net, clock = nn.Sequential(nn.Linear(CHANNELS, OUT), nn.Linear(OUT, 2)), StepClock(STEPS)
    batches = torch.randn(STEPS, 2, 7, CHANNELS, generator=torch.Generator().manual_seed(1))
    with InputRecorder(net, clock, lambda fqn: fqn == "0", steps=[1, 3]) as recorder:
        for step in range(STEPS):
            clock.set(step)
            net(batches[step])
    net(batches[0])  # outside
    assert recorder.inputs.keys() == {"0"} and recorder.inputs["0"].keys() == {1, 3}
    kept = recorder.inputs["0"][3]
    assert kept.shape == (ROWS, CHANNELS)
    rows = batches[3].flatten(0, 1)
    assert torch.equal(rows[recorder.places["0"][3]], kept)
    assert len(recorder.places["0"][3].unique()) > 7  # of all 14


PARTS = [
    "shift",
    "rotation",
    "bits",
    "groups",
    "codes",
    "shift correction",
    "branch",
    "shift rotation correction bits codes branch groups",
]


@pytest.mark.parametrize("parts", PARTS)
def test_error_is_that_of_the_layer(layer, parts, extended):
    """The executed layer's, which tests/quant/test_transform.py compares with numpy."""
    weight, x = layer
    weight, x = weight.repeat(1, 4), x.repeat(1, 1, 4)  # channels that blocks of 8 divide
    method = StaticMethod(weight_bits=4, act_bits=5, num_time_ranges="per_step", alpha=0.5)
    params = extended(method.layer(weight, stats_of(x), STEPS), weight, 8, parts)
    spec = LayerSpec("fc", weight, None, params, StepClock(STEPS), BatchLayout())
    module, error, norm = FakeQuantBackend().layer(spec), 0.0, 0.0
    for step in (0, 3):
        spec.clock.set(step)
        y = x[step].double().numpy() @ weight.double().numpy().T
        error += ((module(x[step]).double().numpy() - y) ** 2).sum()
        norm += (y**2).sum()
    found = output_error(weight, params, {step: x[step] for step in (0, 3)})
    assert found == pytest.approx(error / norm, rel=1e-2)


def test_single_rows_have_no_group(layer, extended):
    weight, x = layer
    params = extended(StaticMethod().layer(weight, stats_of(x), STEPS), weight, 8, "groups")
    with pytest.raises(ValueError, match="act_group is for videos of 8 token rows, got 31 rows"):
        output_error(weight, params, {0: x[0, :31]})
