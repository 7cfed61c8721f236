import pytest
import torch

from vdq.backends import FakeQuantBackend, Int8CpuBackend
from vdq.benchmark.block import RandomBlock
from vdq.benchmark.family import stdit_block
from vdq.benchmark.machine import Machine
from vdq.benchmark.plan import Plan
from vdq.diffusion.schedule import Schedule
from vdq.methods import DynamicMethod, StaticMethod

SIZE = {"frames": 2, "side": 4, "hidden_size": 64, "num_heads": 2, "caption_tokens": 6, "caption_channels": 16}


@pytest.fixture(scope="package")
def random_block() -> RandomBlock:
    return RandomBlock(stdit_block(Plan(**SIZE), Schedule(2)), Machine())


@pytest.fixture(scope="package")
def states(random_block):
    stats = random_block.stats()
    static = StaticMethod(num_time_ranges="per_step", alpha=0.5)
    with torch.no_grad():
        return {
            "tsq_tsw": random_block.state(static, stats),
            "dynamic": random_block.state(DynamicMethod(), stats),
            "tsq_tsw, simulated": random_block.state(static, stats),
        }


@pytest.fixture(scope="package")
def methods():
    return [("tsq_tsw", Int8CpuBackend()), ("dynamic", Int8CpuBackend()), ("tsq_tsw, simulated", FakeQuantBackend())]
