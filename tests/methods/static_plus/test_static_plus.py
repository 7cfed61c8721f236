"""The switches of static_plus, judged on a layer whose inputs the test makes itself."""

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard

from tests.flat_layers import flat
from vdq.backends import FakeQuantBackend
from vdq.diffusion.clock import StepClock
from vdq.methods import StaticMethod, StaticPlusMethod
from vdq.methods.dvd_quant.grid_refinement import refine_grid
from vdq.methods.static_plus.token_groups import TokenGroups
from vdq.quant import LayerStats, Stats
from vdq.quant.batch_layout import BatchLayout
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.linear import LayerSpec
from vdq.quant.recorded_inputs import LayerInputs
from vdq.quant.search import output_error

STEPS, ROWS, INPUTS, OUTPUTS = 4, 64, 32, 24
OFF = {
    "step_bits": None,
    "rounding": "nearest",
    "alpha": 0.5,
    "shift": None,
    "clamp_acts": False,
    "weight_grid": "minmax",
    "rotation_block": 0,
    "low_rank": 0,
}


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    return torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def stats() -> LayerStats:
    """Of correlated inputs with outliers, with means that differ between channels and a size that differs by step."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(STEPS, ROWS, INPUTS, generator=generator) @ torch.randn(INPUTS, INPUTS, generator=generator)
    x = (x + 8 * torch.randn(INPUTS, generator=generator)) * torch.linspace(1, 3, STEPS)[:, None, None]
    x[:, :2, :3] *= 6
    x = x.half()
    places = torch.stack([torch.randperm(ROWS, generator=generator) for _ in range(STEPS)])
    recorded = LayerInputs(x, places, torch.tensor([0.01, 0.1, 1.0, 30.0]), torch.tensor([0, 0.01, 0.1, 0.5]))
    rows = torch.full((STEPS,), ROWS)
    full = x.float()
    return LayerStats(full.amin(1), full.amax(1), full.abs().double().sum(1), rows, recorded)


def converted(weight: torch.Tensor, stats: LayerStats, **options: object) -> LayerQuant:
    method = StaticPlusMethod(**{"weight_bits": 4, "act_bits": 4} | OFF | options)
    return method.layer(weight, stats, STEPS)


def error(weight: torch.Tensor, stats: LayerStats, quant: LayerQuant) -> float:
    return output_error(weight, quant, dict(enumerate(stats.recorded.inputs.float())))


def test_with_everything_off_it_is_asq_tsw(weight, stats):
    plain = StaticMethod(weight_bits=4, act_bits=4, num_time_ranges=1, act_time_ranges="per_step", alpha=0.5)
    expected, ours = plain.layer(weight, stats, STEPS).tensors(), converted(weight, stats).tensors()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.items())


@pytest.mark.parametrize(
    "switch",
    [
        {"rounding": "gptq"},
        {"weight_grid": "refined", "act_bits": 8},
        {"clamp_acts": True},
        {"shift": "mean"},
        {"shift": "mid"},
        {"correct_bias": True},
        {"rotation_block": 32},
        {"low_rank": 4},
    ],
    ids=str,
)
def test_every_part_lowers_the_output_error(switch, weight, stats):
    before, after = (error(weight, stats, converted(weight, stats, **each)) for each in ({}, switch))
    assert after < 0.98 * before


@pytest.mark.parametrize("rotation", [0, 16])
def test_refined_grids_are_those_of_the_transformed_weight(rotation, weight, stats):
    params = flat(converted(weight, stats, weight_grid="refined", rotation_block=rotation))
    turned = weight * params.smoothing[0] @ torch.block_diag(*[torch.tensor(hadamard(16) / 4).float()] * 2)
    expected = refine_grid(turned if rotation else weight * params.smoothing[0], bits=4)
    torch.testing.assert_close(params.weight.scale[0], expected.scale, rtol=1e-3, atol=0)


def test_bits_follow_the_error_of_steps(weight, stats):
    params = flat(converted(weight, stats, step_bits="spread"))
    assert params.step_bits.sum() == 4 * STEPS and params.act_bits == params.step_bits.max()
    assert params.step_bits.tolist() == sorted(params.step_bits.tolist()) and params.step_bits[3] > params.step_bits[0]
    switched = converted(weight, stats, step_bits="switched", act_bits=6)
    assert set(switched.act.step_bits.tolist()) == {5, 8} and switched.act.step_bits.double().mean() <= 6
    assert converted(weight, stats, step_bits="spread", act_bits=8).act.step_bits is None  # all have 8


def test_scales_are_of_the_transformed_inputs(weight, stats):
    """After shift, smoothing and rotation, with scipy's matrix: the range of every step."""
    params = flat(converted(weight, stats, shift="mean", rotation_block=16))
    x = stats.recorded.inputs.double().numpy()
    matrix = np.kron(np.eye(2), hadamard(16) / 4)
    for step in range(STEPS):
        turned = (x[step] - x[step].mean(0)) / params.smoothing[0].double().numpy() @ matrix
        width = max(turned.max(), 0) - min(turned.min(), 0)
        assert float(params.act.scale[step]) == pytest.approx(width / 15, rel=1e-4)


def test_clamping_is_the_best_of_its_ratios(weight, stats):
    """Against numpy, for every step and ratio, with the output of the weight before rounding."""
    params = flat(converted(weight, stats, clamp_acts=True))
    s = params.smoothing[0].double().numpy()
    w = weight.double().numpy() * s
    for step, x in enumerate(stats.recorded.inputs.double().numpy() / s):
        errors = {}
        for ratio in 1 - np.arange(7) / 10:
            lo, hi = ratio * min(x.min(), 0), ratio * max(x.max(), 0)
            scale = (hi - lo) / 15
            zero = np.rint(-lo / scale)
            errors[scale] = (((np.clip(np.rint(x / scale) + zero, 0, 15) - zero) * scale - x) @ w.T).__pow__(2).sum()
        best = min(errors, key=errors.get)
        assert float(params.act.scale[step]) == pytest.approx(best, rel=1e-4)


TOKENS = TokenGroups(torch.tensor([0, 1, 2, 1, 0, 0, 2, 2]), 3)  # of videos of 8 rows


@pytest.fixture(scope="module")
def unequal(stats) -> LayerStats:
    """The same inputs, those of group 1 five times, those of group 2 a fifth as large; rows stand in their order."""
    x = stats.recorded.inputs.float() * torch.tensor([1, 5, 0.2])[TOKENS.rows.repeat(ROWS // 8)][:, None]
    places = torch.arange(ROWS).expand(STEPS, -1)
    recorded = stats.recorded._replace(inputs=x.half(), places=places)
    return LayerStats(x.amin(1), x.amax(1), x.abs().double().sum(1), stats.rows, recorded)


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("rotation", [0, 16])
def test_scales_of_token_groups_are_those_of_their_rows(rotation, clamp, weight, unequal):
    """Against numpy: all rows have one grid once they are divided by the root mean square of their group."""
    method = StaticPlusMethod(**OFF | {"act_bits": 4, "rotation_block": rotation, "clamp_acts": clamp})
    params = flat(method.layer(weight, unequal, STEPS, tokens=TOKENS))
    assert torch.equal(params.act_group, TOKENS.rows) and params.act.scale.shape == (STEPS, 3)
    matrix = np.kron(np.eye(2), hadamard(16) / 4) if rotation else np.eye(INPUTS)
    groups = np.tile(TOKENS.rows.numpy(), ROWS // 8)
    w = weight.double().numpy() * params.smoothing[0].double().numpy() @ matrix
    for step, x in enumerate(unequal.recorded.inputs.double().numpy() / params.smoothing[0].double().numpy() @ matrix):
        power, mean = np.square(x).mean(1), np.square(x).mean()
        rms = np.array([np.sqrt((power[groups == g].sum() + mean) / ((groups == g).sum() + 1)) for g in range(3)])
        rows = rms[groups, None]
        lo, hi = (x / rows).min(), (x / rows).max()
        errors = {}
        for ratio in 1 - np.arange(7 if clamp else 1) / 10:
            scale = ratio * (hi - lo) / 15
            zero = np.rint(-ratio * lo / scale)
            rounded = (np.clip(np.rint(x / rows / scale) + zero, 0, 15) - zero) * scale * rows
            errors[scale] = np.square((rounded - x) @ w.T).sum()
        best = min(errors, key=errors.get)
        np.testing.assert_allclose(params.act.scale[step], best * rms, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"correct_bias": True}, {"low_rank": 4, "shift": "mean"}], ids=str)
def test_token_groups_lower_the_error_of_unequal_tokens(options, weight, unequal):
    """Relative error of the rows of the smallest tokens, 25 times smaller than the largest."""
    method = StaticPlusMethod(**OFF | {"weight_bits": 8, "act_bits": 6, "rotation_block": 16} | options)
    small = (TOKENS.rows == 2).repeat(ROWS // 8)

    def error(quant: LayerQuant) -> float:
        errors, x = [], unequal.recorded.inputs.float()
        for step in range(STEPS):
            transformed = quant.transform_input(x[step], torch.tensor(step))
            y = quant.act(transformed, torch.tensor(step)) @ quant.dequantized_weight(weight, 0).T
            y = y if (branch := quant.part("low_rank")) is None else y + branch(transformed)
            y = y if (correction := quant.part("correction")) is None else y + correction.values[step]
            exact = x[step] @ weight.T
            errors.append(float((y - exact)[small].norm() / exact[small].norm()))
        return sum(errors)

    plain, grouped = (method.layer(weight, unequal, STEPS, **each) for each in ({}, {"tokens": TOKENS}))
    assert error(grouped) < 0.5 * error(plain)


def test_bias_correction_leaves_no_mean_error(weight, stats):
    params = flat(quant := converted(weight, stats, correct_bias=True, shift="mid", rounding="gptq"))
    for step, x in enumerate(stats.recorded.inputs.float()):
        at = torch.tensor(step)
        ours = quant.act(quant.transform_input(x, at), at) @ quant.dequantized_weight(weight, 0).T
        lacking = (x @ weight.T - ours - params.correction[step]).mean(0)
        assert lacking.abs().max() < 1e-3 * (x @ weight.T).abs().max()


def test_tables_are_used_in_the_half_precision_in_which_they_are_stored(weight, stats):
    """The output of a layer against fp64 with the rounded tables, whose own error is that of half precision."""
    params = flat(quant := converted(weight, stats, shift="mean", weight_bits=16, act_bits=16))
    assert params.shift.dtype == params.correction.dtype == torch.float16
    means = stats.recorded.inputs.double().numpy().mean(1)
    np.testing.assert_array_equal(params.shift.numpy(), means.astype(np.float32).astype(np.float16))
    exact = params.shift.double().numpy() @ weight.double().numpy().T  # of the rounded shift, not of the means
    np.testing.assert_allclose(params.correction.numpy(), exact, rtol=2**-11, atol=1e-7)
    layer = FakeQuantBackend().layer(LayerSpec("fc", weight, None, quant, clock := StepClock(STEPS), BatchLayout()))
    s, codes = params.smoothing[0].double().numpy(), quant.dequantized_weight(weight, 0).double().numpy()
    for step, x in enumerate(stats.recorded.inputs.float()):
        clock.set(step)
        shifted = x.double().numpy() - params.shift[step].double().numpy()
        expected = shifted / s @ codes.T + params.correction[step].double().numpy()
        np.testing.assert_allclose(layer(x), expected, atol=2e-3 * np.abs(expected).max())


def test_corrections_beyond_half_precision_are_refused(weight, stats):
    with pytest.raises(ValueError, match=r"^correction reaches [\d.e+]+, half precision holds at most 65504$"):
        converted(1e6 * weight, stats, shift="mean")


@pytest.mark.parametrize("options", [{}, {"alpha": None, "rounding": "gptq", "rotation_block": 16, "low_rank": 4}])
def test_layers_of_one_input_share_its_shift_and_are_what_each_is_alone(options, weight, stats):
    method = StaticPlusMethod(**OFF | {"weight_bits": 4, "act_bits": 4, "shift": "mean"} | options)
    weights = {"q": weight, "k": 2 * weight.flip(0), "v": weight.flip(1)}
    found = method.layers(weights, stats, STEPS, {})
    assert len({id(quant.part("shift").values) for quant in found.values()}) == 1
    for name, each in weights.items():
        alone = method.layer(each, stats, STEPS).tensors()
        assert alone.keys() == found[name].tensors().keys()
        assert all(torch.equal(tensor, alone[key]) for key, tensor in found[name].tensors().items())


def test_inputs_that_never_change_have_one_row_in_every_table(weight, stats):
    """As text has: what the layer is at every step is what it is at the first step alone."""
    text = LayerStats(
        *(getattr(stats, name)[:1].expand(STEPS, -1) for name in ("min", "max", "abs_sum")),
        stats.rows,
        stats.recorded,  # other rows of the same input at every step
    )
    options = {"shift": "mean", "rounding": "gptq", "clamp_acts": True, "step_bits": "spread", "correct_bias": True}
    params = flat(quant := converted(weight, text, **options))
    assert [len(t) for t in (params.shift, params.correction, params.act.scale)] == [1, 1, 1]
    assert quant.num_steps == STEPS and params.step_bits is None and len(set(quant.variants())) == 1
    first = LayerStats(
        text.min[:1], text.max[:1], text.abs_sum[:1], text.rows[:1], LayerInputs(*(t[:1] for t in stats.recorded))
    )
    alone = StaticPlusMethod(**{"weight_bits": 4, "act_bits": 4} | OFF | options | {"step_bits": None})
    alone = flat(alone.layer(weight, first, 1))
    for name in ("shift", "correction", "codes"):
        assert torch.equal(getattr(params, name), getattr(alone, name))


def test_branch_is_of_the_transformed_weight(weight, stats):
    """What the integers hold is what numpy's best matrix of this rank leaves."""
    params = flat(quant := converted(weight, stats, low_rank=4, rotation_block=16, weight_bits=8))
    turned = (weight * params.smoothing[0]).double().numpy() @ np.kron(np.eye(2), hadamard(16) / 4)
    left, sizes, right = np.linalg.svd(turned)
    rest = turned - left[:, :4] * sizes[:4] @ right[:4]
    assert np.abs(quant.dequantized_weight(weight, 0).numpy() - rest).max() < 0.02 * np.abs(rest).max()


def test_table_tells_what_bits_follow_from(weight, stats):
    tables = StaticPlusMethod(weight_bits=4, act_bits=4).tables(
        None, Stats({"a": stats}, STEPS, 1), None, torch.tensor([999, 600, 300, 0])
    )
    table = tables["step_bits"]
    assert [row["timestep"] for row in table.rows] == [999, 600, 300, 0]
    bits = converted(weight, stats, step_bits="spread").act.step_bits
    assert [row["act_bits"] for row in table.rows] == bits.tolist()
    assert table.summary.startswith("step 3 makes 96% of the error")  # 30 of 31.11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift": "median"}, "shift=median must be one of null, mean, mid"),
        ({"rounding": "up"}, "rounding=up must be one of nearest, gptq"),
        ({"weight_grid": "x"}, "weight_grid=x must be one of minmax, refined"),
        ({"step_bits": "x"}, "step_bits=x must be one of null, spread, switched"),
        ({"token_groups": "row"}, "token_groups=row must be one of null, frame, position"),
        ({"rotation_block": 12}, "rotation_block=12 must be 0 or a power of two"),
        ({"low_rank": -1}, "low_rank=-1 must be 0 or a positive integer"),
        ({"damping": 0}, "damping=0 must be a number above 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        StaticPlusMethod(**options)


def test_rotation_fits_the_width(weight, stats):
    assert converted(weight, stats, rotation_block=128).part("rotation").block == 32
