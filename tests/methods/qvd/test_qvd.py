"""QVD on a small denoiser: its parameters by hand, its layers in the model, its tables."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.flat_layers import flat
from vdq.backends import FakeQuantBackend, ReferenceBackend
from vdq.diffusion.clock import StepClock
from vdq.diffusion.schedule import Schedule
from vdq.methods import QvdMethod
from vdq.methods.qvd.temporal import choose
from vdq.models.stdit import STDiT
from vdq.models.stdit_family import temporal_features, timestep_table
from vdq.quant import LayerStats, Observer, QuantState, Stats, apply
from vdq.quant.search import output_error

STEPS = 4
TIMESTEPS = Schedule(STEPS).timesteps
TEMPORAL = {"t_embedder.mlp.2", "t_block.1"}
RNG = np.random.default_rng(0)
CENTRES = RNG.normal(0, 3, 12).astype(np.float32)
WIDTHS = np.geomspace(0.1, 4, 12).astype(np.float32)
X = {step: torch.from_numpy((CENTRES + WIDTHS * RNG.uniform(-1, 1, (64, 12))).astype(np.float32)) for step in range(4)}
WEIGHT = torch.from_numpy(RNG.normal(0, 1, (20, 12)).astype(np.float32))


def layer_stats() -> LayerStats:
    lo, hi = (torch.stack([getattr(x, bound)(0) for x in X.values()]) for bound in ("amin", "amax"))
    return LayerStats(lo, hi, torch.zeros(STEPS, 12).double(), torch.ones(STEPS).long())


def quantizable(fqn: str) -> bool:
    return fqn.startswith("blocks.")


@pytest.fixture(scope="module")
def denoiser(small_stdit) -> STDiT:
    return small_stdit()


def inputs(step: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(2, 4, 2, 4, 4, generator=generator), torch.randn(2, 1, 6, 8, generator=generator)
    return x, TIMESTEPS[step].expand(2), y


@pytest.fixture(scope="module")
def stats(denoiser: STDiT) -> Stats:
    clock = StepClock(STEPS)
    with Observer(denoiser, clock, quantizable) as observer:
        for step in range(STEPS):
            clock.set(step)
            denoiser(*inputs(step))
    return observer.stats(num_prompts=2)


def convert(method: QvdMethod, denoiser: nn.Module, stats: Stats, timesteps: Tensor | None = TIMESTEPS) -> QuantState:
    return method.convert(denoiser, stats, num_steps=STEPS, quantizable=quantizable, timesteps=timesteps)


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("ranges", [1, "per_step"])
def test_parameters_by_hand(ranges, scale):
    params = flat(QvdMethod(num_time_ranges=ranges, scale=scale, absorb="original").layer(WEIGHT, layer_stats(), STEPS))
    lo, hi = (bound.double().numpy() for bound in (layer_stats().min, layer_stats().max))
    if ranges == 1:
        lo, hi = lo.min(0, keepdims=True), hi.max(0, keepdims=True)
    s = np.ones(12) if params.smoothing is None else params.smoothing[0].double().numpy()
    assert (s.max() > 1) == scale
    np.testing.assert_allclose(params.shift, (lo + hi) / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(params.act.scale, ((hi - lo) / 2 / s).max(1) / 127, rtol=1e-5)
    np.testing.assert_allclose(params.correction, (lo + hi) / 2 @ WEIGHT.double().numpy().T, rtol=1e-4, atol=1e-5)
    rows = np.abs(WEIGHT.double().numpy() * s).max(1)
    np.testing.assert_allclose(params.weight.scale[0, :, 0], rows / 127, rtol=1e-5)
    assert not params.act.zero_point.any() and not params.weight.zero_point.any() and params.symmetric_weights


@pytest.mark.parametrize("scale", [False, True])
def test_shift_and_factors_change_no_product(scale):
    """Exactness of the folding, without rounding."""
    quant = QvdMethod(scale=scale, num_time_ranges=2, absorb="original").layer(WEIGHT, layer_stats(), STEPS)
    params = flat(quant)
    s = torch.ones(12) if params.smoothing is None else params.smoothing[0]
    for step, x in X.items():
        y = quant.transform_input(x, torch.tensor(step)) @ (WEIGHT * s).T + params.correction[params.act_range[step]]
        exact = x.double() @ WEIGHT.double().T
        assert float((y - exact).norm() / exact.norm()) < 1e-5


@pytest.mark.parametrize("scale", [False, True])
def test_the_quantized_weight_can_absorb_the_shift(scale):
    """Then a wide activation grid gives the product of X with the quantized weight, whatever the shift."""
    quant = QvdMethod(weight_bits=4, act_bits=16, scale=scale).layer(WEIGHT, layer_stats(), STEPS)
    params = flat(quant)
    s = 1 if params.smoothing is None else params.smoothing[0].numpy()
    grid = params.weight.scale[0].numpy()
    quantized = np.clip(np.rint(WEIGHT.numpy() * s / grid), -8, 7) * grid / s
    for step, x in X.items():
        at = torch.tensor(step)
        y = quant.act(quant.transform_input(x, at), at) @ quant.dequantized_weight(WEIGHT, 0).T
        np.testing.assert_allclose(y + params.correction[0], x.numpy() @ quantized.T, rtol=1e-3, atol=5e-3)


def test_shift_and_factors_lower_the_error_of_channels_that_lie_apart():
    methods = [QvdMethod(weight_bits=16, act_bits=6, shift=shift, scale=scale) for shift, scale in
               ((None, False), ("mid", False), ("mid", True))]  # fmt: skip
    errors = [output_error(WEIGHT, method.layer(WEIGHT, layer_stats(), STEPS), X) for method in methods]
    assert errors[0] > 2 * errors[1] > 2 * errors[2]


def test_temporal_features_are_what_the_linears_get(denoiser):
    features, seen = temporal_features(denoiser, TIMESTEPS), {}
    hooks = [
        denoiser.get_submodule(fqn).register_forward_pre_hook(
            lambda _, args, fqn=fqn: seen.setdefault(fqn, []).append(args[0][0])
        )
        for fqn in TEMPORAL
    ]
    for step in range(STEPS):
        denoiser(*inputs(step))
    for hook in hooks:
        hook.remove()
    assert features.keys() == TEMPORAL == seen.keys()
    for fqn, values in features.items():
        torch.testing.assert_close(values, torch.stack(seen[fqn]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
def test_temporal_layers_run_with_the_chosen_codebook(denoiser, stats, bits):
    state = convert(QvdMethod(temporal_bits=bits, weight_bits=6), denoiser, stats)
    assert set(state.layers) - {fqn for fqn in state.layers if quantizable(fqn)} == TEMPORAL
    model = apply(denoiser, state, StepClock(STEPS), FakeQuantBackend())
    for fqn, features in temporal_features(denoiser, TIMESTEPS).items():
        act, linear = state.layers[fqn].act, denoiser.get_submodule(fqn)
        levels, edges = (values.numpy() for values in choose(features, bits)[0].candidate.codebook)
        quantized = levels[np.searchsorted(edges, features.numpy())]
        largest = 2 ** (bits - 1) - 1  # not the 6 bits of the other weights
        scale = linear.weight.abs().amax(1, keepdim=True).numpy() / largest
        weight = np.clip(np.rint(linear.weight.numpy() / scale), -largest - 1, largest) * scale
        expected = quantized @ weight.T + linear.bias.numpy()
        np.testing.assert_allclose(model.get_submodule(fqn)(features), expected, rtol=1e-4, atol=1e-4)
        assert act.static and act.bits == bits and len(levels) <= 2**bits
    rows = {row.fqn: row for row in state.report}
    assert {rows[fqn].kind for fqn in TEMPORAL} == {"static"}


def test_without_temporal_bits_temporal_layers_stay_and_integers_run(denoiser, stats):
    state = convert(QvdMethod(temporal_bits=None), denoiser, stats, timesteps=None)
    assert all(map(quantizable, state.layers))
    clock = StepClock(STEPS)
    integer, simulated = (
        apply(denoiser, state, clock, backend) for backend in (ReferenceBackend(), FakeQuantBackend())
    )
    ours, theirs = integer(*inputs(0)), simulated(*inputs(0))
    assert float((ours - theirs).norm() / theirs.norm()) < 0.01
    with pytest.raises(ValueError, match="layer t_embedder.mlp.2: backend=reference does not run the part codebook"):
        apply(denoiser, convert(QvdMethod(), denoiser, stats), clock, ReferenceBackend())


def test_state_is_saved_whole(denoiser, stats, tmp_path):
    state = convert(QvdMethod(scale=True, num_time_ranges=2), denoiser, stats)
    state.save(tmp_path / "state.safetensors")
    loaded = QuantState.load(tmp_path / "state.safetensors")
    for fqn, params in state.layers.items():
        for name, tensor in params.tensors().items():
            assert torch.equal(tensor, loaded.layers[fqn].tensors()[name]), (fqn, name)


def test_tables(denoiser, stats):
    method = QvdMethod(temporal_bits=5)
    tables = method.tables(denoiser, stats, convert(method, denoiser, stats), TIMESTEPS)
    coverage = tables["coverage"].rows
    assert len(coverage) == 26 and all(0 < row[f"coverage_{w}"] <= 1 for row in coverage for w in ("before", "after"))
    assert np.mean([row["coverage_after"] - row["coverage_before"] for row in coverage]) > 0
    temporal = tables["temporal_features"].rows
    assert len(temporal) == 2 * 4 * 4 and [row["bits"] for row in temporal[:16:4]] == [8, 6, 5, 4]
    assert "HTDQ is then moot" in tables["timestep_table"].summary
    assert "t_block.1" in tables["temporal_features"].summary
    assert "temporal_features" not in QvdMethod(temporal_bits=None).tables(
        denoiser, stats, convert(QvdMethod(temporal_bits=None), denoiser, stats), TIMESTEPS
    )


def test_timestep_table_is_what_sampling_keeps(denoiser):
    prepared = denoiser.prepare_timestep(torch.tensor([500]))
    denoiser(inputs(0)[0][:1], prepared, inputs(0)[2][:1])
    results = [result for *_, result in prepared.memory._kept.values()]
    kept = sum(t.numel() for result in results for t in (result if isinstance(result, list) else [result]))
    table = timestep_table(denoiser, STEPS)
    assert table.reused_numbers == STEPS * kept
    assert table.numbers == STEPS * 7 * 32


def test_timestep_table_of_the_full_model():
    """STDiT-XL/2, 100 steps: 3.2 MB in fp32 (78 MB a batch row with all blocks' modulation) for 9.6 M weights."""
    with torch.device("meta"):
        table = timestep_table(STDiT(), 100)
    assert table.numbers * 4 / 1e6 == pytest.approx(3.2256)
    assert table.reused_numbers * 4 / 1e6 == pytest.approx(77.8752)
    assert table.weights == (256 + 1) * 1152 + (1152 + 1) * 1152 + (1152 + 1) * 6912


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_bits": 1}, "weight_bits=1 must be"),
        ({"act_bits": 17}, "act_bits=17 must be"),
        ({"temporal_bits": 1}, "temporal_bits=1 must be an integer in 2..16"),
        ({"shift": "median"}, "shift=median must be null or one of mid, mean"),
        ({"absorb": "bias"}, "absorb=bias must be one of original, quantized"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        QvdMethod(**options)


def test_what_temporal_features_need(denoiser, stats):
    with pytest.raises(ValueError, match="temporal_bits must be null without the schedule's timesteps"):
        convert(QvdMethod(), denoiser, stats, timesteps=None)
    linear = nn.ModuleDict({"blocks": nn.ModuleDict({"0": nn.Linear(12, 20)})})
    with pytest.raises(ValueError, match="must be null without a model whose family has temporal_features"):
        convert(QvdMethod(), linear, Stats({"blocks.0": layer_stats()}, STEPS, 1))
    with pytest.raises(ValueError, match="num_time_ranges=5 must be in 1..4"):
        QvdMethod(num_time_ranges=5).check(STEPS)
