"""A quantized copy of a model, the file of its parameters, and the report about it."""

import copy
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from scipy.linalg import hadamard
from torch import nn

from tests.flat_layers import flat
from vdq.backends import FakeQuantBackend
from vdq.diffusion.clock import StepClock
from vdq.methods import DynamicMethod, FullPrecisionMethod, StaticMethod
from vdq.models.stdit import FusedLinear
from vdq.quant import CallCounter, LayerStats, Observer, QuantState, Stats, apply, model_size, quantized_layers
from vdq.quant.report import layer_reports

STEPS = 4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Module()
        self.attn.qkv = FusedLinear(6, 12, parts=("q", "k", "v"))
        self.fc = nn.Linear(4, 5)
        self.head = nn.Linear(5, 2)
        self.conv = nn.Conv1d(2, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.attn.qkv(x)
        return self.conv(self.head(self.fc(q * k + v)).transpose(1, 2))


def quantizable(fqn: str) -> bool:
    return fqn not in ("head", "attn.v")


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False)


def data(step: int) -> torch.Tensor:
    return torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(step)) * (step + 1)


@pytest.fixture(scope="module")
def stats(net: Net) -> Stats:
    clock = StepClock(STEPS)
    with Observer(net, clock, quantizable) as observer:
        for step in range(STEPS):
            clock.set(step)
            net(data(step))
    return observer.stats(num_prompts=3)


def convert(net: Net, stats: Stats | None, method=None) -> QuantState:
    method = method or StaticMethod(weight_bits=6, act_bits=8, num_time_ranges=2, alpha=0.5)
    return method.convert(net, stats, num_steps=STEPS, quantizable=quantizable)


def test_only_what_is_quantizable_is_replaced(net, stats):
    state, clock = convert(net, stats), StepClock(STEPS)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    quantized = apply(net, state, clock, FakeQuantBackend())
    assert set(quantized_layers(quantized)) == set(state.layers) == {"attn.q", "attn.k", "fc"}
    assert type(quantized.attn.qkv.v) is nn.Linear and type(quantized.head) is nn.Linear
    assert torch.equal(quantized.attn.qkv.v.weight, net.attn.qkv.weight[8:])

    quantized.half()
    assert isinstance(net.attn.qkv, FusedLinear) and not quantized_layers(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_every_projection_sees_its_own_rows(net, stats):
    state, clock = convert(net, stats, StaticMethod(weight_bits=16, act_bits=16)), StepClock(STEPS)
    quantized = apply(net, state, clock, FakeQuantBackend())
    for ours, exact in zip(quantized.attn.qkv(data(0)), net.attn.qkv(data(0)), strict=True):
        np.testing.assert_allclose(ours, exact, atol=1e-3)
    np.testing.assert_allclose(quantized(data(0)), net(data(0)), atol=1e-3)


def test_fewer_bits_are_worse(net, stats):
    clock, errors = StepClock(STEPS), []
    for bits in (16, 8, 6, 4, 2):
        state = convert(net, stats, StaticMethod(weight_bits=bits, act_bits=bits))
        errors.append(float((apply(net, state, clock, FakeQuantBackend())(data(0)) - net(data(0))).norm()))
    assert errors == sorted(errors) and errors[0] < errors[-1] / 100


@pytest.mark.parametrize("weight_sets", ["packed", "requantize"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "changed", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["copy", "pickle"]
)
def test_weight_sets_change_no_bit(net, stats, changed, dtype, weight_sets):
    """Of a copied model either, whose layers follow the copied clock."""
    outputs = {}
    for choice in ("keep", weight_sets):
        clock = StepClock(STEPS)
        quantized = apply(net, convert(net, stats), clock, FakeQuantBackend(choice))
        for model, time in [(quantized, clock), changed((quantized, clock))]:
            model.to(dtype)
            for step in range(STEPS):
                time.set(step)
                outputs.setdefault(step, []).append(model(data(step).to(dtype)))
    for same in outputs.values():
        assert len(same) == 4 and all(torch.equal(same[0], other) for other in same)
    assert not torch.equal(model(data(0).to(dtype)), outputs[0][0])  # the ranges differ


def test_requantized_layers_read_the_weights_of_the_model(net, stats):
    quantized = apply(net, convert(net, stats), StepClock(STEPS), FakeQuantBackend("requantize"))
    k = quantized.attn.qkv.k.weights.stored.tensor
    assert k.data_ptr() == net.attn.qkv.weight[4:].data_ptr() and k.shape == (4, 6)


def test_state_dict_is_the_same_for_every_choice_and_holds_no_weight_set(net, stats):
    choices = ("keep", "packed", "requantize")
    models = [apply(net, convert(net, stats), StepClock(STEPS), FakeQuantBackend(choice)) for choice in choices]
    names = [name for name in models[0].state_dict() if name.startswith("fc.")]
    assert names == ["fc.bias", "fc.act.divisor", "fc.act.grid"]
    expected = models[0](data(0))
    for model in models[1:]:
        model(data(1))
        model.load_state_dict(models[0].state_dict())
        assert torch.equal(model(data(0)), expected)


def test_calls_are_counted(net, stats):
    quantized = apply(net, convert(net, stats), StepClock(STEPS), FakeQuantBackend())
    with CallCounter(quantized) as counter:
        quantized(data(0))
        quantized(data(1))
    quantized(data(2))
    assert counter.calls == {"attn.q": 2, "attn.k": 2, "fc": 2} and counter.total == 6


@pytest.mark.parametrize(
    "method",
    [
        StaticMethod(weight_bits=6, act_bits=8, num_time_ranges=2, alpha=0.5),
        StaticMethod(weight_bits=6, act_bits=8, num_time_ranges="per_step", symmetric_acts=True),
        DynamicMethod(token_granularity="token_shared"),
        FullPrecisionMethod(),
    ],
    ids=["smoothed", "plain", "dynamic", "full_precision"],
)
def test_file_round_trip(net, stats, method, tmp_path):
    state = convert(net, stats, method)
    state.save(tmp_path / "state.safetensors")
    loaded = QuantState.load(tmp_path / "state.safetensors")
    assert (loaded.num_steps, loaded.report) == (state.num_steps, state.report)
    assert list(loaded.layers) == list(state.layers)
    for fqn, params in state.layers.items():
        assert loaded.layers[fqn].description() == params.description()
        tensors = loaded.layers[fqn].tensors()
        assert tensors.keys() == params.tensors().keys()
        assert all(torch.equal(value, tensors[name]) for name, value in params.tensors().items())
    ours, theirs = (apply(net, s, StepClock(STEPS), FakeQuantBackend())(data(0)) for s in (state, loaded))
    assert torch.equal(ours, theirs)


def test_file_round_trip_of_every_table(net, stats, extended, tmp_path):
    state = convert(net, stats)
    params = extended(state.layers["fc"], net.fc.weight, 7, "shift correction bits codes branch groups")
    state = replace(state, layers={"fc": params})
    state.save(tmp_path / "state.safetensors")
    loaded = QuantState.load(tmp_path / "state.safetensors").layers["fc"]
    assert loaded.description() == params.description() and loaded.tensors().keys() == params.tensors().keys()
    assert all(torch.equal(value, loaded.tensors()[name]) for name, value in params.tensors().items())


def test_an_interrupted_save_leaves_the_old_file(net, stats, tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    convert(net, stats).save(path)
    before = path.read_bytes()

    def broken(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.torch, "save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        convert(net, stats, StaticMethod()).save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_files_of_another_kind_are_refused(net, stats, tmp_path):
    stats.save(tmp_path / "stats.safetensors")
    with pytest.raises(ValueError, match="holds vdq.stats, must hold vdq.quant_state"):
        QuantState.load(tmp_path / "stats.safetensors")


def test_report_has_a_row_for_every_layer(net, stats):
    state = convert(net, stats)
    rows = {row.fqn: row for row in state.report}
    assert set(rows) == {"attn.q", "attn.k", "attn.v", "fc", "head", "conv"}
    kept = {fqn: row.reason for fqn, row in rows.items() if row.kind == "full_precision"}
    assert kept == {
        "attn.v": "not quantizable in this model",
        "head": "not quantizable in this model",
        "conv": "Conv1d is not a linear layer",
    }
    row = rows["attn.q"]
    assert (row.kind, row.shape, row.weight_bits, row.act_bits) == ("static", (4, 6), 6, 8)
    assert (row.weight_ranges, row.act_ranges) == (2, 2)

    params, weight = flat(state.layers["attn.q"]), net.attn.qkv.weight[:4].double().numpy()
    s = params.smoothing.double().numpy()[:, None]
    lo, hi = np.minimum((weight * s).min(-1, keepdims=True), 0), np.maximum((weight * s).max(-1, keepdims=True), 0)
    scale = (hi - lo) / 63
    restored = (np.clip(np.rint(weight * s / scale) + np.rint(-lo / scale), 0, 63) - np.rint(-lo / scale)) * scale / s
    error = np.sqrt(((restored - weight) ** 2).sum() / (2 * (weight**2).sum()))
    assert row.weight_error == pytest.approx(error, rel=1e-3)
    widths = [np.ptp(np.append(data(step).numpy() / s[step // 2], 0)) for step in range(STEPS)]
    assert row.act_range_spread == pytest.approx(max(widths) / min(widths), rel=1e-5)


def test_model_size_counts_every_copy(net, stats):
    size = model_size(net, convert(net, stats))
    codes = 2 * (4 * 6 + 4 * 6 + 5 * 4) * 6 / 8  # two ranges, six bits
    scales = 4 * 2 * 2 * (4 + 4 + 5)  # scale and zero point in fp32
    smoothing, acts, indices = 4 * 2 * (6 + 6 + 4), 4 * 2 * 2 * 3, 8 * 2 * STEPS * 3
    kept = 4 * ((4 + 4 + 4 * 6 + 4) + 5 + (2 * 5 + 2) + (2 * 2 + 2))  # biases and what is not quantized, fp32
    assert size.weights * 1e6 == pytest.approx(codes)
    assert size.parameters * 1e6 == pytest.approx(scales + smoothing + acts + indices)
    assert size.full_precision * 1e6 == pytest.approx(kept)
    assert size.original * 1e6 == pytest.approx(sum(4 * p.numel() for p in net.parameters()))
    assert size.half * 1e6 == pytest.approx(sum(2 * p.numel() for p in net.parameters()))
    stored = codes + scales + smoothing + acts + indices
    assert size.bits_per_weight == pytest.approx(8 * stored / (4 * 6 + 4 * 6 + 5 * 4))
    assert model_size(net, QuantState({}, STEPS)).bits_per_weight is None
    assert size.total == pytest.approx(size.weights + size.parameters + size.full_precision)


def test_sizes_count_stored_codes_once_and_every_table(net, stats, extended):
    state = convert(net, stats)
    weights = {"attn.q": net.attn.qkv.weight[:4], "attn.k": net.attn.qkv.weight[4:8], "fc": net.fc.weight}
    parts = "shift correction bits codes branch groups"
    layers = {fqn: extended(params, weights[fqn], 7, parts) for fqn, params in state.layers.items()}
    before, size = model_size(net, state), model_size(net, replace(state, layers=layers))
    shifts, corrections = 4 * 2 * (6 + 4), 4 * 2 * (4 + 4 + 5)  # two ranges, fp32; q and k share a shift
    groups = 3 * (8 * 7 + 4 * 2 * 2)  # a table of rows; scale and zero point of one more group in two ranges
    bits = 3 * 8 * STEPS
    branches = 2 * 3 * (2 * (6 + 4) + 4 + 5)  # of rank 3, in half precision
    assert (size.parameters - before.parameters) * 1e6 == pytest.approx(shifts + corrections + groups + bits + branches)
    assert (size.weights, size.full_precision) == (before.weights, before.full_precision)
    assert size.branches * 1e6 == pytest.approx(branches) and before.branches == 0
    report = layer_reports(net, layers, stats, reason="")
    kinds = {"attn.q": 24, "attn.k": 24, "fc": 20}
    bits = sum(row.bits_per_weight * kinds[row.fqn] for row in report if row.fqn in kinds)
    assert bits == pytest.approx(8e6 * (size.weights + size.parameters))


@pytest.mark.parametrize("parts", ["shift rotation", "bits groups"])
def test_reports_tell_transforms_bits_and_groups(parts, net, stats, extended):
    weight, seen = net.fc.weight.repeat(3, 2), stats.layers["fc"]
    wide = LayerStats(*(getattr(seen, name).repeat(1, 2) for name in ("min", "max", "abs_sum")), seen.rows)
    quant = StaticMethod(weight_bits=6, alpha=0.5, num_time_ranges=2).layer(weight, wide, STEPS)
    quant = extended(quant, weight, 7, parts)
    params = flat(quant)
    linear = nn.Linear(8, 15, bias=False)
    linear.weight = nn.Parameter(weight)
    (row,) = layer_reports(linear, {"": quant}, Stats({"": wide}, STEPS, 3), reason="")
    assert (row.rotation, row.act_groups) == ((8, 1) if "rotation" in parts else (0, 2))
    assert row.mean_act_bits == ((8 + 6 + 7 + 8) / 4 if "bits" in parts else 8)
    H = hadamard(8) / np.sqrt(8) if "rotation" in parts else np.eye(8)
    w, errors = weight.double().numpy(), []
    for range_, s in enumerate(params.smoothing.double().numpy()):
        scale, zero = (values[range_].double().numpy() for values in params.weight)
        codes = np.clip(np.rint((w * s) @ H / scale) + zero, 0, 63)
        errors.append((codes - zero) * scale @ H.T / s - w)
    assert row.weight_error == pytest.approx(np.linalg.norm(errors) / np.linalg.norm([w, w]), rel=1e-3)
    shift = params.shift.repeat_interleave(2, 0).numpy() if "shift" in parts else 0
    s = params.smoothing.repeat_interleave(2, 0).numpy()
    lo, hi = ((values.numpy() - shift) / s for values in (wide.min, wide.max))
    widths = hi.max(1).clip(min=0) - lo.min(1).clip(max=0)
    assert row.act_range_spread == pytest.approx(widths.max() / widths.min(), rel=1e-5)


def test_a_step_without_a_range_has_no_spread_and_the_header_is_strict_json(net, stats, tmp_path):
    seen = stats.layers["fc"]
    still = LayerStats(seen.min.clone(), seen.max.clone(), seen.abs_sum, seen.rows)
    still.min[1] = still.max[1] = 0
    quant = StaticMethod(weight_bits=6).layer(net.fc.weight, still, STEPS)
    rows = layer_reports(net, {"fc": quant}, Stats({"fc": still}, STEPS, 3), reason="")
    assert next(row for row in rows if row.fqn == "fc").act_range_spread is None
    QuantState({"fc": quant}, STEPS, rows).save(tmp_path / "state.safetensors")
    with safe_open(tmp_path / "state.safetensors", framework="pt") as file:
        json.loads(file.metadata()["header"], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_mistakes_are_refused(net, stats):
    state = convert(net, stats)
    with pytest.raises(ValueError, match="clock.num_steps=5 must equal the state's num_steps=4"):
        apply(net, state, StepClock(5), FakeQuantBackend())
    with pytest.raises(ValueError, match="the model has no layer attn.k"):
        apply(nn.Sequential(), state, StepClock(STEPS), FakeQuantBackend())
    with pytest.raises(ValueError, match="needs calibration statistics of layer attn.qkv"):
        convert(net, None)
    with pytest.raises(ValueError, match="statistics have num_steps=4, must be 8"):
        StaticMethod().convert(net, stats, num_steps=8, quantizable=quantizable)
    with pytest.raises(ValueError, match="StaticMethod would quantize no layer"):
        StaticMethod().convert(net, stats, num_steps=STEPS, quantizable=lambda fqn: False)
    broken = nn.Linear(2, 2)
    nn.init.constant_(broken.weight, float("nan"))
    with pytest.raises(ValueError, match="NaN or infinite weights"):
        DynamicMethod().convert(broken, None, num_steps=STEPS, quantizable=lambda fqn: True)
