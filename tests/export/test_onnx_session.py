"""A session is told to be exact where its CPU would saturate, only there, and refused where that does not help."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the packages of vdq[export]")
ort = pytest.importorskip("onnxruntime", reason="needs the packages of vdq[export]")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from vdq.export import onnx_runtime, onnx_session  # noqa: E402
from vdq.export.onnx_session import PRECISE, exact_entries, multiplies_exactly, open_session  # noqa: E402

INT16 = np.iinfo(np.int16)


def qdq_product(codes: np.ndarray, weight: np.ndarray) -> bytes:
    """A model of codes uint8 [n, in] x weight int8 [in, out], all scales 1, written by hand."""
    shapes = {"x": [1, *codes.shape], "y": [1, len(codes), weight.shape[1]]}
    tensors = {"one": np.float32(1), "zero": np.uint8(0), "w": weight, "ones": np.ones(weight.shape[1], np.float32)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "ones"], ["b"], axis=1),
        helper.make_node("MatMul", ["a", "b"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    stored = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "product", [x], [y], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


class Exact:
    """Computes in floating point what a graph says."""

    def __init__(self, model: bytes) -> None:
        self.model = onnx.load_from_string(model)

    def run(self, _, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        return ReferenceEvaluator(self.model).run(None, feed)


class Saturating(Exact):
    """What x86 without VNNI makes of int8 weights: products of neighbours are added in 16 bits."""

    def run(self, _, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        tensors = [numpy_helper.to_array(tensor) for tensor in self.model.graph.initializer]
        weights = [tensor.astype(int) for tensor in tensors if tensor.dtype == np.int8 and tensor.ndim == 2]
        if not weights:
            return super().run(_, feed)
        zero = next(tensor.item() for tensor in tensors if tensor.dtype == np.uint8)
        products = (feed["x"][0].astype(int) + zero)[:, :, None] * weights[0]
        pairs = (products[:, ::2] + products[:, 1::2]).clip(INT16.min, INT16.max)
        return [(pairs.sum(1) - zero * weights[0].sum(0)).astype(np.float32)[None]]


@pytest.fixture
def cpu(monkeypatch):
    """Makes sessions of another CPU; returns the entries that each was opened with."""
    opened = []

    def make(plain: type, precise: type) -> list[dict[str, str]]:
        def session(model, entries, **settings):
            opened.append(entries)
            return (precise if PRECISE.items() <= entries.items() else plain)(model)

        monkeypatch.setattr(onnx_session, "plain_session", session)
        return opened

    exact_entries.cache_clear()
    yield make
    exact_entries.cache_clear()


def test_extreme_codes_are_exact_in_our_sessions():
    """On the CPU that runs the test, whatever it is; in whole numbers by numpy."""
    codes = np.array([[255] * 64, [0] * 64, [254, 1] * 32, [255, 0] * 32], np.uint8)
    weight = np.array([[127] * 64, [-128] * 64, [127, -128] * 32, [-127] * 64, [1] * 64], np.int8).T.copy()
    (found,) = open_session(qdq_product(codes, weight)).run(None, {"x": codes[None].astype(np.float32)})
    assert (found == codes.astype(int) @ weight.astype(int)).all()


def test_nothing_is_set_where_a_session_is_exact(cpu):
    opened = cpu(plain=Exact, precise=Exact)
    assert exact_entries() == {}
    open_session(b"", entries={"session.force_spinning_stop": "1"})
    assert opened == [{}, {}, {"session.force_spinning_stop": "1"}]


def test_a_cpu_that_saturates_is_told_once(cpu):
    opened = cpu(plain=Saturating, precise=Exact)
    model = qdq_product(np.zeros((1, 4), np.uint8), np.zeros((4, 4), np.int8))
    for _ in range(2):
        open_session(model, entries={"session.force_spinning_stop": "1"})
    asked = PRECISE | {"session.force_spinning_stop": "1"}
    assert opened == [{}, PRECISE, PRECISE, asked, asked]


def test_a_cpu_without_exact_sessions_is_refused(cpu, tmp_path):
    cpu(plain=Saturating, precise=Saturating)
    reason = r"does not multiply bytes exactly on this CPU, with session.x64quantprecision=1 neither; .*export=packed"
    for load in (open_session, onnx_runtime.load):
        with pytest.raises(ValueError, match=reason) as caught:
            load(tmp_path)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("weight_bits", "unsigned", "exact"), [(8, False, False), (8, True, True), (7, False, True)])
def test_saturation_is_found_where_it_can_be(weight_bits, unsigned, exact):
    def run(session: type):
        return lambda model, x: session(model).run(None, {"x": x})[0]

    form = {"weight_bits": weight_bits, "unsigned": unsigned}
    assert multiplies_exactly(run(Exact), **form)
    assert multiplies_exactly(run(Saturating), **form) == exact
