"""Rotated values reach proj rotated: the network stays the same function, and its layers rotate nothing."""

import copy

import pytest
import torch
from torch import nn

from vdq.backends import FakeQuantBackend, Int8CpuBackend, ReferenceBackend
from vdq.backends.fused_block import FusedBlock
from vdq.diffusion.clock import StepClock
from vdq.errors import UserError
from vdq.methods import StaticPlusMethod
from vdq.methods.static_plus.folding import attention_folds
from vdq.models.stdit import STDiT
from vdq.quant import Observer, QuantState, Stats, apply
from vdq.quant.linear import TransformedLinear
from vdq.quant.recorded_inputs import RecordedInputs
from vdq.quant.rotation import hadamard
from vdq.quant.search import InputRecorder
from vdq.quant.transform import rotate_output

STEPS, WIDTH, HEADS = 2, 48, 3
OFF = {"alpha": None, "shift": None, "step_bits": None, "clamp_acts": False, "weight_grid": "minmax"}
OFF |= {"rounding": "nearest", "rotation_block": 0, "low_rank": 0}


@pytest.fixture(scope="module")
def net(small_stdit) -> STDiT:
    net = small_stdit(hidden_size=WIDTH, num_heads=HEADS)
    generator = torch.Generator().manual_seed(1)
    for name, bias in net.named_parameters():
        if name.endswith("bias"):  # which are rotated as well
            nn.init.normal_(bias, std=0.2, generator=generator)
    return net


def inputs(step: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(2, 4, 2, 4, 4, generator=generator) * (step + 1)
    return x, torch.full((2,), 900 - 400 * step), torch.randn(2, 1, 6, 8, generator=generator)


def quantizable(fqn: str) -> bool:
    return fqn.startswith("blocks.")


@pytest.fixture(scope="module")
def stats(net) -> Stats:
    clock = StepClock(STEPS)
    recorder = InputRecorder(net, clock, quantizable, range(STEPS))
    with Observer(net, clock, quantizable) as observer, recorder:
        for step in range(STEPS):
            clock.set(step)
            net(*inputs(step))
    recorded = RecordedInputs.of_steps(recorder.inputs, recorder.places, torch.ones(STEPS), torch.ones(STEPS), "")
    return observer.stats(num_prompts=1).with_inputs(recorded)


def converted(net: STDiT, stats: Stats, bits: int, **options: object) -> QuantState:
    method = StaticPlusMethod(**OFF | {"weight_bits": bits, "act_bits": bits, "fold_rotation": True} | options)
    return method.convert(net, stats, num_steps=STEPS, quantizable=quantizable)


def error(net: STDiT, quantized: nn.Module, clock: StepClock) -> float:
    errors = []
    for step in range(STEPS):
        clock.set(step)
        y = net(*inputs(step))
        errors.append(float((quantized(*inputs(step)) - y).norm() / y.norm()))
    return max(errors)


def test_weights_that_are_folded_make_the_same_network(net):
    """To 1e-5 in fp32, with nothing quantized; blocks fit into a head of 16 channels."""
    folded = copy.deepcopy(net)
    groups = attention_folds(net, 128)
    assert len(groups) == 6 and {fold for group in groups for fold in group.values()} == {(16, 0), (0, 16)}
    for fqn, fold in (pair for group in groups for pair in group.items()):
        if fold.input:
            weight = folded.get_submodule(fqn).weight
            weight.copy_(hadamard(weight, fold.input))
        elif fqn.endswith(".v"):  # the last third of qkv
            qkv = folded.get_submodule(fqn.replace(".v", ".qkv"))
            qkv.weight[-WIDTH:] = rotate_output(qkv.weight[-WIDTH:], fold.output)
            qkv.bias[-WIDTH:] = hadamard(qkv.bias[-WIDTH:], fold.output)
        else:
            linear = folded.get_submodule(fqn)
            linear.weight.copy_(rotate_output(linear.weight, fold.output))
            linear.bias.copy_(hadamard(linear.bias, fold.output))
    assert not torch.equal(folded(*inputs(0)), net(*inputs(0)))
    assert error(net, folded, StepClock(STEPS)) < 1e-5


@pytest.mark.parametrize(
    "options", [{}, {"shift": "mean"}, {"rotation_block": 16, "alpha": 0.5, "shift": "mid"}, {"low_rank": 4}], ids=str
)
def test_quantized_layers_of_16_bits_make_almost_the_same_network(options, net, stats):
    """Ranges of rotated inputs are those of the recorded rows, beyond which a few others are clipped."""
    state, clock = converted(net, stats, 16, **options), StepClock(STEPS)
    assert error(net, apply(net, state, clock, FakeQuantBackend()), clock) < 0.03
    errors = {row.fqn: row.weight_error for row in state.report if row.kind == "static"}
    assert max(errors.values()) < 0.01, errors


def test_nothing_is_rotated_at_run_time(net, stats):
    quantized = apply(net, converted(net, stats, 8), StepClock(STEPS), FakeQuantBackend())
    assert not any(isinstance(module, TransformedLinear) for module in quantized.modules())
    rotating = apply(net, converted(net, stats, 8, rotation_block=16), StepClock(STEPS), FakeQuantBackend())
    found = {m.inner.fqn if hasattr(m.inner, "fqn") else m.fqn for m in rotating.modules() if _rotates(m)}
    assert found and not any(fqn.endswith(".proj") for fqn in found)


def _rotates(module: nn.Module) -> bool:
    transforms = module.transforms if isinstance(module, TransformedLinear) else []
    return any(transform.part.kind == "rotation" for transform in transforms)


def test_integers_equal_the_simulation(net, stats):
    state, clock = converted(net, stats, 8, shift="mean"), StepClock(STEPS)
    simulated = apply(net, state, clock, FakeQuantBackend())
    for step in range(STEPS):
        clock.set(step)
        y = simulated(*inputs(step))
        assert float((apply(net, state, clock, ReferenceBackend())(*inputs(step)) - y).norm() / y.norm()) < 1e-4


def test_blocks_that_rotate_nothing_are_fused(net, stats):
    """Folds alone cost the fused passes nothing."""
    state, clock = converted(net, stats, 8), StepClock(STEPS)
    fused, simulated = (apply(net, state, clock, backend()) for backend in (Int8CpuBackend, FakeQuantBackend))
    assert all(isinstance(block, FusedBlock) for block in fused.blocks)
    assert error(simulated, fused, clock) < 0.1  # a code that is rounded otherwise changes those behind it


def test_layers_that_are_not_all_quantized_are_not_folded(net, stats):
    method = StaticPlusMethod(**OFF, fold_rotation=True)
    state = method.convert(
        net, stats, num_steps=STEPS, quantizable=lambda fqn: quantizable(fqn) and not fqn.endswith("0.attn.v")
    )
    folded = {fqn for fqn, q in state.layers.items() if q.part("folded_rotation") or q.part("rotated_output")}
    assert not any(fqn.startswith("blocks.0.attn.") for fqn in folded) and "blocks.1.attn.proj" in folded


def test_folding_that_would_do_nothing_is_refused(net, stats):
    method = StaticPlusMethod(**OFF, fold_rotation=True)
    with pytest.raises(UserError, match="^fold_rotation=true does nothing: no attention of STDiT is quantized as"):
        method.convert(net, stats, num_steps=STEPS, quantizable=lambda fqn: ".mlp." in fqn and quantizable(fqn))
