"""A layer as ONNX operators: ONNX Runtime computes what the integer reference computes, in integers."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("onnx", reason="needs the packages of vdq[export]")
ort = pytest.importorskip("onnxruntime", reason="needs the packages of vdq[export]")

from onnx import GraphProto, TensorProto, checker, load_model, save_model  # noqa: E402

from vdq.backends import ReferenceBackend  # noqa: E402
from vdq.diffusion.clock import StepClock  # noqa: E402
from vdq.errors import UserError  # noqa: E402
from vdq.export.onnx_graph import DATA, Graph, TensorFile, layer_template, step_groups  # noqa: E402
from vdq.export.onnx_kernels import check_integer  # noqa: E402
from vdq.export.onnx_linear import OnnxBackend  # noqa: E402
from vdq.export.onnx_session import open_session  # noqa: E402
from vdq.methods import StaticMethod  # noqa: E402
from vdq.quant.batch_layout import BatchLayout  # noqa: E402
from vdq.quant.linear import LayerSpec  # noqa: E402
from vdq.quant.stats import LayerStats  # noqa: E402

STEPS, IN, OUT = 4, 40, 24
FQN = "blocks.0.fc"


def make_layer(**options) -> LayerSpec:
    """Ranges that grow with the step, of which the first is of positive inputs only; one row of the weight is zero."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(OUT, IN, generator=generator)
    weight[0], weight[1], weight[2] = weight[0].abs(), -weight[1].abs(), 0
    width = torch.rand(STEPS, IN, generator=generator) + torch.arange(1, STEPS + 1)[:, None]
    positive = torch.arange(STEPS)[:, None] == 0
    lowest = torch.where(positive, torch.zeros(()), -width)
    stats = LayerStats(lowest, width / 2, width.double(), torch.ones(STEPS, dtype=torch.long))
    params = StaticMethod(**options).layer(weight, stats, STEPS)
    return LayerSpec(FQN, weight, torch.randn(OUT, generator=generator), params, StepClock(STEPS), BatchLayout())


def inputs() -> Tensor:
    """[2, 9, IN]: inside the ranges of all steps and outside of them."""
    x = torch.randn(2, 9, IN, generator=torch.Generator().manual_seed(1))
    x[:, ::3] *= 5
    return x


def write(layer: LayerSpec, steps: list[int], folder, *, zero_points: bool, unsigned: bool = False):
    """The file of a graph with this layer alone."""
    with (folder / DATA).open("wb") as file:
        graph = Graph(layer_template(layer, [2, 9, IN]), TensorFile(file), steps)
        model = graph.build({layer.fqn: layer}, zero_points=zero_points, unsigned=unsigned)
    save_model(model, folder / "layer.onnx")
    checker.check_model(folder / "layer.onnx", full_check=True)
    return folder / "layer.onnx"


def any_session(path) -> ort.InferenceSession:
    """As somebody opens it who read nothing."""
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(path, x: Tensor, step: int, *, opened=open_session) -> Tensor:
    session = opened(path)
    feed = {"x": x.numpy(), "step": torch.tensor(step).numpy()}
    return torch.from_numpy(session.run(None, {entry.name: feed[entry.name] for entry in session.get_inputs()})[0])


def reference(layer: LayerSpec, x: Tensor, step: int) -> Tensor:
    layer.clock.set(step)
    return ReferenceBackend().layer(layer)(x)


@pytest.mark.parametrize("zero_points", [True, False])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("weight_bits", [2, 3, 4, 5, 7, 8])
@pytest.mark.parametrize("act_bits", [3, 6, 8])
def test_equals_the_integer_reference(weight_bits, act_bits, symmetric, zero_points, tmp_path):
    """Every step, all in integers; without smoothing the codes are the same, and so is all but the rounding of fp32."""
    bits = {"weight_bits": weight_bits, "act_bits": act_bits}
    layer = make_layer(**bits, symmetric_weights=symmetric, symmetric_acts=symmetric, num_time_ranges="per_step")
    x, groups = inputs(), [list(range(STEPS))] if zero_points else [[step] for step in range(STEPS)]
    for steps in groups:
        path = write(layer, steps, tmp_path, zero_points=zero_points)
        check_integer(path, [FQN])
        for step in steps:
            torch.testing.assert_close(run(path, x, step), reference(layer, x, step), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("weight_bits", "act_bits", "dtype"), [(8, 8, "UINT8"), (8, 7, "INT8"), (7, 8, "INT8")])
def test_is_exact_in_a_session_that_sets_nothing(weight_bits, act_bits, dtype, symmetric, tmp_path):
    """Also where sums of u8 x s8 products saturate, for inputs at the ends of their codes."""
    bits = {"weight_bits": weight_bits, "act_bits": act_bits}
    layer = make_layer(**bits, symmetric_weights=symmetric)
    x = 100 * inputs()
    for zero_points in (True, False):
        path = write(layer, [0, 1, 2, 3], tmp_path, zero_points=zero_points, unsigned=True)
        check_integer(path, [FQN])
        codes = next(t for t in load_model(path).graph.initializer if t.name == f"{FQN}.weight_codes")
        assert codes.data_type == TensorProto.DataType.Value(dtype)
        torch.testing.assert_close(run(path, x, 3, opened=any_session), reference(layer, x, 3), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("zero_points", [True, False])
def test_smoothing_moves_few_codes_and_by_one(zero_points, tmp_path):
    """The graph rounds X / s before it divides by the scale; a code moves only where that crosses a half."""
    layer = make_layer(alpha=0.5, num_time_ranges=2)
    x = inputs()
    for steps in ([0, 1], [2, 3]):
        path = write(layer, steps, tmp_path, zero_points=zero_points)
        check_integer(path, [FQN])
        for step in steps:
            found, expected = run(path, x, step), reference(layer, x, step)
            quant = layer.quant
            scale = quant.act.step_qparams().scale[step]
            one_code = scale * quant.dequantized_weight(layer.weight, step // 2).abs().max()
            moved = (found - expected).abs() > 1e-4
            assert moved.float().mean() < 0.05 and (found - expected).abs().max() <= 2 * one_code


def test_nothing_is_gathered_that_does_not_change(tmp_path):
    path = write(make_layer(alpha=0.5, num_time_ranges=2), [2, 3], tmp_path, zero_points=True)
    assert [entry.name for entry in open_session(path).get_inputs()] == ["x"]


def flat_bias(graph: GraphProto) -> None:
    bias = next(tensor for tensor in graph.initializer if tensor.name == f"{FQN}.bias")
    bias.ClearField("dims")
    bias.dims.append(OUT)


def unquantized_input(graph: GraphProto) -> None:
    next(node for node in graph.node if node.op_type == "MatMul").input[0] = "x"


@pytest.mark.parametrize("damage", [flat_bias, unquantized_input])
def test_a_layer_in_floating_point_is_found(damage, tmp_path):
    """ONNX Runtime makes a Gemm of the first and a product with rounded weights of the second, and says nothing."""
    path = write(make_layer(), [0], tmp_path, zero_points=True)
    check_integer(path, [FQN])
    model = load_model(path)
    damage(model.graph)
    save_model(model, path)
    with pytest.raises(ValueError, match=rf"does not multiply layer {FQN} in integers; one of .* is wanted"):
        check_integer(path, [FQN])


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"act_bits": 16}, "act_bits=16 must be at most 8"), ({"weight_bits": 9}, "weight_bits=9 must be at most 8")],
)
def test_what_bytes_cannot_hold_is_refused(options, reason):
    with pytest.raises(ValueError, match=rf"onnx_qdq does not support layer {FQN}: {reason}"):
        OnnxBackend().layer(make_layer(**options))


@pytest.mark.parametrize("zero_points", [True, False])
@pytest.mark.parametrize("parts", ["shift", "correction", "bits", "codes", "shift correction bits codes"])
def test_shifts_corrections_bits_and_codes(parts, zero_points, extended, tmp_path):
    layer = make_layer(weight_bits=4, act_bits=8, act_time_ranges="per_step")
    layer = replace(layer, quant=extended(layer.quant, layer.weight, 9, parts))
    x, groups = inputs(), [list(range(STEPS))] if zero_points else [[step] for step in range(STEPS)]
    for steps in groups:
        path = write(layer, steps, tmp_path, zero_points=zero_points)
        check_integer(path, [FQN])
        for step in steps:
            torch.testing.assert_close(run(path, x, step), reference(layer, x, step), rtol=1e-5, atol=1e-5)


def test_steps_of_other_bits_are_another_constant_graph(extended):
    layer = make_layer(num_time_ranges=2)
    assert step_groups([layer], constant=True) == [[0, 1], [2, 3]]
    layer = replace(layer, quant=extended(layer.quant, layer.weight, 9, "bits"))
    assert step_groups([layer], constant=True) == [[0], [1], [2], [3]]
    assert step_groups([layer], constant=False) == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("parts", "kind"), [("groups", "token_groups"), ("rotation", "rotation"), ("branch", "low_rank")]
)
def test_what_it_does_not_write_is_refused(parts, kind, extended):
    layer = make_layer()
    with pytest.raises(UserError, match=rf"^layer {FQN}: export=onnx_qdq does not run the part {kind}; it runs affine"):
        OnnxBackend().layer(replace(layer, quant=extended(layer.quant, layer.weight, 9, parts)))


def test_two_dimensions_are_refused():
    with pytest.raises(ValueError, match=rf"layer {FQN} got 2 dimensions, must be at least 3"):
        OnnxBackend().layer(make_layer())(torch.zeros(3, IN))
