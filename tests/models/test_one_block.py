"""One block of a pipeline's transformer: what speed is measured on, with the arguments of real calls."""

import pytest
import torch
from torch.nn import functional as F

from tests import tiny_pipelines
from vdq.backends import FakeQuantBackend, Int8CpuBackend
from vdq.benchmark.block import RandomBlock, contenders
from vdq.benchmark.machine import Machine
from vdq.benchmark.rounds import FULL
from vdq.benchmark.work import shares
from vdq.diffusion.clock import StepClock
from vdq.diffusion.noise import PromptNoise
from vdq.diffusion.samplers import Sampler
from vdq.methods import DynamicMethod, StaticMethod
from vdq.models.pipelines.model import DiffusersModel

SAMPLER = Sampler(steps=2, guidance_scale=4.0)
BLOCKS = {
    "wan": ["blocks.0"],
    "wan2_2": ["blocks.0"],
    "cogvideox": ["transformer_blocks.0"],
    "hunyuan_video": ["transformer_blocks.0", "single_transformer_blocks.0"],
}


@pytest.fixture(scope="module", params=BLOCKS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name, tmp_path_factory) -> DiffusersModel:
    folder = tmp_path_factory.mktemp(name)
    source = str(tiny_pipelines.save(name, folder / "pipeline"))
    return DiffusersModel(pretrained=source, call=tiny_pipelines.CALLS[name], dtype="fp32", cache=str(folder / "cache"))


@pytest.fixture(scope="module")
def shallow(model, name) -> DiffusersModel:
    return model.shallow(tiny_pipelines.CALLS[name])


@pytest.fixture(scope="module")
def one(shallow):
    return shallow.one_block(SAMPLER)


def test_one_block_of_each_kind_with_the_same_weights_every_time(one, shallow, model, name):
    assert list(one.blocks) == BLOCKS[name]
    full = model.structure["transformer"] if name == "wan2_2" else model.structure
    shapes = {fqn: tensor.shape for fqn, tensor in full.state_dict().items()}
    mine = one.net.state_dict()
    firsts = {fqn: shape for fqn, shape in shapes.items() if fqn.startswith(tuple(f"{b}." for b in one.blocks))}
    assert firsts == {fqn: mine[fqn].shape for fqn in firsts} and len(firsts) > 20
    assert not any(".1." in fqn and fqn.startswith(("blocks", "transformer_blocks")) for fqn in mine)
    again = shallow.one_block(SAMPLER).net.state_dict()
    assert all(torch.equal(again[fqn], tensor) for fqn, tensor in mine.items())


def test_calls_are_those_of_the_pipeline(one, name):
    """The oracle is a plain call of the tiny pipeline with encoders and blocks of its own."""
    pipeline, seen = tiny_pipelines.build(name), []
    keep = lambda module, args, named: seen.append(named)  # noqa: E731
    pipeline.transformer.register_forward_pre_hook(keep, with_kwargs=True)
    pipeline(
        prompt="a cat", num_inference_steps=2, guidance_scale=4.0, output_type="latent", **tiny_pipelines.CALLS[name]
    )
    expected, found = seen[0], one.inputs(0, torch.float32)
    assert found.args == () and found.named.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, torch.Tensor) and key not in ("encoder_hidden_states", "encoder_attention_mask"):
            assert (found.named[key].shape, found.named[key].dtype) == (value.shape, value.dtype), key
    assert torch.equal(found.named["timestep"], expected["timestep"])
    other = one.inputs(1, torch.float32)
    assert not torch.equal(other.named["hidden_states"], found.named["hidden_states"])
    assert float(other.named["timestep"][0]) == pytest.approx(float(one.timesteps[1]))


@torch.no_grad()
def test_contenders_compute_the_block(one):
    block = RandomBlock(one, Machine())
    stats, static = block.stats(), StaticMethod(num_time_ranges="per_step", alpha=0.5)
    states = {"tsq_tsw": block.state(static, stats), "dynamic": block.state(DynamicMethod(), stats)}
    states["simulated"] = states["tsq_tsw"]
    backends = {"tsq_tsw": Int8CpuBackend(), "dynamic": Int8CpuBackend(), "simulated": FakeQuantBackend()}
    call, seen = one.inputs(0, torch.float32), {}

    def keep(fqn: str, y) -> None:
        seen[fqn] = y[0] if isinstance(y, tuple) else y

    blocks = {fqn: one.net.get_submodule(fqn) for fqn in one.blocks}
    hooks = [each.register_forward_hook(lambda _, args, y, fqn=fqn: keep(fqn, y)) for fqn, each in blocks.items()]
    one.net(*call.args, **call.named)
    for hook in hooks:
        hook.remove()
    for fqn in one.blocks:
        rows = {row.name: row for row in contenders(block, fqn, list(backends.items()), states)}
        full = rows[FULL].run(0)
        assert torch.equal(full, seen[fqn])
        for name, row in rows.items():
            if name != FULL:
                assert 0 < row.facts["error"] < 0.1, (fqn, name)
                torch.testing.assert_close(row.run(0), full, atol=0.1 * float(full.abs().max()), rtol=0)


def test_driver_computes_what_the_plain_call_does(shallow):
    conditions, noise = shallow.encode([""]), PromptNoise(1, [0], None)
    sampling = shallow.plain_sampling(shallow.denoiser, conditions, SAMPLER)
    plain = sampling(noise)
    driven = shallow.sample(shallow.denoiser, conditions, noise, StepClock(2), SAMPLER)
    assert torch.equal(plain, driven) and plain.std() > 0
    assert torch.equal(sampling(noise), driven)


def test_small_video_unless_asked(model, name):
    """Frames as the call has them where those are fewer."""
    frames = tiny_pipelines.CALLS[name]["num_frames"]
    assert {"height": 256, "width": 256, "num_frames": frames}.items() <= model.shallow().call.items()
    assert model.shallow({"height": 64}).call["height"] == 64


def test_shares_of_a_call():
    """Attention of 4 heads on 6 tokens of width 8 between a quantized and another linear, by hand."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = torch.nn.Linear(8, 8), torch.nn.Linear(8, 2)

        def forward(self, x):
            heads = self.first(x).view(1, 6, 4, 2).transpose(1, 2)
            return self.last(F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2))

    net, x = Net().to("meta"), torch.empty(1, 6, 8, device="meta")
    found = shares(net, lambda: net(x), lambda fqn: fqn == "first")
    linear, attention, rest = 2 * 6 * 8 * 8, 2 * 2 * 6 * 6 * 8, 2 * 6 * 8 * 2
    assert found.all == linear + attention + rest
    assert found.linear == linear / found.all and found.attention == attention / found.all
    assert found.limit == pytest.approx(found.all / (found.all - linear / 2))
