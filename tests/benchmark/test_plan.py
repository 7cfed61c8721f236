import pytest

from vdq.benchmark.plan import Plan


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"parts": ["lineer"]}, "benchmark.parts has the unknown name lineer; allowed: block, driver, linear, sampler"),
        ({"parts": "linear"}, r"benchmark.parts=linear must be a list, such as \[linear\]"),
        ({"parts": []}, "must name at least one of linear, block, sampler, driver"),
        (
            {"peers": ["onnx"]},
            "benchmark.peers has the unknown name onnx; allowed: onnxruntime_static, openvino_static",
        ),
        ({"rounds": 1}, "benchmark.rounds=1 must be at least 2"),
        ({"videos": 0}, "benchmark.videos=0 must be at least 1"),
        ({"limit": 0.0}, "benchmark.limit=0.0 must be in 0..1"),
    ],
)
def test_wrong_fields_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        Plan(**fields)


def test_unknown_method_is_named():
    plan = Plan(integer=["asq"], simulated=["asqq"])
    with pytest.raises(ValueError, match="benchmark.simulated has the unknown name asqq; allowed: asq, tsq_tsw"):
        plan.check_methods(["tsq_tsw", "asq"])


def test_default_is_the_size_of_the_targets():
    assert Plan().tokens == 4096
