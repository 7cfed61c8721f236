"""The weight of every step, from all kept sets and from one that is made when needed, to the bit."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.flat_layers import layer_quant, weight_grid
from vdq.diffusion.clock import StepClock
from vdq.quant.layer_quant import LayerQuant
from vdq.quant.report import weight_error
from vdq.quant.weight_sets import KeptWeights, PackedWeights, RequantizedWeights, pack, unpack

CHOICES = [KeptWeights, PackedWeights, RequantizedWeights]
SWITCHED = [PackedWeights, RequantizedWeights]
STEP_RANGES = [0, 0, 1, 1, 2, 2]
OUT = 5


def parts(bits: int = 8, symmetric: bool = False, in_features: int = 12) -> tuple[Tensor, LayerQuant, StepClock]:
    """A weight and its parameters for three ranges that are far apart."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(OUT, in_features, generator=generator)
    s = (torch.rand(3, in_features, generator=generator) + 0.5) * torch.tensor([[1.0], [0.3], [7.0]])
    s[1] *= torch.linspace(0.1, 3, in_features)
    quant = layer_quant(
        weight_bits=bits,
        act_bits=8,
        weight=weight_grid(weight, s, bits=bits, symmetric=symmetric),
        weight_range=torch.tensor(STEP_RANGES),
        smoothing=s,
        symmetric_weights=symmetric,
    )
    return weight, quant, StepClock(len(STEP_RANGES))


def numpy_weight(weight: Tensor, quant: LayerQuant, step: int) -> np.ndarray:
    """Section 2.1 in fp32, operation by operation, so that equal means equal bits."""
    number, bits = STEP_RANGES[step], quant.weight.bits
    scale, zero = (p[number].numpy() for p in (quant.weight.scale, quant.weight.zero_point))
    first = -(2 ** (bits - 1)) if quant.weight.symmetric else 0
    ratio = weight.float().numpy() * quant.part("smoothing").factors[number].numpy() / scale
    codes = np.clip(np.rint(ratio) + zero, first, first + 2**bits - 1)
    result = (codes - zero) * scale
    assert result.dtype == np.float32
    return result


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("in_features", [12, 7])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 6, 8, 16])
def test_every_step_has_the_weight_of_its_range(bits, symmetric, in_features, choice):
    weight, quant, clock = parts(bits, symmetric, in_features)
    sets = choice(weight, quant, clock)
    for step in (0, 5, 1, 3, 2, 4):
        clock.set(step)
        np.testing.assert_array_equal(sets(), numpy_weight(weight, quant, step))


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize(
    "dtypes",
    [
        [torch.float16],
        [torch.bfloat16],
        [torch.float16, torch.float32],
        [torch.float16, torch.bfloat16],
        [torch.bfloat16, torch.float16, torch.float64],
    ],
)
def test_casts_round_as_those_of_any_module(dtypes, choice):
    """In any order: what has been in fp16 stays rounded. The weight is used before, between and after."""
    weight, quant, clock = parts()
    sets = choice(weight, quant, clock)
    clock.set(2)
    expected = [torch.from_numpy(numpy_weight(weight, quant, step)) for step in range(len(STEP_RANGES))]
    for dtype in dtypes:
        sets()
        sets.to(dtype).to("cpu")
        expected = [tensor.to(dtype) for tensor in expected]
    for step, tensor in enumerate(expected):
        clock.set(step)
        assert sets().dtype == dtypes[-1] and torch.equal(sets(), tensor)


@pytest.mark.parametrize("choice", CHOICES)
def test_half_precision_weights_are_the_start_of_a_half_precision_layer(choice):
    weight, quant, clock = parts()
    weight = weight.half()
    expected = torch.from_numpy(numpy_weight(weight, quant, 0)).half()
    assert torch.equal(choice(weight, quant, clock)(), expected)


@pytest.mark.parametrize("choice", SWITCHED)
def test_a_set_is_made_once_per_range(choice, monkeypatch):
    weight, quant, clock = parts()
    sets, made, dequantized = choice(weight, quant, clock), [], choice.dequantized
    monkeypatch.setattr(choice, "dequantized", lambda self, range_: made.append(range_) or dequantized(self, range_))
    for step in range(len(STEP_RANGES)):
        clock.set(step)
        assert sets() is sets()  # guidance may call twice
    assert made == [0, 1, 2]
    sets.half()()
    assert made == [0, 1, 2, 2]


def test_packed_codes_take_the_bytes_of_their_bits():
    """Against numpy, and read back."""
    codes = torch.arange(16).repeat(3).reshape(4, 12)
    flat = codes.numpy().astype(np.uint8)
    np.testing.assert_array_equal(pack(codes, 4), flat[:, :6] + 16 * flat[:, 6:])
    for bits, in_features, dtype, width in [(2, 12, 1, 6), (4, 12, 1, 6), (4, 7, 1, 7), (5, 12, 1, 12), (9, 12, 4, 12)]:
        expected = torch.arange(4 * in_features).reshape(4, in_features) % 2**bits
        packed = pack(expected.float(), bits)
        assert (packed.element_size(), packed.shape) == (dtype, (4, width))
        assert torch.equal(unpack(packed, in_features).long(), expected)
    weight, quant, clock = parts(bits=4)
    assert PackedWeights(weight, quant, clock).stored.tensor.nbytes == 3 * OUT * 12 / 2


def test_the_original_weight_is_not_copied_and_not_cast():
    weight, quant, clock = parts()
    linear = nn.Linear(12, OUT)
    linear.weight = nn.Parameter(weight)
    address = weight.data_ptr()
    sets = RequantizedWeights(linear.weight, quant, clock)
    expected = sets().half()
    sets.half().to("cpu")
    linear.half()  # the model casts its own tensors, as a Trainer of half precision does
    assert torch.equal(sets(), expected)
    original = sets.stored.tensor
    assert original.data_ptr() == address and original.dtype == torch.float32 and not original.requires_grad


@pytest.mark.parametrize("choice", SWITCHED)
def test_copies_share_what_is_only_read(choice):
    weight, quant, clock = parts()
    net = nn.ModuleList([choice(weight, quant, clock), clock])
    clock.set(4)
    before = net[0]()
    twin = copy.deepcopy(net)
    assert twin[0].stored.tensor.data_ptr() == net[0].stored.tensor.data_ptr() and twin[0].current is None
    assert twin[0].clock is twin[1] is not clock and torch.equal(twin[0](), before)
    twin[1].set(0)
    twin.half()
    assert torch.equal(twin[0](), torch.from_numpy(numpy_weight(weight, quant, 0)).half())
    assert net[0]() is before


@pytest.mark.parametrize("choice", CHOICES)
def test_pickles(choice):
    weight, quant, clock = parts()
    sets = choice(weight, quant, clock)
    clock.set(4)
    sets.half()()
    twin = pickle.loads(pickle.dumps(sets))
    for step in (4, 0):
        clock.set(step), twin.clock.set(step)
        assert torch.equal(twin(), sets()) and twin().dtype == torch.float16


@pytest.mark.parametrize("choice", CHOICES)
def test_made_in_inference_mode_used_outside(choice):
    weight, quant, clock = parts()
    with torch.inference_mode():
        sets = choice(weight, quant, clock)
        sets()
    x = torch.ones(2, 12, requires_grad=True)
    nn.functional.linear(x, sets()).sum().backward()
    np.testing.assert_allclose(x.grad[0], numpy_weight(weight, quant, 0).sum(0), rtol=1e-5)


@pytest.mark.parametrize("choice", CHOICES)
def test_shared_memory_and_meta_device(choice):
    weight, quant, clock = parts()
    sets = choice(weight, quant, clock)
    np.testing.assert_array_equal(sets.share_memory()(), numpy_weight(weight, quant, 0))
    assert sets.to("meta")().is_meta


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("choice", CHOICES)
def test_on_a_gpu_and_back(choice, bits, dtype):
    weight, quant, clock = parts(bits)
    sets = choice(weight, quant, clock).to("cuda", dtype)
    for step in (0, 5, 3):
        clock.set(step)
        expected = torch.from_numpy(numpy_weight(weight, quant, step)).to(dtype)
        assert sets().is_cuda and torch.equal(sets().cpu(), expected)
    if choice is PackedWeights:
        assert sets.stored.tensor.is_pinned()
    assert torch.equal(sets.cpu()(), expected)


class Largest(TorchDispatchMode):
    """The most elements that any result had."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_nothing_but_kept_weights_holds_all_sets():
    weight, quant, clock = parts()
    with Largest() as seen:
        weight_grid(weight, quant.part("smoothing").factors, bits=8)
        weight_error(weight, quant)
        RequantizedWeights(weight, quant, clock)()
    assert seen.elements == weight.numel()
    with Largest() as seen:
        KeptWeights(weight, quant, clock)()
    assert seen.elements == 3 * weight.numel()
