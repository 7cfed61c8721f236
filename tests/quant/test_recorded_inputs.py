"""Recorded inputs: what is kept, and what is refused; the probe against numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from vdq.diffusion.clock import StepClock
from vdq.quant import LayerStats, Stats
from vdq.quant.probe import BITS, StepProbe
from vdq.quant.recorded_inputs import RecordedInputs


def recorded(signature: str = "s", **inputs: torch.Tensor) -> RecordedInputs:
    return RecordedInputs.of_steps(
        {fqn: dict(enumerate(x)) for fqn, x in inputs.items()},
        {fqn: dict(enumerate(torch.arange(x[..., 0].numel()).view(x.shape[:2]))) for fqn, x in inputs.items()},
        torch.tensor([1.0, 2.0]),
        torch.tensor([0, 0.5]),
        signature,
    )


def test_file_holds_everything(tmp_path):
    x = torch.randn(2, 5, 3)
    recorded(a=x).save(tmp_path / "samples.safetensors")
    found = RecordedInputs.load(tmp_path / "samples.safetensors")
    torch.testing.assert_close(found.layer("a").inputs.float(), x, rtol=2**-10, atol=1e-6)
    assert found.layer("a").step_error.tolist() == [1, 2] and found.layer("a").step_change.tolist() == [0, 0.5]
    assert found.layer("a").places.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert found.signature == "s"
    with pytest.raises(ValueError, match="no inputs of layer b were recorded"):
        found.layer("b")


def test_files_of_earlier_versions_are_refused(tmp_path):
    """They are then recorded again (vdq.stages.calibrate)."""
    path = tmp_path / "samples.safetensors"
    replace(recorded(a=torch.randn(2, 5, 3)), places={}).save(path)
    with pytest.raises(ValueError, match="samples.safetensors has no places of its inputs, an earlier version wrote"):
        RecordedInputs.load(path)


def test_large_inputs_are_refused_by_name():
    with pytest.raises(ValueError, match="layer big has inputs beyond 65504"):
        recorded(big=torch.full((2, 1, 1), 7e4))


def test_statistics_take_samples_of_their_own_calibration():
    stats = Stats({"a": LayerStats.empty(2, 3)}, num_steps=2, num_prompts=1, signature="s")
    assert stats.layers["a"].recorded is None
    layer = stats.with_inputs(recorded(a=torch.randn(2, 5, 3))).layers["a"].to("cpu")
    assert layer.recorded.inputs.shape == (2, 5, 3)
    with pytest.raises(ValueError, match="recorded inputs have signature=t, must be s as the statistics"):
        stats.with_inputs(recorded("t", a=torch.randn(2, 5, 3)))


def test_probe_quantizes_one_step_only():
    clock, net = StepClock(2), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).requires_grad_(False)
    x = torch.randn(3, 4)
    plain = net(x)
    with StepProbe(net, clock, lambda fqn: fqn == "1", step=1):
        assert torch.equal(net(x), plain)
        clock.set(1)
        probed = net(x)
    assert torch.equal(net(x), plain)
    hidden = net[0](x).numpy().astype(np.float64)
    lo, hi = min(hidden.min(), 0), max(hidden.max(), 0)
    scale = (hi - lo) / (2**BITS - 1)
    zero = np.rint(-lo / scale)
    rounded = (np.clip(np.rint(hidden / scale) + zero, 0, 2**BITS - 1) - zero) * scale
    expected = rounded @ net[1].weight.double().numpy().T + net[1].bias.double().numpy()
    np.testing.assert_allclose(probed.numpy(), expected, atol=1e-5)
