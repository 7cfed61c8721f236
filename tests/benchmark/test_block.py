"""The random block: what is timed computes what it should, and its operations are counted right."""

import pytest
import torch
from torch import nn

from vdq.benchmark import work
from vdq.benchmark.block import SWITCHING, contenders
from vdq.benchmark.family import BLOCK_FQN, CHAIN, LINEARS
from vdq.benchmark.gemm import kernels, peaks
from vdq.benchmark.machine import Machine
from vdq.benchmark.rounds import FULL, INTEGER, KERNEL, SIMULATED
from vdq.quant.convert import apply

ROWS, TOKENS, C, CAPTION, FRAMES = 2, 32, 64, 6, 2  # tokens and captions of a row


@pytest.mark.parametrize("part", [*LINEARS, CHAIN, BLOCK_FQN])
def test_contenders_compute_the_part(random_block, methods, states, part):
    with torch.no_grad():
        rows = {row.name: row for row in contenders(random_block, part, methods, states)}
        full = rows[FULL].run(0)
        for name, row in rows.items():
            if name != FULL:
                assert 0 < row.facts["error"] < 0.05, name
                torch.testing.assert_close(row.run(0), full, atol=0.05 * float(full.abs().max()), rtol=0)
    assert {name: row.kind for name, row in rows.items()} == {
        FULL: FULL,
        "tsq_tsw": INTEGER,
        f"tsq_tsw, {SWITCHING}": INTEGER,
        "dynamic": INTEGER,
        "tsq_tsw, simulated": SIMULATED,
    }
    # A byte a weight for each of the two steps' sets, four in full precision.
    facts = rows["tsq_tsw"].facts
    assert facts["weight_sets"] == 2 and 2 * facts["weight_bytes"] == rows[FULL].facts["weight_bytes"]
    assert facts["static"] and not rows["dynamic"].facts["static"]


def test_the_timed_block_is_that_of_a_quantized_model(random_block, methods, states):
    name, backend = methods[0]
    net = apply(random_block.net, states[name], random_block.clock, backend)
    seen = []
    net.blocks[0].register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    with torch.no_grad():
        random_block.clock.set(0)
        net(*random_block.one.inputs(0, torch.float32).args)
        (x, expected), (_, call) = seen[0], random_block.quantized(BLOCK_FQN, states[name], backend)
        assert torch.equal(call(x), expected)


def test_switching_uses_the_weights_of_the_next_step(random_block, methods, states):
    with torch.no_grad():
        rows = {row.name: row for row in contenders(random_block, "blocks.0.mlp.fc1", methods, states)}
        row = rows[f"tsq_tsw, {SWITCHING}"]
        first, second, third = (row.run(0) for _ in range(3))
    assert torch.equal(first, third) and not torch.equal(first, second)
    assert torch.equal(first, rows["tsq_tsw"].run(0))


def test_operations_of_a_block(random_block):
    module, x = random_block.full(BLOCK_FQN)
    found = work.count(module, lambda: module(x), lambda fqn: True)
    per_token = 4 * C * C + 4 * C * C + 2 * C * C + 8 * C * C  # two attentions, cross q and proj, mlp
    assert found.linear == 2 * ROWS * (TOKENS * per_token + CAPTION * 2 * C * C)
    places = TOKENS // FRAMES
    assert found.other == ROWS * 2 * 2 * C * (FRAMES * places**2 + places * FRAMES**2 + TOKENS * CAPTION)
    assert not module.module.attn.proj._forward_pre_hooks


def test_only_quantizable_linears_count_as_such():
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    found = work.count(net, lambda: net(torch.ones(3, 4)), lambda fqn: fqn == "0")
    assert found == (2 * 3 * 4 * 8, 2 * 3 * 8 * 2)


def test_floor_is_integer_for_the_linears_only():
    speeds = work.Peaks(full=10.0, integer=40.0, full_kernel="", integer_kernel="")
    assert speeds.floor(work.Work(80, 20), integer=True) == 2 + 2
    assert speeds.floor(work.Work(80, 20), integer=False) == 10


def test_peaks_are_the_best_of_all_shapes():
    class Clock(Machine):
        """Calls take half a second longer each, so that the first shape is the fastest."""

        time, step = 0.0, 0.0

        def now(self):
            self.time, self.step = self.time + self.step, self.step + 0.5
            return self.time

    found = peaks([(16, 16), (16, 32)], 8, Clock())
    assert found.full == pytest.approx(2 * 8 * 16 * 16 / 1.5)  # warm-up 0.5 s, then 1.5 s and slower
    assert [row.kind for row in kernels(8, 16, 32, Machine())] == [KERNEL] * 2
    assert kernels(8, 16, 32, Machine())[0].run(0).shape == (8, 32)


def test_fused_product_gives_bytes():
    row = kernels(8, 16, 32, Machine())[1]
    if "oneDNN" not in row.computes:
        pytest.skip("torch has no oneDNN operations here")
    assert row.run(0).dtype == torch.uint8 and row.run(0).shape == (8, 32) and row.integer
